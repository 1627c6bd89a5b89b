"""Who comes in: every kind of key that is proven, nobody else, and each refusal counted and told in one audit line."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited
from tests.support.keys import Key, KeyKind, SecurityKeyKind, SoftwareSecurityKey, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

HERMETIC: dict[str, Any] = {"known_hosts": None, "agent_path": None, "config": None}
GREETING = "Hi {}! You are authenticated. This host serves git only.\n"


@contextmanager
def failures(relay: RelayProcess, **expected: int) -> Iterator[list[dict[str, Any]]]:
    """Within, auth_failures_total grows by exactly these counts, each with its audit line; yields the lines, which come last."""

    def now() -> dict[str, float]:
        return {sample.labels["reason"]: sample.value for sample in relay.metrics()["relay_auth_failures_total"]}

    before, since = now(), len(relay.audit_lines())
    lines: list[dict[str, Any]] = []
    yield lines

    def grown() -> dict[str, float]:
        return {reason: value - before[reason] for reason, value in now().items() if value != before[reason]}

    wait_until(lambda: grown() == expected, message=f"auth_failures_total grows by {expected}, not by {grown()}")
    lines += audited(relay, since, sum(expected.values()), event="auth_failed")
    counts = {reason: [line["reason"] for line in lines].count(reason) for reason in {line["reason"] for line in lines}}
    assert counts == expected


def greeted(relay: RelayProcess, ssh: SshClient, name: str) -> dict[str, Any]:
    """Logs in, and must be greeted by name; returns the session's audit line."""
    since = len(relay.audit_lines())
    done = ssh.run(None)
    assert (done.returncode, done.stdout.decode()) == (0, GREETING.format(name)), done.stderr
    [line] = audited(relay, since, event="session")
    assert line["identity"] == name
    return line


# -- kinds of keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_of_each_kind(relay: RelayProcess, tmp_path: Path, kind: KeyKind) -> None:
    key = make_key(tmp_path, kind, kind)
    relay.add_key(f"gina@{kind}", key.line)
    wait_until(lambda: relay.ssh(key=key).run(None).returncode == 0, message="the key is read")
    before = relay.metric("relay_auth_successes_total", method="publickey")
    assert greeted(relay, relay.ssh(key=key), "gina")["key"] == key.fingerprint
    assert relay.metric("relay_auth_successes_total", method="publickey") == before + 1


@pytest.mark.parametrize("bits", [384, 521])
def test_the_larger_curves(relay: RelayProcess, tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", str(bits), "-N", "", "-f", path], check=True)
    relay.add_key(f"carol{bits}", path.with_suffix(".pub").read_text().strip())
    ssh = SshClient(relay.port, path, relay.known_hosts, relay.user)
    wait_until(lambda: ssh.run(None).returncode == 0, message="the key is read")


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
def test_rsa_signs_with_sha2(relay: RelayProcess, tmp_path: Path, algorithm: str) -> None:
    key = make_key(tmp_path, "rsa", "rsa")
    relay.add_key(f"dave-{algorithm}", key.line)
    ssh = relay.ssh(f"PubkeyAcceptedAlgorithms={algorithm}", key=key)
    wait_until(lambda: ssh.run(None).returncode == 0, message="the key is read")


class Sha1(asyncssh.SSHKeyPair):
    """An RSA key that signs as ssh-rsa, whatever the server announced."""

    def __init__(self, key: asyncssh.SSHKey) -> None:
        super().__init__(b"ssh-rsa", b"ssh-rsa", (b"ssh-rsa",), (b"ssh-rsa",), key.public_data, "sha1")
        self._key = key

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, b"ssh-rsa")


