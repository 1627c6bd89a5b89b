"""Logins, their identities and the audit lines of failed ones: public keys of every kind, signatures, limits (RFC 4252)."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import Boolean, String

from tests.e2e.helpers import alice, audited
from tests.support.keys import Key, SecurityKeyKind, SoftwareSecurityKey, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient, connect, run
from tests.support.sshd import Sshd
from tests.support.userauth import Scripted, ScriptOverError
from tests.support.wait import wait_until

ENV = "git-upload-pack 'stub/env'"
EVERYONE = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
ATTEMPTS = 6  # limits.auth_attempts


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    """One key of each kind, whose identity has the kind's name, bob's key, and a stranger's key without an identity."""
    folder = tmp_path_factory.mktemp("keys")
    made = {kind: make_key(folder, kind, kind) for kind in ("ed25519", "ecdsa", "rsa")}
    for name, bits in (("ecdsa384", "384"), ("ecdsa521", "521")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", bits, "-N", "", "-C", name, "-f", folder / name], check=True)
        made[name] = Key(folder / name, (folder / f"{name}.pub").read_text().strip())
    return made | {name: make_key(folder, name) for name in ("bob", "stranger")}


@pytest.fixture(scope="module")
def tokens() -> dict[str, SoftwareSecurityKey]:
    kinds: tuple[SecurityKeyKind, ...] = ("sk-ed25519", "sk-ecdsa")
    return {kind: SoftwareSecurityKey(kind) for kind in kinds}


@pytest.fixture(scope="module")
def relay(sshd: Sshd, keys: dict[str, Key], tokens: dict[str, SoftwareSecurityKey]) -> Iterator[RelayProcess]:
    process = RelayProcess(sshd, access=EVERYONE)
    for name, key in (keys | tokens).items():
        if name != "stranger":
            process.add_key(name, key.line)
    with process:
        yield process


@contextmanager
def counted(relay: RelayProcess, successes: int = 0, **failures: int) -> Iterator[None]:
    """Asserts that exactly so many logins succeed and fail in the block, by reason, with an audit line for each failure."""

    def now() -> dict[str, float]:
        samples = relay.metrics()
        by_reason = {sample.labels["reason"]: sample.value for sample in samples["relay_auth_failures_total"]}
        return by_reason | {"successes": sum(sample.value for sample in samples["relay_auth_successes_total"])}

    before, since = now(), len(relay.audit_lines())
    yield
    expected = {reason: value + failures.get(reason, 0) for reason, value in before.items()}
    expected["successes"] = before["successes"] + successes
    assert set(failures) <= set(expected)

    def same() -> bool:
        assert now() == expected
        return True

    wait_until(same, message="logins are counted")
    lines = [line["reason"] for line in relay.audit_lines()[since:] if line["event"] == "auth_failed"]
    assert sorted(lines) == sorted(reason for reason, count in failures.items() for _ in range(count))


async def who(connection: asyncssh.SSHClientConnection) -> list[str]:
    """[identity, fingerprint] in the environment that the git host gets."""
    result = await run(connection, ENV)
    assert result.exit_status == 0, result.stderr
    return told(result.stdout)


def told(stdout: bytes) -> list[str]:
    values = dict(line.split("=", 1) for line in stdout.decode().splitlines())
    return [values["RELAY_IDENTITY"], values["RELAY_KEY"]]


def scripted(
    relay: RelayProcess, script: Callable[[Scripted], Awaitable[None]]
) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    """A connection whose authentication requests `script` sends."""
    return connect(relay.port, [], relay.host_key_line, relay.user, client_factory=lambda: Scripted(script))


# -- keys of every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ed25519", "ecdsa", "ecdsa384", "ecdsa521", "rsa"])
def test_a_key_of_each_kind_is_its_owner(relay: RelayProcess, keys: dict[str, Key], name: str) -> None:
    since = len(relay.audit_lines())
    with counted(relay, successes=1):
        done = relay.ssh(key=keys[name]).run(ENV)
    assert (done.returncode, done.stderr) == (0, b"")
    assert told(done.stdout) == [name, keys[name].fingerprint]
    [line] = audited(relay, since, event="session")
    assert (line["identity"], line["key"]) == (name, keys[name].fingerprint)


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
def test_rsa_with_sha2(relay: RelayProcess, keys: dict[str, Key], algorithm: str) -> None:
    done = relay.ssh(f"PubkeyAcceptedAlgorithms={algorithm}", key=keys["rsa"]).run(ENV)
    assert (done.returncode, told(done.stdout)[0]) == (0, "rsa")


def test_rsa_with_sha1_is_not_announced(relay: RelayProcess, keys: dict[str, Key]) -> None:
    done = relay.ssh("PubkeyAcceptedAlgorithms=ssh-rsa", key=keys["rsa"]).run(ENV, b"", "-v")
    assert done.returncode == 255
    assert b"no mutual signature" in done.stderr
    [offered] = [line for line in done.stderr.decode().splitlines() if "server-sig-algs=<" in line]
    assert "rsa-sha2-256" in offered and "ssh-rsa" not in offered


async def test_rsa_with_sha1_is_not_accepted(relay: RelayProcess, keys: dict[str, Key]) -> None:
    async def script(client: Scripted) -> None:
        assert await client.prove(keys["rsa"], algorithm="ssh-rsa") == "failure"
        await client.prove(keys["rsa"], algorithm="rsa-sha2-256")

    with counted(relay, successes=1, bad_signature=1):
        async with scripted(relay, script) as connection:
            assert await who(connection) == ["rsa", keys["rsa"].fingerprint]


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
async def test_a_security_key(relay: RelayProcess, tokens: dict[str, SoftwareSecurityKey], kind: str) -> None:
    with counted(relay, successes=1):
        async with alice(relay, tokens[kind]) as connection:
            assert await who(connection) == [kind, tokens[kind].fingerprint]


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
async def test_a_security_key_that_nobody_touched(
    relay: RelayProcess, kind: SecurityKeyKind, tokens: dict[str, SoftwareSecurityKey]
) -> None:
    token = tokens[kind]
    token.flags, touched = 0, token.flags
    try:
        with counted(relay, not_touched=1), pytest.raises(asyncssh.PermissionDenied):
            async with alice(relay, token):
                pass
    finally:
        token.flags = touched


# -- refusals ----------------------------------------------------------------------------------------------------------------


def refused(ssh: SshClient, *flags: str) -> str:
    done = ssh.run(ENV, b"", *flags)
    assert (done.returncode, done.stdout) == (255, b"")
    return done.stderr.decode()


def test_an_unknown_key(relay: RelayProcess, keys: dict[str, Key]) -> None:
    since = len(relay.audit_lines())
    with counted(relay, unknown_key=1):
        said = refused(relay.ssh(key=keys["stranger"]))
    assert said == f"{relay.user}@127.0.0.1: Permission denied (publickey).\n".replace("\n", "\r\n")
    [line] = audited(relay, since, event="auth_failed")
    assert (line["reason"], line["key"], line["user"]) == ("unknown_key", keys["stranger"].fingerprint, "git")
    assert (line["address"], line["client_version"].split("_")[0]) == ("127.0.0.1", "SSH-2.0-OpenSSH")


def test_another_user_name(relay: RelayProcess) -> None:
    since = len(relay.audit_lines())
    with counted(relay, wrong_user=1):
        said = refused(relay.ssh(user="root"))
    assert said == "root@127.0.0.1: Permission denied (publickey).\r\n"  # as for an unknown key: reveals nothing about the user name
    [line] = audited(relay, since, event="auth_failed")
    assert (line["reason"], line["key"], line["user"]) == ("wrong_user", relay.key.fingerprint, "root")


async def test_the_user_name_of_the_proof_counts(relay: RelayProcess) -> None:
    async def script(client: Scripted) -> None:
        assert await client.offer(relay.key) == "ok"
        client.be("root")
        assert await client.prove(relay.key) == "failure"
        client.be("git")
        await client.prove(relay.key)

    with counted(relay, successes=1, wrong_user=1):
        async with scripted(relay, script) as connection:
            assert await who(connection) == ["alice", relay.key.fingerprint]


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "hostbased", "gssapi-with-mic", "none"])
async def test_nothing_but_public_keys(relay: RelayProcess, method: str) -> None:
    fields = {"password": (Boolean(False), String("secret")), "keyboard-interactive": (String(""), String(""))}
    methods: list[list[str]] = []

    async def script(client: Scripted) -> None:
        while True:
            await client.send(method, *fields.get(method, ()))
            assert await client.reply() == "failure"
            methods.append(client.methods)

    none_of_a_key = counted(relay, too_many=1)
    with none_of_a_key, pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
        async with scripted(relay, script):
            pass
    assert methods == [["publickey"]] * (ATTEMPTS - 1)  # the last is answered by the disconnect


