"""A folder with a valid configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.preflight.helpers import Setup


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)
