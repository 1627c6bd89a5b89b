"""A small git host for the demo only: asyncssh on loopback runs the real git on bare repositories in a folder."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path

import asyncssh

from relay.tasks import Tasks

_CHUNK_BYTES = 64 * 1024
_SERVICES = {"git-upload-pack": "upload-pack", "git-receive-pack": "receive-pack", "git-upload-archive": "upload-archive"}


class GitHost:
    """Serves the repositories below `root` to one key."""

    def __init__(self, root: Path, relay_key: asyncssh.SSHKey) -> None:
        self._root = root
        self._relay_key = relay_key
        self._tasks = Tasks()
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")

    @property
    def port(self) -> int:
        assert self._acceptor is not None
        return int(self._acceptor.get_port())

    async def start(self) -> None:
        trusted = asyncssh.import_authorized_keys(self._relay_key.export_public_key("openssh").decode())
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.host_key],
            authorized_client_keys=trusted,
            process_factory=self._serve,
            encoding=None,
            allow_pty=False,
            agent_forwarding=False,
            gss_host=None,
        )

    async def close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        await self._tasks.cancel()

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        try:
            service, path = shlex.split(process.command or "")
            repository = (self._root / path.lstrip("/")).resolve()
            repository.relative_to(self._root.resolve())
        except ValueError:
            service, repository = "", self._root
        if service not in _SERVICES:
            process.stderr.write(b"demo git host: git only\n")
            process.exit(128)
            return
        environment: dict[str, str] = {"PATH": os.environ.get("PATH", os.defpath)}
        if protocol := process.env.get("GIT_PROTOCOL"):
            environment["GIT_PROTOCOL"] = protocol
        pipe = asyncio.subprocess.PIPE
        git = await asyncio.create_subprocess_exec(
            "git", _SERVICES[service], str(repository), stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )
        assert git.stdin is not None and git.stdout is not None and git.stderr is not None
        feeding = self._tasks.start(_feed(process.stdin, git.stdin), "demo git host: stdin")
        try:
            await asyncio.gather(_copy(git.stdout, process.stdout), _copy(git.stderr, process.stderr))
            process.exit(await git.wait())
        except (OSError, asyncssh.Error):
            process.close()  # the relay ended the session
        finally:
            feeding.cancel()
            if git.returncode is None:
                git.kill()
                await git.wait()


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
        target.close()
    except (OSError, asyncssh.Error):
        target.close()  # git has closed its stdin, or the relay has disconnected and git must end


async def _copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(_CHUNK_BYTES):
        target.write(data)
        await target.drain()
