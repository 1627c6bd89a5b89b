"""The description of the machine."""

from __future__ import annotations

import os
import re

import pytest

from benchmarks import machine


def test_versions_of_all_that_carries_bytes_are_told() -> None:
    facts = machine.describe()
    assert facts["asyncssh"].count(".") == 2
    assert facts["ssh"].startswith("OpenSSH_")
    assert "1." in facts["libssh2"]
    assert facts["processor"].startswith(f"{len(os.sched_getaffinity(0))} x ")


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    assert "load was 1.50" in (machine.warning() or "")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert machine.warning() is None


def test_the_commit_is_told() -> None:
    assert re.fullmatch(r"[0-9a-f]{7,}|", machine.commit())
