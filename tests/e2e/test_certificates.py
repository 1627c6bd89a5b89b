"""OpenSSH user certificates with the real ssh-keygen and ssh: accepted ones, refused ones and why, revocation while the relay serves."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import Boolean, String

from tests.e2e.helpers import audited
from tests.support.certificates import FUTURE, PAST, Ca, blob
from tests.support.keys import KEY_KINDS, Key, KeyKind, SecurityKeyKind, SoftwareSecurityKey, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.userauth import Scripted
from tests.support.wait import wait_until

ENV = "git-upload-pack 'stub/env'"
EVERYONE = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
BALANCER = {"mode": "allow", "trusted": ["127.0.0.1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Ca:
    return Ca(folder, "ca")


@pytest.fixture(scope="module")
def bob(folder: Path) -> Key:
    """A key that the keys backend does not know."""
    return make_key(folder, "bob")


@pytest.fixture(scope="module")
def relay(sshd: Sshd, folder: Path, ca: Ca) -> Iterator[RelayProcess]:
    ca.revoke(folder / "krl")
    certificates = {"ca_keys": [str(ca.key.public)], "revoked": str(folder / "krl")}
    with RelayProcess(sshd, config={"certificates": certificates, "proxy_protocol": BALANCER}, access=EVERYONE) as process:
        yield process


def attempt(relay: RelayProcess, key: Key, certificate: Path | None) -> subprocess.CompletedProcess[bytes]:
    """The real ssh, which offers the certificate first and the plain key next."""
    options = [] if certificate is None else [f'CertificateFile="{certificate}"']
    return relay.ssh(*options, key=key).run(ENV)


def let_in(relay: RelayProcess, key: Key, certificate: Path | None) -> dict[str, Any]:
    """The audit line of the session of an accepted certificate."""
    since = len(relay.audit_lines())
    done = attempt(relay, key, certificate)
    assert (done.returncode, done.stderr) == (0, b"")
    [line] = audited(relay, since, event="session")
    told = dict(text.split("=", 1) for text in done.stdout.decode().splitlines())
    assert (told["RELAY_IDENTITY"], told["RELAY_KEY"]) == (line["identity"], line["key"]), "the git host is told the same"
    return line


def refused(relay: RelayProcess, key: Key, certificate: Path | None, reasons: list[str] | None = None) -> list[dict[str, Any]]:
    """The audit lines of a refused certificate; the client reads the same text for each reason."""
    reasons = reasons or ["certificate", "unknown_key"]
    since, before = len(relay.audit_lines()), failures(relay)
    done = attempt(relay, key, certificate)
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.decode().replace("\r", "") == f"{relay.user}@127.0.0.1: Permission denied (publickey).\n"
    lines = audited(relay, since, len(reasons), event="auth_failed")
    assert [line["reason"] for line in lines] == reasons
    for reason in set(reasons):
        assert wait_until(lambda reason=reason: failures(relay)[reason]) == before[reason] + reasons.count(reason)  # type: ignore[misc]
    return lines


def failures(relay: RelayProcess) -> Mapping[str, float]:
    return {sample.labels["reason"]: sample.value for sample in relay.metrics()["relay_auth_failures_total"]}


# -- accepted ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_certificate_names_its_identity(relay: RelayProcess, ca: Ca, tmp_path: Path, kind: KeyKind) -> None:
    key = make_key(tmp_path, "key", kind)
    before = relay.metric("relay_auth_successes_total", method="certificate")
    line = let_in(relay, key, ca.sign(key, "bob@example.com", principals=["deploy", "git"], serial=(1 << 64) - 1))
    assert (line["identity"], line["key"]) == ("bob@example.com", key.fingerprint)
    assert line["certificate"] == {"ca": ca.fingerprint, "key_id": "bob@example.com", "serial": (1 << 64) - 1}
    assert wait_until(lambda: relay.metric("relay_auth_successes_total", method="certificate")) == before + 1


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
@pytest.mark.parametrize("touched", [True, False])
async def test_a_security_key_must_be_touched_whatever_its_certificate_permits(
    relay: RelayProcess, ca: Ca, tmp_path: Path, kind: SecurityKeyKind, touched: bool
) -> None:
    token = SoftwareSecurityKey(kind)
    (tmp_path / "token.pub").write_text(token.line)
    options = ["-I", "carol", "-n", "git", "-O", "no-touch-required"]
    subprocess.run(["ssh-keygen", "-q", "-s", ca.key.private, *options, tmp_path / "token.pub"], check=True)
    token.flags = 1 if touched else 0
    token.set_certificate(asyncssh.read_certificate(tmp_path / "token-cert.pub"))
    if touched:
        async with connect(relay.port, [token], relay.host_key_line, relay.user) as connection:
            assert b"RELAY_IDENTITY=carol\n" in (await run(connection, ENV)).stdout
    else:
        since = len(relay.audit_lines())
        with pytest.raises(asyncssh.PermissionDenied):
            async with connect(relay.port, [token], relay.host_key_line, relay.user):
                pass
        [line] = audited(relay, since, event="auth_failed")
        assert (line["reason"], line["key"]) == ("not_touched", token.fingerprint)


def test_a_plain_key_comes_in_as_before(relay: RelayProcess) -> None:
    line = let_in(relay, relay.key, None)
    assert (line["identity"], line["certificate"]) == ("alice", None)


def test_who_it_is_may_be_a_principal(sshd: Sshd, ca: Ca, bob: Key) -> None:
    certificates = {"ca_keys": [str(ca.key.public)], "identity": "principal", "principals": ["relay-users"]}
    with RelayProcess(sshd, config={"certificates": certificates}, access=EVERYONE) as relay:
        assert let_in(relay, bob, ca.sign(bob, "ticket 4711", principals=["relay-users", "bob"]))["identity"] == "bob"
        [first, _] = refused(relay, bob, ca.sign(bob, "ticket 4711", principals=["git"]))
        assert first["detail"].endswith("the certificate lists the principals git, needed is relay-users")


# -- refused -------------------------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "expired": ({"validity": PAST}, "expired", "the certificate expired at 2020-01-"),
    "not yet valid": ({"validity": FUTURE}, "expired", "the certificate is not valid before 209"),
    "wrong principal": ({"principals": ["root"]}, "certificate", "the certificate lists the principals root, needed is git"),
    "no principal": ({"principals": []}, "certificate", "the certificate lists no principal"),
    "force-command": ({"options": ["force-command=id"]}, "certificate", "the certificate forces a command"),
    "unknown option": ({"options": ["critical:x@y=z"]}, "certificate", "the certificate has the critical option x@y"),
    "another network": ({"options": ["source-address=192.0.2.0/24"]}, "source_address", "may not be used from 127.0.0.1"),
    "a name for nobody": ({"key_id": "@core"}, "certificate", 'the identity "@core" must not be'),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_certificate_that_is_not_accepted(relay: RelayProcess, ca: Ca, bob: Key, why: str) -> None:
    made, reason, text = REFUSED[why]
    [first, second] = refused(relay, bob, ca.sign(bob, **{"key_id": "bob", "serial": 7, **made}), [reason, "unknown_key"])
    key_id = made.get("key_id", "bob")
    assert first["detail"].startswith(f"ID {key_id} (serial 7) CA {ca.fingerprint}: ")
    assert text in first["detail"]
    assert (first["key"], second["key"]) == (bob.fingerprint, bob.fingerprint)


async def test_a_host_certificate(relay: RelayProcess, ca: Ca, bob: Key) -> None:
    """The real ssh does not offer a host certificate."""
    certificate, since = blob(ca.sign(bob, "bob", host=True)), len(relay.audit_lines())

    async def script(client: Scripted) -> None:
        name = "ssh-ed25519-cert-v01@openssh.com"
        await client.send("publickey", Boolean(True), String(name), String(certificate), signer=_Signer(bob))
        assert await client.reply() == "failure"
        await client.prove(relay.key)

    async with connect(relay.port, [], relay.host_key_line, relay.user, client_factory=lambda: Scripted(script)):
        [line] = audited(relay, since, event="auth_failed")
    assert line["reason"] == "certificate" and line["detail"].endswith("the certificate is a host's, must be a user's")


def test_another_ca(relay: RelayProcess, bob: Key, tmp_path: Path) -> None:
    other = Ca(tmp_path, "other")
    [first, _] = refused(relay, bob, other.sign(bob, "alice"))
    assert first["detail"] == f"ID alice (serial 0) CA {other.fingerprint}: its CA is not trusted"


def test_the_key_of_a_ca_signed_by_itself(relay: RelayProcess, ca: Ca) -> None:
    """A CA may certify its own key; its plain key has no identity."""
    assert let_in(relay, ca.key, ca.sign(ca.key, "root-of-all"))["identity"] == "root-of-all"
    refused(relay, ca.key, None, ["unknown_key"])


def test_a_refused_certificate_leaves_its_plain_key_as_it_is(relay: RelayProcess, ca: Ca) -> None:
    assert let_in(relay, relay.key, ca.sign(relay.key, "admin", validity=PAST))["identity"] == "alice"


@pytest.mark.parametrize("address", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7"])
async def test_the_address_that_counts_is_the_client_s_own(relay: RelayProcess, ca: Ca, bob: Key, address: str) -> None:
    """Behind a load balancer on 127.0.0.1, an address that source-address does not allow."""
    good = address.rpartition(":")[2] == "192.0.2.7"
    certificate = asyncssh.read_certificate(ca.sign(bob, "bob", options=["source-address=192.0.2.0/24"]))
    version, here = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
    since = len(relay.audit_lines())
    with socket.create_connection(("127.0.0.1", relay.port)) as sock:
        sock.sendall(f"PROXY {version} {address} {here} 4711 22\r\n".encode())
        known_hosts = asyncssh.import_known_hosts(f"127.0.0.1 {relay.host_key_line}\n")
        pair = (bob.load(), certificate)
        connecting = asyncssh.connect(
            "127.0.0.1", sock=sock, username="git", client_keys=[pair], known_hosts=known_hosts, agent_path=None, config=None
        )
        if good:
            async with connecting as connection:
                assert b"RELAY_IDENTITY=bob\n" in (await run(connection, ENV)).stdout
        else:
            with pytest.raises(asyncssh.PermissionDenied):
                await connecting
            line = audited(relay, since, event="auth_failed")[0]
            assert (line["reason"], line["address"]) == ("source_address", address)


# -- only a certificate whose key has signed is an identity --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after", "without waiting"])
async def test_a_certificate_that_was_only_offered_is_nobody(relay: RelayProcess, ca: Ca, bob: Key, order: str) -> None:
    """bob's certificate is public; a client that offers it and signs with another key is not bob."""
    certificate = blob(ca.sign(bob, "admin"))
    since = len(relay.audit_lines())

    async def offer(client: Scripted) -> None:
        await client.send("publickey", Boolean(False), String("ssh-ed25519-cert-v01@openssh.com"), String(certificate))

    async def script(client: Scripted) -> None:
        if order == "without waiting":
            await offer(client)
            await client.send_proof(relay.key)
            while await client.reply() == "ok":
                pass
        if order == "after":
            assert await client.offer(relay.key) == "ok"
        await offer(client)
        assert await client.reply() == "ok"
        await client.prove(relay.key)

    async with connect(relay.port, [], relay.host_key_line, relay.user, client_factory=lambda: Scripted(script)) as connection:
        assert b"RELAY_IDENTITY=alice\n" in (await run(connection, ENV)).stdout
    [line] = audited(relay, since, event="session")
    assert (line["identity"], line["key"], line["certificate"]) == ("alice", relay.key.fingerprint, None)


