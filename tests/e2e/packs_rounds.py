"""Rounds of equal clones by the real git whose fill is cut at a random byte of its pack: no exit 0 that is not whole, nothing published.

    python -m tests.e2e.packs_rounds --rounds 1000 --seed 1

tests/e2e/test_packs_rounds.py runs some of them. Who may fail is checked, too: a session that had a byte of the pack, or whose worker was
killed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from relay.packs.entry import HEADER_BYTES
from tests.e2e.packing import entries, filler, kept_whole, packs, results
from tests.support.gitrepo import fsck, git, make_repo, rev_parse
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

BLOB_BYTES = 300_000  # of each commit: several packets, and more than one read
MOST_BYTES = 20 << 20  # of all entries: old ones go
FOLLOWERS = 3
WORKERS_KILLED = 4  # then the relay is started anew: it waits twice as long before it replaces each further one

Kind = Literal[
    "fails",  # pack-objects ends with status 1: git-upload-pack says so on sideband 3
    "git",  # git-upload-pack is killed
    "sshd",  # the sshd of the connection is killed
    "worker",  # the worker that fills is killed
    "client",  # the client that began the fill is killed
    "disk",  # no worker may write more than so many bytes to a file
]
KINDS: tuple[Kind, ...] = ("fails", "git", "sshd", "worker", "client", "disk")

HOOK = """#!/bin/sh
plan=
[ -e {folder}/plan ] && plan=$(cat {folder}/plan) && rm {folder}/plan
[ -z "$plan" ] && exec "$@"
kind=${{plan% *}} bytes=${{plan#* }}
if [ "$kind" = hold ]; then
    "$@" | {{ head -c "$bytes"; touch {folder}/held; while [ -e {folder}/hold ]; do sleep 0.01; done; cat; }}
    exit
fi
"$@" | head -c "$bytes"
sleep 0.0$((bytes % 10))  # so that some of what was sent is with the relay
case $kind in
    git) kill -KILL $PPID ;;
    sshd)
        pid=$PPID
        while read -r name < /proc/$pid/comm && [ "${{name#sshd}}" = "$name" ]; do
            pid=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$pid/status)
        done
        kill -KILL $pid $PPID ;;
