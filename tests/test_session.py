"""One session between asyncssh's client and stand-in backends: each end is reported once, with the right text.

The git host is a stand-in, too; tests/e2e has a real one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest
from msgspec.structs import replace

from relay.errors import Denied, Ended, Lost, NoExit, RefDenied, Refused, RelayError, Stalled, Unavailable, Undecided
from relay.events import SessionRecord
from relay.git.pktline import pkt_line
from relay.model import Command, Exit, Grant, RefRule, Route
from relay.session import Session, State
from tests.support import play as support
from tests.support.play import COMMAND, FINGERPRINT, ROUTE, Play, forever, logged_in, raising
from tests.support.sshclient import run
from tests.support.wait import wait_until_async


@asynccontextmanager
async def served(play: Play, **settings: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection as alice, to a server with the backends of `play`."""
    async with support.served(play, **settings) as port, logged_in(port) as connection:
        yield connection


async def stuck(connection: asyncssh.SSHClientConnection) -> None:
    """A session whose client reads 1,000 bytes and no more."""
    session: asyncssh.SSHClientSession[bytes] = asyncssh.SSHClientSession()
    channel, _ = await connection.create_session(lambda: session, COMMAND, encoding=None, window=1000)
    channel.pause_reading()


def finishing(session: Session) -> bool:
    """Whether the session has its exit status, while the client has not read all output yet."""
    return session._channel is not None and session._channel._empty is not None


# -- the path ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "result"), [(Exit(status=0), "ok"), (Exit(status=1), "exit"), (Exit(status=128), "exit"), (Exit(signal="KILL"), "signal")]
)
async def test_the_client_receives_the_git_hosts_output_and_exit(how: Exit, result: str) -> None:
    play = Play()
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND, b"input", env={"GIT_PROTOCOL": "version=2"}))
        splice = await play.played()
        await wait_until_async(lambda: play.host.eof)
        splice.upstream_data(memoryview(b"output"))
        splice.upstream_stderr(memoryview(b"words"))
        splice.upstream_ended(how)
        heard = await running
        outcome = await play.ledger.outcome()
    assert (heard.stdout, heard.stderr, heard.exit_status, heard.exit_signal) == (b"output", b"words", how.status, how.signal)
    assert (play.host.received, play.host.aborted) == (b"input", False)
    assert (outcome.result, outcome.reason, outcome.exit, outcome.detail) == (result, result, how, "")
    record = play.ledger.started[0]
    assert (record.command, record.route, record.address) == (
        Command(service="git-upload-pack", repository="team/app", protocol="version=2"),
        ROUTE,
        play.host.address,
    )
    assert (record.bytes_in, record.bytes_out) == (5, 11)
    told = [("RELAY_IDENTITY", "alice"), ("RELAY_KEY", FINGERPRINT), ("RELAY_CLIENT", "127.0.0.1"), ("RELAY_SESSION", record.id)]
    environment = [("GIT_PROTOCOL", "version=2"), *told]
    assert play.leased == [("git-upload-pack '/srv/git/team/app.git'", environment)]


async def test_send_identity_off_sends_no_identity() -> None:
    play = Play()
    play.pool = raising(Unavailable("enough"))
    async with served(play, send_identity=False) as connection:
        await run(connection, COMMAND)
    assert play.leased[0][1] == []


async def test_routes_are_not_asked_if_the_grant_has_a_route() -> None:
    play = Play()

    async def access(command: Command) -> Grant:
        return Grant(access="read", route=Route(upstream="main", path="/elsewhere"))

    play.access, play.pool = access, raising(Unavailable("enough"))
    async with served(play) as connection:
        await run(connection, COMMAND)
    assert play.asked == {"keys": 1, "access": 1}
    assert play.leased[0][0] == "git-upload-pack '/elsewhere'"


# -- names by case -----------------------------------------------------------------------------------------------------------