async def test_rsa_does_not_sign_with_sha1(relay: RelayProcess, tmp_path: Path) -> None:
    key = make_key(tmp_path, "rsa", "rsa")
    relay.add_key("erin", key.line)
    ssh = relay.ssh(key=key)
    await asyncio.to_thread(wait_until, lambda: ssh.run(None).returncode == 0, message="the key is read")
    done = await asyncio.to_thread(relay.ssh("PubkeyAcceptedAlgorithms=ssh-rsa", key=key).run, None)
    assert done.returncode == 255
    with pytest.raises(asyncssh.PermissionDenied):
        async with alice(relay, Sha1(key.load()), signature_algs=["ssh-rsa"]):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
async def test_a_security_key(relay: RelayProcess, kind: SecurityKeyKind) -> None:
    token = SoftwareSecurityKey(kind)
    relay.add_key(f"frank-{kind}", token.line)

    async def greeting() -> str:
        try:
            async with alice(relay, token) as connection:
                return (await run(connection, None)).stdout.decode()
        except asyncssh.PermissionDenied:
            return ""

    async with asyncio.timeout(20):
        while not (said := await greeting()):
            pass
    assert said == GREETING.format(f"frank-{kind}")
    token.flags = 0
    with pytest.raises(asyncssh.PermissionDenied):  # nobody touched it
        async with alice(relay, token):
            pass


# -- refusals ----------------------------------------------------------------------------------------------------------------


def test_an_unknown_key(relay: RelayProcess, tmp_path: Path) -> None:
    key = make_key(tmp_path, "stranger")
    with failures(relay, unknown_key=1) as lines:
        done = relay.ssh(key=key).run("git-upload-pack 'stub/emit/1'")
    assert done.returncode == 255
    assert done.stderr.endswith(b"Permission denied (publickey).\r\n")
    [line] = lines
    assert (line["key"], line["user"], line["address"]) == (key.fingerprint, "git", "127.0.0.1")
    assert line["client_version"].startswith("SSH-2.0-OpenSSH_") or line["client_version"].startswith("OpenSSH_")


@pytest.mark.parametrize("user", ["root", "alice", "Git", "git2"])
def test_another_user_name_with_a_known_key(relay: RelayProcess, user: str) -> None:
    with failures(relay, wrong_user=1) as lines:
        done = relay.ssh(user=user).run(None)
    assert (done.returncode, done.stdout) == (255, b"")
    assert lines[0]["user"] == user


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "hostbased", "gssapi-with-mic", "none"])
def test_no_other_method_is_offered(relay: RelayProcess, method: str) -> None:
    with failures(relay):
        done = relay.ssh(f"PreferredAuthentications={method}", "BatchMode=no", "NumberOfPasswordPrompts=1").run(None)
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.endswith(b"Permission denied (publickey).\r\n")


async def test_a_certificate_is_refused_and_its_plain_key_is_not(relay: RelayProcess, tmp_path: Path) -> None:
    authority = make_key(tmp_path, "authority")
    certificate = authority.load().generate_user_certificate(relay.key.load(), "root", principals=["git"])
    with failures(relay, certificate=1) as lines:
        keys = [(relay.key.load(), certificate), relay.key.load()]
        connection = await asyncssh.connect("127.0.0.1", relay.port, username="git", client_keys=keys, **HERMETIC)
        async with connection:
            assert (await run(connection, None)).stdout.decode() == GREETING.format("alice")
    assert authority.fingerprint in lines[0]["detail"]


# -- an offer is no proof ----------------------------------------------------------------------------------------------------


def test_an_offered_key_that_is_not_proven_is_not_the_identity(relay: RelayProcess, tmp_path: Path) -> None:
    bob = make_key(tmp_path, "bob")
    relay.add_key("bob", bob.line)
    wait_until(lambda: relay.ssh(key=bob).run(None).returncode == 0, message="bob's key is read")
    # ssh offers bob.pub first, is told that it is known, and finds that it cannot sign
    ssh = SshClient(relay.port, bob.public, relay.known_hosts, relay.user, options=(f"IdentityFile={relay.key.private}",))
    done = ssh.run(None, b"", "-v")
    assert f"Server accepts key: {bob.public} ED25519 {bob.fingerprint}".encode() in done.stderr
    line = greeted(relay, ssh, "alice")
    assert line["key"] == relay.key.fingerprint
    environment = ssh.run("git-upload-pack 'stub/env'").stdout.decode()
    assert "RELAY_IDENTITY=alice\n" in environment and bob.fingerprint not in environment


