"""Reads the configurations of deploy/ in a folder made by `relay init`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from relay.cli import main
from relay.config.load import Loaded
from relay.config.placeholders import PLACEHOLDER
from relay.preflight import load_all

EXAMPLE, REAL = "git.example.com", "git.internal"  # the relay refuses example names, and placeholders


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., Loaded]:
    """Reads relay.toml with all its files, as `relay serve` would. `files` are added to those of `relay init`; `elsewhere` are folders
    outside of it that the text names, and which get copies of the keys."""

    def check(text: str, files: Mapping[str, str], elsewhere: tuple[str, ...]) -> Loaded:
        folder = tmp_path / "relay"
        assert main(["init", str(folder)]) == 0
        (folder / "known_hosts").write_text(f"{REAL} {(folder / 'host_ed25519.pub').read_text()}")
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(filled(content, folder))
            path.chmod(0o600)
        for number, named in enumerate(elsewhere):
            assert named in text, f"{named} is not named in the configuration"
            there = folder / f"elsewhere{number}"
            there.mkdir(exist_ok=True)
            for key in ("host_ed25519", "upstream_ed25519"):
                shutil.copy(folder / key, there)
            text = text.replace(named, str(there))
        (folder / "relay.toml").write_text(text.replace(EXAMPLE, REAL))
        return load_all(folder / "relay.toml")

    return check


def filled(content: str, folder: Path) -> str:
    """An example's file as a site would complete it."""
    key = (folder / "host_ed25519.pub").read_text().split()[1]
    return content.replace(EXAMPLE, REAL).replace(f"ssh-ed25519 {PLACEHOLDER}", f"ssh-ed25519 {key}").replace(PLACEHOLDER, "alice")
