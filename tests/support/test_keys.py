"""Every kind of key logs in to a real sshd, the software security keys included."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncssh
import pytest

from tests.support.keys import KEY_KINDS, SECURITY_KEY_KINDS, KeyKind, SecurityKeyKind, SoftwareSecurityKey, make_key
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_ssh_keygen_reads_the_files(tmp_path: Path, kind: KeyKind) -> None:
    key = make_key(tmp_path, "some", kind)
    public = subprocess.run(["ssh-keygen", "-y", "-f", key.private], capture_output=True, text=True, check=True).stdout
    assert public.split()[:2] == key.line.split()[:2] == key.public.read_text().split()[:2]
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key.public], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == key.fingerprint
    assert key.private.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", KEY_KINDS)
async def test_a_key_logs_in(tmp_path: Path, sshd: Sshd, kind: KeyKind) -> None:
    key = make_key(tmp_path, "some", kind)
    sshd.authorize(key.line)
    async with connect(sshd.port, [key], sshd.host_key_line) as connection:
        assert (await run(connection, sshd.stub("exit/3"))).exit_status == 3
    await wait_until_async(lambda: key.fingerprint in sshd.log_text())


@pytest.mark.parametrize("kind", SECURITY_KEY_KINDS)
async def test_a_security_key_logs_in_again_and_again(sshd: Sshd, kind: SecurityKeyKind) -> None:
    token = SoftwareSecurityKey(kind)
    sshd.authorize(token.line)
    # an mpint of a signature varies in length by a byte: verify many signatures, not one
    for _ in range(4):
        async with connect(sshd.port, [token], sshd.host_key_line) as connection:
            assert (await run(connection, sshd.stub("exit/3"))).exit_status == 3
    assert token.counter == 4
    assert sshd.log_text().count(f"Accepted publickey for {sshd.user} from 127.0.0.1") >= 4
    await wait_until_async(lambda: token.fingerprint in sshd.log_text())


@pytest.mark.parametrize("kind", SECURITY_KEY_KINDS)
def test_asyncssh_verifies_every_signature(kind: SecurityKeyKind) -> None:
    token = SoftwareSecurityKey(kind)
    public = asyncssh.import_public_key(token.line)
    for number in range(200):
        message = b"message %d" % number
        signature = token.sign(message)
        assert public.verify(message, signature)
        assert not public.verify(message + b"x", signature)


@pytest.mark.parametrize("kind", SECURITY_KEY_KINDS)
async def test_an_untouched_token_is_refused(sshd: Sshd, kind: SecurityKeyKind) -> None:
    token = SoftwareSecurityKey(kind)
    token.flags = 0
    sshd.authorize(token.line)
    with pytest.raises(asyncssh.PermissionDenied):
        async with connect(sshd.port, [token], sshd.host_key_line):
            pass


@pytest.mark.parametrize("kind", SECURITY_KEY_KINDS)
async def test_a_foreign_signature_is_refused(sshd: Sshd, kind: SecurityKeyKind) -> None:
    """The public key is authorized, but the signature is another token's."""
    token, thief = SoftwareSecurityKey(kind), SoftwareSecurityKey(kind)
    sshd.authorize(token.line)
    thief.public_data = token.public_data
    with pytest.raises(asyncssh.PermissionDenied):
        async with connect(sshd.port, [thief], sshd.host_key_line):
            pass