def test_a_certificate_is_refused_and_its_plain_key_let_in(relay: RelayProcess, keys: dict[str, Key], tmp_path: Path) -> None:
    authority = make_key(tmp_path, "ca")
    public = tmp_path / "bob.pub"
    public.write_text(keys["bob"].line + "\n")
    subprocess.run(["ssh-keygen", "-q", "-s", authority.private, "-I", "bob", "-n", "git", public], check=True, capture_output=True)
    ssh = relay.ssh(f'CertificateFile="{tmp_path / "bob-cert.pub"}"', key=keys["bob"])
    since = len(relay.audit_lines())
    with counted(relay, successes=1, certificate=1):
        done = ssh.run(ENV)
    assert told(done.stdout) == ["bob", keys["bob"].fingerprint]
    assert audited(relay, since, event="auth_failed")[0]["detail"] == f"ID bob (serial 0) CA {authority.fingerprint}: its CA is not trusted"


# -- only a key whose signature is verified is an identity -------------------------------------------------------------------


@contextmanager
def _never(relay: RelayProcess, name: str) -> Iterator[None]:
    """Asserts that the audit log has no session of this identity."""
    since = len(relay.audit_lines())
    yield
    assert [line for line in relay.audit_lines()[since:] if line.get("identity") == name] == []


