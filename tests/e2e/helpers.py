"""Helpers of several end-to-end tests: streams hashed while they are read, alice's connection, the audit line of a session."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import IO, Any

import asyncssh

from tests.support.keys import Key, SoftwareSecurityKey
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect
from tests.support.wait import WaitTimeoutError, wait_until

CHUNK_BYTES = 1 << 20
BANNER = b"SSH-2.0-git-ssh-relay\r\n"


@dataclass(frozen=True)
class Streamed:
    """How a program ended, and what it wrote: stdout by length and SHA-256, stderr as it is."""

    returncode: int
    length: int
    sha256: str
    stderr: bytes


def streamed(process: subprocess.Popen[bytes], timeout: float = 120.0) -> Streamed:
    """Read stdout and stderr of a started program at once, without holding stdout in memory; its stdin is closed."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.close()
    errors: list[bytes] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, errors))
    reader.start()
    digest, length = hashlib.sha256(), 0
    while chunk := process.stdout.read1(CHUNK_BYTES):  # type: ignore[attr-defined]  # a pipe is buffered
        digest.update(chunk)
        length += len(chunk)
    reader.join(timeout)
    return Streamed(process.wait(timeout), length, digest.hexdigest(), b"".join(errors))


def _collect(stream: IO[bytes], into: list[bytes]) -> None:
    while chunk := stream.read(CHUNK_BYTES):
        into.append(chunk)


def comes_in(client: socket.socket) -> bool:
    """Whether the relay sends its version line and then waits; a refused connection gets the reason at once, or nothing."""
    try:
        return client.recv(1_000) == BANNER
    except ConnectionResetError:
        return False


def alice(
    relay: RelayProcess, key: Key | SoftwareSecurityKey | None = None, **options: Any
) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    """A connection by asyncssh to the relay, as alice unless another key is given."""
    options.setdefault("user", relay.user)
    return connect(relay.port, [key or relay.key], relay.host_key_line, **options)


def audited(relay: RelayProcess, since: int, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """The audit lines after the `since`th that have these fields, once the log has `count` of them; blocks."""

    def found() -> list[dict[str, Any]]:
        return [line for line in relay.audit_lines()[since:] if fields.items() <= line.items()]

    try:
        wait_until(lambda: len(found()) >= count, message=f"{count} audit lines with {fields}")
    except WaitTimeoutError as error:
        raise AssertionError(f"{error}: {relay.audit_lines()[since:]}") from None
    return found()


def stands_still(value: Any, times: int = 30) -> Any:
    """A condition: `value()` returned the same value `times` times in a row."""
    seen: list[Any] = []

    def condition() -> bool:
        now = value()
        if seen and seen[-1] != now:
            seen.clear()
        seen.append(now)
        return len(seen) >= times

    return condition