def by_name(play: Play, routes: dict[str, str], grants: dict[str, Route] | None = None) -> list[tuple[str, bool]]:
    """Routes by the requested name; returns the names that access is asked about. A grant has a route if `grants` has one."""
    asked: list[tuple[str, bool]] = []

    async def access(command: Command) -> Grant:
        asked.append((command.repository, command.folded))
        return Grant(access="write", route=(grants or {}).get(command.repository))

    async def find(command: Command) -> Route:
        if command.repository not in routes:
            raise Denied("no route")
        return Route(upstream=routes[command.repository], path=f"/{command.repository}")

    play.access, play.routes, play.pool = access, find, raising(Unavailable("enough"))
    return asked


@pytest.mark.parametrize(
    ("routes", "name", "decided", "path"),
    [
        ({"team/app": "folds"}, "team/APP", ("team/app", True), "/team/app"),  # only the folded name has a route
        ({"team/app": "folds", "team/APP": "folds"}, "team/APP", ("team/app", True), "/team/app"),
        ({"team/app": "folds"}, "team/app", ("team/app", True), "/team/app"),
        ({"team/app": "folds", "team/APP": "exact"}, "team/APP", ("team/APP", False), "/team/APP"),
        ({"team/app": "exact", "team/APP": "exact"}, "team/APP", ("team/APP", False), "/team/APP"),
        ({"team/app": "exact", "team/APP": "folds"}, "team/APP", ("team/app", False), "/team/app"),  # the requested name's route decides
        ({"grösse": "folds"}, "GRO\u0308\u1e9eE.GIT", ("grösse", True), "/grösse"),
    ],
)
async def test_a_host_that_ignores_case_is_asked_for_the_name_that_access_decided_about(
    routes: dict[str, str], name: str, decided: tuple[str, bool], path: str
) -> None:
    play = Play()
    asked = by_name(play, routes)
    async with served(play, upstreams=("folds", "exact"), ignore_case=("folds",)) as connection:
        await run(connection, f"git-upload-pack '{name}'")
    assert asked[-1] == decided
    assert play.leased[-1][0] == f"git-upload-pack '{path}'"
    record = play.ledger.started[0]
    assert record.command is not None and record.command.repository == decided[0]


async def test_where_all_hosts_ignore_case_access_is_asked_once_about_the_folded_name() -> None:
    play = Play()
    asked = by_name(play, {"team/app": "main"})
    async with served(play, ignore_case=("main",)) as connection:
        await run(connection, "git-receive-pack 'Team/App.Git'")
    assert asked == [("team/app", True)]
    assert play.asked["routes"] == 1


async def test_access_is_asked_again_with_the_folded_name_if_its_route_ignores_case() -> None:
    play = Play()
    asked = by_name(play, {}, {"team/APP": Route(upstream="folds", path="/a"), "team/app": Route(upstream="folds", path="/b")})
    async with served(play, upstreams=("folds", "exact"), ignore_case=("folds",)) as connection:
        await run(connection, "git-upload-pack team/APP")
    assert asked == [("team/APP", False), ("team/app", True)]
    assert play.leased[-1][0] == "git-upload-pack '/b'"


@pytest.mark.parametrize("name", ["team/app:x", "team/APPLIC~1", "team/.GIT/x", "..."])
async def test_spellings_that_a_host_that_ignores_case_may_know_are_refused(name: str) -> None:
    play = Play()
    asked = by_name(play, {})
    async with served(play, ignore_case=("main",)) as connection:
        heard = await run(connection, f"git-upload-pack '{name}'")
    assert heard.exit_status == 128 and asked == [] and play.leased == []


@pytest.mark.parametrize("eof", [True, False])
async def test_input_received_before_the_lease_is_sent_to_the_git_host(eof: bool) -> None:
    play, ready = Play(), asyncio.Event()

    async def pool() -> None:
        await ready.wait()

    play.pool = pool
    data = bytes(range(256)) * 2000
    async with served(play) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        process.stdin.write(data)
        if eof:
            process.stdin.write_eof()
        await wait_until_async(lambda: play.session._early, message="some of it has come")
        assert play.host.received == b""
        ready.set()
        splice = await play.played()
        await wait_until_async(lambda: len(play.host.received) == len(data))
        assert play.host.received == data
        if eof:
            await wait_until_async(lambda: play.host.eof)
        assert play.host.eof is eof
        splice.upstream_ended(Exit(status=0))
        await process.wait_closed()


