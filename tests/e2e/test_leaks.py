"""A thousand rounds of sessions that end in every way, and nothing is left of them: no descriptor, no memory, no lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncssh
import pytest

from tests.e2e.helpers import alice
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

ROUNDS = 1_000
WARM_UP = 250  # until the pool, the heap and what modules load lazily have their size
TOGETHER = 8
GROWTH_BYTES = 12 << 20  # a dropped libssh2 session alone is 1.6 MB: a tenth of the aborted ones would be ten times this

# what is asked for, and whether the client leaves in the middle
WAYS = [
    ("git-upload-pack 'stub/exit/0'", False),
    ("git-upload-pack 'stub/emit/400000/3'", False),
    ("git-upload-pack 'stub/emit/3000000'", True),
    ("git-receive-pack 'stub/checksum'", True),
    ("git-upload-pack 'stub/signal/KILL/1000'", False),
    ("git-upload-pack 'stub/mixed/100000/7'", False),
    ("git-upload-pack 'stub/hang'", True),
    ("ls", False),
]


async def one(connection: asyncssh.SSHClientConnection, number: int) -> None:
    command, leaves = WAYS[number % len(WAYS)]
    if not leaves:
        await connection.run(command, encoding=None, input=b"")
        return
    process = await connection.create_process(command, encoding=None)
    if "checksum" in command:
        process.stdin.write(bytes(200_000))
    elif "emit" in command:
        await process.stdout.read(50_000)
    process.channel.abort()
    await process.wait_closed()


async def rounds(relay: RelayProcess, count: int) -> None:
    """Each round is a connection with one session; half of the connections are dropped, not closed."""
    gate = asyncio.Semaphore(TOGETHER)

    async def round_of(number: int) -> None:
        async with gate, alice(relay) as connection:
            try:
                await one(connection, number)
            finally:
                if number % 2:
                    connection.abort()

    await asyncio.gather(*(round_of(number) for number in range(count)))


async def quiet(relay: RelayProcess, idle: int) -> int:
    """Waits until nothing goes on, then counts the descriptors."""

    def still() -> bool:
        return (
            relay.metric("relay_connections_open") == 0
            and relay.metric("relay_upstream_connections", upstream="main", state="leased") == 0
            and relay.metric("relay_upstream_connections", upstream="main", state="dialing") == 0
            and relay.metric("relay_upstream_connections", upstream="main", state="idle") == idle
        )

    await wait_until_async(still, 60, "no connection, no lease, and the pool at its idle size")
    return relay.fds()


@pytest.mark.slow
async def test_nothing_is_left_of_a_thousand_rounds(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(
        sshd,
        config={
            "upstreams": {"main": {"idle_connections": 2, "idle_seconds": 1, "connections_max": TOGETHER}},
            "limits": {"connections_per_source": 100, "unauthenticated_connections": 200},
        },
    )
    await rounds(relay, WARM_UP)
    descriptors, memory = await quiet(relay, 2), relay.rss()
    await rounds(relay, ROUNDS)
    assert await quiet(relay, 2) == descriptors
    assert relay.rss() - memory < GROWTH_BYTES, (memory, relay.rss())
    assert sum(relay.metric("relay_sessions_open", service=service) for service in ("git-upload-pack", "git-receive-pack", "none")) == 0
