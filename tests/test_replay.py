"""A session that goes on with another git host, both peers in memory: the client has all of it, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from relay.errors import ClientGone, Denied, Ended, Lost, NoExit, RelayError, Stalled
from relay.events import ConnectionRecord, SessionRecord
from relay.git.conversation import REQUEST_MOST_BYTES, VERSION_2
from relay.git.pktline import pkt_line
from relay.intercept import RequestReader, intercept
from relay.model import Command, Exit, Grant, Identity, Service
from relay.replay import Replay, Stage, follows, lost, unclean
from relay.splice import Splice
from tests.test_splice import Client, Upstream

A, B = b"a" * 40, b"b" * 40
ADVERTISEMENT = VERSION_2 + pkt_line(b"agent=git/2.39.5\n") + pkt_line(b"ls-refs=unborn\n") + pkt_line(b"fetch=shallow\n") + b"0000"
LS = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"peel\n") + b"0000"
FETCH = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + A) + pkt_line(b"done\n") + b"0000"
REFS = pkt_line(A + b" refs/heads/main\n") + pkt_line(B + b" refs/heads/topic\n") + b"0000"
PACKFILE, PROGRESS, PACK = pkt_line(b"packfile\n"), pkt_line(b"\2Counting\r"), pkt_line(b"\1PACK....")
SIDEBAND_3, ERR = pkt_line(b"\3it failed"), pkt_line(b"ERR no")
CUT = Lost("cut")


class Judge:
    """Moves that say yes, unless told otherwise, and what they were told."""

    def __init__(self, yes: bool = True) -> None:
        self.yes = yes
        self.stages: list[Stage | None] = []
        self.errors: list[RelayError] = []
        self.told: list[str] = []

    def permit(self, stage: Stage | None, error: RelayError) -> bool:
        self.stages.append(stage)
        self.errors.append(error)
        return self.yes

    def caught_up(self) -> None:
        self.told.append("caught up")

    def differed(self) -> None:
        self.told.append("differed")

    def completed(self, error: RelayError) -> None:
        self.told.append("completed")


class Play:
    """One session's client, and one git host after another."""

    def __init__(self, service: Service = "git-upload-pack", protocol: str | None = "version=2", *, yes: bool = True) -> None:
        identity = Identity(name="alice", fingerprint="SHA256:x")
        self.record = SessionRecord(id="1-1", connection=ConnectionRecord(id="1", address="127.0.0.1", port=1), identity=identity)
        self.record.command = Command(service=service, repository="team/app", protocol=protocol)
        self.client, self.judge = Client(), Judge(yes)
        self.replay = Replay(self.record.command, self.judge)
        self.reader = intercept(self.record.command, Grant(access="read"), self.record, 60)
        self.splice: Splice | None = None
        self.next()

    def next(self) -> None:
        """Another connection to a git host."""
        self.upstream = Upstream()
        before = self.splice
        reader = self.reader if before is None else before.interceptor
        self.splice = Splice(self.client, self.upstream, self.record, 60, reader, replay=self.replay, before=before)

    def host(self, *said: bytes) -> None:
        assert self.splice is not None
        for data in said:
            self.splice.upstream_data(memoryview(data))

    def asks(self, *data: bytes) -> None:
        assert self.splice is not None
        for part in data:
            self.splice.client_data(part)

    async def ended(self, how: Exit | RelayError) -> Exit | RelayError:
        assert self.splice is not None
        self.splice.upstream_ended(how)
        return await self.outcome()

    async def outcome(self) -> Exit | RelayError:
        assert self.splice is not None
        try:
            async with asyncio.timeout(60):
                return await self.splice.run()
        except RelayError as error:
            return error.with_traceback(None)  # errors outlive their test, as parameters; the frames would keep each Splice

    async def moves(self, how: Exit | RelayError = CUT) -> None:
        """The git host is lost and the session goes on with another one."""
        assert isinstance(await self.ended(how), RelayError) and self.splice is not None and self.splice.moved
        self.next()

    @property
    def asked(self) -> bytes:
        """What the present git host is asked."""
        return self.upstream.waiting