async def test_a_session_whose_host_is_lost_before_a_byte_moves_to_the_next_address() -> None:
    play = Play()
    second = support.GitHost()
    second.address = "192.0.2.2:22"
    play.members = (play.host, second)
    async with served(play) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        process.stdin.write_eof()
        splice = await play.played()
        await wait_until_async(lambda: play.host.eof)
        play.host = second
        splice.upstream_ended(Lost("cut"))
        splice = await play.played()
        await wait_until_async(lambda: second.eof)  # before, only the first host had got the EOF
        splice.upstream_data(memoryview(b"output"))
        splice.upstream_ended(Exit(status=0))
        heard = await process.wait()
    assert (heard.stdout, heard.stderr, heard.exit_status) == (b"output", b"", 0)
    assert play.without == [[], ["192.0.2.1:22"]]
    assert play.ledger.started[0].address == "192.0.2.2:22"


@pytest.mark.parametrize("members", [1, 2])
async def test_a_session_that_is_not_followed_ends_when_its_host_is_lost_after_a_byte(members: int) -> None:
    play = Play()
    play.members = (play.host,) * members
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        splice = await play.played()
        splice.upstream_data(memoryview(b"out"))
        splice.upstream_ended(Lost("cut"))
        heard = await running
        outcome = await play.ledger.outcome()
    assert (heard.stdout, heard.stderr, heard.exit_status) == (b"out", Lost.message.encode() + b"\n", 255)
    assert (outcome.result, outcome.reason, len(play.without)) == ("upstream", "lost", 1)
    assert (play.ledger.started[0].replays, play.ledger.replays) == (0, [])


async def test_a_session_whose_lone_host_is_lost_before_a_byte_starts_over_there_once() -> None:
    play = Play()
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        for _ in range(2):
            splice = await play.played()
            play.host.attached.clear()
            splice.upstream_ended(Lost("cut"))
        heard = await running
        outcome = await play.ledger.outcome()
    assert (heard.stdout, heard.stderr, heard.exit_status) == (b"", Lost.message.encode() + b"\n", 255)
    assert (outcome.result, outcome.reason, play.without) == ("upstream", "lost", [[], []])
    assert (play.ledger.started[0].replays, play.ledger.replays) == (1, ["lost"])


async def test_a_session_that_moves_prepares_again_and_ends_once() -> None:
    play = Play()
    second = support.GitHost()
    second.address = "192.0.2.2:22"
    play.members = (play.host, second)
    async with served(play) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        splice = await play.played()
        session = play.session
        states = [session._state]
        ready = asyncio.Event()

        async def pool() -> None:
            await ready.wait()

        play.pool, play.host = pool, second
        splice.upstream_ended(Lost("cut"))
        await wait_until_async(lambda: len(play.leased) == 2)
        states.append(session._state)
        ready.set()
        splice = await play.played()
        splice.upstream_ended(Exit(status=0))
        await process.wait()
        await wait_until_async(lambda: session.over)
        assert states == [State.SPLICED, State.PREPARING]
        with pytest.raises(AssertionError, match=r"is over, it cannot become spliced"):
            session._enter(State.SPLICED)


async def test_the_session_of_a_client_that_disconnected_does_not_move() -> None:
    play = Play()
    play.members = (play.host, support.GitHost())
    async with served(play) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        splice = await play.played()
        session = play.session
        splice.upstream_ended(Lost("cut"))
        session.connection_lost(None)  # at once: the session's task has not run since
        outcome = await play.ledger.outcome()
        process.channel.abort()
    assert outcome.reason == "lost"
    assert len(play.without) == 1


ADVERTISEMENT = pkt_line(b"version 2\n") + pkt_line(b"ls-refs\n") + b"0000"
LS = pkt_line(b"command=ls-refs\n") + b"0000"
REFS = pkt_line(b"a" * 40 + b" refs/heads/main\n") + b"0000"


