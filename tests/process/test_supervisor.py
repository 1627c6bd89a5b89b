"""The supervisor's decisions at its start, its end and the deaths of workers: which worker it starts, drains and replaces.

The workers are stand-ins; tests/e2e/test_reload.py and tests/e2e/test_drain.py have real ones.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from relay import config
from relay.errors import ConfigError
from relay.observe.snapshot import Family, Snapshot
from relay.process import messages, supervisor
from relay.process.console import Operator
from relay.process.supervisor import Supervisor
from relay.process.switches import Action
from relay.upstream.colleagues import HostNews
from relay.upstream.switches import UpstreamSwitches
from tests.support.supervised import DRAIN_SECONDS, Run, Worker, supervised
from tests.support.wait import wait_until_async


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    async with supervised(tmp_path, monkeypatch) as this:
        yield this


# -- start and stop


async def test_serves_until_all_workers_have_drained(run: Run) -> None:
    before = psutil.Process().num_fds()
    one, two = await run.up()
    assert await run.supervisor._ready() == (True, "ready") or await wait_until_async(lambda: run.supervisor._readiness[0])
    run.stop()
    assert await run.supervisor._ready() == (False, "draining")
    await wait_until_async(lambda: one.told and two.told)
    assert (one.told, two.told) == ([DRAIN_SECONDS], [DRAIN_SECONDS])
    one.leave()
    two.leave()
    assert await run.finished() == 0
    assert psutil.Process().num_fds() <= before
    assert not (run.loaded.path.parent / "relay.sock").exists()


async def test_the_listening_sockets_are_closed_as_soon_as_it_stops(run: Run) -> None:
    one, two = await run.up()
    port = one.sockets[0].getsockname()[1]
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    one.leave()
    two.leave()
    assert await run.finished() == 0


async def test_ends_with_1_when_sessions_were_cut_and_says_how_many(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, two = await run.up()
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    one.leave(cut=2)
    two.leave(cut=3)
    assert await run.finished() == 1
    assert "stopped; 5 sessions were cut" in caplog.text


async def test_a_worker_that_dies_while_it_drains_cuts_the_sessions_it_had(run: Run) -> None:
    one, two = await run.up()
    one.snapshot = Snapshot([Family("relay_sessions_open", "gauge", "", "sum", [("", (("service", "x"),), 2.0), ("", (), 1.0)])])
    await run.supervisor._snapshots()
    await wait_until_async(lambda: one.last is one.snapshot, message="no older answer is under way")
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    one.die(-6)
    two.leave()
    assert await run.finished() == 1
    assert run.supervisor._cut == 3
    assert len(run.workers) == 2, "nobody is replaced any more"


async def test_sessions_that_an_earlier_reload_cut_do_not_count_at_the_end(run: Run) -> None:
    one, two = await run.up()
    run.reload()
    _, _, three, four = await run.started(4)
    await wait_until_async(lambda: one.told == ["Reopen", DRAIN_SECONDS])
    one.leave(cut=1)
    two.leave()
    await wait_until_async(lambda: len(run.supervisor._workers) == 2)
    run.stop()
    await wait_until_async(lambda: three.told and four.told)
    three.leave()
    four.leave()
    assert await run.finished() == 0


async def test_a_second_signal_leaves_no_time(run: Run) -> None:
    one, two = await run.up()
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    run.stop()
    run.stop()
    assert one.told[:2] == [DRAIN_SECONDS, 0]
    one.leave()
    two.leave(cut=1)
    assert await run.finished() == 1


async def test_two_signals_at_once(run: Run) -> None:
    one, two = await run.up()
    run.stop()
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    assert set(one.told) == {0}
    one.leave()
    two.leave()
    assert await run.finished() == 0


async def test_a_signal_during_the_start(run: Run) -> None:
    run.serving = False
    run.begin()
    one, two = await run.started(2)
    run.stop()
    assert (one.told[0], two.told[0]) == (0, 0)
    one.leave()
    two.leave()
    assert await run.finished() == 0


async def test_a_signal_before_the_first_worker_is_there(run: Run) -> None:
    run.begin()
    await run.admin_answers()
    run.stop()
    await asyncio.sleep(0.05)
    for worker in run.workers:
        assert worker.leaving
        worker.leave()
    assert await run.finished() == 0


async def test_a_worker_that_cannot_serve_stops_the_start_with_each_problem_once(run: Run) -> None:
    run.serving = False
    run.begin()
    one, two = await run.started(2)
    one.fail("relay.toml: keys: gone")
    two.fail("relay.toml: keys: gone", "relay.toml: host_keys: gone")
    with pytest.raises(ConfigError) as raised:
        await run.finished()
    assert raised.value.problems == ["relay.toml: keys: gone", "relay.toml: host_keys: gone"]
    assert len(run.workers) == 2


async def test_when_one_worker_cannot_serve_the_others_drain(run: Run) -> None:
    run.serving = False
    run.begin()
    one, two = await run.started(2)
    one.serve()
    two.fail("no")
    await wait_until_async(lambda: one.told == [0])
    one.leave()
    with pytest.raises(ConfigError):
        await run.finished()


async def test_a_process_that_cannot_be_started_stops_the_start(run: Run) -> None:
    run.refused = 1
    run.begin()
    with pytest.raises(ConfigError, match="temporarily unavailable"):
        await run.finished()


@pytest.mark.parametrize("what", ["listen", "admin.listen", "admin.sessions_socket"])
async def test_an_address_that_is_taken_is_one_problem(run: Run, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        if what == "listen":
            run.change(listen=[taken])
        elif what == "admin.listen":
            run.change(admin=config.AdminSettings(listen=taken))
        else:
            run.change(admin=config.AdminSettings(listen="127.0.0.1:0", sessions_socket="no/such/folder.sock"))
        run.supervisor = Supervisor(run.loaded)
        run.begin()
        with pytest.raises(ConfigError) as raised:
            await run.finished()
    (problem,) = raised.value.problems
    assert problem.startswith(f"{run.loaded.path}: {what}: ")
    assert ("Address already in use" in problem) == (what != "admin.sessions_socket")
    assert not run.workers


# -- deaths


async def test_a_worker_that_dies_is_replaced_on_its_sockets_and_counted(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, two = await run.up()
    one.die(-11)
    _, _, three = await run.started(3)
    assert three.sockets == one.sockets
    assert not two.told
    assert "worker 1000 died by signal SIGSEGV after" in caplog.text
    assert (await run.counts())["worker_restarts_total"] == 1


async def test_the_pause_before_a_restart_doubles_and_is_reset_after_a_worker_ran_steadily(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_MOST_SECONDS", 0.04)
    await run.up()
    (slot, _) = run.supervisor._slots
    pauses = []
    for count in range(3, 7):
        pauses.append(slot.pause)
        assert isinstance(slot.worker, Worker)
        slot.worker.die(1)
        await run.started(count)
    assert pauses == [0.01, 0.02, 0.04, 0.04]
    run.workers[-1].since -= supervisor.STEADY_SECONDS + 1
    run.workers[-1].die(1)
    await run.started(7)
    assert slot.pause == 0.02


async def test_a_replacement_that_does_not_become_ready_is_replaced_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = await run.up()
    run.serving = False
    one.die()
    (*_, three) = await run.started(3)
    three.fail("relay.toml: keys: gone")
    (*_, four) = await run.started(4)
    four.serve()
    assert "a worker did not start: relay.toml: keys: gone" in caplog.text
    await wait_until_async(lambda: run.in_force(four))


async def test_starting_a_process_is_retried_after_a_failure(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = await run.up()
    run.refused = 2
    one.die()
    await run.started(3)
    assert caplog.text.count("a worker could not be started: Resource temporarily unavailable") == 2


async def test_a_worker_that_answers_nothing_is_killed_and_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    one, two = await run.up()
    one.heard -= supervisor.HUNG_SECONDS + 1
    await run.started(3)
    assert one.killed and not two.killed


async def test_the_counters_of_a_killed_worker_remain(run: Run) -> None:
    one, _ = await run.up()
    families = [Family("relay_x", "counter", "", "sum", [("_total", (), 7.0)]), Family("relay_y", "gauge", "", "sum", [("", (), 3.0)])]
    one.snapshot = Snapshot(families)
    assert b"relay_x_total 7.0" in await run.supervisor._render()
    await wait_until_async(lambda: one.last is one.snapshot, message="no older answer is under way")
    one.die()
    await run.started(3)
    text = await run.supervisor._render()
    assert b"relay_x_total 7.0" in text and b"relay_y 3.0" not in text


# -- git hosts -----------------------------------------------------------------------------------------------------------


async def test_one_worker_probes_git_hosts_and_another_takes_over_when_it_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    one, two = await run.up()
    await wait_until_async(lambda: [one.probing, two.probing] == [True, False])
    one.die()
    (*_, three) = await run.started(3)
    await wait_until_async(lambda: two.probing and not three.probing)
    run.reload()
    (*_, four, five) = await run.started(5)
    await wait_until_async(lambda: [worker.probing for worker in (two, three, four, five)] == [False, False, True, False])


async def test_news_of_a_git_host_is_forwarded_to_the_other_workers(run: Run) -> None:
    one, two = await run.up()
    news = HostNews("main", "10.0.0.5:22", "refused", "dial")
    one.on_news(news)
    assert (one.news, two.news) == ([], [news])


async def test_of_workers_that_start_together_one_logs_in_first_and_a_replacement_does_not_wait(run: Run) -> None:
    one, two = await run.up()
    two.die()
    (*_, three) = await run.started(3)
    assert [one.first, two.first, three.first] == [True, False, True]
    run.reload()
    (*_, four, five) = await run.started(5)
    assert [four.first, five.first] == [True, False]


async def test_news_stays_among_workers_of_the_same_configuration(run: Run) -> None:
    """A reload may have changed the key, so a refused login of the old workers says nothing about the new workers' logins."""
    one, two = await run.up()
    run.reload()
    (*_, three, four) = await run.started(4)
    one.on_news(HostNews("main", "10.0.0.5:22", "refused", "auth"))
    three.on_news(HostNews("main", "10.0.0.5:22", reason="auth"))
    assert [worker.news for worker in (one, three)] == [[], []]
    assert [[news.problem for news in worker.news] for worker in (two, four)] == [["refused"], [""]]


