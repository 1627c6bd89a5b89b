"""The splice between two peers in memory: no byte lost or added, backpressure and half-closes passed on, exactly one end."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ClientGone, Denied, Ended, HostRefused, Lost, NoExit, RelayError, Stalled
from relay.events import ConnectionRecord, SessionRecord
from relay.gathering import GATHER_UNTAKEN_BYTES
from relay.git.host_words import ARCHIVE_ACK, HELD_MOST_BYTES
from relay.model import Command, Exit, Identity, Service
from relay.splice import CLIENT_TO_UPSTREAM_HIGH_BYTES, CLIENT_TO_UPSTREAM_LOW_BYTES, Splice
from relay.stall_watch import StallWatch
from tests.support.clock import Clock

OK = Exit(status=0)


class Client:
    """A client that is full beyond `room` unread bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.stdout = b""
        self.stderr = b""
        self.waiting = 0
        self.eofs = 0
        self.paused = False
        self.unread = 0  # in the git host's connection
        self.host_untaken: list[int] = []
        self.unread_room = 1 << 30
        self.cut = False
        self.untaken = 0
        self.kept = 0  # for a replay
        self.kept_room = 1 << 30

    def write(self, data: bytes | memoryview) -> None:
        assert not self.eofs, "written after EOF"
        self.stdout += data
        self.waiting += len(data)

    def write_stderr(self, data: bytes | memoryview) -> None:
        assert not self.eofs, "written after EOF"
        self.stderr += data
        self.waiting += len(data)

    def write_eof(self) -> None:
        self.eofs += 1

    @property
    def full(self) -> bool:
        return self.waiting > self.room

    def upstream_unread(self, count: int) -> bool:
        self.unread = count
        return count > self.unread_room

    def upstream_untaken(self, count: int) -> None:
        self.host_untaken.append(count)

    def keeps(self, count: int) -> bool:
        self.kept = count
        return count <= self.kept_room

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class Upstream:
    """A git host that reads nothing until `take`."""

    def __init__(self) -> None:
        self.peer: Splice | None = None
        self.taken = b""
        self.waiting = b""
        self.eof = False
        self.paused = self.withheld = False
        self.aborted = False

    @property
    def pending(self) -> int:
        return len(self.waiting)

    @property
    def untaken(self) -> int:
        return len(self.waiting)

    def attach(self, peer: Splice) -> None:
        assert self.peer is None
        self.peer = peer

    def send(self, data: bytes) -> None:
        assert self.peer is not None, "sent before it was attached: the real one would drop it"
        assert not self.eof
        self.waiting += data

    def send_eof(self) -> None:
        assert self.peer is not None
        self.eof = True

    def take(self, count: int) -> None:
        self.taken, self.waiting = self.taken + self.waiting[:count], self.waiting[count:]
        assert self.peer is not None
        self.peer.upstream_accepted()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = self.withheld = False

    def receive_again(self) -> None:
        self.withheld = False

    def receive(self, count: int) -> None:
        """`count` bytes are unread in the connection while it is paused."""
        assert self.peer is not None
        self.withheld = self.peer.upstream_unread(count)

    def abort(self) -> None:
        self.aborted = True


class Pair:
    """A splice and its two peers."""

    def __init__(self, service: Service = "git-upload-pack", room: int = 1 << 30) -> None:
        identity = Identity(name="alice", fingerprint="SHA256:x")
        self.record = SessionRecord(id="1-1", connection=ConnectionRecord(id="1", address="127.0.0.1", port=1), identity=identity)
        self.record.command = Command(service=service, repository="team/app")
        self.client, self.upstream = Client(room), Upstream()
        self.splice = Splice(self.client, self.upstream, self.record, 60)

    async def ended(self, how: Exit | RelayError) -> Exit:
        """Ends the git host's command; returns the result of `run`."""
        self.splice.upstream_ended(how)
        return await self.splice.run()


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


# -- both directions ---------------------------------------------------------------------------------------------------------


async def test_input_given_before_run_is_sent() -> None:
    pair = Pair()
    pair.splice.client_data(b"early ")
    pair.splice.client_data(b"bird")
    pair.splice.client_eof()
    pair.upstream.take(100)
    assert (pair.upstream.taken, pair.upstream.eof) == (b"early bird", True)
    assert await pair.ended(OK) == OK
    assert pair.record.bytes_in == 10
    assert not pair.upstream.aborted


