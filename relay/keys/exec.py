"""A program answers who a key belongs to, as sshd's AuthorizedKeysCommand: no shell, no environment, limits on time, output and number.

The program writes the identity on one line, or nothing for an unknown key, and exits with status 0. Anything else is no answer: Undecided.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from relay import config
from relay.backends.slots import Slots
from relay.config.trust import path_fault
from relay.errors import ConfigError, Undecided
from relay.keys import IDENTITY_CHARACTERS, identity_fault
from relay.tasks import Tasks
from relay.text import printable, quoted

OUTPUT_BYTES = 4 * IDENTITY_CHARACTERS + 2  # the longest identity in UTF-8, and CRLF
ERROR_BYTES = 1024  # of stderr, for the log
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}  # the relay's own environment may hold secrets

_TOKEN = re.compile(r"%(.?)")


class ExecKeys:
    """One process a question, in a process group of its own, so that the whole group can be killed."""

    source = "exec"

    def __init__(self, settings: config.ExecKeysSettings, base: Path) -> None:
        """Raises ConfigError with every problem of the command and the program."""
        self._settings = settings
        self._program = str(base / settings.command[0])
        self._running = Slots("keys exec", settings.processes, settings.timeout_seconds, "programs are running")
        self._starting = Tasks()
        problems = [f"keys.command: {fault}" for fault in _faults(settings.command, self._program)]
        if problems:
            raise ConfigError(problems)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        kind, _, blob = public_key.partition(" ")
        values = {"f": fingerprint, "t": kind, "k": blob, "%": "%"}
        arguments = [_TOKEN.sub(lambda token: values[token[1]], word) for word in self._settings.command[1:]]
        async with self._running.taken():
            return _identity(await self._run(arguments))

    async def close(self) -> None:
        pass  # each question ends its own program, and nothing stays open

    async def _run(self, arguments: list[str]) -> bytes:
        """What the program wrote to stdout. Its process group is gone when this returns or raises."""
        try:
            fault = path_fault(Path(self._program))
        except OSError as error:
            fault = f"{self._program} cannot be started: {error.strerror}"
        if fault is not None:  # the program may have been replaced since the relay started
            raise Undecided(f"keys exec: {fault}", "unreachable")
        starting = self._starting.start(self._start(arguments), "start of a program")
        try:
            process: Process | OSError = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the program may run already; asyncio would kill it, but not its children
            if isinstance(late := await starting, Process):
                await _kill(late)
            raise
        if isinstance(process, OSError):
            raise Undecided(f"keys exec: {self._program} cannot be started: {process.strerror}", "unreachable")
        whole = False
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                output, said = await asyncio.gather(_output(process.stdout), _errors(process.stderr))
                status = await process.wait()
                whole = True
        except TimeoutError:
            raise Undecided(f"keys exec: the program did not end within {self._settings.timeout_seconds:g} s", "timeout") from None
        finally:
            if not whole:
                await _kill(process)
        if status != 0:
            how = f"status {status}" if status > 0 else f"signal {-status}"
            raise Undecided(f"keys exec: the program ended with {how}: {printable(said.decode(errors='replace').strip())}", "failed")
        return output

    async def _start(self, arguments: list[str]) -> Process | OSError:
        try:
            return await asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                preexec_fn=_shed,
            )
        except OSError as error:
            return error


def _shed() -> None:
    """Runs in the child before exec: resets the signals that a worker ignores, and closes what uvloop leaves open, all but 0, 1 and 2."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for path in Path("/proc/self/fd").iterdir():
        if int(path.name) > 2:
            try:
                os.set_inheritable(int(path.name), False)  # not closed: through one of them the parent learns when exec fails
            except OSError:
                pass  # the descriptor with which /proc/self/fd was listed


def _identity(output: bytes) -> str | None:
    if not output.strip():
        return None
    try:
        name = output.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Undecided("keys exec: what the program wrote is not UTF-8", "invalid") from None
    if (fault := identity_fault(name)) is not None:
        raise Undecided(f"keys exec: the identity {fault}", "invalid")
    return name


async def _output(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    read = b""
    while chunk := await stream.read(OUTPUT_BYTES + 1):
        read += chunk
        if len(read) > OUTPUT_BYTES:
            raise Undecided(f"keys exec: the program wrote more than the {OUTPUT_BYTES} bytes that are allowed", "invalid")
    return read


async def _errors(stream: asyncio.StreamReader | None) -> bytes:
    """The first ERROR_BYTES of stderr. The rest is read and dropped, so that the program never blocks on a full pipe."""
    assert stream is not None
    kept = b""
    while chunk := await stream.read(65_536):
        kept += chunk[: ERROR_BYTES - len(kept)]
    return kept


async def _kill(process: Process) -> None:
    """Kills the whole process group, for children of the program may hold its output open. Its id is not reused while one lives."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    process._transport.close()  # type: ignore[attr-defined]  # else wait() waits for the end of output that is no longer read
    await process.wait()


def _faults(command: list[str], program: str) -> list[str]:
    """What is wrong with the command. As for AuthorizedKeysCommand, only root and the relay's user may be able to change the program."""
    faults = []
    if "%" in command[0]:
        faults.append("has a % in the program's path, allowed is it in arguments")
    for word in command[1:]:
        unknown = [token for token in _TOKEN.findall(word) if token not in ("f", "t", "k", "%")]
        faults += (f"has {quoted('%' + token)}, allowed are %f, %t, %k and %%" for token in unknown)
    try:
        mode = Path(program).stat().st_mode
    except OSError as error:
        return [*faults, f"{program} cannot be found ({error.strerror}), must be a program"]
    if not stat.S_ISREG(mode) or not os.access(program, os.X_OK):
        faults.append(f"{program} cannot be executed, must be a program")
    elif (fault := path_fault(Path(program))) is not None:
        faults.append(fault)
    return faults
