"""An SSH server by asyncssh that runs one script for every exec: asyncssh_host ADDRESS PORT REKEY_BYTES HOST_KEY AUTHORIZED_KEYS SCRIPT"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import asyncssh

READ_BYTES = 64 * 1024
VARIABLES = ("GIT_PROTOCOL", "RELAY_IDENTITY", "RELAY_KEY")


async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
    variables = {name: value for name in VARIABLES if (value := process.env.get(name)) is not None}
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        sys.argv[6],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, **variables, "SSH_ORIGINAL_COMMAND": process.command or ""},
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    feeding = asyncio.get_running_loop().create_task(feed(process.stdin, child.stdin))
    try:
        await asyncio.gather(copy(child.stdout, process.stdout), copy(child.stderr, process.stderr))
        status = await child.wait()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
    except (OSError, asyncssh.Error):
        process.close()  # the relay has disconnected
    finally:
        feeding.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()


async def feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(READ_BYTES):
            target.write(data)
            await target.drain()
        target.close()
    except (OSError, asyncssh.Error):
        target.close()  # the client or the command has closed its side; the command must get EOF


async def copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(READ_BYTES):
        target.write(data)
        await target.drain()


async def main() -> None:
    logging.basicConfig(level=logging.DEBUG)  # logs each key exchange
    address, port, rekey_bytes, host_key, authorized_keys, _ = sys.argv[1:]
    acceptor = await asyncssh.listen(
        address,
        int(port),
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=serve,
        encoding=None,
        allow_pty=False,
        gss_host=None,
        rekey_bytes=int(rekey_bytes),
    )
    print(f"listening on {address}:{acceptor.get_port()}", flush=True)
    await acceptor.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
