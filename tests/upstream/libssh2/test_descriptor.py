"""The descriptor of a libssh2 session, and the socket that replaces it: nothing written to that reaches a peer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import psutil
import pytest

from relay.upstream.libssh2.descriptor import Descriptor, prepare


@pytest.fixture
def pair() -> Iterator[tuple[Descriptor, socket.socket]]:
    """A TCP connection: the descriptor of one end, and the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with theirs:
        theirs.settimeout(60)
        yield Descriptor(ours), theirs


def test_it_does_not_block_and_closes_with_the_last_reference() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        session = [Descriptor(socket.create_connection(server.getsockname()))]  # referenced as by libssh2's session
    fd = session[0].fileno()
    assert not os.get_blocking(fd)
    os.fstat(fd)
    session.clear()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_buried_it_reads_an_end_and_writes_fail_and_the_far_side_sees_a_close(pair: tuple[Descriptor, socket.socket]) -> None:
    descriptor, theirs = pair
    fd = descriptor.fileno()
    descriptor.bury()
    assert descriptor.fileno() == fd
    assert theirs.recv(100) == b""
    assert os.read(fd, 100) == b""
    with pytest.raises(BrokenPipeError):
        os.write(fd, b"lost")


def test_isolated_it_takes_writes_that_go_nowhere_and_has_nothing_to_read(pair: tuple[Descriptor, socket.socket]) -> None:
    descriptor, theirs = pair
    descriptor.isolate()
    assert theirs.recv(100) == b""
    assert os.write(descriptor.fileno(), b"vanishes") == 8
    with pytest.raises(BlockingIOError):
        os.read(descriptor.fileno(), 100)


def test_the_sink_never_fills(pair: tuple[Descriptor, socket.socket]) -> None:
    descriptor, _ = pair
    for _ in range(100):
        descriptor.isolate()
        assert os.write(descriptor.fileno(), bytes(32_768)) == 32_768


def test_the_dead_ends_are_made_once_and_are_not_inherited(pair: tuple[Descriptor, socket.socket]) -> None:
    prepare()
    before = psutil.Process().num_fds()
    prepare()
    pair[0].bury()
    assert psutil.Process().num_fds() == before
    assert not os.get_inheritable(pair[0].fileno())


def test_a_forked_child_has_a_sink_of_its_own(pair: tuple[Descriptor, socket.socket]) -> None:
    descriptor, _ = pair
    descriptor.isolate()
    inode = os.fstat(descriptor.fileno()).st_ino
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        descriptor.isolate()
        os.write(writing, str(os.fstat(descriptor.fileno()).st_ino).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) != inode
    os.close(reading)
    os.close(writing)
