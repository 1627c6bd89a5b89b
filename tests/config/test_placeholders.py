"""Placeholders that a site left in a file are found, each with its place; comments and what is not there are not."""

from __future__ import annotations

from pathlib import Path

from relay.config.placeholders import PLACEHOLDER, placeholders


def test_each_place_is_named_in_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "alice.pub").write_text(f"# {PLACEHOLDER}: a comment\nssh-ed25519 {PLACEHOLDER} alice\n")
    (tmp_path / "keys" / ".hidden").write_text(PLACEHOLDER)
    (tmp_path / "keys" / "bob.pub").write_text("ssh-ed25519 AAAA bob\n")
    (tmp_path / "access.toml").write_text(f'who = ["{PLACEHOLDER}"]\n')
    found = placeholders([tmp_path / "access.toml", tmp_path / "keys", tmp_path / "keys", tmp_path / "missing"])
    assert [line.partition(": ")[0] for line in found] == [f"{tmp_path}/access.toml:1", f"{tmp_path}/keys/alice.pub:2"]
