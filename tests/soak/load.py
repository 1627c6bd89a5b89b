"""The operations of the soak, each of which checks its result: by status, checksum, or the refs and objects of the git host."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tests.soak.client import Ended, run_client
from tests.soak.hung import describe
from tests.soak.site import CLONED, LISTED, Site
from tests.support.gitrepo import commit, fsck, git, refs, rev_list
from tests.support.pattern import stub_sha256, stub_stderr

KILLED_SHARE = 0.08  # share of the operations whose client is killed
KILLED_WITHIN_SECONDS = 1.5
EMITTED = (0, 1, 100_000, 2_097_153, 10_000_001)  # about a window of either side, and more
PUSHED = (200, 30_000, 1_000_000, 3_000_000)  # bytes of a commit
BROKEN_OFF = b"closed by remote host.\r\n"
SLOW_BYTES = 6_000_000
SLOW_RATE = 2_000_000.0  # bytes/s

_digest = cache(stub_sha256)


@dataclass
class Tally:
    """The results of the operations; `wrong` has failures that no fault excuses, and must stay empty."""

    right: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # with an error, during a fault
    untouched: int = 0  # how many of all ran without a fault, so had to be right
    wrong: list[str] = field(default_factory=list)

    @property
    def operations(self) -> int:
        return self.right.total() + self.failed.total() + len(self.wrong)


@dataclass(frozen=True)
class Verdict:
    """`claims`: the client got the answer of a success, so the operation must be one."""

    ended: Ended
    right: bool
    claims: bool
    untrue: str = ""  # a fault of the result, whatever answer the client got


class Load:
    """Runs several rows of operations at once, one operation after another in each, until stopped."""

    def __init__(self, site: Site, seed: int, say: Callable[[str], None], reports: Path) -> None:
        """Calls `say` at once for each wrong result; writes a report about an operation that hangs into the folder `reports`."""
        self.tally = Tally()
        self._say = say
        self._reports = reports
        self._site = site
        self._random = random.Random(seed)
        self._stopping = False
        self._names = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._stopping = False
        rows: list[Callable[[dict[str, Any]], Awaitable[Verdict]]] = [self._list, self._clone, self._push, self._down, self._up, self._slow]
        self._tasks = [asyncio.create_task(self._row(row.__name__.strip("_"), row)) for row in rows]

    async def stop(self) -> None:
        """Lets each row finish its operation; raises errors of the soak itself."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _row(self, kind: str, operation: Callable[[dict[str, Any]], Awaitable[Verdict]]) -> None:
        faults = self._site.faults
        while not self._stopping:
            how: dict[str, Any] = {"on_hang": self._on_hang}
            if killed := self._random.random() < KILLED_SHARE:
                how["kill_after"] = self._random.uniform(0, KILLED_WITHIN_SECONDS)
            began = time.monotonic()
            verdict = await operation(how)
            died = killed and verdict.ended.returncode < 0
            if died:
                faults.count("client killed")
            self._judge(kind, verdict, died or faults.touched(began, time.monotonic()))

    async def _on_hang(self, client: int) -> None:
        path = self._reports / f"hung-{client}.txt"
        text = await asyncio.to_thread(describe, self._site, client)
        self._reports.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._say(f"{datetime.now(UTC):%H:%M:%S} an operation hangs, see {path}")

    def _judge(self, kind: str, verdict: Verdict, touched: bool) -> None:
        tally, ended = self.tally, verdict.ended
        tally.untouched += not touched
        said = f"{kind}: status {ended.returncode}, {ended.length} bytes, {ended.stderr[-300:]!r}"
        if ended.hung:
            self._wrong(f"hung: {said}")
        elif verdict.untrue:
            self._wrong(f"{verdict.untrue}: {said}")
        elif verdict.right:
            tally.right[kind] += 1
        elif verdict.claims:
            self._wrong(f"a success that is none: {said}")
        elif not touched:
            self._wrong(f"failed without a fault: {said}")
        else:
            tally.failed[kind] += 1

    def _wrong(self, what: str) -> None:
        self.tally.wrong.append(what)
        self._say(f"{datetime.now(UTC):%H:%M:%S} WRONG {what}")

    # -- the operations

    async def _list(self, how: dict[str, Any]) -> Verdict:
        ended = await run_client(["git", "ls-remote", "--refs", self._site.url(LISTED)], env=self._site.env, **how)
        listed = {name: identity for identity, _, name in (line.partition("\t") for line in ended.stdout.decode().splitlines())}
        return _verdict(ended, 0, listed == self._site.listed)

    async def _clone(self, how: dict[str, Any]) -> Verdict:
        site, into = self._site, self._site.folder / f"clone-{next(self._names)}"
        try:
            ended = await run_client(["git", "clone", "-q", "--mirror", site.url(CLONED), into], env=site.env, **how)
            whole = ended.returncode == 0 and await asyncio.to_thread(rev_list, into, site.env) == site.cloned
            return _verdict(ended, 0, whole)
        finally:
            await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)

    async def _push(self, how: dict[str, Any]) -> Verdict:
        """A new branch for each push, so that remains of a killed push on the git host do not block the next."""
        site, number = self._site, next(self._names)
        work, name = site.folder / "work", f"refs/heads/push-{number}"
        if not work.exists():
            await asyncio.to_thread(git, "init", "-q", work, env=site.env)
        wanted = await asyncio.to_thread(commit, work, site.env, "data", os.urandom(self._random.choice(PUSHED)))
        ended = await run_client(["git", "push", "-q", site.url(PUSHED_TO), f"HEAD:{name}"], env=site.env, cwd=work, **how)
        there = (await asyncio.to_thread(refs, site.upstream(PUSHED_TO), site.env)).get(name)
        untrue = "" if there in (None, wanted) else f"{name} became {there}, which nobody pushed"
        return Verdict(ended, ended.returncode == 0 and there == wanted, ended.returncode == 0, untrue)

    async def _down(self, how: dict[str, Any]) -> Verdict:
        size, status = self._random.choice(EMITTED), self._random.choice((0, 0, 37))
        stub = self._random.choice(("emit", "mixed"))
        ended = await run_client(self._site.client.arguments(f"git-upload-pack 'stub/{stub}/{size}/{status}'"), **how)
        stderr = stub_stderr(size) if stub == "mixed" else b""
        whole = (ended.length, ended.sha256, ended.stderr) == (size, _digest(size), stderr)
        return _verdict_of_ssh(ended, status, whole)

    async def _up(self, how: dict[str, Any]) -> Verdict:
        data = os.urandom(self._random.choice(EMITTED))
        ended = await run_client(self._site.client.arguments("git-receive-pack 'stub/checksum'"), stdin=data, **how)
        return _verdict_of_ssh(ended, 0, ended.stdout.decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n")

    async def _slow(self, how: dict[str, Any]) -> Verdict:
        command = f"git-upload-pack 'stub/emit/{SLOW_BYTES}'"
        ended = await run_client(self._site.client.arguments(command), bytes_per_second=SLOW_RATE, **how)
        return _verdict_of_ssh(ended, 0, (ended.length, ended.sha256) == (SLOW_BYTES, _digest(SLOW_BYTES)))

    # -- at the end

    async def check_pushed(self) -> None:
        """Raises GitError unless the repository is intact after all the pushes that were cut."""
        await asyncio.to_thread(fsck, self._site.upstream(PUSHED_TO), self._site.env)


PUSHED_TO = "soak/pushed"


def _verdict(ended: Ended, status: int, whole: bool) -> Verdict:
    """A status of 0 claims a success, and so does the status that the command would have had."""
    return Verdict(ended, ended.returncode == status and whole, ended.returncode in (0, status))


def _verdict_of_ssh(ended: Ended, status: int, whole: bool) -> Verdict:
    """If its connection ends after the exit status, OpenSSH's ssh drops output that it has not written yet, says so on stderr and exits
    with that status all the same; also without a relay, see test_soak.py. git then fails because of the early EOF."""
    told = _verdict(ended, status, whole)
    return replace(told, claims=False) if ended.stderr.endswith(BROKEN_OFF) else told