async def test_a_client_that_is_faster_than_the_git_host_is_paused_and_resumed() -> None:
    pair = Pair()
    pair.splice.client_data(bytes(CLIENT_TO_UPSTREAM_HIGH_BYTES))
    assert not pair.client.paused
    pair.splice.client_data(b"x")
    assert pair.client.paused
    pair.upstream.take(CLIENT_TO_UPSTREAM_HIGH_BYTES - CLIENT_TO_UPSTREAM_LOW_BYTES)
    assert pair.client.paused
    pair.upstream.take(1)
    assert not pair.client.paused


async def test_output_waiting_in_the_git_hosts_connection_is_counted_while_the_client_does_not_read() -> None:
    pair = Pair(room=10)
    pair.client.unread_room = 1000
    pair.splice.upstream_data(bytes(11))
    assert pair.upstream.paused
    pair.upstream.receive(1000)
    assert not pair.upstream.withheld and pair.client.unread == 1000
    pair.upstream.receive(1001)
    assert pair.upstream.withheld, "there is no room for more: the transport is not read either"
    pair.splice.client_drained()
    assert pair.upstream.paused and not pair.upstream.withheld, "it may ask again"
    pair.client.waiting = 0
    pair.splice.client_drained()
    assert not pair.upstream.paused and pair.client.unread == 0
    pair.upstream.receive(5)
    assert await pair.ended(OK) == OK
    assert pair.client.unread == 0, "given back at the end, too"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_git_host_that_is_faster_than_the_client_is_paused_and_resumed(stream: str) -> None:
    pair = Pair(room=100)
    pair.splice.upstream_data(b"0000")  # git's protocol has begun
    pair.client.waiting = 0
    tell = pair.splice.upstream_data if stream == "stdout" else pair.splice.upstream_stderr
    tell(memoryview(bytes(100)))
    assert not pair.upstream.paused
    tell(memoryview(bytes(1)))
    assert pair.upstream.paused
    pair.splice.client_drained()  # called though the client has no room yet
    assert pair.upstream.paused
    pair.client.waiting = 50
    pair.splice.client_drained()
    assert not pair.upstream.paused