def listed() -> Play:
    """The client has the refs and has asked for a pack."""
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS)
    play.asks(FETCH)
    return play


# -- what goes on --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(len(ADVERTISEMENT + REFS + PACKFILE + PROGRESS) + 1))
async def test_a_host_that_is_lost_at_any_byte_before_pack_data_is_not_noticed(place: int) -> None:
    play, left = Play(), place
    for asked, answer in ((b"", ADVERTISEMENT), (LS, REFS), (FETCH, PACKFILE + PROGRESS)):
        if left < 0:
            break
        play.asks(asked)
        if left < len(answer):
            play.host(*([answer[:left]] if left else []))
            await play.moves()
            again = ADVERTISEMENT if answer is ADVERTISEMENT else ADVERTISEMENT + answer
            assert play.asked == asked
            play.host(again)
        else:
            play.host(answer)
        left -= len(answer)
    for asked, answer in ((LS, REFS), (FETCH, PACKFILE)):
        if asked not in play.asked and answer not in play.client.stdout:
            play.asks(asked)
            play.host(answer)
    play.host(PACK, b"0000")
    said = play.client.stdout.replace(PROGRESS, b"")
    assert said == ADVERTISEMENT + REFS + PACKFILE + PACK + b"0000"
    assert await play.ended(Exit(status=0)) == Exit(status=0)
    assert play.record.bytes_out == len(play.client.stdout) and play.record.bytes_in == len(LS + FETCH)


@pytest.mark.parametrize("how", [Lost("cut"), NoExit("none"), Exit(signal="TERM"), Exit(signal="KILL")], ids=str)
async def test_each_unclean_end_is_replayed(how: Exit | RelayError) -> None:
    play = listed()
    await play.moves(how)
    assert play.judge.stages == [Stage(1, True)] and play.asked == FETCH
    assert play.judge.errors == [how] if isinstance(how, RelayError) else isinstance(play.judge.errors[0], Lost)
    assert not play.judge.told
    play.host(ADVERTISEMENT)
    assert play.judge.told == ["caught up"]


async def test_a_host_that_ends_its_output_and_does_not_exit_is_replayed() -> None:
    play = listed()
    assert play.splice is not None
    lost = play.upstream
    play.splice.upstream_eof()
    play.splice.host_hangs(NoExit("none"))
    assert isinstance(await play.outcome(), NoExit) and play.splice.moved and lost.aborted
    play.next()
    assert play.asked == FETCH
    play.host(ADVERTISEMENT, PACKFILE, PACK, b"0000")
    assert await play.ended(Exit(status=0)) == Exit(status=0)


async def test_a_host_that_does_not_exit_after_pack_data_is_told() -> None:
    play = listed()
    assert play.splice is not None
    play.host(PACKFILE, PACK, b"0000")
    play.splice.client_eof()
    play.splice.upstream_eof()
    play.splice.host_hangs(NoExit("none"))
    assert isinstance(await play.outcome(), NoExit) and not play.splice.moved and play.upstream.aborted


async def test_a_host_that_does_not_exit_after_all_was_said_is_not_noticed() -> None:
    play = Play()
    assert play.splice is not None
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS)
    play.splice.client_eof()
    play.splice.upstream_eof()
    play.splice.host_hangs(NoExit("none"))
    assert await play.outcome() == Exit(status=0)
    assert play.judge.told == ["completed"] and play.upstream.aborted and not play.splice.moved


async def test_what_is_kept_for_a_replay_is_counted_until_the_pack_begins() -> None:
    play = listed()
    assert play.client.kept == len(FETCH)
    play.host(PACKFILE)
    assert play.client.kept == len(FETCH + PACKFILE)
    play.host(PACK)
    assert play.client.kept == 0


