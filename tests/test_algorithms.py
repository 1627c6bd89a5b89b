"""The lists that clients are offered: nothing weak, nothing misspelt, the strongest first; negotiation is in e2e/test_algorithms.py."""

from __future__ import annotations

from typing import Any

import asyncssh
import pytest
from asyncssh.encryption import get_default_encryption_algs, get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_public_key_algs

from relay.algorithms import CLIENT_SIGNATURES, PROFILES, RSA_HOST_SIGNATURES, HostKey, server_options
from relay.config import Algorithms, Config, Limits, Upstream

KNOWN = {
    "kex_algs": get_kex_algs,
    "encryption_algs": get_encryption_algs,
    "mac_algs": get_mac_algs,
    "signature_algs": get_public_key_algs,
}


def config(profile: Any = "modern", **limits: Any) -> Config:
    upstreams = {"main": Upstream(addresses=["127.0.0.1:22"])}
    return Config(upstreams=upstreams, algorithms=Algorithms(profile=profile), limits=Limits(**limits))


@pytest.mark.parametrize("profile", PROFILES)
def test_asyncssh_knows_every_name(profile: str) -> None:
    for kind, names in PROFILES[profile].items():
        assert {name.encode() for name in names} <= set(KNOWN[kind]()), kind
        assert len(names) == len(set(names))


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_weak_in_either(profile: str) -> None:
    for kind, names in PROFILES[profile].items():
        for name in names:
            assert not any(weak in name for weak in ("sha1", "md5", "cbc", "arcfour", "3des", "group1-", "dss", "umac")), (kind, name)
    assert "ssh-rsa" not in PROFILES[profile]["signature_algs"]
    assert not any("cert" in name for name in PROFILES[profile]["signature_algs"])


def test_modern_is_post_quantum_first_and_aes_gcm_only() -> None:
    modern = PROFILES["modern"]
    assert modern["kex_algs"][0] == "mlkem768x25519-sha256"
    assert not any("nist" in name or "diffie-hellman" in name for name in modern["kex_algs"])
    assert all("gcm@openssh.com" in name for name in modern["encryption_algs"])
    assert all("etm" in name for name in modern["mac_algs"])  # for whoever would need one: GCM does not


def test_compatible_only_adds_and_keeps_the_order() -> None:
    for kind, names in PROFILES["modern"].items():
        assert PROFILES["compatible"][kind][: len(names)] == names


@pytest.mark.parametrize("profile", PROFILES)
async def test_asyncssh_takes_the_options_for_every_kind_of_host_key(profile: str) -> None:
    keys = [
        asyncssh.generate_private_key("ssh-ed25519"),
        asyncssh.generate_private_key("ecdsa-sha2-nistp256"),
        asyncssh.generate_private_key("ssh-rsa", key_size=2048),
    ]
    given = server_options(config(profile, login_grace_seconds=7, keepalive_seconds=11), keys)
    options: Any = await asyncssh.SSHServerConnectionOptions.construct(server_factory=asyncssh.SSHServer, config=None, **given)
    assert [name.decode() for name in options.kex_algs] == PROFILES[profile]["kex_algs"]
    assert [name.decode() for name in options.encryption_algs] == PROFILES[profile]["encryption_algs"]
    assert set(options.server_host_keys) == {b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"rsa-sha2-256", b"rsa-sha2-512"}
    assert [name.decode() for name in options.signature_algs] == CLIENT_SIGNATURES
    assert options.compression_algs == [b"none"]
    assert (options.login_timeout, options.keepalive_interval, given["send_server_host_keys"]) == (7, 11, True)
    assert options.public_key_auth and not (options.password_auth or options.kbdint_auth or options.host_based_auth or options.gss_host)
    assert not (options.allow_pty or options.agent_forwarding or options.x11_forwarding or options.line_editor or options.allow_scp)
    assert options.encoding is None


def test_what_asyncssh_would_offer_by_itself_is_more() -> None:
    """The lists are needed: were they left out, so much more would be offered."""
    assert set(get_default_encryption_algs()) > {name.encode() for name in PROFILES["modern"]["encryption_algs"]}


@pytest.mark.parametrize("algorithm", RSA_HOST_SIGNATURES)
def test_a_host_key_signs_with_its_one_algorithm(algorithm: bytes) -> None:
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    pair = HostKey(key, algorithm)
    assert pair.host_key_algorithms == pair.sig_algorithms == [algorithm]
    assert pair.public_data == key.public_data
    signature = pair.sign(b"data")
    assert signature[4 : 4 + int.from_bytes(signature[:4], "big")] == algorithm
    assert key.convert_to_public().verify(b"data", signature)
