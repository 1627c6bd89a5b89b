"""The options for clients: no weak algorithm, the real ssh and asyncssh agree with each profile, and no feature beyond git's needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay import config
from relay.config import Config
from relay.keys.host_certificate import read_host_certificate
from relay.ssh.algorithms import PROFILES, RECEIVE_PACKET_BYTES, REKEY_BYTES, server_options
from tests.support.certificates import Ca
from tests.support.keys import Key, KeyKind, make_key

WEAK = ("sha1", "group1-", "group14-sha1", "cbc", "arcfour", "3des", "md5", "ssh-rsa", "ssh-dss", "rsa1024", "umac-64", "none")


def settings(profile: str = "modern", **limits: float) -> Config:
    return Config(upstreams={}, algorithms=config.AlgorithmsSettings(profile=profile), limits=config.LimitsSettings(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_weak_algorithm_is_offered(profile: str) -> None:
    for names in PROFILES[profile].values():
        assert len(names) == len(set(names))
        assert not [name for name in names if name.endswith(WEAK) or any(weak in name for weak in WEAK[1:9])]


def test_compatible_is_modern_and_more() -> None:
    for kind, names in PROFILES["modern"].items():
        assert set(names) <= set(PROFILES["compatible"][kind])


def test_modern_leaves_a_client_no_choice_but_gcm_and_post_quantum_comes_first() -> None:
    assert all("gcm" in name for name in PROFILES["modern"]["encryption_algs"])
    assert {names["kex_algs"][0] for names in PROFILES.values()} == {"mlkem768x25519-sha256"}


def test_every_name_is_known_to_asyncssh(key: Key) -> None:
    """A misspelt name would raise only when a client connects."""
    for profile in PROFILES:
        asyncssh.SSHServerConnectionOptions(**server_options(settings(profile), [key.load()]))


def test_the_limits_reach_the_transport(key: Key) -> None:
    options = server_options(settings("compatible", login_grace_seconds=7, keepalive_seconds=11), [key.load()])
    assert (options["login_timeout"], options["keepalive_interval"], options["rekey_bytes"]) == (7, 11, REKEY_BYTES["compatible"])
    assert options["max_pktsize"] == RECEIVE_PACKET_BYTES <= 32_768  # RFC 4253 section 6.1
    assert REKEY_BYTES["compatible"] <= 1 << 30 < REKEY_BYTES["modern"] < 64 << 30  # RFC 4344 section 3.2


def test_only_public_keys_and_nothing_that_git_does_not_need(key: Key) -> None:
    options = server_options(settings(), [key.load()])
    no = ["password_auth", "kbdint_auth", "host_based_auth", "allow_pty", "agent_forwarding", "x11_forwarding", "line_editor", "allow_scp"]
    assert not any(options[name] for name in no)
    assert options["public_key_auth"] is True
    assert options["gss_host"] is None


def test_an_rsa_host_key_signs_with_sha_2_only_each_by_an_object_of_its_own(tmp_path: Path) -> None:
    rsa = make_key(tmp_path, "rsa", "rsa").load()
    pairs = server_options(settings(), [rsa, make_key(tmp_path, "ed25519").load()])["server_host_keys"]
    assert [pair.host_key_algorithms for pair in pairs] == [[b"rsa-sha2-256"], [b"rsa-sha2-512"], [b"ssh-ed25519"]]


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")  # a deprecation warning of cryptography
@pytest.mark.parametrize(
    ("profile", "offers", "works"),
    [
        ("modern", {}, True),
        ("modern", {"kex_algs": ["curve25519-sha256"], "encryption_algs": ["aes128-gcm@openssh.com"]}, True),
        ("modern", {"encryption_algs": ["chacha20-poly1305@openssh.com"]}, False),
        ("modern", {"encryption_algs": ["aes128-ctr"]}, False),
        ("modern", {"kex_algs": ["ecdh-sha2-nistp256"]}, False),
        ("compatible", {"encryption_algs": ["chacha20-poly1305@openssh.com"]}, True),
        ("compatible", {"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-sha2-256"]}, True),
        ("compatible", {"kex_algs": ["diffie-hellman-group14-sha256"]}, True),
        ("compatible", {"kex_algs": ["diffie-hellman-group14-sha1"]}, False),
        ("compatible", {"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-sha1"]}, False),
        ("compatible", {"server_host_key_algs": ["ssh-rsa"]}, False),
        ("compatible", {"server_host_key_algs": ["rsa-sha2-512"]}, True),
        ("compatible", {"server_host_key_algs": ["rsa-sha2-256"]}, True),
    ],
)
async def test_who_agrees_on_a_key_exchange(profile: str, offers: dict[str, list[str]], works: bool, tmp_path: Path) -> None:
    """A client refused by the server's lists fails with KeyExchangeFailed; one that gets through fails only at authentication."""
    keys = [make_key(tmp_path, "rsa", "rsa").load(), make_key(tmp_path, "ed25519").load()]
    acceptor = await asyncssh.create_server(asyncssh.SSHServer, "127.0.0.1", 0, config=None, **server_options(settings(profile), keys))
    tried = asyncssh.PermissionDenied if works else asyncssh.KeyExchangeFailed
    try:
        with pytest.raises(tried):
            await asyncssh.connect(
                "127.0.0.1", acceptor.get_port(), known_hosts=None, client_keys=[keys[1]], agent_path=None, config=None, **offers
            )
    finally:
        acceptor.close()
        await acceptor.wait_closed()


Known = tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]  # keys, CAs, revoked keys


@pytest.mark.parametrize("kind", ["rsa", "ed25519", "ecdsa"])
async def test_a_client_that_trusts_the_ca_knows_the_host_by_its_certificate(kind: KeyKind, tmp_path: Path) -> None:
    key, ca = make_key(tmp_path, "host", kind), Ca(tmp_path)
    certificate = read_host_certificate(ca.sign(key, "relay", principals=["127.0.0.1"], host=True))
    options = server_options(settings("compatible"), [key.load()], [certificate])
    names = [name for pair in options["server_host_keys"] for name in pair.host_key_algorithms]
    assert names == [f"{name.decode()}-cert-v01@openssh.com".encode() for name in names[len(names) // 2 :]] + names[len(names) // 2 :]
    acceptor = await asyncssh.create_server(asyncssh.SSHServer, "127.0.0.1", 0, config=None, **options)

    async def tried(known: Known, algorithm: str) -> None:
        given: dict[str, Any] = {"client_keys": None, "agent_path": None, "config": None, "server_host_key_algs": [algorithm]}
        await asyncssh.connect("127.0.0.1", acceptor.get_port(), known_hosts=known, **given)

    stranger = Ca(tmp_path, "stranger")
    try:
        for name in map(bytes.decode, names):
            certified = "-cert-v01" in name
            known: Known = ([], [ca.key.load().convert_to_public()], []) if certified else ([key.load().convert_to_public()], [], [])
            with pytest.raises(asyncssh.PermissionDenied):  # the host is known, and the client is not
                await tried(known, name)
            with pytest.raises(asyncssh.HostKeyNotVerifiable):
                await tried(([], [stranger.key.load().convert_to_public()], []), name)
    finally:
        acceptor.close()
        await acceptor.wait_closed()