# -- the operator's switches ---------------------------------------------------------------------------------------------

OPERATOR = Operator(0, "root")
PAUSED = {"main": UpstreamSwitches(paused=True)}


@pytest.fixture
def with_upstreams(run: Run) -> Run:
    """A supervisor with two upstreams, not started yet."""
    run.change(upstreams={name: config.UpstreamSettings(addresses=["10.0.0.5:22", "10.0.0.6:22"]) for name in ("main", "other")})
    run.supervisor = Supervisor(run.loaded)
    return run


async def switched(run: Run, action: Action, upstream: str = "main", argument: str = "") -> messages.SwitchAnswer:
    answer = await run.supervisor._answer_operator(messages.Switch(1, action, upstream, argument), OPERATOR)
    assert isinstance(answer, messages.SwitchAnswer)
    return answer


async def test_a_switch_reaches_all_workers_and_each_that_is_started_later(with_upstreams: Run, caplog: pytest.LogCaptureFixture) -> None:
    run = with_upstreams
    caplog.set_level(logging.INFO)
    one, two = await run.up()
    assert one.switches == two.switches == [{}]
    assert await switched(run, "pause") == messages.SwitchAnswer()
    assert "operator root (uid 0): upstream main is paused" in caplog.text
    assert one.switches == two.switches == [{}, PAUSED]
    one.die()
    (*_, three) = await run.started(3)
    assert three.switches == [PAUSED], "a worker that replaces a dead one begins with it"
    run.reload()
    (*_, four, five) = await run.started(5)
    await wait_until_async(lambda: run.in_force(four) and run.in_force(five))
    assert four.switches == five.switches == [PAUSED], "so does one after a reload"
    assert await switched(run, "resume") == messages.SwitchAnswer()
    assert [worker.switches[-1] for worker in (two, three, four, five)] == [{}] * 4, "workers that drain are told, too"
    assert "operator root (uid 0): upstream main is not paused any more" in caplog.text


