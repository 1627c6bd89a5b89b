"""One client connection: its identity, attempts and end, and that it releases all it holds, on both transports."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import Boolean, String

from relay.admission.farewell import TEXTS
from relay.admission.limits import Admission
from relay.config import AlgorithmsSettings, PolicyRuleSettings, PolicySettings, ProxyProtocolSettings
from relay.errors import Undecided
from relay.keys.open import open_policy
from relay.model import Identity
from relay.ssh.userauth import SHA1
from tests.support.keys import USER_PRESENT, USER_VERIFIED, Key, SecurityKeyKind, SoftwareSecurityKey, make_key
from tests.support.play import COMMAND, FINGERPRINT, HOST_KEY, KEY, Play, forever, logged_in, raising, served
from tests.support.sshclient import SshClient, run
from tests.support.userauth import Scripted
from tests.support.wait import wait_until_async

ALICE = Identity(name="alice", fingerprint=FINGERPRINT)


@pytest.fixture(params=[True, False], ids=["own", "plain"])
def own(request: pytest.FixtureRequest) -> bool:
    """Whether the relay accepts the connection itself, or asyncssh.create_server passes it on."""
    return bool(request.param)


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that the stand-in backend knows as alice's, on disk."""
    folder = tmp_path_factory.mktemp("alice")
    KEY.write_private_key(str(folder / "alice"))
    (folder / "alice").chmod(0o600)  # ssh requires this mode
    return Key(folder / "alice", KEY.export_public_key().decode().strip())


def scripted(port: int, script: Callable[[Scripted], Awaitable[None]]) -> Any:
    return asyncssh.connect(
        "127.0.0.1",
        port,
        username="git",
        client_keys=[],
        known_hosts=None,
        config=None,
        agent_path=None,
        client_factory=lambda: Scripted(script),
    )


# -- identity ----------------------------------------------------------------------------------------------------------------


async def test_the_identity_is_the_owner_of_the_proven_key(own: bool) -> None:
    play = Play()
    async with served(play, own_transport=own) as port:
        async with logged_in(port) as connection:
            [server] = play.servers
            assert server.record.identity == ALICE
            assert server.record.user == "git"
            assert (server.record.address, server.record.port) == connection.get_extra_info("sockname")[:2]
            assert "AsyncSSH" in server.record.client_version
            assert play.asked == {"keys": 1}  # one question for the offer and the signature
            assert "alice" in repr(server)
        assert await play.ledger.how_closed() == ("ok", "")
    assert play.ledger.successes == [ALICE]
    assert play.ledger.steps["handshake"] == play.ledger.steps["keys"] == 1


@pytest.mark.parametrize(
    ("now", "status", "reason"),
    [("alice", 0, "ok"), (None, 128, "revoked"), ("bob", 128, "revoked"), (Undecided("down", "timeout"), 255, "undecided_timeout")],
    ids=["still", "nobody's", "another's", "nobody can say"],
)
async def test_a_key_is_asked_about_again_before_a_later_session(
    own: bool, monkeypatch: pytest.MonkeyPatch, now: str | Undecided | None, status: int, reason: str
) -> None:
    monkeypatch.setattr("relay.connection.TRUSTED_SECONDS", 0.0)
    play = Play()
    async with served(play, own_transport=own) as port, logged_in(port) as connection:
        assert play.asked == {"keys": 1}

        async def owner(fingerprint: str) -> str | None:
            if isinstance(now, Undecided):
                raise now
            return now

        play.keys = owner
        done = await run(connection, None)  # gets the greeting
        assert (done.exit_status, bool(done.stdout)) == (status, not status)
        assert play.asked == {"keys": 2}
        assert (await play.ledger.outcome()).reason == reason


