"""The supervisor's decisions in a reload, and when deaths, reloads and signals happen at once. The workers are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from relay import config
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.process import supervisor
from tests.support.machine import free_port
from tests.support.supervised import DRAIN_SECONDS, Run, supervised
from tests.support.wait import wait_until_async


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    async with supervised(tmp_path, monkeypatch) as this:
        yield this


# -- reloads


async def test_new_workers_take_over_the_same_sockets_and_the_old_drain(run: Run) -> None:
    one, two = await run.up()
    run.change(limits=config.LimitsSettings(drain_seconds=1))
    run.serving = False
    run.reload()
    _, _, three, four = await run.started(4)
    three.serve()
    await asyncio.sleep(0.02)
    assert one.told == two.told == ["Reopen"], "as long as not all of the new workers serve, the old ones do"
    four.serve()
    await wait_until_async(lambda: one.leaving and two.leaving)
    assert one.told[-1] == two.told[-1] == DRAIN_SECONDS, "sessions keep the time that they were promised"
    assert (three.sockets, four.sockets) == (one.sockets, two.sockets)
    one.leave()
    two.leave()
    await wait_until_async(lambda: len(run.supervisor._workers) == 2)
    assert await run.counts() == {"workers": 2, "worker_restarts_total": 0, "reloads_total": 1}


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as operator, contextlib.suppress(OSError):
        operator.connect(str(path))
        return True
    return False


async def test_a_changed_sessions_socket_is_taken(run: Run) -> None:
    await run.up()
    folder = run.loaded.path.parent
    run.change(admin=config.AdminSettings(listen="127.0.0.1:0", sessions_socket="other.sock"))
    run.reload()
    await wait_until_async(lambda: run.supervisor._reloads)
    assert listens(folder / "other.sock") and not (folder / "relay.sock").exists()
    run.change(admin=config.AdminSettings(listen="127.0.0.1:0", sessions_socket="./other.sock"))
    run.reload()
    await wait_until_async(lambda: run.supervisor._reloads == 2)
    assert listens(folder / "other.sock")


@pytest.mark.parametrize("why", ["sessions_socket", "worker"])
async def test_a_refused_reload_keeps_the_admin_addresses(run: Run, caplog: pytest.LogCaptureFixture, why: str) -> None:
    await run.up()
    folder, before = run.loaded.path.parent, run.supervisor._admin
    port = free_port()
    name = "none/other.sock" if why == "sessions_socket" else "other.sock"
    run.change(admin=config.AdminSettings(listen=f"127.0.0.1:{port}", sessions_socket=name))
    run.refused = int(why == "worker")
    run.reload()
    await wait_until_async(lambda: run.supervisor._refused)
    assert listens(folder / "relay.sock") and not (folder / name).exists()
    assert run.supervisor._admin is before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    [problem, _] = [record.getMessage() for record in caplog.records if "reload refused" in record.getMessage()]
    assert f"{folder / name}: No such file or directory" in problem or why == "worker"


@pytest.mark.parametrize(("old", "new"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "localhost")])
async def test_an_admin_address_that_overlaps_the_old_one_is_refused(
    run: Run, caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    port = free_port()
    run.loaded = Loaded(run.loaded.path, msgspec.structs.replace(run.loaded.config, admin=config.AdminSettings(listen=f"{old}:{port}")))
    run.supervisor._loaded = run.loaded
    await run.up()
    run.change(admin=config.AdminSettings(listen=f"{new}:{port}"))
    run.reload()
    await wait_until_async(lambda: run.supervisor._refused or run.supervisor._reloads)
    [problem, _] = [record.getMessage() for record in caplog.records if "reload refused" in record.getMessage()]
    assert f"admin.listen: {new}:{port}: Address already in use; this relay listens on {old}:{port} until it is restarted" in problem
    assert run.supervisor._reloads == 0
    socket.create_connection(("127.0.0.1", port)).close()


async def test_a_reload_applies_changed_log_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[config.LogSettings] = []
    monkeypatch.setattr(supervisor, "configure", configured.append)
    await run.up()
    run.reload()
    await run.started(4)
    run.change(log=config.LogSettings(level="debug"))
    run.reload()
    await run.started(6)
    await wait_until_async(lambda: configured == [config.LogSettings(level="debug")])


async def test_a_bad_configuration_is_logged_line_by_line_and_changes_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, two = await run.up()
    good = run.loaded
    run.loaded = ConfigError(["relay.toml: user: bad", "relay.toml: workers: bad"])  # type: ignore[assignment]
    run.reload()
    await wait_until_async(lambda: "for 2 problems; the old configuration stays in force" in caplog.text)
    refused = [record.getMessage() for record in caplog.records if record.getMessage().startswith("reload refused: ")]
    assert refused[:2] == ["reload refused: relay.toml: user: bad", "reload refused: relay.toml: workers: bad"]
    assert one.told == two.told == ["Reopen"]
    assert len(run.workers) == 2
    assert (await run.counts())["reloads_total"] == 0
    text = (await run.supervisor._render()).decode()
    assert 'relay_reloads_total{result="refused"} 1.0' in text
    (told,) = (await run.supervisor._ask_sessions()).untaken
    assert (told.what, told.problem) == ("configuration", "reload refused: relay.toml: user: bad")
    (since,) = re.findall(r'relay_change_not_taken_since_seconds\{what="configuration"\} (\S+)', text)
    assert float(since) == told.since
    run.loaded = good
    run.reload()
    await run.started(4)
    await wait_until_async(lambda: one.leaving)
    assert (await run.supervisor._ask_sessions()).untaken == []
    assert 'relay_change_not_taken_since_seconds{what="configuration"} 0.0' in (await run.supervisor._render()).decode()


async def test_workers_that_cannot_serve_the_new_configuration_leave_the_old_in_force(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, two = await run.up()
    run.change(listen=["127.0.0.1:0", "127.0.0.2:0"])
    run.serving = False
    run.reload()
    _, _, three, four = await run.started(4)
    extra = [sock for sock in three.sockets + four.sockets if sock not in one.sockets + two.sockets]
    assert len(extra) == 2
    three.serve()
    four.fail("relay.toml: host_keys: gone")
    await wait_until_async(lambda: "the old configuration stays in force" in caplog.text)
    assert three.told == [0]
    assert not one.leaving and not two.leaving
    assert [sock.fileno() for sock in extra] == [-1, -1]
    assert all(sock.fileno() >= 0 for sock in one.sockets + two.sockets)
    three.leave()
    assert (await run.counts())["worker_restarts_total"] == 0


async def test_other_addresses_and_fewer_workers(run: Run) -> None:
    one, two = await run.up()
    run.change(listen=["127.0.0.2:0", "127.0.0.1:0"], workers=1)
    run.reload()
    _, _, three = await run.started(3)
    await wait_until_async(lambda: one.leaving)
    assert set(one.sockets + two.sockets) < set(three.sockets)
    assert len(three.sockets) == 3
    run.change(listen=["127.0.0.2:0"], workers=1)
    run.reload()
    (*_, four) = await run.started(4)
    await wait_until_async(lambda: three.leaving)
    assert set(four.sockets) < set(three.sockets)
    assert [sock.fileno() for sock in one.sockets + two.sockets] == [-1, -1]


async def test_several_signals_during_a_reload_cause_one_more_reload(run: Run) -> None:
    await run.up()
    run.serving = False
    run.reload()
    await run.started(4)
    for _ in range(5):
        run.reload()
    run.serving = True
    for worker in run.workers[2:]:
        worker.serve()
    await run.started(6)
    await wait_until_async(lambda: run.supervisor._reloads == 2 and not run.supervisor._reloading)
    assert len(run.workers) == 6


async def test_a_reload_signal_during_the_start_is_handled_after_it(run: Run) -> None:
    run.serving = False
    run.begin()
    one, two = await run.started(2)
    run.reload()
    one.serve()
    two.serve()
    await run.started(4)


# -- deaths, reloads and signals at once


async def test_an_old_worker_that_dies_during_a_reload_is_not_replaced_by_another_old_one(run: Run) -> None:
    one, two = await run.up()
    run.serving = False
    (run.supervisor._slots[0]).pause = 0.2  # longer than the reload takes
    run.reload()
    _, _, three, four = await run.started(4)
    one.die()
    await wait_until_async(lambda: run.supervisor._restarts == 1)
    three.serve()
    four.serve()
    await wait_until_async(lambda: two.leaving)
    await asyncio.sleep(0.3)
    assert len(run.workers) == 4


async def test_an_old_worker_that_dies_during_a_reload_that_is_refused_is_replaced(run: Run) -> None:
    one, _ = await run.up()
    run.serving = False
    run.reload()
    _, _, three, four = await run.started(4)
    one.die()
    (*_, five) = await run.started(5)
    assert five.sockets == one.sockets
    five.serve()
    three.fail("no")
    four.serve()
    await wait_until_async(lambda: four.told == [0])
    assert not five.leaving
    four.leave()


async def test_a_replacement_that_becomes_ready_after_the_reload_drains(run: Run) -> None:
    one, _ = await run.up()
    run.serving = False
    run.reload()
    _, _, three, four = await run.started(4)
    one.die()
    (*_, five) = await run.started(5)
    three.serve()
    four.serve()
    await wait_until_async(lambda: five.leaving)
    five.leave()
    assert not three.leaving and not four.leaving


async def test_a_new_worker_that_dies_before_the_take_over_is_replaced_after_it(run: Run) -> None:
    await run.up()
    run.serving = False
    run.reload()
    _, _, three, four = await run.started(4)
    three.serve()
    await asyncio.sleep(0.01)
    three.die()
    await asyncio.sleep(0.05)
    assert len(run.workers) == 4
    run.serving = True
    four.serve()
    (*_, five) = await run.started(5)
    assert five.sockets == three.sockets
    await wait_until_async(lambda: run.in_force(five))


@pytest.mark.parametrize("when", ["reading", "starting", "taking over"])
async def test_a_stop_signal_during_a_reload_drains_every_worker(run: Run, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await run.up()
    run.serving = when == "taking over"
    loading, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def load_slowly(executor: None, call: Callable[[Path], Loaded], path: Path) -> Loaded:
        loading.set()
        await go_on.wait()
        return call(path)

    monkeypatch.setattr(loop, "run_in_executor", load_slowly)
    run.reload()
    await loading.wait()
    if when == "reading":
        run.stop()
        await wait_until_async(lambda: one.leaving and two.leaving)
        go_on.set()
    else:
        go_on.set()
        await run.started(4)
        run.stop()
        await wait_until_async(lambda: all(worker.leaving for worker in run.workers))
    await asyncio.sleep(0.02)
    assert len(run.workers) == (2 if when == "reading" else 4)
    for worker in run.workers:
        assert worker.leaving
        worker.leave()
    assert await run.finished() == 0


async def test_a_signal_during_the_pause_before_a_replacement(run: Run) -> None:
    one, two = await run.up()
    run.supervisor._slots[0].pause = 3600
    one.die()
    await wait_until_async(lambda: run.supervisor._restarts == 1)
    run.stop()
    await wait_until_async(lambda: two.told)
    two.leave()
    assert await run.finished() == 0
    assert len(run.workers) == 2