async def test_a_worker_that_is_just_being_started_misses_no_switch(with_upstreams: Run) -> None:
    run = with_upstreams
    one, _ = await run.up()
    run.serving = False
    one.die()
    (*_, three) = await run.started(3)
    await switched(run, "pause")
    assert three.switches[-1] == PAUSED and not three.ready
    three.serve()


async def test_what_cannot_be_switched_is_told_to_the_operator_alone(with_upstreams: Run, caplog: pytest.LogCaptureFixture) -> None:
    run = with_upstreams
    caplog.set_level(logging.INFO)
    one, _ = await run.up()
    answer = await switched(run, "pause", "mian")
    assert answer == messages.SwitchAnswer(problem='there is no upstream "mian"; the upstreams are: main, other')
    assert one.switches == [{}] and "mian" not in caplog.text


async def test_a_switch_that_is_on_already_is_sent_again_and_told(with_upstreams: Run) -> None:
    """An operator may repeat a switch that a worker did not apply."""
    run = with_upstreams
    one, _ = await run.up()
    await switched(run, "pause")
    assert await switched(run, "pause") == messages.SwitchAnswer(changed=False)
    assert one.switches == [{}, PAUSED, PAUSED]


async def test_a_worker_that_does_not_take_a_switch_is_named_and_one_that_ended_is_not(
    with_upstreams: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run = with_upstreams
    one, two = await run.up()
    one.deaf = True
    assert await switched(run, "pause") == messages.SwitchAnswer(late=[one.pid])
    assert f"worker {one.pid} has not applied the operator's switches" in caplog.text
    one.die()
    two.deaf = False
    assert (await switched(run, "resume")).late == []


async def test_a_reload_that_removes_an_upstream_drops_its_switches_in_all_workers(
    with_upstreams: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run = with_upstreams
    one, _ = await run.up()
    await switched(run, "pause")
    await switched(run, "drain", "other", "10.0.0.5:22")
    run.change(upstreams={"other": config.UpstreamSettings(addresses=["10.0.0.6:22", "10.0.0.7:22"])})
    run.reload()
    (*_, four) = await run.started(4)
    await wait_until_async(lambda: one.switches[-1] == four.switches[-1] == {})
    assert "upstream main is not configured any more; it is no longer paused" in caplog.text
    assert "upstream other: 10.0.0.5:22 is not configured any more; it is no longer draining" in caplog.text
    assert "serves no new session" not in caplog.text
    await switched(run, "drain", "other", "10.0.0.6:22")
    run.change(upstreams={"other": config.UpstreamSettings(addresses=["10.0.0.6:22"])})
    run.reload()
    await wait_until_async(lambda: "upstream other serves no new session: the reload left only addresses that drain" in caplog.text)


async def test_ready_names_the_paused_upstreams(with_upstreams: Run) -> None:
    run = with_upstreams
    await run.up()
    await wait_until_async(lambda: run.supervisor._readiness[0])
    await switched(run, "pause", "other")
    await switched(run, "pause", "main")
    assert await run.supervisor._ready() == (True, "ready; paused: main, other")
    await switched(run, "resume", "main")
    await switched(run, "resume", "other")
    assert await run.supervisor._ready() == (True, "ready")


async def test_the_table_sums_workers_and_counts_the_silent(with_upstreams: Run) -> None:
    run = with_upstreams
    one, two = await run.up()
    state = messages.UpstreamState("main", 2, [messages.AddressState("10.0.0.5:22", True, 1, 3, 0)])
    one.upstreams = two.upstreams = [state]
    await switched(run, "pause")
    table = await run.supervisor._answer_operator(messages.AskWorker(1, "upstreams"), OPERATOR)
    (main, other) = table.lines
    assert (main.name, main.waiting, main.leased, main.idle, main.paused_by, table.silent) == ("main", 4, 2, 6, "root (uid 0)", 0)
    assert (other.name, other.waiting, other.leased, other.paused_since) == ("other", 0, 0, 0.0)
    two.deaf = True
    table = await run.supervisor._answer_operator(messages.AskWorker(1, "upstreams"), OPERATOR)
    assert (table.lines[0].leased, table.silent) == (1, 1)


async def test_who_stops_a_relay_with_a_paused_upstream_reads_that_it_will_not_be(
    with_upstreams: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run = with_upstreams
    one, two = await run.up()
    await switched(run, "pause")
    await switched(run, "freeze", "main", "moving")
    text = (await run.supervisor._render()).decode()
    assert 'relay_upstream_switches{switch="paused",upstream="main"} 1.0' in text
    assert 'relay_upstream_switches{switch="paused",upstream="other"} 0.0' in text
    run.stop()
    await wait_until_async(lambda: one.told and two.told)
    for phrase in ("main is paused", "main is frozen"):
        assert f"upstream {phrase}; the relay forgets that, it will not be so when it is started again" in caplog.text
    one.leave()
    two.leave()
    assert await run.finished() == 0


async def test_who_ends_a_session_is_logged(with_upstreams: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_upstreams
    caplog.set_level(logging.INFO)
    one, _ = await run.up()

    async def ask(what: str, kind: object, argument: str = "", operator: str = "") -> object:
        assert operator == "root (uid 0)"
        return [session for session in ("c-1", "c-3") if argument == (session if what == "kill" else "robot")]

    monkeypatch.setattr(one, "ask", ask)
    assert await run.supervisor._answer_operator(messages.AskWorker(1, "kill", "c-2"), OPERATOR) == []
    assert "c-2" not in caplog.text
    assert await run.supervisor._answer_operator(messages.AskWorker(1, "kill", "c-1"), OPERATOR) == ["c-1"]
    assert "session c-1 is ended by root (uid 0)" in caplog.text
    assert await run.supervisor._answer_operator(messages.AskWorker(1, "kill_identity", "robot"), OPERATOR) == ["c-1", "c-3"]
    assert "session c-3 is ended by root (uid 0)" in caplog.text