async def test_a_key_that_was_offered_long_before_its_proof_is_asked_about_again(
    own: bool, monkeypatch: pytest.MonkeyPatch, alice: Key
) -> None:
    """A client that delays its signature until the key is revoked does not profit from the answer to its offer."""
    monkeypatch.setattr("relay.connection.TRUSTED_SECONDS", 600.0)
    play, late = Play(), [0.0]
    monkeypatch.setattr("relay.connection.time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))

    async def nobody(fingerprint: str) -> str | None:
        return None

    async def script(client: Scripted) -> None:
        assert await client.offer(alice) == "ok"
        play.keys, late[0] = nobody, 3600.0
        await client.prove(alice)

    async with served(play, own_transport=own) as port, scripted(port, script) as connection:
        assert (await run(connection, None)).exit_status == 128
        assert (await play.ledger.outcome()).reason == "revoked"


async def test_a_key_that_was_proven_just_now_is_not_asked_about_again(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.connection.TRUSTED_SECONDS", 600.0)
    play = Play()
    async with served(play, own_transport=own) as port, logged_in(port) as connection:
        assert (await run(connection, None)).exit_status == 0
        assert play.asked == {"keys": 1}


@pytest.mark.parametrize("user", ["root", "GIT", "gït", "git2"])
async def test_another_user_name_fails_without_a_question_to_the_backend(own: bool, user: str) -> None:
    play = Play()
    async with served(play, own_transport=own) as port:
        with pytest.raises((asyncssh.PermissionDenied, asyncssh.DisconnectError)):
            async with logged_in(port, username=user):
                pass
        assert (await play.ledger.how_closed())[0] == "auth_failed"
    assert (play.asked, play.ledger.successes) == ({}, [])
    assert play.ledger.failures == [("wrong_user", FINGERPRINT, "")]
    assert play.ledger.opened[0].user == user


async def test_a_user_name_of_control_characters(own: bool, alice: Key) -> None:
    async def script(client: Scripted) -> None:
        client.be("git\x1b[2J\n")
        await client.offer(alice)

    play = Play()
    async with served(play, own_transport=own) as port:
        with pytest.raises((asyncssh.Error, OSError)):
            async with scripted(port, script):
                pass
    assert (play.asked, play.ledger.successes) == ({}, [])
    assert all(character.isprintable() for record in play.ledger.opened for character in record.user)


async def test_an_offer_while_the_backend_is_slow_never_becomes_the_identity(own: bool, alice: Key, tmp_path: Path) -> None:
    """While the backend looks up the offered key of bob, the signature with alice's key arrives, or the other way round."""
    bob = make_key(tmp_path, "bob")
    for first, second in (("offer", "proof"), ("proof", "offer")):
        play, asked, answer = Play(), asyncio.Event(), asyncio.Event()

        async def keys(fingerprint: str, asked: asyncio.Event = asked, answer: asyncio.Event = answer) -> str | None:
            asked.set()
            await answer.wait()
            return "alice" if fingerprint == FINGERPRINT else "bob"

        async def script(
            client: Scripted, order: tuple[str, str] = (first, second), asked: asyncio.Event = asked, answer: asyncio.Event = answer
        ) -> None:
            for what in order:
                await (client.send_offer(bob) if what == "offer" else client.send_proof(alice))
                await asked.wait()
            answer.set()
            while await client.reply():
                await client.send_proof(alice)

        play.keys = keys
        async with served(play, own_transport=own) as port, scripted(port, script):
            [server] = play.servers
            assert server.record.identity == ALICE
        assert play.ledger.successes == [ALICE]


async def test_a_proof_for_another_user_name_than_the_offer(own: bool, alice: Key) -> None:
    async def script(client: Scripted) -> None:
        assert await client.offer(alice) == "ok"
        client.be("root")
        assert await client.prove(alice) == "failure"
        client.be("git")
        await client.prove(alice)

    play = Play()
    async with served(play, own_transport=own) as port, scripted(port, script):
        pass
    assert [reason for reason, _, _ in play.ledger.failures] == ["wrong_user"]
    assert play.ledger.successes == [ALICE]


async def test_a_backend_that_cannot_answer_is_told_as_such() -> None:
    play = Play()
    play.keys = raising(Undecided("no route to 192.0.2.9", "unreachable"))
    banners: list[str] = []

    class Client(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            banners.append(msg)

    async with served(play, own_transport=True) as port:
        with pytest.raises(asyncssh.PermissionDenied):
            async with logged_in(port, client_factory=Client, client_keys=[KEY, asyncssh.generate_private_key("ssh-ed25519")]):
                pass
        assert (await play.ledger.how_closed())[0] == "auth_failed"
    assert [reason for reason, _, _ in play.ledger.failures] == ["undecided", "undecided"]
    assert play.ledger.failures[0][1] == FINGERPRINT and "192.0.2.9" in play.ledger.failures[0][2]
    assert banners == [Undecided.message + "\r\n"]  # once, and without the address


# -- attempts ----------------------------------------------------------------------------------------------------------------


async def test_offers_of_unknown_keys_are_attempts(own: bool) -> None:
    play = Play()
    strangers = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(4)]
    async with served(play, own_transport=own, limits={"auth_attempts": 3}) as port:
        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
            async with logged_in(port, client_keys=[*strangers, KEY]):
                pass
        assert (await play.ledger.how_closed())[0] == "auth_failed"
    assert [reason for reason, _, _ in play.ledger.failures] == ["unknown_key"] * 3 + ["too_many"]
    assert play.ledger.failures[0][1] == strangers[0].get_fingerprint()
    assert play.ledger.successes == []


async def test_superseded_requests_are_attempts() -> None:
    """Each asks the backend: a client that does not wait for answers may not send more requests than one that does."""
    play = Play()
    play.keys = forever

    async def script(client: Scripted) -> None:
        for _ in range(20):
            algorithm, blob = b"ssh-ed25519", asyncssh.generate_private_key("ssh-ed25519").public_data
            await client.send("publickey", Boolean(False), String(algorithm), String(blob))
        await client.reply()

    async with served(play, own_transport=True, limits={"auth_attempts": 3}) as port:
        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
            async with scripted(port, script):
                pass
        assert (await play.ledger.how_closed())[0] == "auth_failed"
    assert play.asked == {"keys": 3}


async def test_requests_that_were_answered_are_no_attempts_when_others_follow(alice: Key) -> None:
    async def script(client: Scripted) -> None:
        for _ in range(5):
            assert await client.offer(alice) == "ok"
        await client.prove(alice)

    play = Play()
    async with served(play, own_transport=True, limits={"auth_attempts": 1}) as port, scripted(port, script):
        pass
    assert play.ledger.successes == [ALICE]


async def test_a_signature_that_does_not_verify(alice: Key, tmp_path: Path) -> None:
    mallory = make_key(tmp_path, "mallory")

    async def script(client: Scripted) -> None:
        assert await client.prove(alice, signer=mallory) == "failure"
        await client.prove(alice)

    play = Play()
    async with served(play, own_transport=True) as port, scripted(port, script):
        pass
    assert play.ledger.failures == [("bad_signature", FINGERPRINT, "")]
    assert play.ledger.successes == [ALICE]


# -- the end of the connection -----------------------------------------------------------------------------------------------


async def raw(port: int, data: bytes = b"", reset: bool = False) -> None:
    """A TCP connection that sends `data`, and is closed, or reset, once the server has sent its version or closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(60):
        if data:
            while await reader.read(65_536):
                pass  # until the server closes
        else:
            assert (await reader.readline()).startswith(b"SSH-2.0-git-ssh-relay")
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"", "probe"),
        (b"GET / HTTP/1.1\r\n\r\n" * 100, "protocol"),
        (b"SSH-1.5-old\r\n", "protocol"),
        (b"SSH-2.0-x\r\n" + b"\xff" * 100, "protocol"),
    ],
)
async def test_how_unauthenticated_connections_are_classified(own: bool, data: bytes, outcome: str) -> None:
    """One that breaks the protocol has failed to log in; one that sends nothing and disconnects has checked whether the port is open."""
    play = Play()
    async with served(play, own_transport=own) as port:
        await raw(port, data)
        closed, detail = await play.ledger.how_closed()
    assert closed == outcome
    assert play.ledger.failures == ([] if outcome == "probe" else [("protocol", "", detail)])


async def test_a_client_that_sends_nothing_and_stays_is_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.connection.PROBE_SECONDS", 0.0)
    play = Play()
    async with served(play, own_transport=True) as port:
        await raw(port, b"")
        assert (await play.ledger.how_closed())[0] == "no_auth"


async def test_failures_that_penalise_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay charges nothing for a probe, a failed login for bytes that are not SSH, and their CPU time."""
    noted: list[tuple[str | None, float]] = []
    left = Admission._left

    def note(self: Admission, source: str, unauthenticated: bool, failure: Any, cpu_seconds: float) -> None:
        noted.append((failure, cpu_seconds))
        left(self, source, unauthenticated, failure, cpu_seconds)

    monkeypatch.setattr(Admission, "_left", note)
    for data in (b"", b"SSH-1.5-old\r\n"):
        play = Play()
        async with served(play, own_transport=True) as port:
            await raw(port, data)
            await play.ledger.how_closed()
    assert [failure for failure, _ in noted] == [None, "auth"]
    assert noted[0][1] == 0 < noted[1][1]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kex_algs": ["diffie-hellman-group14-sha1"]}, "key exchange"),
        ({"server_host_key_algs": ["ssh-rsa"]}, "host key type"),
        ({"encryption_algs": ["aes128-cbc"]}, "cipher"),
        ({"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-sha1"]}, "MAC"),
        ({"compression_algs": ["zlib"]}, "compression"),
    ],
)
async def test_no_common_algorithm(options: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture) -> None:
    play = Play()
    async with served(play, own_transport=True, algorithms=AlgorithmsSettings(profile="compatible")) as port:
        with pytest.raises(asyncssh.Error):
            async with logged_in(port, client_version="Old_1.0", **options):
                pass
        closed, detail = await play.ledger.how_closed()
    offered = str(list(options.values())[-1][0])
    assert closed == "no_common_algorithm"
    assert detail.startswith(f"no common {what}: the client offers {offered}")
    assert play.ledger.failures == [("no_common_algorithm", "", detail)]
    [record] = [record for record in caplog.records if record.name == "relay.connection"]
    assert record.getMessage() == f"a connection from 127.0.0.1 (SSH-2.0-Old_1.0) cannot log in: {detail}"


