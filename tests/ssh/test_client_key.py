"""Decoding of a client's key blob, and the cache of decoded keys."""

from __future__ import annotations

import asyncssh
import pytest

from relay.openssh.fields import Fields, string
from relay.openssh.public_key import CLIENT_SIGNATURES, fingerprint
from relay.ssh.client_key import ClientKey, KnownKeys, verifies


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_keys_fingerprint_and_line_are_openssh_s(algorithm: str) -> None:
    made = asyncssh.generate_private_key(algorithm)
    blob = made.public_data
    key = ClientKey.decoded(blob)
    assert key.blob == blob
    assert key.fingerprint == fingerprint(blob) == made.get_fingerprint()
    assert key.line == " ".join(made.export_public_key("openssh").decode().split()[:2])
    assert key.key.public_data == blob


def test_sha1_is_not_verified() -> None:
    """An RSA key could sign with SHA-1, whatever algorithms the relay announced."""
    key = ClientKey.decoded(asyncssh.generate_private_key("ssh-rsa").public_data)
    assert {name.decode() for name in key.key.all_sig_algorithms} <= set(CLIENT_SIGNATURES)
    assert b"ssh-rsa" not in key.key.all_sig_algorithms


def test_an_rsa_signature_without_its_leading_zeros_is_verified() -> None:
    """PuTTY sends such a signature one time in 256; OpenSSH's sshd accepts it."""
    made = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    key = ClientKey.decoded(made.public_data).key
    for number in range(100_000):
        data = str(number).encode()
        fields = Fields(made.sign(data, b"rsa-sha2-256"))
        algorithm, signature = fields.string(), fields.string()
        if not signature[0]:
            break
    assert verifies(key, data, string(algorithm) + string(signature))
    assert verifies(key, data, string(algorithm) + string(signature.lstrip(b"\0")))
    assert not verifies(key, data + b"x", string(algorithm) + string(signature.lstrip(b"\0")))
    assert not verifies(key, data, string(algorithm) + string(signature[:-1]))
    assert not verifies(key, data, string(algorithm) + string(b"\0" + signature)), "longer than the modulus"


@pytest.mark.parametrize("came", [b"", b"\0\0\0\x0bssh-ed25519", b"\0\0\0\7unknown\0\0\0\1x"])
def test_bytes_that_are_no_key_are_refused(came: bytes) -> None:
    with pytest.raises(asyncssh.KeyImportError):
        ClientKey.decoded(came)


def test_the_oldest_key_is_evicted_first() -> None:
    key = ClientKey.decoded(asyncssh.generate_private_key("ssh-ed25519").public_data)
    known = KnownKeys(most=2)
    for came in (b"one", b"two", b"one", b"three"):
        known.add(came, key)
        assert known.get(came) is key
    assert len(known) == 2
    assert known.get(b"one") is None
    assert known.get(b"two") is key