def test_ssh_with_the_public_half_of_a_known_key(relay: RelayProcess, keys: dict[str, Key], tmp_path: Path) -> None:
    """The real ssh with bob's .pub and no private key offers the key, gets PK_OK, cannot sign, and tries the next key."""
    borrowed = tmp_path / "borrowed"
    borrowed.write_text(keys["bob"].line + "\n")
    borrowed.chmod(0o600)
    with _never(relay, "bob"), counted(relay, successes=1):
        done = relay.ssh(f'IdentityFile="{relay.key.private}"', key=Key(borrowed, keys["bob"].line)).run(ENV, b"", "-v")
        assert told(done.stdout) == ["alice", relay.key.fingerprint]
    assert f"Server accepts key: {borrowed}" in done.stderr.decode()


async def test_a_key_that_was_only_offered_after_the_own(relay: RelayProcess, keys: dict[str, Key]) -> None:
    """CVE-2024-45337: the last key that the client offered is not the one that logged in."""

    async def script(client: Scripted) -> None:
        assert await client.offer(relay.key) == "ok"
        assert await client.offer(keys["bob"]) == "ok"
        await client.prove(relay.key)

    with _never(relay, "bob"), counted(relay, successes=1):
        async with scripted(relay, script) as connection:
            assert await who(connection) == ["alice", relay.key.fingerprint]


@pytest.mark.parametrize("order", ["offer first", "proof first"])
async def test_an_offer_and_a_proof_without_waiting_for_answers(relay: RelayProcess, keys: dict[str, Key], order: str) -> None:
    async def script(client: Scripted) -> None:
        if order == "offer first":
            await client.send_offer(keys["bob"])
            await client.send_proof(relay.key)
        else:
            await client.send_proof(relay.key)
            await client.send_offer(keys["bob"])
        while await client.reply() == "ok":  # the offer's, which may have cut the proof short
            if order == "proof first":
                await client.send_proof(relay.key)

    with _never(relay, "bob"), counted(relay, successes=10):
        for _ in range(10):
            async with scripted(relay, script) as connection:
                assert await who(connection) == ["alice", relay.key.fingerprint]


async def test_a_known_key_with_a_signature_that_is_somebody_elses(relay: RelayProcess, keys: dict[str, Key]) -> None:
    since = len(relay.audit_lines())

    async def script(client: Scripted) -> None:
        assert await client.prove(keys["bob"], signer=relay.key) == "failure"
        assert await client.offer(keys["bob"]) == "ok"
        assert await client.prove(keys["bob"], signer=keys["stranger"]) == "failure"
        assert await client.prove(relay.key, signer=keys["bob"]) == "failure"
        await client.prove(relay.key)

    with _never(relay, "bob"), counted(relay, successes=1, bad_signature=3):
        async with scripted(relay, script) as connection:
            assert await who(connection) == ["alice", relay.key.fingerprint]
    lines = audited(relay, since, 3, event="auth_failed")
    assert [(line["reason"], line["key"]) for line in lines] == [
        ("bad_signature", keys["bob"].fingerprint),
        ("bad_signature", keys["bob"].fingerprint),
        ("bad_signature", relay.key.fingerprint),
    ]


async def test_a_known_key_after_which_an_unknown_one_is_proven(relay: RelayProcess, keys: dict[str, Key]) -> None:
    async def script(client: Scripted) -> None:
        assert await client.offer(keys["bob"]) == "ok"
        assert await client.prove(keys["stranger"]) == "failure"

    with _never(relay, "bob"), counted(relay, unknown_key=1), pytest.raises(ScriptOverError):
        async with scripted(relay, script):
            pass