async def waiting_for_another_host(
    play: Play, connection: asyncssh.SSHClientConnection, comes: Callable[[], Awaitable[Any]] = forever, *, asked: bool
) -> Any:
    """A fetch by version 2 whose git host was lost after its refs, or before them if `asked`; the next is there after `comes`."""
    process = await connection.create_process(COMMAND, encoding=None, env={"GIT_PROTOCOL": "version=2"})
    splice = await play.played()
    splice.upstream_data(memoryview(ADVERTISEMENT))
    process.stdin.write(LS)
    await wait_until_async(lambda: play.host.received == LS)
    if not asked:
        splice.upstream_data(memoryview(REFS))
        assert await process.stdout.readexactly(len(ADVERTISEMENT + REFS)) == ADVERTISEMENT + REFS
    play.pool, play.host = comes, support.GitHost()
    splice.upstream_ended(Lost("cut"))
    await wait_until_async(lambda: len(play.leased) == 2)
    return process


@pytest.mark.parametrize("asked", [False, True])
async def test_a_client_that_leaves_while_another_host_is_looked_for(asked: bool) -> None:
    """With the whole answer to all it asked for it may go; its session is no failure."""
    play = Play()
    async with served(play) as connection:
        process = await waiting_for_another_host(play, connection, asked=asked)
        process.channel.close()
        outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == (("client", "client_gone") if asked else ("ok", "ok"))
    assert outcome.exit.status is None
    assert (play.ledger.started[0].replays, play.ledger.replays) == (1, ["ended"])


@pytest.mark.parametrize(("later", "reason"), [(b"0000", "ok"), (LS, "client_gone"), (LS[:5], "client_gone")])
async def test_a_client_that_asks_for_more_and_leaves_before_a_host_has_read_it(later: bytes, reason: str) -> None:
    """A flush-pkt asks for nothing; of any other request the client has no answer."""
    play = Play()
    async with served(play) as connection:
        process = await waiting_for_another_host(play, connection, asked=False)
        process.stdin.write(later)
        await wait_until_async(lambda: b"".join(play.session._early) == later)
        process.channel.close()
        outcome = await play.ledger.outcome()
    assert outcome.reason == reason


async def test_a_session_that_looks_for_another_host_is_ended_by_the_relay() -> None:
    play = Play()
    async with served(play) as connection:
        process = await waiting_for_another_host(play, connection, asked=True)
        assert play.session.end(Ended("drain"))
        heard = await process.wait()
        outcome = await play.ledger.outcome()
    assert (heard.stderr, heard.exit_status) == (Ended.message.encode() + b"\n", 255)
    assert (outcome.result, outcome.reason) == ("relay", "drained")
    assert play.ledger.replays == ["ended"]


async def test_what_the_client_sends_while_another_host_is_looked_for_goes_to_that_one() -> None:
    play, ready = Play(), asyncio.Event()
    async with served(play) as connection:
        process = await waiting_for_another_host(play, connection, ready.wait, asked=True)
        process.stdin.write(b"00")
        await wait_until_async(lambda: play.session._early)
        process.stdin.write(b"00")
        process.stdin.write_eof()
        await wait_until_async(lambda: play.session._channel is not None and play.session._channel._unread == 2)
        ready.set()
        splice = await play.played()
        await wait_until_async(lambda: play.host.eof)
        assert play.host.received == LS + b"0000"
        splice.upstream_data(memoryview(ADVERTISEMENT + REFS))
        splice.upstream_ended(Lost("cut"))  # all is said: nobody misses the exit status
        heard = await process.wait()
        outcome = await play.ledger.outcome()
    assert (heard.stdout, heard.stderr, heard.exit_status) == (ADVERTISEMENT + REFS, b"", 0)
    assert (outcome.result, play.ledger.started[0].replays, play.ledger.replays) == ("ok", 1, ["served"])


COPIED = Route(upstream="main", path="/srv/git/team/app.git", read_upstream="copies")


def copied(play: Play, route: Route = COPIED) -> None:
    async def routes(command: Command) -> Route:
        return route

    play.routes = routes


