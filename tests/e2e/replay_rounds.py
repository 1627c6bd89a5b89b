"""Rounds of fetches by the real git whose git host dies before pack data: at every packet in turn, or at random ones.

    python -m tests.e2e.replay_rounds --rounds 1000 --seed 1

tests/e2e/test_replay.py runs some of them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.gitrepo import fsck, git, make_repo, refs, rev_list
from tests.support.mortal_sshd import KINDS, Death, MortalSshd
from tests.support.relay_process import RelayProcess
from tests.support.wait import wait_until

COMMITS = 12
BEHIND = 6  # commits that the work of a `fetch` lacks


@dataclass(frozen=True)
class Round:
    """`operation`: clone, or fetch, which negotiates."""

    operation: str
    deaths: tuple[Death, ...]


@dataclass
class Tally:
    """What rounds came to."""

    rounds: int = 0
    died: int = 0
    replays: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Stage:
    """Two git hosts, or one, with a relay in front; a context manager."""

    def __init__(self, hosts: int, folder: Path, **settings: Any) -> None:
        self._hosts, self._folder, self._settings = hosts, folder, settings
        self._stack = ExitStack()
        self.tally = Tally()

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        self.first = enter(MortalSshd())
        self.first.plan()
        hosts = [self.first, *(enter(MortalSshd(self.first)) for _ in range(self._hosts - 1))]
        make_repo(self.first.root / "team/app.git", commits=COMMITS)
        main = {
            "addresses": [f"{host.address}:{host.port}" for host in hosts],
            "host_keys": [host.host_key_line for host in hosts],
            "replay_budget": 1000,
            **self._settings,
        }
        self.relay = enter(RelayProcess(self.first, config={"upstreams": {"main": main}}))
        self.env = self.relay.git_env(self._folder / "home")
        self.template = self._folder / "behind"
        git("clone", "-q", self.first.root / "team/app.git", self.template, env=self.env)
        git("reset", "-q", "--hard", f"HEAD~{BEHIND}", cwd=self.template, env=self.env)
        git("update-ref", "-d", "refs/remotes/origin/main", cwd=self.template, env=self.env)
        git("reflog", "expire", "--expire=now", "--all", cwd=self.template, env=self.env)
        git("gc", "-q", "--prune=now", cwd=self.template, env=self.env)
        git("commit", "-q", "--allow-empty", "-m", "own", cwd=self.template, env=self.env)
        git("remote", "set-url", "origin", self.relay.url("team/app"), cwd=self.template, env=self.env)
        self.packets = {operation: self._packets(operation) for operation in ("clone", "fetch")}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def _packets(self, operation: str) -> tuple[int, int]:
        """As MortalSshd.packets."""
        self.play(Round(operation, ()))
        return self.first.packets

    def systematic(self) -> Iterator[Round]:
        """Each kind of death at each packet, whole and half."""
        for operation, (_, count) in self.packets.items():
            for kind, packet, half in itertools.product(KINDS, range(count + 1), (False, True)):
                if packet < count or not half:  # half a packet of pack data may have pack data in it
                    yield Round(operation, (Death(kind, packet, half),))

    def random(self, draw: random.Random) -> Round:
        """One death, or one in each of two requests: each is replayed once."""
        operation = draw.choice(("clone", "fetch"))
        listed, count = self.packets[operation]

        def death(start: int, stop: int) -> Death:
            return Death(draw.choice(KINDS), draw.randrange(start, stop), draw.random() < 0.5)

        if draw.random() < 0.5:
            return Round(operation, (death(0, count),))
        return Round(operation, (death(0, listed), death(listed, count)))

    def play(self, one: Round) -> None:
        """Plays a round; what is wrong is a line in `tally.failures`."""
        tally, since, work = self.tally, len(self.relay.audit_lines()), self._folder / "work"
        self.first.plan(*one.deaths)
        if one.operation == "clone":
            done = git("clone", "-q", self.relay.url("team/app"), work, env=self.env, check=False)
        else:
            shutil.copytree(self.template, work)
            done = git("fetch", "-q", "origin", cwd=work, env=self.env, check=False)
        tally.rounds += 1
        died = self.first.died
        tally.died += died
        try:
            assert (done.returncode, done.stderr) == (0, b""), f"git ended with {done.returncode}: {done.stderr!r}"
            fsck(work, self.env)
            bare = self.first.root / "team/app.git"
            assert refs(work, self.env)["refs/remotes/origin/main"] == refs(bare, self.env)["refs/heads/main"], "refs differ"
            if one.operation == "clone":
                assert rev_list(work, self.env) == rev_list(bare, self.env), "objects differ"
            wait_until(lambda: len(self.relay.audit_lines()) > since, message="the session has its audit line")
            [line] = self.relay.audit_lines()[since:]
            tally.replays[line["replays"]] += 1
            assert (line["result"], line["exit_status"], line["kind"]) == ("ok", 0, one.operation), line
            assert line["replays"] == died == len(one.deaths), f"{died} of {one.deaths} came, {line['replays']} replays"
        except AssertionError as error:  # GitError too
            tally.failures.append(f"{one}: {error}")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="in all; half of them with two addresses, half with one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return 1 if sum(play(hosts, options.rounds // 2, random.Random(options.seed + hosts)) for hosts in (2, 1)) else 0


def play(hosts: int, count: int, draw: random.Random) -> int:
    """Plays so many rounds, tells of them, and returns the number of failures."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Stage(hosts, Path(folder)) as stage:
        rounds = itertools.chain(stage.systematic(), (stage.random(draw) for _ in range(count)))
        for one in itertools.islice(rounds, count):
            stage.play(one)
        tally, seconds = stage.tally, time.monotonic() - started
        served = stage.relay.metric("relay_replays_total", result="served")
    print(f"{hosts} addresses; packets up to the end of ls-refs, and before pack data: {stage.packets}")
    print(
        f"  {tally.rounds} rounds in {seconds:.0f} s, {tally.died} deaths; sessions by replays: {dict(tally.replays)}; served: {served:.0f}"
    )
    print(f"  failures: {len(tally.failures)}", *tally.failures, sep="\n    ")
    return len(tally.failures)


if __name__ == "__main__":
    sys.exit(main())