async def test_a_certificate_that_another_key_signs_for(relay: RelayProcess, ca: Ca, bob: Key) -> None:
    certificate, since = blob(ca.sign(bob, "admin")), len(relay.audit_lines())

    async def script(client: Scripted) -> None:
        name = "ssh-ed25519-cert-v01@openssh.com"
        await client.send("publickey", Boolean(True), String(name), String(certificate), signer=_Signer(relay.key))
        assert await client.reply() == "failure"
        await client.prove(relay.key)

    async with connect(relay.port, [], relay.host_key_line, relay.user, client_factory=lambda: Scripted(script)) as connection:
        assert b"RELAY_IDENTITY=alice\n" in (await run(connection, ENV)).stdout
    [line] = audited(relay, since, event="auth_failed")
    assert (line["reason"], line["key"]) == ("bad_signature", bob.fingerprint)


@dataclasses.dataclass(frozen=True)
class _Signer:
    key: Key

    def sign(self, data: bytes) -> bytes:
        return self.key.load().sign(data, b"ssh-ed25519")


def test_another_user_name(relay: RelayProcess, ca: Ca, bob: Key) -> None:
    since = len(relay.audit_lines())
    done = relay.ssh(f'CertificateFile="{ca.sign(bob, "bob", principals=["root"])}"', key=bob, user="root").run(ENV)
    assert done.returncode == 255
    assert [line["reason"] for line in audited(relay, since, 2, event="auth_failed")] == ["wrong_user", "wrong_user"]


