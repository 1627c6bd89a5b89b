"""Timed client operations: real git, the real ssh on one stream, and the load generator; every byte and status is checked."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import golang
from benchmarks.contenders import PINNED_KEX, Contender, Profile
from benchmarks.processes import MeasureError, Runner
from benchmarks.workspace import Workspace

COMMAND_SECONDS = 30.0
TRANSFER_SECONDS = 30.0  # plus the time that a slow machine needs for the bytes:
SLOWEST_BYTES_A_SECOND = 5_000_000
IDLE_SECONDS = 300.0
PIPE_BYTES = 1 << 20


class Transfer(NamedTuple):
    """One stream: monotonic times of its first byte and of its end, and how many bytes it carried."""

    first: float
    ended: float
    size: int


class Listed(NamedTuple):
    """One `git ls-remote`, in seconds since the epoch: its start, when git had read the first packet from the host, and its exit."""

    began: float
    heard: float
    ended: float


class Load(msgspec.Struct, frozen=True):
    """One line of the load generator; seconds. `latencies` has one entry for each session that succeeded, `first` for each clone."""

    elapsed: float
    latencies: list[float]
    failures: int
    errors: list[str]
    cpu_seconds: float
    first: list[float] = []  # to the first byte of the pack
    bytes: int = 0  # of all packs


def asyncssh_load() -> list[str]:
    """The beginning of the command line of load_asyncssh, which imports its neighbours wherever the suite is installed."""
    program = "import sys; sys.path[0] = sys.argv.pop(1); from benchmarks.load_asyncssh import main; main(sys.argv[1:])"
    return [sys.executable, "-c", program, str(Path(__file__).parent.parent)]


def patience(size: int) -> float:
    """Seconds after which a transfer of `size` bytes is a hang."""
    return TRANSFER_SECONDS + size / SLOWEST_BYTES_A_SECOND


class Clients:
    """All clients of a run, in the hermetic environment of its workspace."""

    def __init__(self, space: Workspace, runner: Runner) -> None:
        self.space, self.runner = space, runner
        built = golang.build("go_load")
        self.load_note = f"go_load ({built.note})" if built.path else f"asyncssh, as go_load is left out: {built.note}"
        self._load = [str(built.path)] if built.path else asyncssh_load()
        self._heads: dict[Path, str] = {}
        self._numbers = itertools.count()

    def ls_remote(self, contender: Contender, profile: Profile, repository: str) -> float:
        """Wall seconds of one `git ls-remote`, process start to exit."""
        return self._ls_remote(contender, repository, self._git_env(contender, profile))

    def ls_remote_heard(self, contender: Contender, profile: Profile, repository: str) -> Listed:
        """As `ls_remote`, and git notes in a file of trace2 when it has read the host's protocol version, which comes first."""
        notes = self._scratch("trace2")
        env = self._git_env(contender, profile) | {"GIT_TRACE2_EVENT": str(notes)}
        try:
            began = time.time()
            took = self._ls_remote(contender, repository, env)
            events = [msgspec.json.decode(line) for line in notes.read_bytes().splitlines()]
        finally:
            notes.unlink(missing_ok=True)
        heard = [event["time"] for event in events if event.get("key") == "negotiated-version"]
        if not heard:
            raise MeasureError("git's trace2 does not tell when it read the host's protocol version")
        return Listed(began, datetime.fromisoformat(heard[0]).timestamp(), began + took)

    def _ls_remote(self, contender: Contender, repository: str, env: dict[str, str]) -> float:
        took, listed = self.runner.run(["git", "ls-remote", contender.url(repository)], seconds=COMMAND_SECONDS, env=env)
        if b"\trefs/heads/main\n" not in listed:
            raise MeasureError(f"ls-remote listed {listed[:200]!r}")
        return took

    def down(self, contender: Contender, profile: Profile, size: int, *, verify: bool = False) -> Transfer:
        """Read `size` bytes from the stub service. The kernel discards them without a copy; with `verify` they are read and checked."""
        blob = self.space.blob(size)
        process = self.runner.start(self._ssh(contender, profile, "git-upload-pack", f"stub/down/{size}"))
        watchdog = threading.Timer(patience(size), process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None and process.stderr is not None
            pipe = process.stdout.fileno()
            start = os.read(pipe, 1)
            first = time.perf_counter()
            got, crc = (_checksum(pipe, start) if verify else _discard(pipe)) if start else (-1, 0)
            said = process.stderr.read()
            status = process.wait()
            ended = time.perf_counter()
        finally:
            watchdog.cancel()
            self.runner.finish(process)
        if status != 0 or got + 1 != size or (verify and crc != blob.crc32):
            raise MeasureError(
                f"{got + 1} of {size} bytes came down, status {status}, checksum {crc}: {said.decode(errors='replace')[-500:]}"
            )
        return Transfer(first, ended, size)

    def up(self, contender: Contender, profile: Profile, size: int) -> Transfer:
        """Send `size` bytes to the stub service, which answers with their checksum; timed from its first byte to its exit."""
        blob = self.space.blob(size)
        with blob.path.open("rb") as content:
            process = self.runner.start(self._ssh(contender, profile, "git-receive-pack", "stub/up"), stdin=content.fileno())
        watchdog = threading.Timer(patience(size), process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None and process.stderr is not None
            said = process.stdout.read(1)
            first = time.perf_counter()
            said += process.stdout.read()
            complaint = process.stderr.read()
            status = process.wait()
            ended = time.perf_counter()
        finally:
            watchdog.cancel()
            self.runner.finish(process)
        if status != 0 or said.decode(errors="replace").splitlines() != ["ready", blob.cksum]:
            raise MeasureError(f"the sink said {said!r}, not {blob.cksum!r}, status {status}: {complaint.decode(errors='replace')[-500:]}")
        return Transfer(first, ended, size)

    def clone(self, contender: Contender, profile: Profile, repository: str) -> float:
        """Wall seconds of one bare clone; git itself checks the content."""
        target = self._scratch("clone")
        try:
            argv = ["git", "clone", "-q", "--bare", contender.url(repository), str(target)]
            took, _ = self.runner.run(argv, seconds=patience(self.space.size(repository)), env=self._git_env(contender, profile))
            if self.space.head(target) != self._head(self.space.git / f"{repository}.git"):
                raise MeasureError("the clone's main is not the upstream's")
            return took
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def push(self, contender: Contender, profile: Profile, repository: str) -> float:
        """Wall seconds of one push of everything into an empty repository."""
        source, name = self.space.git / f"{repository}.git", self._scratch("push").name
        target = self.space.empty_repository(name)
        try:
            argv = ["git", "-C", str(source), "push", "-q", contender.url(name), "refs/heads/main:refs/heads/main"]
            took, _ = self.runner.run(argv, seconds=patience(self.space.size(repository)), env=self._git_env(contender, profile))
            if self.space.head(target) != self._head(source):
                raise MeasureError("the upstream's main is not what was pushed")
            return took
        finally:
            shutil.rmtree(target)

    @contextmanager
    def cloning(self, contender: Contender, profile: Profile, repository: str, clones: int) -> Iterator[None]:
        """Runs clones again and again until the block ends, which starts when each has received data. A failed clone fails the block."""
        stop = threading.Event()
        targets = [self._scratch("clone") for _ in range(clones)]
        failures: list[MeasureError] = []

        def again(target: Path) -> None:
            argv = ["git", "clone", "-q", "--bare", contender.url(repository), str(target)]
            while not stop.is_set():
                try:
                    self.runner.run(argv, seconds=patience(self.space.size(repository)), env=self._git_env(contender, profile))
                except MeasureError as error:
                    if not stop.is_set():  # else the end of the block killed it
                        failures.append(error)
                    return
                finally:
                    shutil.rmtree(target, ignore_errors=True)

        threads = [threading.Thread(target=again, args=(target,), daemon=True) for target in targets]
        waiting = set(targets)
        try:
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + COMMAND_SECONDS
            while waiting and not failures:
                if time.monotonic() > deadline:
                    raise MeasureError(f"{len(waiting)} of {clones} clones received nothing")
                waiting = {target for target in waiting if not any((target / "objects" / "pack").glob("*"))}
                time.sleep(0.01)
            if not failures:
                yield
        finally:
            stop.set()
            while any(thread.is_alive() for thread in threads):  # a thread may have just started another clone
                self.runner.kill_all()
                time.sleep(0.01)
        if failures:
            raise failures[0]

    def sessions(self, contender: Contender, clients: int, *, seconds: float = 0, count: int = 0, kex: str = PINNED_KEX) -> Load:
        """The closed loop: login, a service that exits at once, disconnect. Raises MeasureError when a session fails."""
        command = contender.command("git-upload-pack", "stub/exit/0")
        options = ["-clients", str(clients), "-seconds", str(seconds), "-count", str(count), "-command", command]
        argv = [*self._load, "sessions", *self._login(contender, kex), *options]
        _, said = self.runner.run(argv, seconds=seconds + 2 * COMMAND_SECONDS)
        load = msgspec.json.decode(said, type=Load)
        if load.failures or not load.latencies:
            raise MeasureError(f"{load.failures} sessions failed, {len(load.latencies)} did not: {'; '.join(load.errors)}")
        return load

    def fetches(self, contender: Contender, repository: str, clients: int, count: int, *, depth: int = 0, step: int = 0) -> Load:
        """`count` fetches of main by protocol version 2, `clients` at once, whose packs are counted and thrown away.

        `depth`: commits of history, 0 for all; `step`: how much deeper each one is than the one before. Raises MeasureError when one fails.
        """
        options = ["-clients", str(clients), "-count", str(count), "-depth", str(depth), "-step", str(step)]
        argv = [*self._load, "clones", *self._login(contender), "-command", contender.command("git-upload-pack", repository), *options]
        _, said = self.runner.run(argv, seconds=patience(count * self.space.size(repository)) + 2 * COMMAND_SECONDS)
        load = msgspec.json.decode(said, type=Load)
        if load.failures or len(load.first) != count:
            raise MeasureError(f"{load.failures} of {count} fetches failed: {'; '.join(load.errors)}")
        return load

    @contextmanager
    def holding(self, contender: Contender, connections: int, parallel: int = 16) -> Iterator[None]:
        """Holds idle authenticated connections until the block ends; all must be alive then."""
        argv = [*self._load, "idle", *self._login(contender), "-clients", str(connections), "-parallel", str(parallel)]
        reading, writing = os.pipe()
        process = self.runner.start(argv, stdin=reading)
        os.close(reading)
        watchdog = threading.Timer(IDLE_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None and process.stderr is not None
            self._report(process.stdout.readline(), "logins")
            yield
            os.close(writing)
            writing = -1
            self._report(process.stdout.readline(), "connections")
            process.wait()
        finally:
            watchdog.cancel()
            if writing >= 0:
                os.close(writing)
            self.runner.finish(process)

    @staticmethod
    def _report(line: bytes, what: str) -> None:
        if not line:
            raise MeasureError(f"the load generator ended without saying how its {what} went")
        load = msgspec.json.decode(line, type=Load)
        if load.failures:
            raise MeasureError(f"{load.failures} {what} failed: {'; '.join(load.errors)}")

    def _login(self, contender: Contender, kex: str = PINNED_KEX) -> list[str]:
        host = f"[{contender.host}]" if ":" in contender.host else contender.host
        port = contender.ports[Profile.PINNED]
        argv = ["-address", f"{host}:{port}", "-user", contender.user, "-key", str(contender.key), "-kex", kex]
        return argv + (["-host-key", str(contender.host_key)] if contender.host_key else [])

    def _ssh(self, contender: Contender, profile: Profile, service: str, repository: str) -> list[str]:
        destination = f"{contender.user}@{contender.host}"
        return [*self._ssh_command(contender, profile), destination, contender.command(service, repository)]

    def _ssh_command(self, contender: Contender, profile: Profile) -> list[str]:
        argv = ["ssh", "-F", "none", "-p", str(contender.ports[profile]), "-i", str(contender.key), *profile.options]
        argv += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        alias = re.sub(r"[^A-Za-z0-9]+", "-", contender.name)
        known = self.space.keys / f"known_hosts.{alias}"
        if contender.host_key is None:
            return [*argv, "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=accept-new"]
        if not known.exists():
            known.write_text(f"{alias} {contender.host_key.read_text()}")
        return [*argv, "-o", f"UserKnownHostsFile={known}", "-o", f"HostKeyAlias={alias}", "-o", "StrictHostKeyChecking=yes"]

    def _git_env(self, contender: Contender, profile: Profile) -> dict[str, str]:
        return {"GIT_SSH_COMMAND": shlex.join(self._ssh_command(contender, profile)), "GIT_SSH_VARIANT": "ssh"}

    def _head(self, repository: Path) -> str:
        if repository not in self._heads:
            self._heads[repository] = self.space.head(repository)
        return self._heads[repository]

    def _scratch(self, name: str) -> Path:
        return self.space.clones / f"{name}-{next(self._numbers)}"


def _discard(pipe: int) -> tuple[int, int]:
    """Count the bytes up to EOF, which the kernel moves from the pipe to /dev/null without a copy."""
    total = 0
    with Path("/dev/null").open("wb") as sink:
        while moved := os.splice(pipe, sink.fileno(), PIPE_BYTES):
            total += moved
    return total, 0


def _checksum(pipe: int, start: bytes) -> tuple[int, int]:
    total, crc = 0, zlib.crc32(start)
    while chunk := os.read(pipe, PIPE_BYTES):
        total, crc = total + len(chunk), zlib.crc32(chunk, crc)
    return total, crc