@pytest.mark.parametrize(
    ("route", "command", "asked"),
    [
        (COPIED, COMMAND, ["copies", "main"]),
        (COPIED, "git-upload-archive 'team/app'", ["copies", "main"]),
        (COPIED, "git-lfs-authenticate 'team/app' download", ["copies", "main"]),
        (COPIED, "git-lfs-authenticate 'team/app' upload", ["main"]),
        (COPIED, "git-receive-pack 'team/app'", ["main"]),
        (Route(upstream="main", path="/x", read_upstream="copies", read_fallback=False), COMMAND, ["copies"]),
    ],
)
async def test_which_upstreams_are_tried_when_none_can_serve(route: Route, command: str, asked: list[str]) -> None:
    play = Play()
    copied(play, route)

    async def access(command: Command) -> Grant:
        return Grant(access="write")

    async def pool() -> None:
        asked_of.append(play.ledger.started[0].upstream)
        raise Unavailable("no")

    asked_of: list[str] = []
    play.access, play.pool = access, pool
    async with served(play, upstreams=("main", "copies")) as connection:
        heard = await run(connection, command)
    assert asked_of == asked
    assert (heard.exit_status, heard.stdout) == (255, b"")
    assert play.ledger.started[0].upstream == asked[-1]


async def test_a_read_that_has_begun_does_not_move_to_the_primary() -> None:
    play = Play()
    copied(play)
    async with served(play, upstreams=("main", "copies")) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        splice = await play.played()
        splice.upstream_data(memoryview(b"out"))
        splice.upstream_ended(NoExit("no status"))
        heard = await running
    assert (heard.exit_status, len(play.leased)) == (255, 1)


@pytest.mark.parametrize("greeting", ["Hi {identity}!", "no name", ""])
async def test_the_greeting(greeting: str) -> None:
    play = Play()
    async with served(play, greeting=greeting) as connection:
        heard = await run(connection, None)
    said = greeting.format(identity="alice").encode() + b"\n" if greeting else b""
    assert (heard.stdout, heard.stderr, heard.exit_status) == (said, b"", 0)
    outcome = await play.ledger.outcome()
    assert (outcome.result, play.ledger.started[0].command, play.asked) == ("ok", None, {"keys": 1})


# -- errors ------------------------------------------------------------------------------------------------------------------

STEPS = ["access", "routes", "pool"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error",
    [Denied("x"), Undecided("y", "timeout"), Unavailable("z", reason="host_key"), Stalled("s")],
    ids=lambda error: type(error).__name__,
)
async def test_the_client_receives_an_errors_message_and_exit_status(step: str, error: RelayError) -> None:
    play = Play()
    setattr(play, step, raising(error))
    async with served(play) as connection:
        heard = await run(connection, COMMAND)
        assert (heard.stdout, heard.stderr.decode(), heard.exit_status) == (b"", error.message + "\n", error.exit_status)
        play.access = play.routes = None
        assert (await run(connection, None)).exit_status == 0  # the connection lives on
    _, outcome = play.ledger.ended[0]
    assert (outcome.result, outcome.reason, outcome.detail, outcome.exit.status) == (
        error.fault,
        error.reason,
        str(error),
        error.exit_status,
    )
    assert [reason for _, reason in play.ledger.rejected] == ([type(error).reason] if isinstance(error, Refused) else [])


@pytest.mark.parametrize("step", STEPS)
async def test_the_client_reads_no_details_of_an_internal_error(step: str, caplog: pytest.LogCaptureFixture) -> None:
    play = Play()
    setattr(play, step, raising(ZeroDivisionError("the secret of /srv/git")))
    async with served(play) as connection:
        heard = await run(connection, COMMAND)
    assert (heard.stdout, heard.stderr, heard.exit_status) == (b"", b"relay: internal error, try again in a moment\n", 255)
    outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == ("relay", "internal")
    assert "ZeroDivisionError: the secret" in outcome.detail
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)


async def test_a_route_to_an_upstream_that_is_not_configured() -> None:
    play = Play()

    async def routes(command: Command) -> Route:
        return Route(upstream="gone", path="/x")

    play.routes = routes
    async with served(play) as connection:
        heard = await run(connection, COMMAND)
    assert (heard.stderr.decode(), heard.exit_status) == (Unavailable.message + "\n", 255)
    outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == ("upstream", "no_upstream")


@pytest.mark.parametrize("error", [Lost("broken"), NoExit("nothing")])
@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_git_host_that_fails_during_a_session_is_never_a_success(error: RelayError, half_closed: bool) -> None:
    play = Play()
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        splice = await play.played()
        splice.upstream_data(memoryview(b"some"))
        if half_closed:
            splice.upstream_eof()
        splice.upstream_ended(error)
        heard = await running
    said = b"" if half_closed else error.message.encode() + b"\n"  # no data may follow an EOF
    assert (heard.stdout, heard.stderr, heard.exit_status) == (b"some", said, 255)
    assert (await play.ledger.outcome()).reason == error.reason