steps = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("out"), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("err"), st.binary(max_size=20).map(lambda said: said.replace(b"/", b".").replace(b"~", b".") + b"\n")),
        st.tuples(st.just("take"), st.integers(0, 30)),
        st.tuples(st.just("drain"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(steps)
def test_every_byte_arrives_in_order_and_neither_side_stays_paused(script: list[tuple[str, Any]]) -> None:
    async def play() -> None:
        pair, sent = Pair(room=25), {"in": b"", "out": b"", "err": b""}
        splice, client, upstream = pair.splice, pair.client, pair.upstream
        splice.upstream_data(memoryview(b"0000"))  # git's protocol has begun
        for what, value in script:
            if what == "in":
                splice.client_data(value)
            elif what == "out":
                splice.upstream_data(memoryview(value))
            elif what == "err":
                splice.upstream_stderr(memoryview(value))
            elif what == "take":
                upstream.take(value)
            else:
                client.waiting = max(0, client.waiting - value)
                splice.client_drained()
            if what in sent:
                sent[what] += value
            assert upstream.paused == client.full or (upstream.paused and not client.full and what != "drain")
        client.waiting = 0
        splice.client_drained()
        upstream.take(upstream.pending)
        assert not upstream.paused and not client.paused
        assert (upstream.taken, client.stdout, client.stderr) == (sent["in"], b"0000" + sent["out"], sent["err"])
        assert pair.record.bytes_in == len(sent["in"])
        assert pair.record.bytes_out == 4 + len(sent["out"]) + len(sent["err"])
        assert await pair.ended(OK) == OK

    asyncio.run(play())


# -- the end -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [OK, Exit(status=37), Exit(signal="KILL")])
async def test_the_git_hosts_exit_is_the_result(how: Exit) -> None:
    pair = Pair()
    assert await pair.ended(how) is how
    assert not pair.upstream.aborted  # the connection can be reused


async def test_after_the_end_no_client_input_reaches_the_connection() -> None:
    """Another session may use the connection by then."""
    pair = Pair(room=10)
    pair.splice.upstream_data(memoryview(bytes(100)))
    assert pair.upstream.paused
    assert await pair.ended(OK) == OK
    pair.client.waiting = 0
    pair.splice.client_drained()
    pair.splice.client_data(bytes(2 * CLIENT_TO_UPSTREAM_HIGH_BYTES))
    pair.splice.client_eof()
    pair.splice.client_gone("read it all")
    assert (pair.upstream.waiting, pair.upstream.eof, pair.upstream.paused, pair.upstream.aborted) == (b"", False, True, False)
    assert not pair.client.paused


@pytest.mark.parametrize("error", [Lost("it broke"), NoExit("no status")])
async def test_without_an_exit_there_is_no_success(error: RelayError) -> None:
    pair = Pair()
    pair.splice.upstream_data(memoryview(b"some"))
    with pytest.raises(type(error)):
        await pair.ended(error)
    assert pair.upstream.aborted


async def test_a_client_that_disconnects_never_becomes_an_eof() -> None:
    pair = Pair()
    pair.splice.client_data(b"half a pack")
    pair.splice.client_gone("reset")
    pair.splice.client_gone("again")
    with pytest.raises(ClientGone, match="reset"):
        await pair.splice.run()
    assert pair.upstream.aborted and not pair.upstream.eof


async def test_stop_ends_the_session_with_the_given_error() -> None:
    pair = Pair()
    running = asyncio.ensure_future(pair.splice.run())
    await asyncio.sleep(0)
    pair.splice.stop(Ended("drained"))
    with pytest.raises(Ended):
        await running
    assert pair.upstream.aborted
    pair.splice.upstream_ended(OK)  # too late: ignored


async def test_a_cancelled_splice_aborts_the_upstream() -> None:
    pair = Pair()
    running = asyncio.ensure_future(pair.splice.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pair.upstream.aborted and not pair.upstream.eof


async def test_the_git_hosts_early_eof_is_passed_on() -> None:
    pair = Pair()
    pair.splice.upstream_data(memoryview(b"all"))
    pair.splice.upstream_eof()
    assert pair.client.eofs == 1
    pair.splice.client_data(b"more input")
    pair.upstream.take(100)
    assert pair.upstream.taken == b"more input"
    assert await pair.ended(OK) == OK


# -- a missing repository ----------------------------------------------------------------------------------------------------

MISSING = b"fatal: '/srv/git/team/app.git' does not appear to be a git repository\n"
PACKET = b"%04x\x02%s" % (len(MISSING) + 5, MISSING)
DIED = b"0031\x02git upload-archive: archiver died with error\n0000"
SENT = b"fatal: sent error to the client: git upload-archive: archiver died with error\n"


@pytest.mark.parametrize("eof", [False, True])
async def test_a_repository_missing_on_the_git_host_reads_like_denied(eof: bool) -> None:
    pair = Pair()
    pair.splice.upstream_stderr(memoryview(MISSING))
    if eof:
        pair.splice.upstream_eof()
    with pytest.raises(Denied, match=r"/srv/git/team/app\.git") as denied:
        await pair.ended(Exit(status=128))
    assert (pair.client.stdout, pair.client.stderr, pair.client.eofs) == (b"", b"", 0)
    assert pair.record.bytes_out == 0
    assert denied.value.message == Denied.message


CLEAN = b"fatal: '(path)' does not appear to be a git repository\n"
LOCALE = b"bash: warning: setlocale: LC_ALL: cannot change locale (de_DE.UTF-8)\n"


@pytest.mark.parametrize("how", [OK, Exit(signal="KILL"), Lost("broken")])
async def test_a_refusals_words_with_another_exit_are_passed_on_without_the_path(how: Exit | RelayError) -> None:
    pair = Pair()
    pair.splice.upstream_stderr(memoryview(MISSING))
    if isinstance(how, RelayError):
        with pytest.raises(type(how)):
            await pair.ended(how)
    else:
        assert await pair.ended(how) == how
    assert pair.client.stderr == CLEAN
    assert pair.record.bytes_out == len(CLEAN)


async def test_a_refusals_words_after_output_are_passed_on_without_the_path() -> None:
    pair = Pair()
    pair.splice.upstream_data(memoryview(b"0000"))
    pair.splice.upstream_stderr(memoryview(MISSING[:20]))
    pair.splice.upstream_stderr(memoryview(MISSING[20:]))
    assert await pair.ended(Exit(status=128)) == Exit(status=128)
    assert pair.client.stderr == CLEAN


async def test_a_refusals_words_before_output_are_passed_on_without_the_path() -> None:
    pair = Pair()
    pair.splice.upstream_stderr(memoryview(MISSING))
    pair.splice.upstream_data(memoryview(b"0000"))
    assert (pair.client.stdout, pair.client.stderr) == (b"0000", CLEAN)
    assert await pair.ended(Exit(status=128)) == Exit(status=128)


@pytest.mark.parametrize("warned", ["stderr", "stdout"])
@pytest.mark.parametrize("status", [1, 25, 128])
async def test_a_shells_warning_in_front_changes_nothing(warned: str, status: int) -> None:
    pair = Pair()
    if warned == "stderr":
        pair.splice.upstream_stderr(memoryview(LOCALE + MISSING))
    else:
        pair.splice.upstream_data(memoryview(LOCALE))
        pair.splice.upstream_stderr(memoryview(MISSING))
    pair.splice.upstream_eof()
    with pytest.raises(Denied, match=r"setlocale.*/srv/git/team/app\.git"):
        await pair.ended(Exit(status=status))
    assert (pair.client.stdout, pair.client.stderr, pair.client.eofs) == (b"", b"", 0)


async def test_a_shells_warning_in_front_of_gits_protocol_arrives_in_front_of_it_without_paths() -> None:
    pair = Pair()
    pair.splice.upstream_data(memoryview(b"/etc/profile: oops\n"))
    assert pair.client.stdout == b""
    pair.splice.upstream_data(memoryview(b"0000"))
    assert pair.client.stdout == b"(path): oops\n0000"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"git-shell: fatal: unrecognized command 'git-lfs-transfer '/srv/x.git' download'\n", "host_lacks"),
        (b"fatal: detected dubious ownership in repository at '/srv/x.git'\n", "host_refused"),
    ],
)
async def test_a_git_host_without_the_service_has_its_own_error_and_is_not_quoted(said: bytes, reason: str) -> None:
    pair = Pair()
    pair.splice.upstream_stderr(memoryview(said))
    with pytest.raises(HostRefused, match="/srv/x") as refused:
        await pair.ended(Exit(status=128))
    assert refused.value.reason == reason
    assert "/" not in refused.value.message and pair.client.stderr == b""