# -- revoked -----------------------------------------------------------------------------------------------------------------


def test_a_revocation_of_each_kind_holds_without_a_restart(relay: RelayProcess, folder: Path, ca: Ca, tmp_path: Path) -> None:
    krl = folder / "krl"
    keys = [make_key(tmp_path, f"key{number}") for number in range(4)]
    people = [
        (keys[0], ca.sign(keys[0], "by-serial", serial=4711), "it is revoked"),
        (keys[1], ca.sign(keys[1], "by-key-id"), "it is revoked"),
        (keys[2], ca.sign(keys[2], "by-key"), "its key is revoked"),
        (keys[3], ca.sign(keys[3], "by-fingerprint"), "its key is revoked"),
    ]
    for key, certificate, _ in people:
        let_in(relay, key, certificate)
    try:
        _settle(relay, lambda: ca.revoke(krl, "serial: 4711", "id: by-key-id", f"key: {keys[2].line}", f"hash: {keys[3].fingerprint}"))
        for number, (key, certificate, text) in enumerate(people):
            plain = "unknown_key" if number < 2 else "revoked"
            assert refused(relay, key, certificate, ["revoked", plain])[0]["detail"].endswith(text)
        let_in(relay, keys[0], ca.sign(keys[0], "by-serial", serial=4712))
        _settle(relay, lambda: ca.revoke(krl, f"sha256: {ca.key.line}"))
        [line, _] = refused(relay, keys[0], people[0][1], ["revoked", "unknown_key"])
        assert line["detail"].endswith("the key of its CA is revoked")
        _settle(relay, lambda: ca.revoke(krl, f"key: {relay.key.line}"))
        [line] = refused(relay, relay.key, None, ["revoked"])  # a key that the keys backend knows
        assert line["detail"] == "the key is revoked"
    finally:
        _settle(relay, lambda: ca.revoke(krl))
    let_in(relay, relay.key, None)


