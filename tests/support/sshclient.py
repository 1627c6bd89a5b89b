"""Two SSH clients for tests: the real ssh program, and asyncssh where a test must see more than ssh shows.

client = SshClient(relay.port, key.private, known_hosts, user="git")
done = client.run("git-upload-pack 'team/app'")                    # the real ssh: returncode, stdout, stderr
with client.control_master() as master:                            # many sessions on one connection
    master.run(...)

async with connect(relay.port, [key], host_key_line, user="git") as connection:
    result = await run(connection, "git-upload-pack 'stub/signal/KILL'")   # result.exit_signal == "KILL"
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncssh

from tests.support.gitrepo import ssh_command
from tests.support.keys import Key, SoftwareSecurityKey
from tests.support.machine import current_user
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SSH_TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class SshClient:
    """The real ssh with hermetic options; `options` are more `-o` values, of which ssh takes the first of a name."""

    port: int
    key: Path
    known_hosts: Path
    user: str = field(default_factory=current_user)
    address: str = "127.0.0.1"
    options: tuple[str, ...] = ()

    @classmethod
    def to(cls, sshd: Sshd, *options: str) -> SshClient:
        return cls(sshd.port, sshd.key.private, sshd.known_hosts, sshd.user, sshd.address, options)

    def arguments(self, command: str | None, *flags: str) -> list[str]:
        """The whole argument list; without a command a shell is asked for."""
        base = ssh_command(self.key, self.known_hosts, *self.options)
        return [*base, "-T", *flags, "-p", str(self.port), f"{self.user}@{self.address}", *([command] if command is not None else [])]

    def run(self, command: str | None, stdin: bytes = b"", *flags: str, timeout: float = SSH_TIMEOUT) -> subprocess.CompletedProcess[bytes]:
        """The exit status is the session's; 255 when ssh itself failed or the session died by a signal."""
        return subprocess.run(self.arguments(command, *flags), input=stdin, capture_output=True, timeout=timeout, check=False)

    def popen(self, command: str | None, *flags: str) -> subprocess.Popen[bytes]:
        """Start without waiting, with a pipe for each stream; use as a context manager, which closes the pipes and waits for the end.

        If the block raises, ssh is killed: a failed test must not wait for a session that nothing reads.
        """
        pipe = subprocess.PIPE
        return _Ssh(self.arguments(command, *flags), stdin=pipe, stdout=pipe, stderr=pipe)

    @contextmanager
    def control_master(self) -> Iterator[SshClient]:
        """Hold one authenticated connection open; the yielded client runs sessions on it."""
        folder = Path(tempfile.mkdtemp(prefix="ssh-"))  # short: a Unix socket's path has at most 107 bytes
        path = folder / "control"
        multiplexed = replace(self, options=(f'ControlPath="{path}"', "ControlMaster=no", *self.options))
        log = folder / "log"
        arguments = self.arguments(None, "-M", "-N", "-S", str(path))
        with log.open("wb") as file, subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as master:
            try:
                wait_until(lambda: master.poll() is not None or path.exists(), message="the control master is up")
                assert master.poll() is None, f"the control master ended with {master.returncode}: {log.read_text()}"
                yield multiplexed
            finally:
                wait_until(lambda: _terminated(master), message="the control master ends")
                shutil.rmtree(folder)


def _terminated(ssh: subprocess.Popen[bytes]) -> bool:
    """Called until true, with SIGTERM each time: ssh misses a signal between its check for one and its poll()."""
    ssh.terminate()
    return ssh.poll() is not None


class _Ssh(subprocess.Popen[bytes]):
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


@dataclass(frozen=True)
class Result:
    """How a session ended: exactly one of exit_status and exit_signal is set, or neither when the server sent none."""

    stdout: bytes
    stderr: bytes
    exit_status: int | None
    exit_signal: str | None
    """The signal's name without SIG (RFC 4254 section 6.10)."""


@asynccontextmanager
async def connect(
    port: int,
    keys: Sequence[Key | SoftwareSecurityKey],
    host_key_line: str,
    user: str | None = None,
    address: str = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection by asyncssh that pins one host key; `options` go to asyncssh.connect. Raises what asyncssh raises."""
    known_hosts = asyncssh.import_known_hosts(f"[{address}]:{port} {host_key_line}\n")
    connection = await asyncssh.connect(
        address,
        port,
        username=user or current_user(),
        client_keys=[key.load() if isinstance(key, Key) else key for key in keys],
        known_hosts=known_hosts,
        agent_path=None,
        config=None,
        **options,
    )
    try:
        yield connection
    finally:
        connection.close()
        await connection.wait_closed()


async def run(
    connection: asyncssh.SSHClientConnection, command: str | None, stdin: bytes = b"", timeout: float = SSH_TIMEOUT, **options: Any
) -> Result:
    """Run one session to its end; `options` go to create_process (env, term_type, ...)."""
    async with asyncio.timeout(timeout):
        process = await connection.create_process(command, encoding=None, **options)
        stdout, stderr = await process.communicate(stdin)
        await process.wait_closed()
    assert isinstance(stdout, bytes) and isinstance(stderr, bytes)
    died = process.exit_signal
    return Result(stdout, stderr, None if died else process.exit_status, died[0] if died else None)