async def test_a_session_for_which_memory_is_short_goes_on_and_is_not_replayed() -> None:
    play = Play()
    play.client.kept_room = len(REFS)
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS[:-4])
    assert play.client.kept == len(LS) and not play.judge.stages
    assert play.splice is not None
    play.splice.upstream_ended(CUT)
    assert await play.outcome() == CUT and not play.judge.stages and play.client.stdout == ADVERTISEMENT + REFS[:-4]


async def test_the_stages_of_a_session_are_told_apart() -> None:
    play = Play()
    await play.moves()
    play.host(ADVERTISEMENT)
    await play.moves()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    await play.moves()
    play.host(ADVERTISEMENT, REFS)
    await play.moves()
    play.host(ADVERTISEMENT)
    play.asks(FETCH)
    await play.moves()
    assert play.judge.stages == [None, Stage(0, False), Stage(0, True), Stage(1, False), Stage(1, True)]


async def test_half_a_request_goes_to_the_next_host_and_so_does_what_follows() -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS[:7])
    await play.moves()
    assert play.asked == LS[:7]
    play.asks(LS[7:])
    play.host(ADVERTISEMENT, REFS)
    assert play.asked == LS and play.client.stdout == ADVERTISEMENT + REFS


async def test_what_the_client_sends_before_its_session_hears_of_the_loss_is_kept() -> None:
    play = listed()
    assert play.splice is not None
    splice = play.splice
    splice.upstream_ended(CUT)
    splice.client_data(b"0000")
    splice.client_eof()
    assert splice.late == [b"0000"] and isinstance(await play.outcome(), Lost)
    play.next()
    assert play.asked == FETCH and not play.upstream.eof and play.record.bytes_in == len(LS + FETCH)


async def test_the_hosts_end_of_output_is_held_back_until_its_exit_is_known() -> None:
    play = listed()
    play.host(PACKFILE)
    assert play.splice is not None
    play.splice.upstream_eof()
    eofs = play.client.eofs
    await play.moves(Exit(signal="KILL"))
    play.host(ADVERTISEMENT, PACKFILE + PACK)
    play.splice.upstream_eof()
    assert (eofs, play.client.eofs) == (0, 1) and play.client.stdout == ADVERTISEMENT + REFS + PACKFILE + PACK


async def test_stderr_before_the_protocol_is_passed_on_once() -> None:
    play = Play()
    assert play.splice is not None
    for said in (b"a warning\n", b"a warning\n"):
        play.splice.upstream_stderr(memoryview(said))
        play.host(ADVERTISEMENT)
        play.splice.upstream_stderr(memoryview(b"later\n"))
        await play.moves()
    assert play.client.stderr == b"a warning\nlater\nlater\n"


async def test_the_kind_of_fetch_is_read_over_all_hosts() -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    await play.moves()
    play.host(ADVERTISEMENT, REFS)
    play.asks(FETCH[:10])
    await play.moves()
    play.host(ADVERTISEMENT)
    play.asks(FETCH[10:])
    assert play.record.asked is not None and play.record.asked.kind == "clone"
    assert isinstance(play.reader, RequestReader) and play.splice is not None and play.splice.interceptor is None


async def test_the_client_that_takes_no_more_pauses_the_next_host_too() -> None:
    play = listed()
    play.client.room = len(play.client.stdout) + 1
    play.host(PACKFILE)
    assert play.upstream.paused
    await play.moves()
    play.host(ADVERTISEMENT, PACKFILE)
    assert not play.upstream.paused, "nothing was written yet"
    play.host(PROGRESS)
    assert play.upstream.paused
    play.client.waiting = 0
    assert play.splice is not None
    play.splice.client_drained()
    assert not play.upstream.paused


async def test_a_client_is_not_idle_while_the_next_host_catches_up() -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS)
    play.upstream.take(play.upstream.pending)
    assert play.splice is not None and play.splice.owed is not None
    await play.moves()
    assert play.splice.owed is None
    play.host(ADVERTISEMENT)
    assert play.splice.owed is not None


