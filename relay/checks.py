"""`relay check --connect`: logs in to every address of every git host, exactly as the pool would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from relay.address import format_address, parse_address
from relay.errors import Unavailable
from relay.load import Loaded
from relay.upstream.hostkeys import read_host_keys
from relay.upstream.libssh2 import Connection, Login, library


async def connect_all(loaded: Loaded, say: Callable[[str], None]) -> list[str]:
    """One line each to `say` for what works; returns one line for each address that does not."""
    say(f"libssh2 {library()}")
    problems: list[str] = []
    for name, upstream in loaded.config.upstreams.items():
        where = f"{loaded.path}:upstreams.{name}"
        pinned, faults = read_host_keys(upstream, where, loaded.base)
        problems += faults
        login = Login(user=upstream.user, private_key=loaded.resolve(upstream.private_key).read_bytes(), host_keys=pinned)
        for address in upstream.addresses:
            host, port = parse_address(address)
            started = time.monotonic()
            try:
                async with asyncio.timeout(upstream.connect_seconds):
                    connection = await Connection.dial(host, port, login, upstream.keepalive_seconds)
            except Unavailable as error:
                problems.append(f"{where}.addresses: {error}")
            except TimeoutError:
                problems.append(f"{where}.addresses: {format_address(host, port)}: no login within {upstream.connect_seconds:g} s")
            else:
                connection.close()
                say(f"upstream {name}: logged in to {address} as {upstream.user} in {(time.monotonic() - started) * 1000:.0f} ms")
    return problems
