"""The TCP connection to a git host: tuned before it connects, every address of a name tried, nothing left open."""

from __future__ import annotations

import asyncio
import socket
import termios
from pathlib import Path
from typing import Any

import psutil
import pytest

from relay.errors import Unavailable
from relay.upstream.libssh2.tcp import SEND_BUFFER_BYTES, connect, ioctl_int
from tests.support.machine import free_port


async def test_it_is_tuned_and_does_not_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = await connect("127.0.0.1", server.getsockname()[1], "here", asyncio.get_running_loop())
        with sock:
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            granted = min(SEND_BUFFER_BYTES, int(Path("/proc/sys/net/core/wmem_max").read_text()))
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * granted  # the kernel doubles it
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


async def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]

        async def two(*arguments: Any, **named: Any) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.3", "127.0.0.2")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two)
        before = psutil.Process().num_fds()
        with await connect("git.invalid", port, "git.invalid", asyncio.get_running_loop()) as sock:
            assert sock.getpeername() == ("127.0.0.2", port)
            assert psutil.Process().num_fds() == before + 1


async def test_a_refusal_and_a_cancellation_leave_nothing_open() -> None:
    loop, port = asyncio.get_running_loop(), free_port()
    before = psutil.Process().num_fds()
    with pytest.raises(Unavailable, match=r"^there: Connection refused$") as told:
        await connect("127.0.0.1", port, "there", loop)
    assert told.value.reason == "dial"
    with socket.socket() as full:  # a full backlog makes a connect wait
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        task = asyncio.create_task(connect(address[0], address[1], "there", loop))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        for sock in waiting:
            sock.close()
    assert psutil.Process().num_fds() == before


def test_what_waits_in_a_socket_is_counted() -> None:
    one, two = socket.socketpair()
    with one, two:
        one.send(b"12345")
        assert ioctl_int(two.fileno(), termios.FIONREAD) == 5
