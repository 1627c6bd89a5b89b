"""The SSH program for git, with asyncssh: by_asyncssh KEY KNOWN_HOSTS [-o OPTION]... [-p PORT] USER@HOST COMMAND"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import asyncssh

STREAM_BYTES = 64 * 1024


async def run(arguments: argparse.Namespace) -> int:
    user, _, host = arguments.destination.rpartition("@")
    protocol = os.environ.get("GIT_PROTOCOL")
    async with asyncssh.connect(
        host,
        arguments.port,
        username=user,
        client_keys=[arguments.key],
        known_hosts=arguments.known_hosts,
        agent_path=None,
        config=None,
    ) as connection:
        process = await connection.create_process(
            arguments.command, stdin=sys.stdin, encoding=None, env={"GIT_PROTOCOL": protocol} if protocol else {}
        )
        await asyncio.gather(_copy(process.stdout, 1), _copy(process.stderr, 2))
        await process.wait_closed()
        return 255 if process.exit_status is None else process.exit_status


async def _copy(stream: asyncssh.SSHReader[bytes], descriptor: int) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        while data := await stream.read(STREAM_BYTES):
            await asyncio.to_thread(_write, file.fileno(), data)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("key")
    parser.add_argument("known_hosts")
    parser.add_argument("-o", action="append")
    parser.add_argument("-p", dest="port", type=int, default=22)
    parser.add_argument("destination")
    parser.add_argument("command")
    try:
        return asyncio.run(run(parser.parse_args()))
    except (asyncssh.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 255


if __name__ == "__main__":
    sys.exit(main())
