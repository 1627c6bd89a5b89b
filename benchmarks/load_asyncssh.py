"""The load generator where no Go is: asyncssh clients, with the options and the output of peers/go_load."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import asyncssh

from benchmarks.fetch_v2 import Fetched, fetch

SESSION_SECONDS = 60.0
CLONE_SECONDS = 600.0
ERRORS_KEPT = 5


class Target:
    """The address and login, and the command to run."""

    def __init__(self, options: argparse.Namespace) -> None:
        host, _, port = options.address.rpartition(":")
        self.command, self.expect = options.command, options.expect
        known: tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]] | None
        known = ([asyncssh.read_public_key(options.host_key)], [], []) if options.host_key else None
        self._arguments: dict[str, Any] = {
            "host": host.strip("[]"),
            "port": int(port),
            "username": options.user,
            "client_keys": [asyncssh.read_private_key(options.key)],
            "known_hosts": known,
            "kex_algs": options.kex.split(","),
            "encryption_algs": ["aes128-gcm@openssh.com"],
            "compression_algs": ["none"],
            "agent_path": None,
            "config": [],
        }

    async def login(self) -> asyncssh.SSHClientConnection:
        return await asyncio.wait_for(asyncssh.connect(**self._arguments), SESSION_SECONDS)

    async def clone(self, depth: int) -> Fetched:
        """Raises as `session`."""
        connection = await self.login()
        try:
            return await asyncio.wait_for(fetch(connection, self.command, depth), CLONE_SECONDS)
        finally:
            connection.close()
            await connection.wait_closed()

    async def session(self) -> None:
        """Raises asyncssh.Error, OSError, TimeoutError or ValueError if the session failed."""
        async with await self.login() as connection:
            done = await asyncio.wait_for(connection.run(self.command, encoding=None), SESSION_SECONDS)
            if done.exit_status != 0 or done.stdout != self.expect.encode():
                raise ValueError(f"command ended with {done.exit_status} and wrote {done.stdout!r}: {done.stderr!r}")


def say(
    elapsed: float = 0,
    latencies: list[float] | None = None,
    failures: list[str] | None = None,
    first: list[float] | None = None,
    size: int = 0,
) -> None:
    failed = failures or []
    report = {"elapsed": elapsed, "latencies": latencies or [], "failures": len(failed), "errors": failed[:ERRORS_KEPT]}
    report |= {"first": first or [], "bytes": size}
    print(json.dumps({**report, "cpu_seconds": time.process_time()}), flush=True)


async def sessions(target: Target, options: argparse.Namespace) -> None:
    begin, started = time.perf_counter(), 0
    latencies: list[float] = []
    firsts: list[float] = []
    failures: list[str] = []
    size = 0

    async def client() -> None:
        nonlocal started, size
        while not options.seconds or time.perf_counter() - begin < options.seconds:
            if options.count and started >= options.count:
                return
            started += 1
            start = time.perf_counter()
            try:
                if options.mode == "clones":
                    fetched = await target.clone(options.depth + started * options.step)
                    firsts.append(fetched.first - start)
                    size += fetched.size
                else:
                    await target.session()
                latencies.append(time.perf_counter() - start)
            except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.01)  # do not flood a server that refuses

    async with asyncio.TaskGroup() as group:
        for _ in range(options.clients):
            group.create_task(client())
    say(time.perf_counter() - begin, latencies, failures, firsts, size)


async def idle(target: Target, options: argparse.Namespace) -> None:
    begin, turns = time.perf_counter(), asyncio.Semaphore(options.parallel)
    open_connections: list[asyncssh.SSHClientConnection] = []
    failures: list[str] = []

    async def hold() -> None:
        async with turns:
            try:
                open_connections.append(await target.login())
            except (asyncssh.Error, OSError, TimeoutError) as error:
                failures.append(f"login: {type(error).__name__}: {error}")

    async with asyncio.TaskGroup() as group:
        for _ in range(options.clients):
            group.create_task(hold())
    say(time.perf_counter() - begin, failures=failures)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    lost = sum(connection.is_closed() for connection in open_connections)
    for connection in open_connections:
        connection.abort()
    say(failures=["connections were closed while idle"] * lost)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("sessions", "clones", "idle"))
    for name in ("address", "user", "key"):
        parser.add_argument(f"-{name}", required=True)
    for name in ("host-key", "command", "expect"):
        parser.add_argument(f"-{name}", default="", dest=name.replace("-", "_"))
    parser.add_argument("-kex", default="curve25519-sha256")
    parser.add_argument("-clients", type=int, default=1)
    parser.add_argument("-count", type=int, default=0)
    parser.add_argument("-seconds", type=float, default=0)
    parser.add_argument("-parallel", type=int, default=16)
    for name in ("depth", "step"):
        parser.add_argument(f"-{name}", type=int, default=0)
    options = parser.parse_args(argv)
    if options.mode != "idle" and options.seconds <= 0 and options.count <= 0:
        parser.error("neither -seconds nor -count bounds the load")
    asyncio.run((idle if options.mode == "idle" else sessions)(Target(options), options))
