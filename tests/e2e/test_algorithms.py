"""The algorithms that the relay offers to clients: ssh-audit, the real ssh and asyncssh against both profiles (RFC 4253 section 7.1)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import asyncssh
import pytest
from asyncssh.connection import SSHConnection
from asyncssh.kex import Kex, get_kex
from asyncssh.packet import NameList, SSHPacket

from relay.config import LimitsSettings
from relay.ssh.algorithms import PROFILES
from tests.e2e.helpers import alice
from tests.support.keys import Key, make_key
from tests.support.machine import free_port
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

CAT = "git-upload-pack 'stub/cat'"
STRICT_SERVER, STRICT_CLIENT = "kex-strict-s-v00@openssh.com", "kex-strict-c-v00@openssh.com"
MARKERS = {STRICT_SERVER, "ext-info-s"}  # names in the list of key exchange methods that are no methods
NOT_POST_QUANTUM = {"does not provide protection against post-quantum attacks"}
OUTDATED = ("cbc", "sha1", "md5", "3des", "arcfour", "-96", "umac-64", "ssh-rsa", "ssh-dss", "group1-", "group-exchange")

MSG_DISCONNECT, MSG_IGNORE, MSG_KEXINIT = 1, 2, 20


def rsa_host_key(relay: RelayProcess) -> Key:
    """An RSA host key of 3072 bits, the least that `modern` takes, beside the ed25519 one; for a relay that is not started yet."""
    path = relay.folder / "host_rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "3072", "-N", "", "-C", "host", "-f", path], check=True)
    relay.write_config({"host_keys": ["host_ed25519", path.name]})
    return Key(path, path.with_suffix(".pub").read_text().strip())


@pytest.fixture(scope="module", params=["modern", "compatible"])
def either(sshd: Sshd, request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """A relay with an ed25519 and an RSA host key, of one profile and then of the other."""
    with serving(sshd, request.param) as process:
        yield process


@pytest.fixture(scope="module")
def modern(sshd: Sshd) -> Iterator[RelayProcess]:
    with serving(sshd, "modern") as process:
        yield process


@pytest.fixture(scope="module")
def compatible(sshd: Sshd) -> Iterator[RelayProcess]:
    with serving(sshd, "compatible") as process:
        yield process


def serving(sshd: Sshd, profile: str) -> RelayProcess:
    relay = RelayProcess(sshd, config={"algorithms": {"profile": profile}})
    rsa_host_key(relay)
    return relay


def carried(relay: RelayProcess, *options: str) -> None:
    """Asserts that the real ssh with these options carries all bytes both ways."""
    data = os.urandom(700_000)
    done = relay.ssh(*options).run(CAT, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def no_match(relay: RelayProcess, what: str, *options: str) -> None:
    """Asserts that the real ssh finds no common algorithm."""
    done = relay.ssh(*options).run(CAT)
    assert done.returncode == 255
    assert f"no matching {what} found" in done.stderr.decode()


# -- ssh-audit ---------------------------------------------------------------------------------------------------------------


def audit(relay: RelayProcess) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "ssh_audit", "--json", "-p", str(relay.port), "127.0.0.1"], capture_output=True, timeout=120, check=False
    )
    assert done.returncode in (0, 2, 3), done.stderr  # good, warnings, failures
    return done.returncode, json.loads(done.stdout)


def notes(report: dict[str, Any], level: str) -> dict[str, set[str]]:
    """Algorithm -> ssh-audit's notes on it at this level."""
    algorithms = [one for kind in ("kex", "key", "enc", "mac") for one in report[kind]]
    return {one["algorithm"]: set(one["notes"][level]) for one in algorithms if one["notes"].get(level)}


def names(report: dict[str, Any], kind: str) -> list[str]:
    return [one["algorithm"] for one in report[kind]]


@pytest.mark.parametrize("rsa", [False, True])
def test_ssh_audit_of_modern(rsa: bool) -> None:
    """With the default limits: ssh-audit also tests whether the relay throttles connections (CVE-2002-20001)."""
    relay = RelayProcess(None, config={"limits": {"penalty_seconds": LimitsSettings().penalty_seconds}, "upstreams": UNREACHED})
    if rsa:
        rsa_host_key(relay)
    with relay:
        status, report = audit(relay)
    assert notes(report, "fail") == {}
    assert notes(report, "warn") == dict.fromkeys(["curve25519-sha256", "curve25519-sha256@libssh.org"], NOT_POST_QUANTUM)
    assert (report["additional_notes"], report["cves"], report["recommendations"]) == ([], [], {})
    assert status == 2  # the two warnings
    profile = PROFILES["modern"]
    assert [name for name in names(report, "kex") if name not in MARKERS] == profile["kex_algs"]
    assert (names(report, "enc"), names(report, "mac")) == (profile["encryption_algs"], profile["mac_algs"])
    assert names(report, "kex")[0] == "mlkem768x25519-sha256" and STRICT_SERVER in names(report, "kex")
    assert sorted(names(report, "key")) == (["rsa-sha2-256", "rsa-sha2-512"] if rsa else []) + ["ssh-ed25519"]
    assert report["compression"] == ["none"]


