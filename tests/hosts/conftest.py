"""A page of docs/hosts/ as the settings of a relay: what the page says is what its test runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.keys import Key, make_key

OURS = ("addresses", "user", "private_key", "known_hosts")
HOSTS = Path(__file__).parents[2] / "docs" / "hosts"


@pytest.fixture(scope="session")
def settings_of() -> Callable[[str, str], dict[str, Any]]:
    """The TOML block of a page whose first line is this comment."""

    def settings(page: str, first: str) -> dict[str, Any]:
        blocks = re.findall(r"^```toml\n(.*?)^```$", (HOSTS / page).read_text(), re.MULTILINE | re.DOTALL)
        [block] = [block for block in blocks if block.startswith(first + "\n")]
        return tomllib.loads(block)

    return settings


def upstream_of(page: dict[str, Any], ca: Key) -> dict[str, Any]:
    """The page's upstream, but for its address, login and host key, which are the test's, and with this CA."""
    main = {name: value for name, value in page["upstreams"]["main"].items() if name not in OURS}
    if "user_certificate" in main:
        main["user_certificate"] = main["user_certificate"] | {"ca_key": str(ca.private)}
    return {"upstreams": {"main": main}}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("ca"), "relay_ca")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("people")
    return {name: make_key(folder, name) for name in ("bob", "mallory")}