# -- what does not -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 128])
async def test_an_exit_status_is_an_answer(status: int) -> None:
    play = listed()
    play.host(PACKFILE, PACK[:3])
    assert await play.ended(Exit(status=status)) == Exit(status=status)
    assert not play.judge.stages and play.client.stdout == ADVERTISEMENT + REFS + PACKFILE + PACK[:3]


@pytest.mark.parametrize(
    "said", [ERR, PACKFILE + SIDEBAND_3, PACKFILE + PACK, b"what is this"], ids=["ERR", "sideband 3", "pack", "garbage"]
)
@pytest.mark.parametrize("how", [CUT, NoExit("none"), Exit(signal="KILL")], ids=str)
async def test_after_an_answer_that_cannot_be_repeated_the_session_ends(said: bytes, how: Exit | RelayError) -> None:
    play = listed()
    play.host(said)
    assert await play.ended(how) == how
    assert not play.judge.stages and play.client.stdout == ADVERTISEMENT + REFS + said


@pytest.mark.parametrize("how", [CUT, NoExit("none"), Exit(signal="KILL")], ids=str)
async def test_without_leave_the_session_ends_as_it_would_have(how: Exit | RelayError) -> None:
    play = listed()
    play.judge.yes = False
    play.host(PACKFILE + PROGRESS[:5])
    assert play.splice is not None
    play.splice.upstream_eof()
    assert await play.ended(how) == how
    assert play.client.stdout == ADVERTISEMENT + REFS + PACKFILE + PROGRESS[:5] and not play.splice.moved


@pytest.mark.parametrize(
    "said",
    [
        ADVERTISEMENT.replace(b"shallow", b"SHALLOW"),
        ADVERTISEMENT + pkt_line(B + b" refs/heads/main\n"),
        ADVERTISEMENT + REFS.replace(B, A),
        b"000eversion 1\n",
        ADVERTISEMENT + b"garbage",
        ADVERTISEMENT + pkt_line(b"ERR no"),
    ],
    ids=["capabilities", "first ref", "second ref", "version", "garbage", "ERR"],
)
async def test_a_host_that_says_something_else_ends_the_session(said: bytes) -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    had = REFS[: -len(b"0000")]
    play.host(had)
    await play.moves()
    play.host(said)
    how = await play.outcome()
    assert isinstance(how, Lost) and "does not say what the lost one said" in str(how)
    assert play.judge.told == ["differed"] and play.upstream.aborted
    assert play.client.stdout == ADVERTISEMENT + had, "never a mixture"


async def test_a_client_that_breaks_off_the_protocol_while_the_next_host_catches_up_ends_the_session() -> None:
    play = listed()
    play.host(PACKFILE)
    await play.moves()
    play.asks(b"garbage")
    assert isinstance(await play.outcome(), Lost)
    assert play.judge.told == ["differed"]


