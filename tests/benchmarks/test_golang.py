"""Building the Go programs: if it fails, they are left out with a reason, without an exception."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import golang


def test_a_machine_without_go_leaves_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert golang.build("go_relay", tmp_path) == golang.Built(None, "no Go toolchain was found")


def test_a_failing_build_leaves_it_out_with_gos_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho 'main.go:1: no such module' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert golang.build("go_relay", tmp_path / "out") == golang.Built(None, "go build failed: main.go:1: no such module")


@pytest.mark.parametrize("name", ["go_relay", "go_load"])
def test_versions_are_pinned_and_no_index_is_named(name: str) -> None:
    folder = golang.SOURCES / name
    pinned = (folder / "go.mod").read_text()
    assert "golang.org/x/crypto v" in pinned
    assert "replace" not in pinned
    assert "golang.org/x/crypto v" in (folder / "go.sum").read_text()
    assert not any("proxy" in (folder / file).read_text() for file in ("go.mod", "go.sum"))


def test_both_are_pinned_to_the_same_versions() -> None:
    relay, load = ((golang.SOURCES / name / "go.sum").read_text() for name in ("go_relay", "go_load"))
    assert relay == load