# -- a push that ref rules refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reported", [True, False])
async def test_a_push_that_rules_refuse_is_reported_and_does_not_reach_the_git_host(reported: bool) -> None:
    play = Play()

    async def access(command: Command) -> Grant:
        return Grant(access="write", refs=(RefRule(refs=("refs/heads/main",), write=False),))

    play.access = access
    update = f"{'a' * 40} {'b' * 40} refs/heads/main\0{'report-status' if reported else ''}"
    pushed = pkt_line(update.encode()) + b"0000PACK"
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, "git-receive-pack 'team/app'", pushed))
        splice = await play.played()
        await wait_until_async(lambda: play.host.received)
        splice.upstream_ended(Exit(status=0))
        heard = await running
    report = pkt_line(b"unpack ok\n") + pkt_line(b"ng refs/heads/main not allowed by access rules\n") + b"0000"
    said = (report, b"", 0) if reported else (b"", RefDenied.message.encode() + b"\n", 128)
    assert (heard.stdout, heard.stderr, heard.exit_status) == said
    assert (play.host.received, play.host.eof, play.host.aborted) == (b"0000", False, False)
    outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason, outcome.exit.status) == ("policy", "ref_denied", said[2])
    assert [reason for _, reason in play.ledger.rejected] == ["ref"]
    asked = play.ledger.started[0].asked
    assert asked is not None and [one.ref for one in asked.updates] == ["refs/heads/main"]


# -- ended by the relay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*STEPS, "splice"])
async def test_a_session_ended_at_any_step_tells_the_client_why(step: str) -> None:
    play = Play()
    if step != "splice":
        setattr(play, step, forever)
    error = Ended("drain", message="relay: going down", reason="drained")
    async with served(play) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        await wait_until_async(lambda: play.host.peer if step == "splice" else play.leased if step == "pool" else play.asked[step])
        session = play.session
        assert session.end(error) is True
        assert session.end(error) is False
        heard = await running
        assert (heard.stdout, heard.stderr, heard.exit_status) == (b"", b"relay: going down\n", 255)
        assert play.host.aborted is (step == "splice") and not play.host.eof
        await wait_until_async(lambda: session.over)
        assert session.end(error) is False
    outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == ("relay", "drained")


