"""The tap copies a git host's bytes during the key exchange only; a host that never sends its version line is disconnected."""

from __future__ import annotations

import asyncio

import pytest

from relay.errors import Unavailable
from relay.upstream import hello
from relay.upstream.libssh2 import probe, transport
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN
from relay.upstream.libssh2.tcp import connect
from relay.upstream.tap import Tap
from tests.support.sshd import Sshd
from tests.upstream.peers import login


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> list[Tap]:
    """The taps that were set."""
    made: list[Tap] = []

    class Kept(Tap):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(transport, "Tap", Kept)
    return made


async def test_a_real_hosts_version_and_lists_are_heard(sshd: Sshd, taps: list[Tap]) -> None:
    connection = await connect(sshd.address, sshd.port, "x", asyncio.get_running_loop())
    session = transport.Transport(connection, "x", asyncio.get_running_loop())
    await session._handshake(login(sshd).host_keys)
    heard = bytes(taps[0].heard)
    assert (hello.version(heard) or "").startswith("SSH-2.0-OpenSSH")
    lists = hello.lists(heard)
    assert lists is not None
    assert "curve25519-sha256" in lists.key_exchanges and list(lists.host_keys) == ["ssh-ed25519"]
    assert "aes128-gcm@openssh.com" in lists.ciphers[0] and lists.ciphers[0] == lists.ciphers[1]
    # None stands for EAGAIN; the answer is further bytes from the host
    assert await session._complete(lambda: session._session.userauth_list("nobody") or LIBSSH2_ERROR_EAGAIN) == ["publickey"]
    assert bytes(taps[0].heard) == heard
    session.close()


async def test_lines_without_end_are_not_kept_nor_waited_for(sshd: Sshd, taps: list[Tap]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"and another thing\r\n" * 100)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match='its first line is "and another thing"'):
                await probe("127.0.0.1", server.sockets[0].getsockname()[1], login(sshd).host_keys)
    assert 0 < len(taps[0].heard) <= hello.HEARD_BYTES