@pytest.mark.parametrize(
    "data", [b"garbage", pkt_line(b"command=unknown") + b"0000", b"fff0" + bytes(0xFFEC) * (REQUEST_MOST_BYTES // 0xFFEC + 1)]
)
async def test_a_request_that_is_not_understood_passes_and_is_not_replayed(data: bytes) -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(data)
    play.host(b"half")
    assert play.asked == data and play.client.stdout == ADVERTISEMENT + b"half"
    assert await play.ended(CUT) is CUT
    assert not play.judge.stages


@pytest.mark.parametrize(
    ("service", "protocol"),
    [("git-upload-pack", None), ("git-upload-pack", "version=1"), ("git-receive-pack", "version=2"), ("git-lfs-transfer", None)],
)
async def test_other_sessions_move_only_while_nothing_was_carried(service: Service, protocol: str | None) -> None:
    play = Play(service, protocol)
    await play.moves()
    assert play.judge.stages == [None] and not play.asked
    play.host(b"0000")
    assert play.judge.told == ["caught up"]
    assert await play.ended(CUT) is CUT
    assert play.judge.stages == [None]


@pytest.mark.parametrize(
    "touch",
    [lambda play: play.asks(b"x"), lambda play: play.splice.upstream_stderr(memoryview(b"x")), lambda play: play.splice.upstream_eof()],
    ids=["input", "stderr", "EOF"],
)
async def test_a_push_that_was_touched_does_not_move(touch: Callable[[Play], object]) -> None:
    play = Play("git-receive-pack", None)
    touch(play)
    assert await play.ended(CUT) is CUT
    assert not play.judge.stages


async def test_a_refusal_by_the_next_host_is_told() -> None:
    play = listed()
    await play.moves()
    assert play.splice is not None
    play.splice.upstream_stderr(memoryview(b"fatal: '/srv/x' does not appear to be a git repository\n"))
    assert isinstance(await play.ended(Exit(status=128)), Denied)


# -- the end -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CUT, NoExit("none"), Exit(signal="TERM")], ids=str)
@pytest.mark.parametrize("end", ["flush-pkt", "EOF", "both"])
async def test_a_session_that_was_whole_when_its_host_was_lost_ends_well(end: str, how: Exit | RelayError) -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS)
    assert play.splice is not None
    if end != "EOF":
        play.asks(b"0000")
    if end != "flush-pkt":
        play.splice.client_eof()
    assert await play.ended(how) == Exit(status=0)
    assert not play.judge.stages and play.judge.told == ["completed"]


async def test_the_relays_own_end_passes_on_what_was_held() -> None:
    play = listed()
    play.host(PACKFILE[:7])
    assert play.splice is not None and play.splice.stop(Ended("drain"))
    assert isinstance(await play.outcome(), Ended)
    assert play.client.stdout == ADVERTISEMENT + REFS + PACKFILE[:7]


async def test_a_stall_while_the_next_host_catches_up_ends_the_session() -> None:
    play = listed()
    await play.moves()
    assert play.splice is not None and play.splice.stop(Stalled("nothing moved"))
    assert isinstance(await play.outcome(), Stalled)
    assert play.client.stdout == ADVERTISEMENT + REFS


@pytest.mark.parametrize("asked", [False, True])
async def test_a_client_that_leaves_while_the_next_host_catches_up(asked: bool) -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.host(REFS)
    if asked:
        play.asks(FETCH)
    await play.moves()
    play.upstream.take(play.upstream.pending)
    assert play.splice is not None
    play.splice.client_gone("it left")
    how = await play.outcome()
    assert isinstance(how, ClientGone) if asked else how == Exit()
    assert play.upstream.aborted


async def test_a_client_that_leaves_with_half_an_answer_is_to_blame() -> None:
    play = Play()
    play.host(ADVERTISEMENT)
    play.asks(LS)
    play.upstream.take(play.upstream.pending)
    play.host(REFS[:-6])
    assert play.splice is not None
    play.splice.client_gone("it left")
    assert isinstance(await play.outcome(), ClientGone)


# -- what is followed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "protocol", "followed"),
    [
        ("git-upload-pack", "version=2", True),
        ("git-upload-pack", "key:version=2", True),
        ("git-upload-pack", "version=1", False),
        ("git-upload-pack", "version=20", False),
        ("git-upload-pack", None, False),
        ("git-receive-pack", "version=2", False),
        ("git-upload-archive", "version=2", False),
    ],
)
def test_fetches_by_version_2_are_followed(service: Service, protocol: str | None, followed: bool) -> None:
    assert follows(Command(service=service, repository="x", protocol=protocol)) is followed


@pytest.mark.parametrize(
    ("how", "fault"),
    [(Exit(status=0), False), (Exit(status=255), False), (Exit(signal="HUP"), True), (CUT, True), (NoExit(""), True), (Stalled(""), False)],
    ids=str,
)
def test_which_ends_are_faults(how: Exit | RelayError, fault: bool) -> None:
    assert unclean(how) is fault
    assert not fault or isinstance(lost(how), Lost | NoExit)
