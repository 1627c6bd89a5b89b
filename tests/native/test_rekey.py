"""Bulk traffic both ways with packets that are only partly sent: rekeys of the server in the middle, and a server that does not read."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.native.client import CHUNK, EAGAIN, READ_SIZE, STALL_SECONDS, Client, SSH2Error, StalledError
from tests.native.hostile import CHANNEL_DATA, Hostile
from tests.native.inetd import USER, new_key

SIZE = 24_000_000  # bytes each way: some 20 rekeys at RekeyLimit 1M
SMALL_BUFFER = 4_096  # bytes; the kernel doubles it, a packet of CHUNK never fits


def echo(client: Client, size: int) -> tuple[str, str, int]:
    """Send `size` bytes through `cat` and read them back at the same time; (digest sent, digest read, partial sends).

    Reads and writes alternate whatever the last call returned, as in a relay's splice.
    """
    sent, seen = hashlib.sha256(), hashlib.sha256()
    block = random.Random(1).randbytes(CHUNK)
    pending, offset = b"", 0
    to_send = to_read = size
    partly = 0
    progress = time.monotonic()
    while to_read:
        moved = False
        rc, data = client.channel.read(READ_SIZE)
        if rc > 0:
            seen.update(data)
            to_read -= len(data)
            moved = True
        if not pending and to_send:
            pending = block[: min(CHUNK, to_send)]
            offset = 0
            to_send -= len(pending)
            sent.update(pending)
        if pending:
            rc, count = client.channel.write(pending[offset:])
            offset += count
            moved |= count > 0
            if offset == len(pending):
                pending = b""
            elif rc == EAGAIN:
                partly += 1
        if moved:
            progress = time.monotonic()
        else:
            if time.monotonic() - progress > STALL_SECONDS:
                raise StalledError(f"wedged with {to_read} bytes to read, {to_send} to send")
            client.wait()
    return sent.hexdigest(), seen.hexdigest(), partly


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-ctr", "chacha20-poly1305@openssh.com"])
def test_rekey_with_packets_partly_sent(cipher: str, connect: Callable[..., Client], hardened: str) -> None:
    """All bytes arrive, in order, although each rekey meets output that is pending (libssh2 issue 2110)."""
    client = connect("RekeyLimit 1M", "LogLevel DEBUG1", send_buffer=SMALL_BUFFER, cipher=cipher, mac="hmac-sha2-256")
    client.execute("cat")
    sent, seen, partly = echo(client, SIZE)
    assert seen == sent
    rekeys = client.peer_log().count("rekeying out")
    assert rekeys >= SIZE // 2_000_000, "there were no rekeys: the test proves nothing"
    assert partly >= rekeys, "the packets were not partly sent: the test proves nothing"


def test_traffic_both_ways_without_rekey(connect: Callable[..., Client]) -> None:
    """The same traffic without a rekey, on any library: the test above differs only by the rekey."""
    client = connect(send_buffer=SMALL_BUFFER, cipher="aes128-gcm@openssh.com")
    client.execute("cat")
    sent, seen, _ = echo(client, SIZE // 4)
    assert seen == sent


def test_write_tried_again_with_less(hardened: str) -> None:
    """A retry of a write with fewer bytes is an error, instead of sending the bytes after them."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    done = threading.Event()

    def serve() -> None:
        with theirs:
            Hostile(theirs, "aes128-gcm@openssh.com").serve_exec(window=2**30)
            done.wait(STALL_SECONDS)  # the server reads nothing

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(ours) as client:
            client.handshake("aes128-gcm@openssh.com")
            client.login(USER, new_key()[0])
            client.execute("command")
            while client.channel.write(bytes(CHUNK))[0] != EAGAIN:
                pass
            with pytest.raises(SSH2Error):
                client.channel.write(bytes(10))
    finally:
        done.set()
        thread.join(STALL_SECONDS)


def test_read_while_the_server_does_not_read(hardened: str) -> None:
    """The client reads from a server that waits for its output to be read, although a write waits for the server."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    size = 2_000_000  # near the window of 2 MiB: a read wants to adjust it on the way
    received: list[int] = []

    def serve() -> None:
        with theirs:
            server = Hostile(theirs, "aes128-gcm@openssh.com")
            server.serve_exec(window=2**30)
            first = server.expect(CHANNEL_DATA)  # a write has begun; the server reads no more until it has sent all
            for _ in range(size // 20_000):
                server.send(server.data(bytes(20_000)))
            received.append(len(first) - 9)
            while sum(received) < size:
                received.append(len(server.expect(CHANNEL_DATA)) - 9)
            server.wait_gone()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(ours) as client:
            client.handshake("aes128-gcm@openssh.com")
            client.login(USER, new_key()[0])
            client.execute("command")
            block, offset, written, to_read = bytes(CHUNK), 0, 0, size
            deadline = time.monotonic() + STALL_SECONDS
            while to_read or written < size:
                if time.monotonic() > deadline:
                    raise StalledError(f"wedged with {to_read} bytes to read, {written} sent")
                rc, data = client.channel.read(READ_SIZE)
                to_read -= len(data)
                if written < size:
                    end = min(CHUNK, offset + size - written)
                    rc, count = client.channel.write(block[offset:end])
                    offset = (offset + count) % end
                    written += count
                if not data and rc == EAGAIN:
                    client.wait()
    finally:
        thread.join(STALL_SECONDS)
    assert sum(received) == size
