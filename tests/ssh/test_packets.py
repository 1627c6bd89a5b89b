"""asyncssh's handlers on the direct path: run inline and in order, with asyncssh's results."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh
import pytest
from asyncssh.connection import SSHConnection
from asyncssh.constants import MSG_CHANNEL_EOF, MSG_CHANNEL_OPEN, MSG_IGNORE, MSG_UNIMPLEMENTED
from asyncssh.packet import String, UInt32

from relay.ssh.channel import Channel
from relay.ssh.client_connection import ClientConnection
from relay.ssh.packets import PacketConnection
from tests.ssh.test_client_connection import KEY, Place, listening
from tests.support.wait import wait_until_async


@pytest.fixture
def made_tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The coroutines that connections made tasks of."""
    made: list[Any] = []
    create_task = SSHConnection.create_task

    def create(self: SSHConnection, coro: Any, task_logger: Any = None) -> Any:
        if isinstance(self, PacketConnection):
            made.append(coro)
        return create_task(self, coro, task_logger)

    monkeypatch.setattr(SSHConnection, "create_task", create)
    return made


async def connect(place: Place, **options: Any) -> Any:
    return await place.connect(**options)


async def logged_in(place: Place, client: Any) -> None:
    await wait_until_async(lambda: place.connection._auth_complete)
    with pytest.raises(asyncssh.ChannelOpenError):  # the server has no sessions
        await client.run("anything")


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_a_login_that_never_blocks_makes_no_task(cipher: str, made_tasks: list[Any]) -> None:
    async with listening() as place, place.connect(encryption_algs=[cipher]) as client:
        await logged_in(place, client)
        assert made_tasks == []


@pytest.mark.parametrize("strict", [True, False])
async def test_the_relay_itself_sends_every_packet_of_a_login(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first key exchange too, which have no cipher, and with which a strict one begins to count anew."""
    by_asyncssh: list[int] = []
    send_packet = SSHConnection.send_packet

    def sent(self: SSHConnection, kind: int, *args: bytes, handler: Any = None) -> None:
        if isinstance(self, PacketConnection):
            by_asyncssh.append(kind)
        send_packet(self, kind, *args, handler=handler)

    monkeypatch.setattr(SSHConnection, "send_packet", sent)
    if not strict:
        monkeypatch.setattr(asyncssh.SSHClientConnection, "_get_extra_kex_algs", lambda self: [b"ext-info-c"])
    async with listening() as place, place.connect() as client:
        await logged_in(place, client)
        assert place.connection._strict_kex is strict
        assert by_asyncssh == []


async def test_a_connection_sets_no_attribute_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython drops what it has cached of a class, and of all classes derived from it, whenever an attribute of the class is set."""
    monkeypatch.setattr(asyncssh.SSHClientConnection, "_get_next_conn", staticmethod(lambda: 0))  # the test's client is in this process
    classes = (*ClientConnection.__mro__, *Channel.__mro__)
    before: list[dict[str, Any]] = []
    for _ in range(2):  # the first connection may make what all share
        before = [dict(vars(one)) for one in classes]
        async with listening() as place, place.connect() as client:
            await logged_in(place, client)
    for one, attributes in zip(classes, before, strict=True):
        assert dict(vars(one)) == attributes, one


async def test_a_login_that_blocks_makes_one_task_and_later_messages_wait(made_tasks: list[Any]) -> None:
    async with listening() as place:
        place.server.may.clear()
        login = asyncio.create_task(connect(place))
        await place.server.asked.wait()
        assert len(made_tasks) == 1
        place.server.may.set()
        async with await login as client:
            await logged_in(place, client)


async def test_an_attempt_that_another_replaces_is_cancelled() -> None:
    """RFC 4252 section 5.1: a client may send another request without waiting for the answer, which is then not sent."""
    cancelled = asyncio.Event()

    async with listening() as place:

        async def asked_for_ever(username: str, key: asyncssh.SSHKey) -> bool:
            try:
                place.server.asked.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return True

        place.server.validate_public_key = asked_for_ever  # type: ignore[method-assign]
        clients: list[Any] = []

        class Hasty(asyncssh.SSHClient):
            def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
                clients.append(conn)

        login = asyncio.create_task(connect(place, client_factory=Hasty))
        await place.server.asked.wait()
        server = place.connection
        first = server._auth
        clients[0]._auth = None
        clients[0].send_packet(50, String("git"), String("ssh-connection"), String("none"))
        await cancelled.wait()
        await wait_until_async(lambda: server._auth is not first)
        clients[0].abort()
        await asyncio.wait([login])
        login.exception()  # whether there is an error depends on which side was first


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (MSG_CHANNEL_EOF, UInt32(7), "Invalid channel number 7 received"),
        (MSG_CHANNEL_EOF, b"\0", "Incomplete channel request received"),
        (MSG_CHANNEL_OPEN, String("session"), "Incomplete packet"),
        (61, b"", "Authentication not in progress"),
    ],
)
async def test_a_message_out_of_place_ends_the_connection_as_in_asyncssh(kind: int, body: bytes, why: str) -> None:
    async with listening() as place, place.connect() as client:
        await logged_in(place, client)
        client.send_packet(kind, body)
        ended = await place.end()
        assert isinstance(ended, asyncssh.ProtocolError)
        assert why in str(ended)


async def test_a_request_before_the_login_ends_the_connection() -> None:
    async with listening() as place:

        class Early(asyncssh.SSHClient):
            def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
                self.connection = conn

            async def public_key_auth_requested(self) -> asyncssh.SSHKey:
                self.connection._auth_complete = True  # else asyncssh's client would queue the packet
                self.connection.send_packet(MSG_CHANNEL_OPEN, String("session"), UInt32(0), UInt32(1 << 20), UInt32(1 << 15))
                return KEY

        with pytest.raises((OSError, asyncssh.Error)):
            await place.connect(client_factory=Early, client_keys=[])
        ended = await place.end()
        assert "before authentication was complete" in str(ended)


async def test_an_unknown_message_is_answered_with_unimplemented(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, tuple[bytes, ...]]] = []
    send_packet = PacketConnection.send_packet

    def note(self: Any, kind: int, *parts: bytes, handler: Any = None) -> None:
        sent.append((kind, parts))
        send_packet(self, kind, *parts, handler=handler)

    async with listening() as place, place.connect() as client:
        await logged_in(place, client)
        monkeypatch.setattr(PacketConnection, "send_packet", note)
        number = place.connection._recv_seq
        client.send_packet(MSG_IGNORE, String(b"noise"))  # asyncssh's client sends another MSG_IGNORE before the next packet
        client.send_packet(192)
        await wait_until_async(lambda: (MSG_UNIMPLEMENTED, (UInt32(number + 2),)) in sent)


async def test_an_internal_error_in_a_handler_ends_this_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Any, begin_auth: bool, method: bytes, packet: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(ClientConnection, "_finish_userauth", broken)
    async with listening() as place:
        with pytest.raises((OSError, asyncssh.Error)):
            await place.connect()
        assert isinstance(await place.end(), ZeroDivisionError)
    assert "was ended by a fault" in caplog.text
