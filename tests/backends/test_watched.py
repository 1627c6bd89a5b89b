"""Files that are read again after a change: which changes are accepted, and which callers wait for a check."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from relay.backends import watched as watch
from relay.backends.watched import Watched, stamp_file
from tests.support.wait import wait_until_async


class Source:
    """Fake files whose content, problems and speed a test sets; counts checks and reads."""

    def __init__(self) -> None:
        self.content = 1
        self.problems: list[str] = []
        self.stamps = self.reads = 0
        self.free = threading.Event()
        self.free.set()

    def stamp(self) -> int:
        self.stamps += 1
        if self.stamps > 1:  # the first check is made at the start
            self.free.wait(timeout=30)
        return self.content

    def read(self, stamp: int) -> tuple[str, list[str]]:
        self.reads += 1
        return (f"value {stamp}", []) if not self.problems else ("broken", list(self.problems))

    def watched(self, look_seconds: float = 0.0) -> Watched[str, int]:
        return Watched("things", self.stamp, self.read, look_seconds=look_seconds)


async def test_only_a_change_is_read() -> None:
    source = Source()
    watched = source.watched()
    assert [await watched.current() for _ in range(3)] == ["value 1"] * 3
    assert source.reads == 1
    source.content = 2
    assert await watched.current() == "value 2"
    assert source.reads == 2


async def test_a_faulty_change_is_not_accepted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    watched = source.watched()
    source.content, source.problems = 2, ["f:2: is wrong", "f:3: is wrong"]
    with caplog.at_level(logging.INFO, "relay.watch"):
        assert [await watched.current() for _ in range(3)] == ["value 1"] * 3
        assert caplog.messages == ["things: a change is not accepted, what was read before stays in force: f:2: is wrong (and 1 more)"]
        source.content = 3  # another edit with the same problem is not logged again
        assert await watched.current() == "value 1"
        assert len(caplog.messages) == 1
        source.content, source.problems = 4, []
        assert await watched.current() == "value 4"
        assert caplog.messages[1:] == ["things: read again after a change"]


async def test_a_recent_value_needs_no_check() -> None:
    source = Source()
    watched = source.watched(look_seconds=3600)
    source.content = 2
    assert [await watched.current() for _ in range(1000)] == ["value 1"] * 1000
    assert source.stamps == 1


async def test_all_waiting_tasks_share_one_check() -> None:
    source = Source()
    watched = source.watched()
    source.content = 2
    source.free.clear()
    answers = asyncio.gather(*(watched.current() for _ in range(100)))
    await wait_until_async(lambda: source.stamps == 2)
    source.free.set()
    assert await answers == ["value 2"] * 100
    assert (source.stamps, source.reads) == (2, 2)


async def test_a_cancelled_task_does_not_cancel_the_others_check() -> None:
    source = Source()
    watched = source.watched()
    source.content = 2
    source.free.clear()
    impatient = asyncio.ensure_future(watched.current())
    patient = asyncio.ensure_future(watched.current())
    await wait_until_async(lambda: source.stamps == 2)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    source.free.set()
    assert await patient == "value 2"


async def test_a_check_that_hangs_leaves_the_old_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HUNG_SECONDS", 0.01)
    source = Source()
    watched = source.watched()
    source.content = 2
    source.free.clear()
    assert [await watched.current() for _ in range(3)] == ["value 1"] * 3
    assert source.stamps == 2  # only the check that hangs
    source.free.set()
    await wait_until_async(lambda: watched.value == "value 2")


async def test_after_half_its_time_a_check_runs_in_the_background() -> None:
    source = Source()
    watched = source.watched(look_seconds=3600)
    source.content = 2
    watched._since -= 2000
    source.free.clear()
    assert await watched.current() == "value 1"  # the caller does not wait for the check, which hangs
    source.free.set()
    await wait_until_async(lambda: watched.value == "value 2")
    assert source.stamps == 2


async def test_slow_checks_are_made_less_often() -> None:
    source = Source()
    watched = source.watched(look_seconds=0.001)
    watched._checked(watched._since - 10)  # as if the check had taken ten seconds
    assert watched._fresh_seconds >= 10 * watch.LOOK_SHARE


async def test_a_check_that_fails_is_logged_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()

    def broken(stamp: int) -> tuple[str, list[str]]:
        if stamp == 2:
            raise RuntimeError("a fault of ours")
        return source.read(stamp)

    watched = Watched("things", source.stamp, broken, look_seconds=0.0)
    source.content = 2
    assert await watched.current() == "value 1"
    await wait_until_async(lambda: "task look at things failed" in caplog.text)
    source.content = 3
    assert await watched.current() == "value 3"


async def test_close_cancels_a_check() -> None:
    source = Source()
    watched = source.watched(look_seconds=3600)
    watched._since -= 2000
    source.free.clear()
    await watched.current()
    await wait_until_async(lambda: source.stamps == 2)
    await watched.close()
    assert watched._check is None
    source.free.set()


# -- without a client ----------------------------------------------------------------------------------------------------


async def test_a_change_is_noticed_and_reported_without_any_client() -> None:
    source = Source()
    watched = source.watched(look_seconds=0.01)
    told: list[tuple[str, list[str]]] = []
    watched.watch("things", lambda what, problems: told.append((what, problems)))
    source.content = 2
    await wait_until_async(lambda: watched.value == "value 2")
    assert told == []
    source.content, source.problems = 3, ["f:2: is wrong"]
    await wait_until_async(lambda: told == [("things", ["f:2: is wrong"])])
    source.content, source.problems = 4, ["f:9: is wrong, too"]
    await wait_until_async(lambda: told[1:] == [("things", ["f:9: is wrong, too"])])
    source.content, source.problems = 5, []
    await wait_until_async(lambda: told[2:] == [("things", [])])
    assert watched.value == "value 5"
    await watched.close()


async def test_a_hanging_file_system_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HUNG_SECONDS", 0.05)
    source = Source()
    watched = source.watched(look_seconds=0.01)
    told: list[list[str]] = []
    watched.watch("things", lambda what, problems: told.append(problems))
    source.free.clear()
    await wait_until_async(lambda: told == [["things: cannot be looked at, the file system does not answer"]])
    source.free.set()
    await wait_until_async(lambda: told[1:] == [[]])
    await watched.close()


async def test_a_reader_that_raises_is_reported_as_long_as_it_does() -> None:
    source, broken = Source(), False

    def read(stamp: int) -> tuple[str, list[str]]:
        if broken:
            raise RuntimeError("a fault of ours")
        return source.read(stamp)

    watched = Watched("things", source.stamp, read, look_seconds=0.01)
    told: list[list[str]] = []
    watched.watch("things", lambda what, problems: told.append(problems))
    broken, source.content = True, 2
    await wait_until_async(lambda: told == [["things: reading failed by a fault of the relay, which its log describes"]])
    broken = False
    await wait_until_async(lambda: told[1:] == [[]])
    assert watched.value == "value 2"
    await watched.close()


# -- stamps --------------------------------------------------------------------------------------------------------------


def settle(path: Path) -> None:
    """Waits until a change of the file would change its time."""
    while stamp_file(path) != stamp_file(path):
        pass


def test_a_stamp_tells_content_rename_mode_and_absence_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = [stamp_file(path)]
    path.write_text("a")
    settle(path)
    seen.append(stamp_file(path))
    before = path.stat()
    path.write_text("b")  # same size, and the old time restored
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settle(path)
    seen.append(stamp_file(path))
    other = tmp_path / "other"
    other.write_text("c")
    other.replace(path)
    settle(path)
    seen.append(stamp_file(path))
    path.chmod(0o600)
    settle(path)
    seen.append(stamp_file(path))
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])
    assert stamp_file(path) == seen[-1]


def test_a_file_that_changed_just_now_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    os.utime(path)
    assert stamp_file(path) != stamp_file(path)


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes changes a ConfigMap by renaming a link."""
    for name in ("one", "two"):
        (tmp_path / name).write_text("a")
        settle(tmp_path / name)
    link = tmp_path / "link"
    link.symlink_to("one")
    first = stamp_file(link)
    link.unlink()
    link.symlink_to("two")
    assert stamp_file(link) != first