UNREACHED = {  # ssh-audit never gets so far in the protocol
    "main": {
        "addresses": ["127.0.0.1:9"],
        "private_key": "host_ed25519",
        "host_keys": [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 42}E"],
    }
}


def test_ssh_audit_of_compatible(compatible: RelayProcess) -> None:
    _, report = audit(compatible)
    offered = [name for kind in ("kex", "key", "enc", "mac") for name in names(report, kind)]
    assert [name for name in offered if any(part in name for part in OUTDATED)] == []
    assert set(notes(report, "fail")) == {"ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"}
    assert names(report, "kex")[0] == "mlkem768x25519-sha256" and STRICT_SERVER in names(report, "kex")
    assert names(report, "enc")[:2] == PROFILES["modern"]["encryption_algs"]


# -- key exchange ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [None, "mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org"])
async def test_key_exchange(either: RelayProcess, monkeypatch: pytest.MonkeyPatch, only: str | None) -> None:
    """What asyncssh's client agrees on, with its own order or with one method only."""
    chosen: list[str] = []

    def noted(connection: SSHConnection, algorithm: bytes) -> Kex:
        chosen.append(algorithm.decode())
        return get_kex(connection, algorithm)

    monkeypatch.setattr(asyncssh.connection, "get_kex", noted)
    options: dict[str, Any] = {"kex_algs": [only]} if only else {}
    async with alice(either, **options) as connection:
        assert connection._strict_kex
        result = await run(connection, "git-upload-pack 'stub/emit/100000'")
    assert result.stdout == stub_bytes(100_000)
    assert chosen == [only or "mlkem768x25519-sha256"]


def test_strict_key_exchange_with_ssh(either: RelayProcess) -> None:
    done = either.ssh().run("git-upload-pack 'stub/exit/0'", b"", "-vvv")
    assert done.returncode == 0
    assert b"will use strict KEX ordering" in done.stderr


@pytest.mark.parametrize("strict", [True, False])
def test_a_packet_that_was_slipped_into_the_key_exchange(modern: RelayProcess, strict: bool) -> None:
    """Terrapin (CVE-2023-48795): a packet before the first KEXINIT ends a strict key exchange."""
    kex = ["curve25519-sha256", *([STRICT_CLIENT] if strict else [])]
    with socket.create_connection(("127.0.0.1", modern.port), timeout=20) as client, client.makefile("rb") as stream:
        client.sendall(b"SSH-2.0-Terrapin\r\n" + packet(bytes([MSG_IGNORE, 0, 0, 0, 0])) + kexinit(kex))
        assert stream.readline().startswith(b"SSH-2.0-git-ssh-relay")
        assert next_message(stream) == MSG_KEXINIT
        if strict:
            assert next_message(stream) == MSG_DISCONNECT
        else:  # the relay waits for the method's first message
            client.sendall(packet(bytes([MSG_DISCONNECT]) + struct.pack(">III", asyncssh.DISC_BY_APPLICATION, 0, 0)))
            assert next_message(stream) is None


def packet(payload: bytes) -> bytes:
    """Before encryption, RFC 4253 section 6."""
    padding = 8 - (5 + len(payload)) % 8 + 8
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)


def kexinit(kex: list[str]) -> bytes:
    lists = [kex, ["ssh-ed25519"], *2 * [["aes128-gcm@openssh.com"]], *2 * [["hmac-sha2-256"]], *2 * [["none"]], [], []]
    encoded = b"".join(NameList([name.encode() for name in one]) for one in lists)
    return packet(bytes([MSG_KEXINIT]) + os.urandom(16) + encoded + bytes(5))


def next_message(stream: Any) -> int | None:
    """The number of the next message; None when the connection is over."""
    head = stream.read(5)
    if len(head) < 5:
        return None
    length, _ = struct.unpack(">IB", head)
    return int(stream.read(length - 1)[0])


# -- host keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "rsa-sha2-256", "rsa-sha2-512"])
def test_host_key_algorithms(either: RelayProcess, algorithm: str) -> None:
    both = either.folder / "both"
    public = [either.host_key.host_line, (either.folder / "host_rsa.pub").read_text().strip()]
    both.write_text("".join(f"[127.0.0.1]:{either.port} {line}\n" for line in public))
    carried(either, f"HostKeyAlgorithms={algorithm}", f'UserKnownHostsFile="{both}"')


def test_sha1_of_an_rsa_host_key(either: RelayProcess) -> None:
    no_match(either, "host key type", "HostKeyAlgorithms=ssh-rsa")