def _settle(relay: RelayProcess, change: Any) -> None:
    """Makes the change, and waits until the relay logs that it has read it; the relay looks at the file when a client logs in."""
    mark = relay.log_text().count("revoked keys: read again after a change")
    change()

    def seen() -> bool:
        relay.ssh(key=relay.key).run(ENV)
        return relay.log_text().count("revoked keys: read again after a change") > mark

    wait_until(seen, message="the list is read again")


def test_a_list_that_breaks_leaves_the_old_one(relay: RelayProcess, folder: Path, ca: Ca, bob: Key) -> None:
    krl = folder / "krl"
    certificate = ca.sign(bob, "bob", serial=99)
    try:
        _settle(relay, lambda: ca.revoke(krl, "serial: 99"))
        krl.write_bytes(krl.read_bytes()[:-3])

        def told() -> bool:
            refused(relay, bob, certificate, ["revoked", "unknown_key"])
            return "revoked keys: a change is not accepted, what was read before stays in force" in relay.log_text()

        wait_until(told, message="the broken list is told of")
        refused(relay, bob, certificate, ["revoked", "unknown_key"])
    finally:
        _settle(relay, lambda: ca.revoke(krl))


def test_a_list_that_cannot_be_read_stops_the_start(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "krl").write_bytes(b"SSHKRL\n\x00")
    relay = RelayProcess(sshd, tmp_path, config={"certificates": {"revoked": "krl"}})
    with pytest.raises(AssertionError, match="krl: is cut off, must be a revocation list"), relay:
        pass