async def test_a_long_stderr_is_not_held_back() -> None:
    pair = Pair()
    pair.splice.upstream_stderr(memoryview(MISSING))
    pair.splice.upstream_stderr(memoryview(bytes(HELD_MOST_BYTES)))
    assert pair.client.stderr == CLEAN + bytes(HELD_MOST_BYTES)


@given(st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
def test_an_archive_of_a_missing_repository_reads_like_denied(cuts: list[int], stderr_first: bool) -> None:
    async def play() -> None:
        pair = Pair("git-upload-archive")
        if stderr_first:
            pair.splice.upstream_stderr(memoryview(SENT))
        for piece in pieces(ARCHIVE_ACK + PACKET + DIED, cuts):
            pair.splice.upstream_data(memoryview(piece))
        if not stderr_first:
            pair.splice.upstream_stderr(memoryview(SENT))
        with pytest.raises(Denied):
            await pair.ended(Exit(status=128))
        assert (pair.client.stdout, pair.client.stderr) == (b"", b"")

    asyncio.run(play())


@given(
    st.sampled_from(
        [
            ARCHIVE_ACK + b"0009\x01tar!" + b"0000",
            ARCHIVE_ACK + b"0009\x02warn" + b"0009\x01tar!" + b"0000",
            ARCHIVE_ACK,
            ARCHIVE_ACK[:5],
            b"000eNACK no way\n0000",
            b"anything else",
            ARCHIVE_ACK + b"1004\x02" + bytes(4096) + b"0009\x01tar!",
            b"",
        ]
    ),
    st.lists(st.integers(0, 10_000), max_size=6),
    st.sampled_from([OK, Exit(status=128), Exit(status=1), Exit(signal="PIPE")]),
    st.booleans(),
)
def test_any_other_archive_arrives_whole(output: bytes, cuts: list[int], how: Exit, stderr_first: bool) -> None:
    async def play() -> None:
        pair = Pair("git-upload-archive")
        if stderr_first:
            pair.splice.upstream_stderr(memoryview(b"a word\n"))
        for piece in pieces(output, cuts):
            pair.splice.upstream_data(memoryview(piece))
        if not stderr_first:
            pair.splice.upstream_stderr(memoryview(b"a word\n"))
        assert await pair.ended(how) == how
        assert (pair.client.stdout, pair.client.stderr) == (output, b"a word\n")
        assert pair.record.bytes_out == len(output) + 7

    asyncio.run(play())


# -- what the stall watch sees ---------------------------------------------------------------------------------------------------------


def watched(pair: Pair) -> Clock:
    clock = Clock()
    StallWatch(pair.splice, 8.0, math.inf, clock.loop)
    return clock


async def stalled(pair: Pair) -> RelayError | None:
    """The error with which the watch has ended the session, or None."""
    if not pair.splice._done.done():
        return None
    with pytest.raises((Stalled, NoExit)) as error:
        await pair.splice.run()
    return error.value


async def test_a_quiet_session_is_not_stalled() -> None:
    pair = Pair()
    watched(pair).run_until(1000)
    assert await stalled(pair) is None


async def test_a_client_that_reads_nothing_is_a_stall_of_the_client() -> None:
    pair = Pair()
    clock = watched(pair)
    pair.splice.upstream_data(memoryview(bytes(100)))
    clock.run_until(8)
    assert await stalled(pair) is None
    clock.run_until(12)
    error = await stalled(pair)
    assert error is not None and (error.reason, error.fault) == ("stalled", "client")
    assert pair.upstream.aborted


async def test_a_git_host_that_reads_nothing_is_a_stall_of_the_git_host() -> None:
    pair = Pair()
    clock = watched(pair)
    pair.splice.client_data(bytes(100))
    clock.run_until(12)
    error = await stalled(pair)
    assert error is not None and (error.reason, error.fault) == ("stalled", "upstream")


async def test_one_byte_in_time_is_progress() -> None:
    pair = Pair()
    clock = watched(pair)
    pair.splice.upstream_data(memoryview(bytes(100_000)))
    pair.splice.client_data(bytes(100_000))

    def trickle() -> None:
        pair.client.waiting -= 1
        pair.upstream.take(1)

    clock.run_until(1000, trickle)
    assert await stalled(pair) is None


async def test_a_direction_that_moves_does_not_hide_a_stalled_one() -> None:
    pair = Pair()
    clock = watched(pair)
    pair.splice.upstream_data(memoryview(bytes(100_000)))
    pair.splice.client_data(bytes(100_000))
    clock.run_until(100, lambda: pair.upstream.take(1))
    error = await stalled(pair)
    assert error is not None and error.fault == "client"


async def test_a_git_host_that_ended_its_output_and_does_not_exit_is_given_up() -> None:
    pair = Pair()
    clock = watched(pair)
    clock.run_until(1000)
    pair.splice.upstream_eof()
    clock.run_until(1006)
    assert await stalled(pair) is None
    clock.run_until(1012)
    error = await stalled(pair)
    assert isinstance(error, NoExit) and (error.reason, error.fault) == ("no_exit", "upstream")
    assert pair.upstream.aborted


async def test_a_git_host_that_refuses_and_does_not_exit_is_given_up() -> None:
    """The splice holds the refusal back until the exit status decides its meaning."""
    pair = Pair()
    clock = watched(pair)
    pair.splice.upstream_stderr(memoryview(MISSING))
    pair.splice.upstream_eof()
    clock.run_until(12)
    assert isinstance(await stalled(pair), NoExit)


async def test_input_that_a_git_host_takes_after_its_output_keeps_the_session() -> None:
    pair = Pair()
    clock = watched(pair)
    pair.splice.upstream_eof()

    def trickle() -> None:
        pair.splice.client_data(b"x")
        pair.upstream.take(1)

    clock.run_until(100, trickle)
    assert await stalled(pair) is None
    clock.run_until(112)
    assert isinstance(await stalled(pair), NoExit)


# -- what may move to another git host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "untouched"),
    [
        (lambda pair: None, True),
        (lambda pair: pair.splice.client_eof(), True),  # the next host gets the EOF, too
        (lambda pair: pair.splice.client_data(b"x"), False),
        (lambda pair: pair.splice.upstream_data(memoryview(b"x")), False),
        (lambda pair: pair.splice.upstream_stderr(memoryview(b"x")), False),
        (lambda pair: pair.splice.upstream_eof(), False),  # no data may follow an EOF to the client
    ],
)
async def test_a_splice_that_carried_a_byte_or_an_eof_is_not_untouched(what: Callable[[Pair], object], untouched: bool) -> None:
    pair = Pair()
    what(pair)
    with pytest.raises(Lost):
        await pair.ended(Lost("gone"))
    assert pair.splice.untouched is untouched