async def test_a_signature_of_sha1_is_named(caplog: pytest.LogCaptureFixture) -> None:
    play = Play()
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)

    async def anybody(fingerprint: str) -> str:
        return "alice"

    play.keys = anybody
    async with served(play, own_transport=True) as port:
        with pytest.raises(asyncssh.PermissionDenied):
            async with logged_in(port, rsa, signature_algs=["ssh-rsa"]):
                pass
        await play.ledger.how_closed()
    reasons = {(reason, detail) for reason, _, detail in play.ledger.failures}
    assert reasons == {("bad_signature", SHA1)}
    assert any("ssh-rsa (SHA-1)" in record.getMessage() for record in caplog.records)


async def test_a_second_key_exchange_before_the_login(own: bool) -> None:
    """A client rekeys only after the login (OpenSSH's ssh_packet_need_rekeying); each key exchange costs the relay CPU time."""
    play = Play()

    class Rekeys(asyncssh.SSHClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            self.connection: Any = conn

        async def public_key_auth_requested(self) -> asyncssh.SSHKey:
            self.connection._send_kexinit()
            self.connection._kexinit_sent = True
            return KEY

    async with served(play, own_transport=True) as port:
        with pytest.raises((asyncssh.Error, OSError)):
            async with logged_in(port, client_factory=Rekeys, client_keys=None):
                pass
        closed, detail = await play.ledger.how_closed()
    assert (closed, detail) == ("protocol", "A second key exchange before authentication")
    assert play.ledger.failures == [("protocol", "", detail)]


async def test_a_client_that_does_not_log_in_in_time(own: bool) -> None:
    play = Play()
    async with served(play, own_transport=own, limits={"login_grace_seconds": 0.3}) as port:
        with socket.create_connection(("127.0.0.1", port)):
            assert (await play.ledger.how_closed())[0] == "grace"
    assert [reason for reason, _, _ in play.ledger.failures] == ["grace"]


async def test_a_client_that_is_cut_off(own: bool) -> None:
    play = Play()
    play.access = forever
    async with served(play, own_transport=own) as port, logged_in(port) as connection:
        await connection.create_process(COMMAND, encoding=None)
        sock = connection.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.abort()
        assert (await play.ledger.how_closed())[0] in ("lost", "ok")
    assert [outcome.reason for _, outcome in play.ledger.ended] == ["client_gone"]


async def test_ended_with_a_reason(own: bool, alice: Key, tmp_path: Path) -> None:
    """The real ssh prints the reason; asyncssh's client does not report an orderly disconnect."""
    play = Play()
    async with served(play, own_transport=own) as port:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {HOST_KEY.export_public_key().decode()}")
        with SshClient(port, alice.private, known_hosts, "git").popen(None, "-N") as ssh:
            await wait_until_async(lambda: bool(play.ledger.successes), message="ssh has logged in")
            [server] = play.servers
            server.end("drained", "The service is restarting")
            _, said = await asyncio.to_thread(ssh.communicate)
        assert (await play.ledger.how_closed())[0] == "drained"
    assert f"Received disconnect from 127.0.0.1 port {port}:11: The service is restarting" in said.decode()


# -- its sessions ------------------------------------------------------------------------------------------------------------


async def test_a_connection_is_idle_between_its_sessions(own: bool) -> None:
    play = Play()
    async with served(play, own_transport=own) as port, logged_in(port) as connection:
        [server] = play.servers
        assert server.idle_since is not None and not server.sessions
        play.access = forever
        processes = [await connection.create_process(COMMAND, encoding=None) for _ in range(3)]
        assert len(server.sessions) == 3 and server.idle_since is None
        for process in processes:
            process.channel.abort()
        await wait_until_async(lambda: not server.sessions)
        assert server.idle_since is not None
        assert len({record.id for record in play.ledger.started}) == 3
        assert (await run(connection, None)).exit_status == 0


async def test_a_session_request_before_the_login_is_refused(own: bool) -> None:
    play = Play()

    async def script(client: Scripted) -> None:
        client._connection._auth_complete = True  # so that asyncssh's client takes itself for authenticated
        await client._connection.create_session(asyncssh.SSHClientSession, COMMAND, encoding=None)

    async with served(play, own_transport=own) as port:
        with pytest.raises((asyncssh.Error, OSError)):
            async with scripted(port, script):
                pass
    assert play.ledger.started == []


# -- further connections -----------------------------------------------------------------------------------------------------


async def test_beyond_a_limit_connections_are_refused_until_one_ends(own: bool) -> None:
    play = Play()
    async with served(play, own_transport=own, limits={"connections_per_source": 1}) as port:
        async with logged_in(port):
            with pytest.raises((asyncssh.Error, OSError)):
                async with logged_in(port):
                    pass
            [(reason, detail)] = play.ledger.refused
            assert reason == "limited" and detail.startswith("source: 127.0.0.1")
            assert len(play.ledger.opened) == 1
        await play.ledger.how_closed()
        async with logged_in(port):
            assert len(play.ledger.opened) == 2


# -- [policy] ------------------------------------------------------------------------------------------------------------------


def rule(**settings: Any) -> dict[str, Any]:
    return {"policy": PolicySettings(rule=[PolicyRuleSettings(who=["alice"], **settings)])}


@pytest.mark.parametrize(
    ("settings", "reason", "detail"),
    [
        (rule(security_keys_only=True), "key_type", "alice: the key is of type ssh-ed25519, policy.rule#1 allows sk-ecdsa"),
        ({"policy": PolicySettings(key_types=["ssh-rsa"])}, "key_type", "alice: the key is of type ssh-ed25519, policy allows ssh-rsa"),
        (
            rule(from_networks=["192.0.2.0/24"]),
            "source_address",
            "alice: policy.rule#1 lets them log in from 192.0.2.0/24, not from 127.0.0.1",
        ),
        (rule(expires="20200102Z"), "expired", "alice: policy.rule#1 let them log in until 2020-01-02T00:00:00Z"),
    ],
)
async def test_policy_refuses_a_known_key_and_the_client_reads_what_a_stranger_reads(
    own: bool, settings: dict[str, Any], reason: str, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    play = Play()
    caplog.set_level("INFO", logger="relay.connection")
    async with served(play, own_transport=own, **settings) as port:
        with pytest.raises(asyncssh.PermissionDenied) as known:
            await refused_login(port)
        with pytest.raises(asyncssh.PermissionDenied) as stranger:
            await refused_login(port, asyncssh.generate_private_key("ssh-ed25519"))
    assert str(known.value) == str(stranger.value)
    [first, second] = play.ledger.failures
    assert (first[0], first[1], second[0]) == (reason, FINGERPRINT, "unknown_key") and first[2].startswith(detail)
    [line] = [message for message in caplog.messages if "is refused" in message]
    assert line == f"a connection from 127.0.0.1 as alice ({FINGERPRINT}) is refused: {first[2].removeprefix('alice: ')}"


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, "not_touched"), (USER_PRESENT, "not_verified"), (USER_VERIFIED, "not_touched"), (USER_PRESENT | USER_VERIFIED, "")],
)
async def test_a_security_key_is_judged_by_the_flags_that_it_signed(own: bool, kind: SecurityKeyKind, flags: int, reason: str) -> None:
    token, play = SoftwareSecurityKey(kind), Play()
    token.flags = flags
    play.keys = alices
    async with served(play, own_transport=own, policy=PolicySettings(verify_required=True)) as port:
        if reason:
            with pytest.raises(asyncssh.PermissionDenied):
                await refused_login(port, token)
        else:
            async with logged_in(port, token) as connection:
                assert (await run(connection, None)).exit_status == 0
    assert [failure[0] for failure in play.ledger.failures] == ([reason] if reason else [])


