"""The file of revoked keys: a KRL, or keys line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.keys import revoked as module
from relay.keys.revoked import read_revoked
from tests.support.certificates import Ca, blob
from tests.support.keys import KEY_KINDS, make_key


def test_a_list_of_ssh_keygen(tmp_path: Path) -> None:
    alice = make_key(tmp_path, "alice")
    krl, problems = read_revoked(Ca(tmp_path).revoke(tmp_path / "krl", files=[alice.public]))
    assert problems == [] and krl.revokes_key(blob(alice.public))


def test_keys_line_by_line_as_sshd_reads_them(tmp_path: Path) -> None:
    keys = [make_key(tmp_path, kind, kind) for kind in KEY_KINDS]
    path = tmp_path / "revoked"
    path.write_text("# gone\r\n\n" + "".join(f"  {key.line}\n" for key in keys) + "ssh-dss AAAAB3NzaC1kc3MAAAABAQ== weak, and revoked\n")
    krl, problems = read_revoked(path)
    assert problems == []
    assert len(krl.keys) == 4 and all(krl.revokes_key(blob(key.public)) for key in keys)
    assert not krl.revokes_key(blob(make_key(tmp_path, "other").public))


def test_a_comment_is_a_list_of_none(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("# none\n")
    krl, problems = read_revoked(path)
    assert (krl.keys, problems) == (frozenset(), [])


def test_every_problem_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, alice, what = tmp_path / "revoked", make_key(tmp_path, "alice"), "a revocation list (ssh-keygen -k) or a file of public keys"
    certificate = Ca(tmp_path).sign(alice).read_text()
    path.write_text(f"nonsense\nssh-ed25519 ***\n{alice.line}\necdsa-sha2-nistp256 {alice.line.split()[1]}\n{certificate}\x00\n")
    assert read_revoked(path)[1] == [
        f"{path}:1: begins with \"nonsense\" and has no key behind it, must be 'type base64 comment'",
        f"{path}:2: begins with \"ssh-ed25519\" and has no key behind it, must be 'type base64 comment'",
        f'{path}:4: does not hold a key of the type "ecdsa-sha2-nistp256", must be copied whole from a .pub file',
        f'{path}:5: is a certificate ("ssh-ed25519-cert-v01@openssh.com"), must be a plain key; '
        "certificates are revoked by a KRL (ssh-keygen -k)",
        f"{path}:6: begins with \"?\" and has no key behind it, must be 'type base64 comment'",
    ]
    path.write_bytes(b"SSHKRL\n\x00" + bytes(3))
    assert read_revoked(path)[1] == [f"{path}: is cut off, must be {what}"]
    path.write_bytes(b"")
    assert read_revoked(path)[1] == [f"{path}: is empty, must be {what}; a comment (# none) will do"]
    path.unlink()
    assert read_revoked(path)[1] == [f"{path}: cannot be read (No such file or directory), must be {what}"]
    monkeypatch.setattr(module, "REVOCATION_FILE_BYTES", 4)
    path.write_text("# none")
    assert read_revoked(path)[1] == [f"{path}: is larger than the 4 bytes that are allowed"]