async def test_one_rsa_host_key_and_both_its_algorithms_at_once(modern: RelayProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client gets a signature of its agreed algorithm. asyncssh's client accepts either, so the test reads the signature."""
    line = (modern.folder / "host_rsa.pub").read_text().strip()
    agreed: ContextVar[str] = ContextVar("agreed")
    signed: list[tuple[str, str]] = []
    verify = asyncssh.rsa.RSAKey.verify

    def noted(key: asyncssh.SSHKey, data: bytes, signature: bytes) -> bool:
        signed.append((agreed.get(), SSHPacket(signature).get_string().decode()))
        return verify(key, data, signature)

    monkeypatch.setattr(asyncssh.rsa.RSAKey, "verify", noted)

    async def login(algorithm: str) -> bytes:
        agreed.set(algorithm)
        async with connect(modern.port, [modern.key], line, modern.user, server_host_key_algs=[algorithm]) as connection:
            return (await run(connection, "git-upload-pack 'stub/emit/10'")).stdout

    logins = [login(algorithm) for algorithm in ("rsa-sha2-256", "rsa-sha2-512") * 10]
    assert set(await asyncio.gather(*logins)) == {stub_bytes(10)}
    assert len(signed) == len(logins)
    assert [pair for pair in signed if len(set(pair)) > 1] == []


@pytest.mark.parametrize("second", ["rsa", "ecdsa"])
def test_a_new_host_key_is_learned_before_the_old_one_goes(sshd: Sshd, second: str) -> None:
    relay = RelayProcess(sshd, config={"listen": [f"127.0.0.1:{free_port()}"]})
    key = rsa_host_key(relay) if second == "rsa" else make_key(relay.folder, "host_ecdsa", "ecdsa")
    relay.write_config({"host_keys": ["host_ed25519", key.private.name]})
    with relay:
        learn(relay, key)


def learn(relay: RelayProcess, key: Key) -> None:
    pinned = relay.known_hosts.read_text()  # the old key only

    def known() -> list[str]:
        return [" ".join(line.split()[1:3]) for line in relay.known_hosts.read_text().splitlines()]

    assert known() == [relay.host_key.host_line]
    with relay.ssh("UpdateHostKeys=yes").popen(CAT) as ssh:
        wait_until(lambda: sorted(known()) == sorted([relay.host_key.host_line, key.host_line]), message="ssh knows both")
        ssh.communicate()
    assert ssh.returncode == 0
    learned = relay.known_hosts.read_text()
    relay.write_config({"host_keys": [key.private.name]})
    relay.stop()
    relay.start()
    relay.known_hosts.write_text(pinned)
    assert relay.ssh().run(CAT).returncode == 255  # a client that has not learned the new key
    relay.known_hosts.write_text(learned)
    carried(relay)


# -- ciphers and the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
def test_ciphers_of_both(either: RelayProcess, cipher: str) -> None:
    carried(either, f"Ciphers={cipher}")


@pytest.mark.parametrize("cipher", ["chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"])
def test_ciphers_of_compatible_only(modern: RelayProcess, compatible: RelayProcess, cipher: str) -> None:
    carried(compatible, f"Ciphers={cipher}")
    no_match(modern, "cipher", f"Ciphers={cipher}")


@pytest.mark.parametrize("mac", ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512"])
def test_macs_of_compatible(compatible: RelayProcess, mac: str) -> None:
    carried(compatible, "Ciphers=aes128-ctr", f"MACs={mac}")


METHODS_OF_COMPATIBLE = [
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
]


@pytest.mark.parametrize("method", METHODS_OF_COMPATIBLE)
def test_key_exchange_of_compatible_only(modern: RelayProcess, compatible: RelayProcess, method: str) -> None:
    carried(compatible, f"KexAlgorithms={method}")
    no_match(modern, "key exchange method", f"KexAlgorithms={method}")


@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("cipher", "Ciphers=aes128-cbc,aes192-cbc,aes256-cbc,3des-cbc"),
        ("key exchange method", "KexAlgorithms=diffie-hellman-group1-sha1,diffie-hellman-group14-sha1,diffie-hellman-group-exchange-sha1"),
        ("key exchange method", "KexAlgorithms=diffie-hellman-group-exchange-sha256"),
    ],
)
def test_what_neither_offers(either: RelayProcess, what: str, option: str) -> None:
    no_match(either, what, option)


def test_macs_that_compatible_does_not_offer(compatible: RelayProcess) -> None:
    outdated = "hmac-sha1,hmac-sha1-etm@openssh.com,hmac-sha1-96,hmac-md5,umac-64@openssh.com,umac-128@openssh.com"
    no_match(compatible, "MAC", "Ciphers=aes128-ctr", f"MACs={outdated}")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_no_profile_names_what_is_outdated(profile: str) -> None:
    named = [name for kind in PROFILES[profile].values() for name in kind]
    assert [name for name in named if any(part in name for part in OUTDATED)] == []
    assert PROFILES[profile]["kex_algs"][0] == "mlkem768x25519-sha256"