class Forger(asyncssh.SSHKeyPair):
    """Another's public key, signed for with an own private one."""

    def __init__(self, victim: asyncssh.SSHKey, own: asyncssh.SSHKey) -> None:
        algorithm = victim.algorithm
        super().__init__(algorithm, algorithm, (algorithm,), (algorithm,), victim.public_data, "forged")
        self._own = own

    def sign(self, data: bytes) -> bytes:
        return self._own.sign(data, self.sig_algorithm)


async def test_a_known_key_with_a_signature_of_another(relay: RelayProcess, tmp_path: Path) -> None:
    mallory = make_key(tmp_path, "mallory")
    forged = Forger(relay.key.load(), mallory.load())
    with failures(relay, bad_signature=1) as lines, pytest.raises(asyncssh.PermissionDenied):
        async with alice(relay, forged):  # type: ignore[arg-type]
            pass
    assert lines[0]["key"] == relay.key.fingerprint
    relay.add_key("mallory", mallory.line)
    ssh = relay.ssh(key=mallory)
    await asyncio.to_thread(wait_until, lambda: ssh.run(None).returncode == 0, message="mallory's key is read")
    # forged as alice first, then proven as mallory, on one connection
    with failures(relay, bad_signature=1):
        keys = [forged, mallory.load()]
        connection = await asyncssh.connect("127.0.0.1", relay.port, username="git", client_keys=keys, **HERMETIC)
        async with connection:
            assert (await run(connection, None)).stdout.decode() == GREETING.format("mallory")


# -- how often, how long -----------------------------------------------------------------------------------------------------


def test_the_attempts_of_a_connection_are_counted(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"limits": {"auth_attempts": 3}})
    strangers = [make_key(tmp_path, f"stranger{number}") for number in range(3)]

    def ssh(*more: Key) -> SshClient:
        return relay.ssh(*(f"IdentityFile={key.private}" for key in more), key=strangers[0])

    with failures(relay, unknown_key=2):
        greeted(relay, ssh(strangers[1], relay.key), "alice")
    with failures(relay, unknown_key=3, too_many=1):
        done = ssh(strangers[1], strangers[2], relay.key).run(None)
    assert done.returncode == 255
    assert b"Too many authentication failures" in done.stderr
    assert relay.metric("relay_connections_total", outcome="auth_failed") == 1


def test_who_says_nothing_is_sent_away(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 0.5}})
    address = ("127.0.0.1", relay.port)
    with failures(relay, grace=2), socket.create_connection(address) as silent, socket.create_connection(address) as scanner:
        scanner.sendall(b"SSH-2.0-scanner\r\n")
        for peer in (silent, scanner):
            peer.settimeout(20)
            while peer.recv(4096):
                pass  # its version, its algorithms, then the end
    wait_until(lambda: relay.metric("relay_connections_total", outcome="grace") == 2)
    wait_until(lambda: relay.metric("relay_connections_open") == 0)


def test_a_port_probe_is_no_failed_login(relay: RelayProcess) -> None:
    def closed(outcome: str) -> float:
        return relay.metric("relay_connections_total", outcome=outcome)

    probes, strangers = closed("no_auth"), closed("protocol")
    with failures(relay):
        socket.create_connection(("127.0.0.1", relay.port)).close()
        wait_until(lambda: closed("no_auth") == probes + 1)
        with socket.create_connection(("127.0.0.1", relay.port)) as web:
            web.sendall(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
            web.settimeout(20)
            while web.recv(4096):
                pass
        wait_until(lambda: closed("protocol") == strangers + 1)
