"""The parts of an ls-remote's time: they follow one another and add up, and come from its own session."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks import traces
from benchmarks.clients import Listed
from benchmarks.contenders import Profile
from benchmarks.processes import MeasureError
from benchmarks.traces import PARTS, Collector, Span, collecting
from tests.benchmarks.conftest import World

TIMES = (100.0, 101.0, 103.0, 106.0, 110.0, 115.0, 121.0, 128.0)  # the ends of the parts, each a second longer than the one before
LISTED = Listed(TIMES[0], TIMES[5], TIMES[7])


def spans(number: int, repository: str = "small", later: float = 0.0) -> list[Span]:
    """Of one connection with one session."""
    _, accepted, logged_in, asked, served, _, ended, _ = (time + later for time in TIMES)
    login, session = f"login {number}", f"session {number}"
    return [
        Span("login", login, "", accepted, logged_in, ""),
        Span("access", f"access {number}", session, asked, asked + 0.1, ""),
        Span("upstream", f"upstream {number}", session, asked + 0.2, served, ""),
        Span("command", f"command {number}", session, served, ended, ""),
        Span("session", session, login, logged_in + 0.5, ended, repository),
    ]


def collector(*kept: Span) -> Collector:
    one = Collector("")
    one._spans += kept
    return one


def test_the_parts_follow_one_another_and_add_up() -> None:
    [parts] = collector(*spans(1)).parts("small", [LISTED])
    assert tuple(parts) == PARTS
    assert tuple(parts.values()) == tuple(end - begin for begin, end in pairwise(TIMES))
    assert sum(parts.values()) == LISTED.ended - LISTED.began


def test_a_session_of_another_repository_or_time_is_not_taken() -> None:
    others = [*spans(1, "big"), *spans(2, later=1000.0), *spans(3, later=-1000.0)]
    [parts] = collector(*others, *spans(4)).parts("small", [LISTED])
    assert parts[traces.LOGIN] == TIMES[2] - TIMES[1]


@pytest.mark.parametrize("missing", ["login", "access", "command", "session"])
def test_an_ls_remote_whose_spans_do_not_come_is_a_failure(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "SENT_SECONDS", 0.05)
    with pytest.raises(MeasureError, match="traces tell of 0 of 1 ls-remotes"):
        collector(*(one for one in spans(1) if one.name != missing)).parts("small", [LISTED])


def test_a_relays_traces_divide_what_the_client_saw(world: World) -> None:
    with collecting() as one, world.fleet.relay(1, traces=one.url) as relay:
        listed = [world.clients.ls_remote_heard(relay, Profile.PINNED, "small") for _ in range(2)]
        for parts, whole in zip(one.parts("small", listed), listed, strict=True):
            assert sum(parts.values()) == pytest.approx(whole.ended - whole.began, abs=1e-4)
            assert all(parts[part] > 0 for part in (traces.CONNECT, traces.LOGIN, traces.UPSTREAM, traces.REST)), parts


def test_without_the_sdk_there_is_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "NEEDS", ("no_such_module",))
    with pytest.raises(MeasureError, match="OpenTelemetry's SDK is not installed"), collecting():
        pass