@pytest.mark.parametrize("words", [b"fatal: '/srv/x' does not appear to be a git repository\n", ARCHIVE_ACK])
async def test_output_held_back_is_sent_to_the_client_when_the_host_is_lost(words: bytes) -> None:
    pair = Pair("git-upload-archive")
    pair.splice.upstream_data(words) if words == ARCHIVE_ACK else pair.splice.upstream_stderr(memoryview(words))
    with pytest.raises(Lost):
        await pair.ended(Lost("gone"))
    assert not pair.splice.untouched
    assert pair.client.stdout + pair.client.stderr == words.replace(b"/srv/x", b"(path)")


# -- a client that leaves


def left(service: Service = "git-upload-pack", said: bytes = b"0000", asked: bytes = b"") -> Pair:
    """A client that has sent `asked`, has read `said` and has disconnected."""
    pair = Pair(service)
    if asked:
        pair.splice.client_data(asked)
        pair.upstream.take(len(asked))
    pair.splice.upstream_data(said)
    pair.client.waiting = 0
    pair.splice.client_gone("away")
    return pair


@pytest.mark.parametrize(("asked", "sent"), [(b"", b"0000"), (b"0032want ...", b"")])
async def test_a_git_host_that_exits_with_0_after_the_client_left_owed_nothing(asked: bytes, sent: bytes) -> None:
    pair = left(asked=asked)
    assert pair.upstream.waiting == sent and pair.upstream.eof
    assert await pair.ended(OK) == Exit()
    assert not pair.upstream.aborted