@pytest.mark.parametrize("act", ["end", "kill"])
@pytest.mark.parametrize("command", [COMMAND, None])
async def test_a_session_ended_before_its_first_step_has_one_outcome(
    act: str, command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio skips the body of a task cancelled before its first step; yet the session must end, once."""
    play = Play()
    start = Session._start

    def at_once(session: Session, serve: Any) -> bool:
        start(session, serve)
        if act == "end":
            session.end(Ended("at once"))
        else:
            session.kill()
        return True

    monkeypatch.setattr(Session, "_start", at_once)
    async with served(play) as connection:
        process = await connection.create_process(command, encoding=None)
        outcome = await play.ledger.outcome()
        assert (outcome.result, outcome.reason) == ("relay", "drained")
        await process.wait_closed()
        assert process.exit_status == 255
    assert not play.leased


async def test_a_session_is_ended_while_its_client_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The git host has ended and the client reads nothing: ending the session does not wait for stall_seconds."""
    monkeypatch.setattr("relay.session.LAST_WORDS_SECONDS", 0.2)
    play = Play()
    async with served(play) as connection:
        await stuck(connection)
        splice = await play.played()
        splice.upstream_data(memoryview(bytes(50_000)))
        splice.upstream_ended(Exit(status=0))
        await wait_until_async(lambda: finishing(play.session))
        assert play.session.end(Ended("an operator", reason="killed"))
        async with asyncio.timeout(60):
            outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == ("relay", "killed")


async def test_a_killed_session_does_not_wait_until_its_message_is_read() -> None:
    play = Play()
    async with served(play) as connection:
        await stuck(connection)
        splice = await play.played()
        splice.upstream_data(memoryview(bytes(50_000)))
        session = play.session
        session.end(Ended("drain"))
        await wait_until_async(lambda: finishing(session))
        session.kill()
        assert (await play.ledger.outcome()).reason == "drained"


# -- the client disconnects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*STEPS, "splice"])
@pytest.mark.parametrize("way", ["channel", "connection"])
async def test_a_client_disconnects_at_each_step(step: str, way: str) -> None:
    play = Play()
    cancelled = asyncio.Event()

    async def waits(*_: object) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    if step != "splice":
        setattr(play, step, waits)
    async with served(play) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        await wait_until_async(lambda: play.host.peer if step == "splice" else play.leased if step == "pool" else play.asked[step])
        if way == "channel":
            process.channel.abort()
        else:
            connection.abort()
        outcome = await play.ledger.outcome()
        if step == "splice":
            assert play.host.aborted and not play.host.eof
        else:
            await cancelled.wait()
    assert (outcome.result, outcome.reason) == ("client", "client_gone")


async def test_a_client_disconnects_before_the_exit_status_is_sent() -> None:
    play = Play()
    async with served(play) as connection:
        await stuck(connection)
        splice = await play.played()
        splice.upstream_data(memoryview(bytes(50_000)))
        splice.upstream_ended(Exit(status=0))
        await wait_until_async(lambda: finishing(play.session))
        connection.abort()
        outcome = await play.ledger.outcome()
    assert (outcome.result, outcome.reason) == ("client", "client_gone")


# -- more sessions than allowed ----------------------------------------------------------------------------------------------


async def test_the_session_beyond_the_limit_is_refused_and_reported_once() -> None:
    play = Play()
    play.access = forever
    async with served(play) as connection:
        processes = [await connection.create_process(COMMAND, encoding=None) for _ in range(10)]
        with pytest.raises(asyncssh.ChannelOpenError, match="too many concurrent sessions"):
            await connection.create_process(COMMAND, encoding=None)
        [(record, outcome)] = play.ledger.ended
        assert (outcome.result, outcome.reason, outcome.exit.status) == ("client", "too_many", 128)
        assert play.ledger.rejected == [(record, "too_many")]
        processes[0].channel.abort()
        await wait_until_async(lambda: len(play.ledger.ended) == 2)
        assert (await connection.create_process(COMMAND, encoding=None)).exit_status is None  # the connection may open a session again
        assert len({record.id for record in play.ledger.started}) == 12


# -- repositories that have moved --------------------------------------------------------------------------------------------


def moved(play: Play, levels: dict[str, str]) -> None:
    """team/app is called lib/app now; alice may what `levels` says of each name: read, write, or push (write, but not read)."""

    async def access(command: Command) -> Grant:
        level = levels.get(command.repository)
        if level is None or (level == "push" and command.needs == "read") or (level == "read" and command.needs == "write"):
            raise Denied("no rule")
        return Grant(access="read" if level == "read" else "write")

    async def find(command: Command) -> Route:
        return Route(moved_to="lib/app") if command.repository == "team/app" else Route(upstream="main", path=f"/{command.repository}")

    play.access, play.routes, play.pool = access, find, raising(Unavailable("enough"))


TOLD = b"relay: team/app is lib/app now, please use that name\n"


@pytest.mark.parametrize(
    ("levels", "line", "path", "told"),
    [
        ({"lib/app": "read"}, "git-upload-pack '/team/app.git'", "/lib/app", True),
        ({"lib/app": "write", "team/app": "write"}, "git-receive-pack 'team/app'", "/lib/app", True),
        ({"lib/app": "read"}, "git-upload-archive 'team/app'", "/lib/app", True),
        ({"lib/app": "push"}, "git-receive-pack 'team/app'", "/lib/app", False),
        ({"lib/app": "read"}, "git-lfs-authenticate team/app download", "/lib/app", False),
        ({"lib/app": "write"}, "git-lfs-transfer team/app upload", "/lib/app", False),
        ({"lib/app": "read"}, "git-upload-pack 'lib/app'", "/lib/app", False),
        ({"team/app": "write"}, "git-upload-pack 'team/app'", None, False),
        ({"team/app": "write"}, "git-receive-pack 'team/app'", None, False),
        ({}, "git-upload-pack 'team/app'", None, False),
    ],
)
async def test_only_who_may_read_the_new_name_reads_it(levels: dict[str, str], line: str, path: str | None, told: bool) -> None:
    play = Play()
    moved(play, levels)
    async with served(play) as connection:
        heard = await run(connection, line)
        unknown = await run(connection, line.replace("team/app", "team/none").replace("lib/app", "team/none"))
    assert heard.stderr.startswith(TOLD) == told
    assert b"lib/app" not in heard.stderr.removeprefix(TOLD)
    if path is None:
        assert (heard.stderr, heard.exit_status) == (unknown.stderr, unknown.exit_status)
    else:
        assert play.leased[0][0].split()[1] == f"'{path}'"
    record = play.ledger.started[0]
    assert record.command is not None
    asked = "lib/app" not in line
    assert (record.command.repository, record.moved_from) == ("lib/app", "team/app" if asked else "")


async def test_who_may_read_the_new_name_and_not_write_it_is_told_so() -> None:
    play = Play()
    moved(play, {"lib/app": "read", "team/app": "write"})
    async with served(play) as connection:
        heard = await run(connection, "git-receive-pack 'team/app'")
    assert heard.stderr == b"relay: you may read lib/app, not write it\n"


# -- audit_required, and notices ---------------------------------------------------------------------------------------------------


async def test_no_session_begins_while_its_beginning_cannot_be_written_and_others_go_on() -> None:
    play, why = Play(), [""]
    began: list[str] = []

    def begins(record: SessionRecord) -> str:
        began.append(record.id)
        return why[0]

    async with served(play, begins=begins) as connection:
        running = asyncio.ensure_future(run(connection, COMMAND))
        splice = await play.played()
        why[0] = "audit: /x cannot be written: No space left on device"
        for command in (COMMAND, None, "git-lfs-authenticate team/app download"):
            heard = await run(connection, command)
            assert (heard.exit_status, heard.stdout) == (255, b"")
            assert heard.stderr == b"relay: sessions cannot be recorded just now, try again in a moment\n"
        why[0] = ""
        splice.upstream_data(memoryview(b"output"))
        splice.upstream_ended(Exit(status=0))
        assert (await running).stdout == b"output"
        assert (await run(connection, None)).exit_status == 0
    assert len(began) == 5 and play.asked["access"] == 1
    refused = [outcome for _, outcome in play.ledger.ended if outcome.reason == "audit"]
    assert len(refused) == 3 and refused[0].result == "relay" and "No space left" in refused[0].detail
    assert [reason for _, reason in play.ledger.rejected] == ["audit"] * 3


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (COMMAND, ["for all", "of the route"]),
        ("git-receive-pack 'team/app'", ["for all", "of the route"]),
        ("git-upload-archive 'team/app'", ["for all", "of the route"]),
        (None, ["for all"]),
        ("git-lfs-authenticate team/app download", []),
        ("git-lfs-transfer team/app download", []),
        ("git-upload-pack 'denied'", []),
    ],
)
async def test_notices_are_told_to_people_and_not_to_programs_that_take_stderr_for_an_error(command: str | None, told: list[str]) -> None:
    play = Play()

    async def access(asked: Command) -> Grant:
        if asked.repository == "denied":
            raise Denied("no rule")
        return Grant(access="write", route=replace(ROUTE, notice="of the\x1b route"))

    play.access, play.pool = access, raising(Unavailable("enough"))
    async with served(play, notice="for all") as connection:
        heard = await run(connection, command)
    lines = [f"relay: notice: {text}\n" for text in told]
    assert heard.stderr.decode().startswith("".join(lines).replace("of the route", "of the\\x1b route"))
    assert heard.stderr.count(b"notice") == len(told) and b"notice" not in heard.stdout


async def test_one_text_for_all_and_for_the_route_is_told_once() -> None:
    play = Play()

    async def find(command: Command) -> Route:
        return replace(ROUTE, notice="same")

    play.routes, play.pool = find, raising(Unavailable("enough"))
    async with served(play, notice="same") as connection:
        assert (await run(connection, COMMAND)).stderr.count(b"relay: notice: same\n") == 1
