"""The transport to a git host: TCP, key exchange, the host key, and a close that whoever waits is told of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from relay.errors import Unavailable
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.libssh2 import probe
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key, make_key
from tests.support.machine import free_port
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import Dial, login


async def test_nobody_listens(dial: Dial) -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}: .*Connect") as told:
        await dial(port)
    assert told.value.reason == "dial"
    with pytest.raises(Unavailable, match=rf"^\[::1\]:{port}: "):
        await dial(port, host="::1")


async def test_a_name_is_resolved_or_the_dial_says_that_it_was_not(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await dial(host="localhost")).usable

    async def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # a real question would go to the network

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(Unavailable, match=r"git\.invalid:22: name not resolved: .*not known") as told:
        await dial(22, host="git.invalid")
    assert told.value.reason == "dial"


async def test_what_listens_speaks_no_ssh_or_goes(dial: Dial, sshd: Sshd) -> None:
    async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 100)
        writer.close()

    async with await asyncio.start_server(junk, "127.0.0.1", 0) as server, FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("reset")
        for port in (server.sockets[0].getsockname()[1], proxy.port):
            with pytest.raises(Unavailable, match="key exchange failed") as told:
                await dial(port)
            assert told.value.reason == "handshake"


async def test_only_modern_algorithms_are_spoken(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    old = make_sshd(config=["KexAlgorithms diffie-hellman-group14-sha256"])
    with pytest.raises(Unavailable, match="key exchange failed"):
        await dial(old.port, host_keys=parse_pinned([old.host_key_line])[0])


async def test_another_host_key_is_refused_with_both_fingerprints(dial: Dial, sshd: Sshd, key: Key) -> None:
    mark = sshd.log_mark()
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([key.host_line])[0])
    assert told.value.reason == "host_key"
    assert f"offered {sshd.host_key.fingerprint}, pinned {key.fingerprint}" in str(told.value)
    await wait_until_async(lambda: "Connection closed" in sshd.log_text(mark))
    assert "publickey" not in sshd.log_text(mark)  # nothing was said to it


async def test_a_host_without_a_key_of_a_pinned_type_is_not_even_asked(dial: Dial, tmp_path: Any) -> None:
    ecdsa = make_key(tmp_path, "ecdsa", "ecdsa")
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([ecdsa.host_line])[0])
    assert told.value.reason == "handshake"


async def test_closing_wakes_who_waits_for_the_git_host(dial: Dial, sshd: Sshd) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        proxy.stall("down")
        waiting = asyncio.create_task(connection.run(sshd.stub("exit/0"), []))
        await wait_until_async(lambda: connection.sessions == 1 and connection._waiter is not None)
        connection.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting


async def test_a_probe_exchanges_keys_and_logs_in_nowhere(sshd: Sshd, key: Key) -> None:
    mark, before = sshd.log_mark(), psutil.Process().num_fds()
    await probe(sshd.address, sshd.port, login(sshd).host_keys)
    await wait_until_async(lambda: "Received disconnect" in sshd.log_text(mark), message="it says that it leaves")
    assert "publickey" not in sshd.log_text(mark)
    with pytest.raises(Unavailable, match="HOST KEY MISMATCH") as told:
        await probe(sshd.address, sshd.port, parse_pinned([key.host_line])[0])
    assert told.value.reason == "host_key"
    with pytest.raises(Unavailable) as told:
        await probe("127.0.0.1", free_port(), login(sshd).host_keys)
    assert told.value.reason == "dial"
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await probe("127.0.0.1", proxy.port, login(sshd).host_keys)
    assert psutil.Process().num_fds() == before