@pytest.mark.parametrize("how", [Exit(status=128), Exit(signal="KILL"), Lost("x"), NoExit("x")], ids=str)
async def test_a_git_host_that_exits_otherwise_after_the_client_left_owed_output(how: Exit | RelayError) -> None:
    with pytest.raises(ClientGone, match="away"):
        await left().ended(how)


async def test_a_git_host_that_sends_on_after_the_client_left_had_not_completed_its_answer() -> None:
    pair = left()
    pair.splice.upstream_data(b"PACK")
    with pytest.raises(ClientGone, match="away"):
        await pair.splice.run()
    assert pair.upstream.aborted and pair.client.stdout == b"0000"


async def test_a_git_host_that_does_not_exit_after_the_client_left_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.splice.HOST_ENDS_SECONDS", 0.01)
    pair = left()
    with pytest.raises(ClientGone, match="away"):
        await pair.splice.run()
    assert pair.upstream.aborted


@pytest.mark.parametrize("what", ["nothing was said", "unread", "cut", "untaken"])
async def test_a_client_that_cannot_have_the_whole_answer_is_gone_at_once(what: str) -> None:
    pair = Pair()
    if what != "nothing was said":
        pair.splice.upstream_data(b"0000")
    pair.client.cut = what == "cut"
    if what == "unread":
        pair.client.room = 0
        pair.splice.upstream_data(b"x")
    if what == "untaken":
        pair.splice.client_data(b"x")
    pair.splice.client_gone("away")
    assert pair.upstream.aborted and not pair.upstream.eof
    with pytest.raises(ClientGone, match="away"):
        await pair.splice.run()


async def test_the_git_host_of_an_incomplete_push_receives_no_eof() -> None:
    pair = left("git-receive-pack")
    assert pair.upstream.waiting == b"0000" and not pair.upstream.eof
    assert await pair.ended(OK) == Exit()
    pair = left("git-receive-pack", asked=b"00")
    assert pair.upstream.aborted and not pair.upstream.eof
    with pytest.raises(ClientGone, match="away"):
        await pair.splice.run()


async def test_in_bulk_the_client_is_told_how_much_the_git_host_has_not_taken() -> None:
    pair = Pair("git-receive-pack")
    pair.splice.client_data(b"x" * (GATHER_UNTAKEN_BYTES - 1))
    assert pair.client.host_untaken == []
    pair.splice.client_data(b"y")
    pair.upstream.take(1000)
    pair.splice.client_data(b"z")
    assert pair.client.host_untaken == [GATHER_UNTAKEN_BYTES, GATHER_UNTAKEN_BYTES + 1 - 1000]