esac
exit 1
"""


@dataclass(frozen=True)
class Round:
    """The fill is cut after so many bytes of its pack."""

    kind: Kind
    cut: int


@dataclass
class Tally:
    """What rounds came to."""

    rounds: int = 0
    clones: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # clones that failed, by kind
    failures: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)  # as relay_packs_total


@dataclass
class Clone:
    work: Path
    process: subprocess.Popen[bytes]
    doomed: bool = False
    status: int = 0
    said: bytes = b""

    def end(self) -> None:
        with self.process:
            _, self.said = self.process.communicate(timeout=120)
        self.status = self.process.returncode


class Stage:
    """A git host whose pack-objects can be cut, and a relay of two workers that keeps already the first; a context manager."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder, self._settings = folder, settings
        self._stack = ExitStack()
        self.tally = Tally()

    def __enter__(self) -> Self:
        enter, folder = self._stack.enter_context, self._folder
        self.sshd = enter(Sshd())
        self.packs = folder / "packs"
        self._plans = folder / "plans"
        self._plans.mkdir()
        hook = self._plans / "hook"
        hook.write_text(HOOK.format(folder=self._plans))
        hook.chmod(0o755)
        with (self.sshd.folder / "home" / ".gitconfig").open("a") as file:
            file.write(f"[uploadpack]\n\tpackObjectsHook = {hook}\n")
        self.bare = make_repo(self.sshd.root / "team/app.git")
        config = {**packs(self.packs, first=True, max_bytes=MOST_BYTES), "workers": 2, **self._settings}
        self.relay = enter(RelayProcess(self.sshd, config=config))
        self.env = self.relay.git_env(folder / "home")
        self._number = self._killed = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def random(self, draw: random.Random) -> Round:
        cut = draw.choice((0, draw.randrange(100), draw.randrange(BLOB_BYTES), draw.randrange(BLOB_BYTES)))
        return Round(draw.choice(KINDS), cut)

    def restart(self) -> None:
        """Starts the relay anew; what its metrics said is added to the tally."""
        self._killed = 0
        self.tally.answers.update(results(self.relay))
        self.relay.stop()
        self.relay.start()

    def _commit(self) -> str:
        """A new commit on main, whose pack is about BLOB_BYTES long."""
        blob = git("hash-object", "-w", "--stdin", cwd=self.bare, env=self.env, stdin=os.urandom(BLOB_BYTES)).stdout.decode().strip()
        entry = f"100644 blob {blob}\tfile\n".encode()
        tree = git("mktree", cwd=self.bare, env=self.env, stdin=entry).stdout.decode().strip()
        commit = git("commit-tree", "-m", f"{self._number}", tree, cwd=self.bare, env=self.env).stdout.decode().strip()
        git("update-ref", "refs/heads/main", commit, cwd=self.bare, env=self.env)
        return commit

    def _start(self) -> Clone:
        self._number += 1
        work = self._folder / f"work-{self._number}"
        command = ["git", "clone", "-q", "--depth=1", self.relay.url("team/app"), str(work)]
        process = subprocess.Popen(
            command, env=self.env, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        return Clone(work, process)

    def play(self, one: Round) -> None:
        """Plays a round; what is wrong is a line in `tally.failures`."""
        tally, mark = self.tally, len(self.relay.audit_lines())
        wanted = self._commit()
        before = {path.name for path in entries(self.packs)}
        clones: list[Clone] = []
        try:
            killed = self._cut(one, clones, before)
            for clone in clones:
                clone.end()
            self._judge(clones, wanted, mark, killed)
            control = self._start()  # after all of it
            clones.append(control)
            control.end()
            assert control.status == 0, f"a clone after the round ended with {control.status}: {control.said!r}"
            self._is_whole(control, wanted)
            kept_whole(self.packs)
        except AssertionError as error:  # GitError and WaitTimeoutError too
            tally.failures.append(f"{one}: {error}")
        finally:
            for name in ("plan", "hold", "held"):
                (self._plans / name).unlink(missing_ok=True)
            for clone in clones:
                with suppress(ProcessLookupError):
                    os.killpg(clone.process.pid, signal.SIGKILL)
                if clone.process.returncode is None:
                    clone.end()
                shutil.rmtree(clone.work, ignore_errors=True)
            self._killed += one.kind == "worker"
            if self._killed == WORKERS_KILLED:
                self.restart()
            tally.rounds += 1
            tally.clones += len(clones)
            tally.failed[one.kind] += sum(clone.status != 0 and not clone.doomed for clone in clones)

    def _cut(self, one: Round, clones: list[Clone], before: set[str]) -> bool:
        """Starts the clones and cuts their fill; returns whether a worker was killed."""
        if one.kind in ("fails", "git", "sshd"):
            (self._plans / "plan").write_text(f"{one.kind} {one.cut}")
            clones += [self._start() for _ in range(1 + FOLLOWERS)]
            return False
        if one.kind == "disk":
            return self._fill_disk(one.cut, clones)
        (self._plans / "hold").touch()
        (self._plans / "plan").write_text(f"hold {one.cut}")
        clones.append(self._start())
        wait_until((self._plans / "held").exists, message="the fill is held")
        joined = self._joined()
        clones += [self._start() for _ in range(FOLLOWERS)]
        wait_until(lambda: self._joined() >= joined + FOLLOWERS, message="the others read along")
        if one.kind == "client":
            clones[0].doomed = True
            os.killpg(clones[0].process.pid, signal.SIGKILL)
        else:
            [entry] = [path for path in entries(self.packs) if path.name not in before]
            os.kill(filler(entry), signal.SIGKILL)
        (self._plans / "hold").unlink()
        return one.kind == "worker"

    def _joined(self) -> int:
        return results(self.relay).get("joined", 0)

    def _fill_disk(self, cut: int, clones: list[Clone]) -> bool:
        workers = self.relay.processes()[1:]
        try:
            for worker in workers:
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (max(HEADER_BYTES + cut, 64 << 10), resource.RLIM_INFINITY))
            clones += [self._start() for _ in range(1 + FOLLOWERS)]
            for clone in clones:
                clone.process.wait(120)
        finally:
            for worker in workers:
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return False

    def _judge(self, clones: list[Clone], wanted: str, mark: int, killed: bool) -> None:
        bad = [clone for clone in clones if clone.status and not clone.doomed]
        for clone in clones:
            if not clone.status:
                self._is_whole(clone, wanted)
        if killed:
            return  # sessions of that worker have no audit line
        wait_until(lambda: len(self.relay.audit_lines()) >= mark + len(clones), message="each session has its audit line")
        lines = [line for line in self.relay.audit_lines()[mark:] if line["result"] != "ok" and line["reason"] != "client_gone"]
        assert len(lines) == len(bad), f"{len(bad)} clones failed: {lines}"
        for line in lines:
            had_pack = line["served_by"] == "cache"
            assert had_pack and line["reason"] == "lost", f"a session without pack data failed: {line}"

    def _is_whole(self, clone: Clone, wanted: str) -> None:
        fsck(clone.work, self.env)
        assert rev_parse(clone.work, self.env) == wanted
        assert (clone.work / "file").stat().st_size == BLOB_BYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, draw = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        for _ in range(options.rounds):
            stage.play(stage.random(draw))
        stage.restart()
        tally, seconds = stage.tally, time.monotonic() - started
    print(f"{tally.rounds} rounds, {tally.clones} clones in {seconds:.0f} s; answers of packs: {dict(tally.answers)}")
    print(f"  clones that failed, by what was cut: {dict(tally.failed)}")
    print(f"  failures: {len(tally.failures)}", *tally.failures, sep="\n    ")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