async def refused_login(port: int, key: asyncssh.SSHKey | asyncssh.SSHKeyPair = KEY) -> None:
    async with logged_in(port, key):
        pass


async def alices(fingerprint: str) -> str:
    return "alice"


async def test_a_remembered_security_key_must_be_touched_each_time(own: bool) -> None:
    """The decoded key is kept for all connections; what its signature must say is not."""
    token, play = SoftwareSecurityKey(), Play()
    play.keys = alices
    async with served(play, own_transport=own) as port:
        for flags in (USER_PRESENT, 0, USER_PRESENT):
            token.flags = flags
            if flags:
                async with logged_in(port, token):
                    pass
            else:
                with pytest.raises(asyncssh.PermissionDenied):
                    await refused_login(port, token)
    assert [failure[0] for failure in play.ledger.failures] == ["not_touched"]


async def test_policy_is_asked_again_before_a_later_session(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.connection.TRUSTED_SECONDS", 0.0)
    token, play = SoftwareSecurityKey(), Play()
    play.keys = alices
    async with served(play, own_transport=own) as port, logged_in(port, token) as connection:
        [server] = play.servers
        assert (await run(connection, None)).exit_status == 0
        stricter = dataclasses.replace(server._shared, policy=open_policy(PolicySettings(verify_required=True), None))
        monkeypatch.setattr(server, "_shared", stricter)
        assert (await run(connection, None)).exit_status == 128
    await wait_until_async(lambda: len(play.ledger.ended) == 2)
    outcome = play.ledger.ended[1][1]
    assert outcome.reason == "revoked" and "asked for no PIN" in outcome.detail


# -- limits by source -----------------------------------------------------------------------------------------------------------


async def test_behind_a_balancer_the_clients_own_address_is_exempt_and_the_balancers_is_not_taken_for_it() -> None:
    proxied = ProxyProtocolSettings(mode="allow", trusted=["127.0.0.1"])
    play, limits = Play(), {"penalty_seconds": 500, "exempt": ["192.0.2.0/24"], "known_source_seconds": 0}

    async def leaves(port: int, client: str) -> bytes:
        """Connects as `client`, sends its version line and leaves without a login; returns what the relay sends first."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"PROXY TCP4 {client} 192.0.2.250 4711 22\r\nSSH-2.0-test\r\n".encode())
        first = await reader.readline()
        writer.close()
        return first

    async with served(play, own_transport=True, limits=limits, proxy_protocol=proxied) as port:
        for client, count in (("192.0.2.7", 3), ("198.51.100.7", 1)):
            for _ in range(count):
                ended = len(play.ledger.closed)
                assert (await leaves(port, client)).startswith(b"SSH-2.0-")
                await wait_until_async(lambda ended=ended: len(play.ledger.closed) > ended)  # type: ignore[misc]
        assert await leaves(port, "198.51.100.7") == TEXTS["penalty"][1].encode() + b"\r\n"
        assert (await leaves(port, "192.0.2.8")).startswith(b"SSH-2.0-")
    kinds = {(record.address, record.source) for record, _, _ in play.ledger.closed}
    assert kinds == {("192.0.2.7", "exempt"), ("192.0.2.8", "exempt"), ("198.51.100.7", "stranger")}


# -- the banner ------------------------------------------------------------------------------------------------------------------


async def test_the_banner_is_sent_once_and_before_the_login(own: bool) -> None:
    play = Play()
    heard: list[tuple[str, int]] = []

    class Reading(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            heard.append((msg, len(play.ledger.successes)))

    async with served(play, own_transport=own, banner="Only for staff.\n見るな\n") as port:
        spare = asyncssh.generate_private_key("ssh-ed25519")
        async with logged_in(port, client_keys=[spare, KEY], client_factory=Reading):
            pass
        with pytest.raises((asyncssh.PermissionDenied, asyncssh.DisconnectError)):
            async with logged_in(port, username="root", client_factory=Reading):
                pass
    assert heard == [("Only for staff.\r\n見るな\r\n", 0), ("Only for staff.\r\n見るな\r\n", 1)]