async def test_a_session_before_the_login(relay: RelayProcess, keys: dict[str, Key]) -> None:
    async def script(client: Scripted) -> None:
        assert await client.offer(keys["bob"]) == "ok"
        client._connection._auth_complete = True  # so that asyncssh's client takes itself for authenticated
        await client._connection.create_session(asyncssh.SSHClientSession, ENV, encoding=None)

    with _never(relay, "bob"), counted(relay, protocol=1), pytest.raises((asyncssh.DisconnectError, asyncssh.ChannelOpenError, OSError)):
        async with scripted(relay, script):
            pass


# -- limits ------------------------------------------------------------------------------------------------------------------


def test_the_keys_of_a_full_agent(relay: RelayProcess, keys: dict[str, Key], tmp_path: Path) -> None:
    strangers = [make_key(tmp_path, f"stranger{number}") for number in range(ATTEMPTS)]
    files = [f'IdentityFile="{stranger.private}"' for stranger in strangers[1:]]
    since = len(relay.audit_lines())
    with counted(relay, unknown_key=ATTEMPTS, too_many=1):
        said = refused(relay.ssh(*files, key=strangers[0]))
    assert "Too many authentication failures" in said
    assert audited(relay, since, event="auth_failed", reason="too_many")[0]["detail"] == f"{ATTEMPTS} attempts"
    with counted(relay, successes=1, unknown_key=ATTEMPTS - 1):  # the last attempt may be the right one
        done = relay.ssh(*files[1:], f'IdentityFile="{keys["bob"].private}"', key=strangers[1]).run(ENV)
        assert (done.returncode, done.stderr) == (0, b"")
        assert told(done.stdout)[0] == "bob"


async def test_offers_of_a_known_key_are_no_attempts(relay: RelayProcess, keys: dict[str, Key]) -> None:
    async def script(client: Scripted) -> None:
        for _ in range(2 * ATTEMPTS):
            assert await client.offer(keys["bob"]) == "ok"
        await client.prove(keys["bob"])

    with counted(relay, successes=1):
        async with scripted(relay, script) as connection:
            assert (await who(connection))[0] == "bob"


def test_a_connection_that_says_nothing(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 0.5}})
    with counted(relay, grace=1), socket.create_connection(("127.0.0.1", relay.port), timeout=30) as silent:
        while silent.recv(65536):
            pass
    [line] = audited(relay, 0, event="auth_failed")
    assert (line["reason"], line["key"], line["user"], line["address"]) == ("grace", "", "", "127.0.0.1")
    assert wait_until(lambda: relay.metric("relay_connections_total", outcome="grace")) == 1


async def test_a_key_that_is_offered_and_never_proven(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 1.5}})

    async def script(client: Scripted) -> None:
        while await client.offer(relay.key) == "ok":
            await asyncio.sleep(0.05)  # the client stays busy all the time

    with counted(relay, grace=1), pytest.raises((asyncssh.ConnectionLost, asyncssh.DisconnectError)):
        async with scripted(relay, script):
            pass


def test_who_is_in_may_stay(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 1.5}})
    with counted(relay, successes=1):
        done = relay.ssh().run("git-upload-pack 'stub/sleep/3'")
    assert (done.returncode, done.stderr) == (0, b"")


# -- afterwards --------------------------------------------------------------------------------------------------------------


def test_an_open_connection_begins_no_session_with_a_deleted_key(relay: RelayProcess, keys: dict[str, Key], tmp_path: Path) -> None:
    carol, bob = make_key(tmp_path, "carol"), keys["bob"]
    file = relay.add_key("carol", carol.line)
    wait_until(lambda: relay.ssh(key=carol).run(ENV).returncode == 0, message="carol's key is known")
    with relay.ssh(key=carol).control_master() as master, relay.ssh(key=bob).control_master() as other:
        assert master.run(ENV).returncode == other.run(ENV).returncode == 0
        mark = len(relay.audit_lines())
        file.unlink()
        done = wait_until(lambda: one if (one := master.run(ENV)).returncode else None, message="it holds on the open connection too")
        assert (done.returncode, done.stdout) == (128, b"")
        assert done.stderr == b"relay: the key of this connection is not accepted any more\n"
        assert other.run(ENV).returncode == 0
        refused = [line for line in relay.audit_lines()[mark:] if line["reason"] == "revoked"]
        assert [line["identity"] for line in refused] == ["carol"]
        assert "nobody's" in refused[0]["detail"]
