"""A git host that exchanges keys after each megabyte (RFC 4253 section 9) of bulk data both ways, on fast links and on bursty ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.faults import BUFFER_BYTES, MIB, outcomes, pool_states, small_buffers
from tests.e2e.helpers import Streamed, audited, streamed
from tests.support.faultlink import Direction
from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.pattern import PATTERN_BYTES, pattern, stub_sha256
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SIZE = 80_000_000
BURSTY_SIZE = 48_000_000
IDLE = 2
REKEY = re.compile(r"set_newkeys: rekeying")

pytestmark = [pytest.mark.xdist_group("rekey"), pytest.mark.slow]


@pytest.fixture
def rekeying(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd(config=["RekeyLimit 1M", "LogLevel DEBUG1"])


@pytest.fixture
def link(rekeying: Sshd) -> Iterator[ThreadedFaultProxy]:
    """The link between the relay and the git host."""
    with ThreadedFaultProxy("127.0.0.1", rekeying.port) as proxy:
        yield proxy


def rekeys(sshd: Sshd) -> int:
    """The number of new keys in sshd's log, without the first: each key exchange has two, one a direction."""
    return len(REKEY.findall(sshd.log_text())) // 2


def fed(process: subprocess.Popen[bytes], size: int) -> Streamed:
    """Writes `size` bytes of the pattern to a program's stdin while the caller reads its output."""
    assert process.stdin is not None
    stdin = os.fdopen(os.dup(process.stdin.fileno()), "wb", buffering=0)  # the reader closes the original

    def feed() -> None:
        left = size
        try:
            with stdin:
                while left:
                    left -= stdin.write(memoryview(pattern())[: min(left, PATTERN_BYTES)])
        except BrokenPipeError:
            pass  # the program ended: its status says why

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        return streamed(process)
    finally:
        writer.join()


def check(relay: RelayProcess, command: str, size: int, *options: str) -> None:
    """Runs one session by the real ssh; asserts that its bytes are right and its outcome is reported once."""
    since = len(relay.audit_lines())
    with relay.ssh(*options).popen(command) as ssh:
        got = fed(ssh, 0 if "emit" in command else size)
    said = [line for line in got.stderr.splitlines() if not line.startswith(b"debug1: ")]  # sshd's debug lines, before the command starts
    assert (got.returncode, said) == (0, []), relay.log_text()[-2000:]
    if "checksum" in command:
        assert got.sha256 == hashlib.sha256(f"{stub_sha256(size)} {size}\n".encode()).hexdigest()
    else:
        assert (got.length, got.sha256) == (size, stub_sha256(size))
    [line] = audited(relay, since, event="session")
    assert (line["result"], line["exit_status"]) == ("ok", 0)


DIRECTIONS: tuple[Direction, ...] = ("up", "down", "both")
DOWN, UP, BOTH = f"git-upload-pack 'stub/emit/{SIZE}'", "git-receive-pack 'stub/checksum'", "git-upload-pack 'stub/cat'"


@pytest.mark.parametrize("command", [DOWN, UP, BOTH], ids=["down", "up", "both at once"])
def test_many_key_exchanges_in_a_session(make_relay: Callable[..., RelayProcess], rekeying: Sshd, command: str) -> None:
    relay = make_relay(rekeying)
    check(relay, command, SIZE)
    assert rekeys(rekeying) >= SIZE // (4 * MIB)
    outcomes(relay, 0, 1)


def test_the_client_exchanges_keys_as_well(make_relay: Callable[..., RelayProcess], rekeying: Sshd) -> None:
    relay = make_relay(rekeying)
    check(relay, BOTH, SIZE // 4, "RekeyLimit=1M")
    assert rekeys(rekeying) >= SIZE // (16 * MIB)


@pytest.mark.parametrize("command", [f"git-upload-pack 'stub/emit/{BURSTY_SIZE}'", UP, BOTH], ids=["down", "up", "both at once"])
def test_a_slow_and_bursty_link(
    make_relay: Callable[..., RelayProcess], rekeying: Sshd, link: ThreadedFaultProxy, tmp_path: Path, command: str
) -> None:
    """Odd pieces, small buffers, and pauses at any moment: packets are only partly sent and partly received when keys change.

    The stock libssh2 hangs here unless one caller alone finishes a partly sent packet.
    """
    main = {**upstream(rekeying, port=link.port), "idle_connections": IDLE}
    relay = make_relay(rekeying, config={"upstreams": {"main": main}}, env=small_buffers(tmp_path))
    wait_until(lambda: pool_states(relay)["idle"] == IDLE, message="the pool is warm")
    with Bursts(link):
        check(relay, command, BURSTY_SIZE)
    assert rekeys(rekeying) >= BURSTY_SIZE // (4 * MIB)
    outcomes(relay, 0, 1)


class Bursts:
    """While entered, the link is slow, carries small pieces, and stalls each direction now and then."""

    def __init__(self, link: ThreadedFaultProxy) -> None:
        self._link = link
        self._random = random.Random(3)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        def begin(proxy: FaultProxy) -> None:
            proxy.split(7_001)
            for one in proxy.links:
                for side in (one.client, one.target):
                    assert side is not None
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * BUFFER_BYTES)
            self._task = asyncio.get_running_loop().create_task(self._burst(proxy))

        self._link.do(begin)

    def __exit__(self, *_: object) -> None:
        def end(proxy: FaultProxy) -> None:
            assert self._task is not None
            self._task.cancel()
            proxy.heal()

        self._link.do(end)

    async def _burst(self, proxy: FaultProxy) -> None:
        while True:
            direction = self._random.choice(DIRECTIONS)
            proxy.stall(direction)
            await asyncio.sleep(self._random.uniform(0.001, 0.02))
            proxy.resume(direction)
            await asyncio.sleep(self._random.uniform(0.001, 0.02))
