"""The conversation of protocol version 2: real and made transcripts, cut anywhere, and a second git host taking over at every byte."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.git.conversation import (
    ADVERTISEMENT_MOST_BYTES,
    KEPT_MOST_BYTES,
    REQUEST_MOST_BYTES,
    VERSION_2,
    ClientState,
    Conversation,
    HostState,
    Kind,
    Payloads,
    Piece,
    Reason,
)
from relay.git.pktline import PACKET_MOST_BYTES, pkt_line
from relay.git.v2_request import Request, fetch_of, probe
from tests.git.transcripts import Transcript, load, names
from tests.support.pieces import cuts, pieces

A, B = b"a" * 40, b"b" * 40
ADVERTISEMENT = VERSION_2 + pkt_line(b"agent=git/2.39.5\n") + pkt_line(b"ls-refs=unborn\n") + pkt_line(b"fetch=shallow\n") + b"0000"
LS = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"peel\n") + b"0000"
FETCH = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + A) + pkt_line(b"done\n") + b"0000"
NEGOTIATE = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + A) + pkt_line(b"have " + B) + b"0000"
BANDED = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"sideband-all") + pkt_line(b"want " + A) + pkt_line(b"done\n") + b"0000"
REF = pkt_line(A + b" refs/heads/main\n")
PACKFILE = pkt_line(b"packfile\n")
SHALLOW = pkt_line(b"shallow-info\n") + pkt_line(b"shallow " + A + b"\n") + b"0001"
PROGRESS, KEEPALIVE, PACK = pkt_line(b"\2Counting\r"), pkt_line(b"\1"), pkt_line(b"\1PACK....")
ACKS = pkt_line(b"acknowledgments\n") + pkt_line(b"ACK " + B + b"\n") + pkt_line(b"ready\n")

VERSION_2_SESSIONS = [name for name in names() if load(name).protocol == "version=2" and not name.startswith("pygit2")]
OTHER_SESSIONS = sorted(set(names()) - set(VERSION_2_SESSIONS))


class Heard:
    """All results of a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.requests: list[Request] = []
        self.pieces: list[Piece] = []

    def client(self, data: bytes) -> None:
        self.requests += self.conversation.client_data(data)

    def host(self, data: bytes) -> None:
        self.pieces += [Piece(kind, bytes(said), last) for kind, said, last in self.conversation.host_data(data)]

    @property
    def passed(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    @property
    def repeatable(self) -> bytes:
        """The pieces without progress, which a second git host need not repeat."""
        return b"".join(piece.data for piece in self.pieces if piece.kind is not Kind.PROGRESS)

    def events(self) -> list[tuple[Kind, bytes, bool]]:
        """The pieces, with neighbours of one kind joined up to the end of an answer."""
        joined: list[tuple[Kind, bytes, bool]] = []
        for kind, data, last in self.pieces:
            before = joined[-1] if joined else None
            if before is not None and before[0] is kind and not before[2]:
                joined[-1] = (kind, before[1] + bytes(data), last)
            else:
                joined.append((kind, bytes(data), last))
        return joined


def opened(*requests: bytes, keep_refs: bool = False) -> Heard:
    """A conversation whose advertisement was read, and in which the client has sent `requests`."""
    heard = Heard(Conversation(keep_refs=keep_refs))
    heard.host(ADVERTISEMENT)
    for request in requests:
        heard.client(request)
    heard.pieces.clear()
    return heard


def play(transcript: Transcript, places: Iterable[int] = (), spooling: bool = False) -> Heard:
    """Plays the whole session, each record cut at `places`."""
    heard, at = Heard(Conversation(keep_refs=True)), list(places)
    for by_client, data in transcript.records:
        for part in pieces(data, at):
            if by_client:
                heard.client(part)
            else:
                heard.conversation.spooling = spooling
                heard.host(part)
    return heard


def state(heard: Heard) -> tuple[ClientState, HostState, Reason | None]:
    return heard.conversation.client, heard.conversation.host, heard.conversation.reason


# -- real sessions -----------------------------------------------------------------------------------------------------------


def test_there_are_sessions_of_every_client() -> None:
    assert {name.partition("-")[0] for name in names()} == {"git", "jgit", "gogit", "dulwich", "pygit2", "probe"}
    assert len(VERSION_2_SESSIONS) >= 30


@pytest.mark.parametrize("name", VERSION_2_SESSIONS)
def test_a_session_is_followed_to_its_end(name: str) -> None:
    transcript = load(name)
    heard = play(transcript, spooling=True)
    refused = "not-our-ref" in name
    assert heard.passed == transcript.said(by_client=False)
    assert b"".join(request.raw for request in heard.requests) == transcript.said(by_client=True)
    assert heard.conversation.host is (HostState.REFUSED if refused else HostState.IDLE)
    assert heard.conversation.settled is not refused
    assert sum(piece.last for piece in heard.pieces) + refused == sum(bool(request.command) for request in heard.requests)
    assert Kind.UNREAD not in {piece.kind for piece in heard.pieces}


@pytest.mark.parametrize("name", VERSION_2_SESSIONS)
def test_the_pack_is_taken_out_of_its_packets(name: str) -> None:
    heard = play(load(name), [1000, 5000], spooling=True)
    for request in heard.requests:
        if request.command == b"fetch":
            break
    else:
        assert Kind.PACK not in {piece.kind for piece in heard.pieces}
        return
    payloads = Payloads()
    pack = b"".join(bytes(part) for piece in heard.pieces if piece.kind is Kind.PACK for part in payloads.feed(piece.data))
    if not pack:
        assert "not-our-ref" in name or "negotiate" in name
        return
    sums = hashlib.sha256 if "sha256" in name else hashlib.sha1
    assert pack[:4] == b"PACK"
    assert pack[-sums().digest_size :] == sums(pack[: -sums().digest_size]).digest()


@pytest.mark.parametrize("name", VERSION_2_SESSIONS)
def test_without_spooling_it_steps_aside_at_the_first_byte_of_the_pack(name: str) -> None:
    transcript = load(name)
    heard, followed = play(transcript), play(transcript, spooling=True)
    with_pack = Kind.PACK in {piece.kind for piece in followed.pieces}
    assert heard.passed == transcript.said(by_client=False)
    assert (heard.conversation.host is HostState.ASIDE and heard.conversation.reason is Reason.PACK) == with_pack
    before = b"".join(piece.data for piece in heard.pieces if piece.kind is not Kind.UNREAD)
    first = next((number for number, piece in enumerate(followed.pieces) if piece.kind is Kind.PACK), len(followed.pieces))
    assert before == b"".join(piece.data for piece in followed.pieces[:first])


@pytest.mark.parametrize("name", OTHER_SESSIONS)
def test_another_protocol_passes_untouched(name: str) -> None:
    transcript = load(name)
    heard = play(transcript)
    assert (heard.conversation.host, heard.conversation.reason) == (HostState.ASIDE, Reason.VERSION)
    assert heard.passed == transcript.said(by_client=False) and not heard.requests
    assert heard.events() == [(Kind.UNREAD, heard.passed, False)]


@pytest.mark.parametrize("spooling", [False, True])
@pytest.mark.parametrize("name", names())
@given(places=cuts)
@settings(max_examples=15)
def test_any_division_is_read_alike(name: str, spooling: bool, places: list[int]) -> None:
    whole, cut = play(load(name), spooling=spooling), play(load(name), places, spooling=spooling)
    assert (cut.events(), cut.requests, state(cut)) == (whole.events(), whole.requests, state(whole))


@pytest.mark.parametrize("name", ["git-clone-progress", "git-clone-sideband-all", "git-fetch-own-commits", "probe-not-our-ref"])
def test_byte_by_byte_is_read_alike(name: str) -> None:
    transcript = load(name)
    whole, cut = play(transcript, spooling=True), play(transcript, range(transcript.size), spooling=True)
    assert (cut.events(), cut.requests, state(cut)) == (whole.events(), whole.requests, state(whole))


def test_progress_is_told_from_the_pack() -> None:
    heard = play(load("git-clone-progress"), spooling=True)
    progress = b"".join(piece.data for piece in heard.pieces if piece.kind is Kind.PROGRESS)
    assert b"Counting objects" in progress
    assert all(b"Counting objects" not in piece.data for piece in heard.pieces if piece.kind is not Kind.PROGRESS)


# -- another git host takes over -------------------------------------------------------------------------------------------------


def answers(transcript: Transcript) -> list[bytes]:
    """The git host's answers, one for each request."""
    heard = play(transcript, spooling=True)
    found = [b""]
    for piece in heard.pieces:
        if piece.kind is not Kind.ADVERTISEMENT:
            found[-1] += bytes(piece.data)
            if piece.last:
                found.append(b"")
    return found


def advertisement(transcript: Transcript) -> bytes:
    return bytes(play(transcript, spooling=True).pieces[0].data)


def losses(transcript: Transcript, step: int) -> Iterator[tuple[int, Heard]]:
    """The session up to each byte of the git host's output, with what the client has sent by then."""
    total = len(transcript.said(by_client=False))
    for place in range(0, total, step):
        heard, left = Heard(Conversation()), place
        for by_client, data in transcript.records:
            if by_client:
                heard.client(data)
            else:
                heard.host(data[:left])
                left -= min(left, len(data))
                if not left:
                    break
        if heard.conversation.host in (HostState.ASIDE, HostState.REFUSED):
            return
        yield place, heard


@pytest.mark.parametrize("name", VERSION_2_SESSIONS)
def test_a_host_lost_anywhere_before_the_pack_is_not_noticed(name: str) -> None:
    transcript = load(name)
    whole = play(transcript)
    said, expected = answers(transcript), whole.repeatable
    opening = advertisement(transcript).replace(b"git/2.39.5", b"jgit/6.100")
    assert opening != advertisement(transcript)
    tried = 0
    for place, heard in losses(transcript, 1 if transcript.size < 5_000 else 3):
        conversation = heard.conversation
        assert conversation.replayable, place
        asked = conversation.reopen()
        answered = sum(piece.last for piece in heard.pieces)
        owed = [request for request in heard.requests[answered:] if request.command]
        assert asked == b"".join(request.raw for request in owed) + (b"0000" if conversation.client is ClientState.FINISHED else b"")
        # the rest of the session: the new host's advertisement, its answers to the repeated requests, then the original records
        heard.host(opening if conversation.host is HostState.REOPENING else advertisement(transcript))
        heard.host(b"".join(said[answered : answered + len(owed)]))
        rest = answered + len(owed)
        for request in whole.requests[len(heard.requests) :]:
            heard.client(request.raw)
            heard.host(said[rest])
            rest += 1
        assert heard.repeatable == expected, place
        tried += 1
    assert tried * 3 > len(opening)


@pytest.mark.parametrize("name", ["git-clone-progress", "git-clone-depth-1", "git-fetch-own-commits"])
def test_hosts_may_be_lost_over_and_over(name: str) -> None:
    """Each new host dies later in its answer, also in the middle of progress."""
    transcript = load(name)
    heard = Heard(Conversation())
    opening, said = advertisement(transcript), answers(transcript)
    heard.host(opening)
    for number, request in enumerate(play(transcript, spooling=True).requests):
        heard.client(request.raw)
        places = sorted({random.Random(number).randrange(1, len(said[number])) for _ in range(20)})
        for place in places:
            heard.host(said[number][:place])
            if heard.conversation.aside:
                break
            assert heard.conversation.replayable
            assert heard.conversation.reopen() == request.raw
            heard.host(opening)
        else:
            heard.host(said[number])
    assert heard.repeatable[: len(opening) + len(said[0])] == opening + said[0]
    assert play(transcript).repeatable.startswith(heard.repeatable)


def test_a_new_host_reads_that_nothing_more_is_asked_for() -> None:
    """Without the final flush-pkt the new host would wait for another request, and the client for the end of the session."""
    heard = opened(LS + b"0000")
    assert heard.conversation.replayable and heard.conversation.reopen() == LS + b"0000"
    heard.host(ADVERTISEMENT + REF + b"0000")
    assert heard.conversation.settled and not heard.conversation.replayable


def test_a_question_of_the_relay_is_not_repeated() -> None:
    conversation = Conversation(opened=True)
    assert not conversation.replayable
    conversation.client_data(FETCH)
    assert not conversation.replayable


def test_an_idle_conversation_goes_on_with_another_host() -> None:
    heard = opened(LS)
    heard.host(REF + b"0000")
    assert heard.conversation.host is HostState.IDLE and heard.conversation.replayable and heard.conversation.settled
    assert heard.conversation.reopen() == b""
    assert heard.conversation.settled and heard.conversation.repeating  # nothing is owed; the new host has yet to prove itself
    heard.host(ADVERTISEMENT)
    assert heard.conversation.settled and not heard.conversation.repeating
    assert state(heard) == (ClientState.BETWEEN, HostState.IDLE, None)
    heard.client(FETCH)
    heard.host(PACKFILE + PACK)
    assert heard.passed == REF + b"0000" + PACKFILE + PACK


ADVERTISEMENTS = {
    "the same": (ADVERTISEMENT, True),
    "another agent": (ADVERTISEMENT.replace(pkt_line(b"agent=git/2.39.5\n"), pkt_line(b"agent=git/2.50.1-github\n")), True),
    "no agent": (ADVERTISEMENT.replace(pkt_line(b"agent=git/2.39.5\n"), b""), False),
    "a capability more": (ADVERTISEMENT[:-4] + pkt_line(b"server-option\n") + b"0000", False),
    "another fetch": (ADVERTISEMENT.replace(pkt_line(b"fetch=shallow\n"), pkt_line(b"fetch=shallow filter\n")), False),
    "another object-format": (ADVERTISEMENT[:-4] + pkt_line(b"object-format=sha256\n") + b"0000", False),
    "version 0": (pkt_line(A + b" HEAD\0multi_ack agent=git/2.39.5\n") + b"0000", False),
    "version 1": (pkt_line(b"version 1\n") + b"0000", False),
    "an error": (pkt_line(b"ERR no such repository\n"), False),
    "no packets": (b"fatal: out of memory\n", False),
    "malformed": (VERSION_2 + b"00zz", False),
}


@pytest.mark.parametrize("name", ADVERTISEMENTS)
@pytest.mark.parametrize("asked", [b"", LS], ids=["idle", "asked"])
@given(places=cuts)
@settings(max_examples=20)
def test_a_new_hosts_advertisement_must_equal_the_first(name: str, asked: bytes, places: list[int]) -> None:
    said, same = ADVERTISEMENTS[name]
    heard = opened(asked) if asked else opened()
    if asked:
        heard.host(REF)
    heard.conversation.reopen()
    heard.pieces.clear()
    for part in pieces(said, places):
        heard.host(part)
    assert not heard.pieces and heard.conversation.take_held() == b""
    assert (heard.conversation.host is HostState.DIFFERENT) is not same
    if not same:
        heard.host(REF + b"0000")
        assert not heard.pieces and not heard.conversation.replayable


def test_two_session_ids_are_alike_and_none_is_not() -> None:
    def opening(*session: bytes) -> bytes:
        return VERSION_2 + b"".join(pkt_line(b"session-id=" + one + b"\n") for one in session) + pkt_line(b"fetch\n") + b"0000"

    for session, same in (([b"2"], True), ([], False), ([b"1", b"1"], False)):
        heard = Heard(Conversation())
        heard.host(opening(b"1"))
        heard.conversation.reopen()
        heard.host(opening(*session))
        assert (heard.conversation.host is HostState.IDLE) is same


MOVED = {
    "another ref": (LS, REF, pkt_line(B + b" refs/heads/main\n") + b"0000"),
    "a ref less": (LS, REF, b"0000"),
    "a ref before": (LS, REF, pkt_line(B + b" refs/heads/a\n") + REF + b"0000"),
    "a second ref that moved": (LS, REF + REF, REF + pkt_line(B + b" refs/heads/main\n") + b"0000"),
    "an error": (LS, REF, pkt_line(b"ERR upload-pack: gone\n")),
    "other acknowledgments": (NEGOTIATE, ACKS, pkt_line(b"acknowledgments\n") + pkt_line(b"NAK\n") + b"0000"),
    "another section": (NEGOTIATE, ACKS, PACKFILE + PACK),
    "an error in sideband 3": (FETCH, PACKFILE + PROGRESS, PACKFILE[:-1] + b" " + pkt_line(b"\3no") + b"0000"),
    "not packets": (LS, REF, b"fatal: out of memory"),
    "another order": (
        FETCH,
        pkt_line(b"shallow-info\n") + pkt_line(b"shallow " + A),
        pkt_line(b"shallow-info\n") + pkt_line(b"shallow " + B),
    ),
}


@pytest.mark.parametrize("name", MOVED)
@given(places=cuts)
@settings(max_examples=20)
def test_an_answer_that_differs_from_what_the_client_has_is_never_mixed_with_it(name: str, places: list[int]) -> None:
    request, had, says = MOVED[name]
    heard = opened(request)
    heard.host(had)
    assert heard.passed == had
    heard.conversation.reopen()
    heard.host(ADVERTISEMENT)
    for part in pieces(says, places):
        heard.host(part)
    assert heard.conversation.host is HostState.DIFFERENT
    assert heard.passed == had and heard.conversation.take_held() == b""


def test_what_the_client_does_not_have_yet_may_differ() -> None:
    """Half of the first packet was received and none of it passed on, so the next host may report another value of the ref."""
    heard = opened(LS)
    heard.host(REF[:20])
    assert heard.pieces == []
    heard.conversation.reopen()
    moved = pkt_line(B + b" refs/heads/main\n")
    heard.host(ADVERTISEMENT + moved + b"0000")
    assert heard.passed == moved + b"0000" and heard.conversation.settled


def test_progress_and_keepalives_need_not_be_repeated() -> None:
    heard = opened(FETCH)
    heard.host(PACKFILE + PROGRESS + KEEPALIVE + PROGRESS)
    heard.conversation.reopen()
    heard.host(ADVERTISEMENT + PACKFILE + KEEPALIVE + PROGRESS + PACK)
    assert heard.passed == PACKFILE + PROGRESS + KEEPALIVE + PROGRESS + KEEPALIVE + PROGRESS + PACK
    assert heard.conversation.reason is Reason.PACK


def test_a_new_host_that_refuses_an_untouched_request_is_believed() -> None:
    for says in (ADVERTISEMENT + pkt_line(b"ERR upload-pack: not our ref\n"), pkt_line(b"ERR no such repository\n")):
        heard = opened(LS)
        heard.conversation.reopen()
        heard.host(says)
        assert heard.conversation.host is HostState.REFUSED
        assert says.endswith(heard.passed) and b"ERR" in heard.passed


def test_a_client_that_is_not_understood_while_an_answer_is_repeated_ends_the_session() -> None:
    heard = opened(LS)
    heard.host(REF)
    heard.conversation.reopen()
    heard.client(b"GET / HTTP/1.1\r\n")
    assert heard.conversation.host is HostState.DIFFERENT
    heard.host(ADVERTISEMENT + REF)
    assert heard.passed == REF


def test_a_host_lost_before_its_advertisement_is_replaced() -> None:
    heard = Heard(Conversation())
    heard.host(ADVERTISEMENT[:-6])
    heard.client(LS)
    assert not heard.pieces and heard.conversation.replayable
    assert heard.conversation.reopen() == LS
    other = ADVERTISEMENT.replace(b"fetch=shallow", b"fetch=filter!")
    heard.host(other + REF)
    assert heard.passed == other + REF


# -- answers that are not faults ----------------------------------------------------------------------------------------------------

REFUSALS = {
    "ERR for a list": (LS, pkt_line(b"ERR access denied\n")),
    "ERR within a list": (LS, REF + pkt_line(b"ERR access denied\n")),
    "ERR for a fetch": (FETCH, pkt_line(b"ERR upload-pack: not our ref\n")),
    "ERR in a section": (NEGOTIATE, ACKS + b"0001" + pkt_line(b"ERR x")),
    "ERR in the packfile section": (FETCH, PACKFILE + PROGRESS + pkt_line(b"ERR x")),
    "sideband 3": (FETCH, PACKFILE + pkt_line(b"\3upload-pack: out of memory")),
    "sideband 3 of a whole answer": (BANDED, pkt_line(b"\3upload-pack: not our ref")),
    "an empty sideband 3": (FETCH, PACKFILE + pkt_line(b"\3")),
}


@pytest.mark.parametrize("name", REFUSALS)
@given(places=cuts)
@settings(max_examples=20)
def test_a_refusal_is_an_answer(name: str, places: list[int]) -> None:
    request, says = REFUSALS[name]
    heard = opened(request)
    for part in pieces(says, places):
        heard.host(part)
    assert heard.conversation.host is HostState.REFUSED and heard.conversation.aside
    assert heard.passed == says and heard.pieces[-1].kind is Kind.ERROR
    assert not heard.conversation.replayable and not heard.conversation.settled
    heard.host(b"anything")
    assert heard.passed == says + b"anything"


def test_an_error_in_place_of_the_advertisement_is_an_answer() -> None:
    says = pkt_line(b"ERR no such repository\n")
    for places in ([], [4], [6], [8], list(range(len(says)))):
        heard = Heard(Conversation())
        for part in pieces(says, places):
            heard.host(part)
        assert heard.conversation.host is HostState.REFUSED and heard.passed == says


def test_a_ref_that_begins_like_an_error_is_a_ref() -> None:
    heard = opened(LS)
    heard.host(pkt_line(b"ERROR refs/heads/x\n") + pkt_line(b"ERR") + pkt_line(b"") + REF)
    assert heard.conversation.host is HostState.LINES and {piece.kind for piece in heard.pieces} == {Kind.ANSWER}


# -- the states ---------------------------------------------------------------------------------------------------------------------


def test_a_session_step_by_step() -> None:
    heard = Heard(Conversation())
    conversation = heard.conversation
    between, asking, finished = ClientState.BETWEEN, ClientState.ASKING, ClientState.FINISHED
    assert state(heard) == (between, HostState.OPENING, None) and not conversation.settled
    heard.host(ADVERTISEMENT)
    assert state(heard) == (between, HostState.IDLE, None) and conversation.settled
    heard.client(NEGOTIATE[:-4])
    assert state(heard) == (asking, HostState.IDLE, None) and not conversation.settled and conversation.partial == NEGOTIATE[:-4]
    heard.client(NEGOTIATE[-4:])
    assert state(heard) == (between, HostState.HEADER, None) and conversation.partial == b""
    assert conversation.request is not None and conversation.request.raw == NEGOTIATE
    heard.host(ACKS)
    assert state(heard) == (between, HostState.LINES, None)
    heard.host(b"0001")
    assert state(heard) == (between, HostState.HEADER, None)
    heard.host(PACKFILE)
    assert state(heard) == (between, HostState.PACKFILE, None) and conversation.replayable
    conversation.spooling = True
    heard.host(PACK[:7])
    assert state(heard) == (between, HostState.PACK, None) and not conversation.replayable
    assert heard.pieces[-1] == (Kind.PACK, PACK[:7], False)
    heard.host(PACK[7:] + b"0000")
    assert state(heard) == (between, HostState.IDLE, None) and conversation.settled and not conversation.spooling
    assert heard.pieces[-1].last
    heard.client(b"0000")
    assert state(heard) == (finished, HostState.IDLE, None)
    assert conversation.settled and not conversation.replayable and heard.requests[-1].command == b""
    assert "FINISHED" in repr(conversation)


def test_requests_may_be_sent_ahead() -> None:
    heard = opened(LS + NEGOTIATE + LS[:10])
    assert [request.command for request in heard.requests] == [b"ls-refs", b"fetch"]
    heard.host(REF)
    assert heard.conversation.reopen() == LS + NEGOTIATE
    heard.host(ADVERTISEMENT + REF + b"0000" + ACKS + b"0000")
    assert state(heard) == (ClientState.ASKING, HostState.IDLE, None)
    assert heard.passed == REF + b"0000" + ACKS + b"0000"
    assert [piece.last for piece in heard.pieces] == [False, True, True]


def test_requests_sent_before_the_advertisement_wait_for_it() -> None:
    heard = Heard(Conversation())
    heard.client(LS + b"0000")
    heard.host(ADVERTISEMENT + REF)
    assert heard.conversation.replayable and heard.conversation.host is HostState.LINES
    heard.host(b"0000")
    assert heard.conversation.settled and not heard.conversation.replayable


@pytest.mark.parametrize("rest", [PACK, PROGRESS + PACK, KEEPALIVE + PACK + PACK], ids=["pack", "progress", "keepalive"])
def test_spooling_that_is_given_up_steps_aside(rest: bytes) -> None:
    heard = opened(FETCH)
    heard.conversation.spooling = True
    heard.host(PACKFILE + PACK + PACK[:8])
    heard.conversation.spooling = False
    heard.host(PACK[8:] + rest + b"0000")
    assert (heard.conversation.host, heard.conversation.reason) == (HostState.ASIDE, Reason.PACK)
    assert heard.passed == PACKFILE + PACK + PACK + rest + b"0000"


def test_an_answer_of_the_relay_itself_leaves_the_conversation_idle() -> None:
    heard = opened(LS, keep_refs=True)
    heard.host(REF + b"0000")
    heard.client(FETCH)
    heard.conversation.served()
    assert heard.conversation.settled and heard.conversation.replayable
    assert heard.conversation.reopen() == b""  # the client may send another request, which another host answers
    heard.host(ADVERTISEMENT)
    heard.client(LS)
    heard.host(REF + b"0000")
    assert heard.conversation.settled


def test_an_answer_of_the_relay_itself_may_begin_again_and_must_repeat_what_the_client_has() -> None:
    heard = opened(FETCH)
    heard.host(SHALLOW + PACKFILE + PROGRESS)
    heard.conversation.again()
    assert heard.conversation.repeating and heard.conversation.replayable
    heard.pieces.clear()
    heard.host(SHALLOW)
    assert heard.passed == b""
    heard.host(PACKFILE)
    assert heard.passed == b"" and not heard.conversation.repeating
    heard.conversation.served()
    assert heard.conversation.settled and heard.conversation.replayable


def test_an_answer_that_begins_again_otherwise_differs() -> None:
    heard = opened(FETCH)
    heard.host(SHALLOW)
    heard.conversation.again()
    heard.host(PACKFILE)
    assert heard.conversation.host is HostState.DIFFERENT


def test_a_question_of_the_relay_is_a_conversation_of_its_own() -> None:
    for name, host in (("probe", HostState.IDLE), ("probe-sha256", HostState.IDLE), ("probe-not-our-ref", HostState.REFUSED)):
        transcript = load(name)
        fetch = fetch_of(play(transcript).requests[0])
        assert fetch is not None and probe(fetch) == transcript.said(by_client=True)
        question = Heard(Conversation(opened=True))
        question.conversation.spooling = True
        question.client(probe(fetch))
        question.host(b"".join(answers(transcript)))
        assert question.conversation.host is host
        payloads = Payloads()
        pack = b"".join(bytes(part) for piece in question.pieces if piece.kind is Kind.PACK for part in payloads.feed(piece.data))
        assert pack[:12] == (b"PACK\0\0\0\2\0\0\0\0" if host is HostState.IDLE else b"")


def test_the_refs_of_this_host_are_kept_for_who_wants_them() -> None:
    heard = opened(LS, keep_refs=True)
    heard.host(REF)
    assert heard.conversation.refs is None
    heard.host(b"0000")
    assert heard.conversation.refs is not None and heard.conversation.refs.offers([A]) and not heard.conversation.refs.offers([A, B])
    heard.conversation.reopen()
    assert heard.conversation.refs is None
    without = opened(LS)
    without.host(REF + b"0000")
    assert without.conversation.refs is None


def test_sections_with_sidebands_throughout() -> None:
    heard = opened(BANDED)
    heard.host(pkt_line(b"\2Counting") + pkt_line(b"\1shallow-info\n") + pkt_line(b"\2") + pkt_line(b"\1shallow " + A) + b"0001")
    heard.host(pkt_line(b"\1packfile\n") + PROGRESS + PACK)
    kinds = [kind for kind, _ in groupby(piece.kind for piece in heard.pieces)]
    assert kinds == [Kind.PROGRESS, Kind.ANSWER, Kind.PROGRESS, Kind.ANSWER, Kind.PROGRESS, Kind.UNREAD]


# -- unknown packets are passed on --------------------------------------------------------------------------------------------------

CLIENT_NONSENSE = {
    "no packets": b"GET / HTTP/1.1\r\n",
    "length 3": b"0003",
    "a sign": b"+00f" + bytes(11),
    "an underscore": b"0_0f" + bytes(11),
    "a prefix": b"0x0f" + bytes(11),
    "a space": b" 00f" + bytes(11),
    "too long a packet": b"fff1",
    "response-end": pkt_line(b"command=ls-refs") + b"00020000",
    "no command": pkt_line(b"agent=x") + b"0000",
    "two commands": pkt_line(b"command=ls-refs") * 2 + b"0000",
    "an unknown command": pkt_line(b"command=push") + b"0000",
    "two delims": pkt_line(b"command=ls-refs") + b"000100010000",
    "a delim alone": b"00010000",
    "a fetch without wants": pkt_line(b"command=fetch") + b"0001" + pkt_line(b"done") + b"0000",
    "version 0": pkt_line(b"want " + A + b" thin-pack\n") + b"0000" + pkt_line(b"done\n"),
}


@pytest.mark.parametrize("name", CLIENT_NONSENSE)
@given(places=cuts)
@settings(max_examples=20)
def test_a_client_that_is_not_understood_passes(name: str, places: list[int]) -> None:
    heard = opened(LS, LS)
    heard.host(REF + b"0000" + REF[:9])
    for part in pieces(CLIENT_NONSENSE[name], places):
        heard.client(part)
    assert (heard.conversation.host, heard.conversation.reason) == (HostState.ASIDE, Reason.MALFORMED)
    assert len(heard.requests) == 2 and CLIENT_NONSENSE[name].startswith(heard.conversation.partial)
    assert heard.conversation.take_held() == REF[:9]


def test_who_said_that_nothing_more_is_asked_for_and_asks_passes() -> None:
    heard = opened(b"0000")
    heard.client(LS)
    assert heard.conversation.reason is Reason.MALFORMED and heard.conversation.partial == LS


HOST_NONSENSE = {
    "no packets": (LS, b"fatal: out of memory\n"),
    "length 3": (LS, REF + b"0003"),
    "a sign": (LS, REF + b"+00f" + bytes(11)),
    "an underscore": (LS, REF + b"0_0f" + bytes(11)),
    "a prefix": (LS, REF + b"0x0f" + bytes(11)),
    "too long a packet": (LS, b"fff1"),
    "a delim in a list": (LS, REF + b"0001"),
    "response-end": (LS, REF + b"0002"),
    "what nobody asked for": (LS, REF + b"0000" + REF),
    "half of what nobody asked for": (LS, REF + b"0000" + REF[:9]),
    "an unknown section": (FETCH, pkt_line(b"surprise\n")),
    "a long header": (FETCH, pkt_line(b"packfile" + bytes(1000))),
    "a section in a section": (FETCH, b"0001"),
    "sideband 4": (FETCH, PACKFILE + pkt_line(b"\4x")),
    "no sideband": (FETCH, PACKFILE + b"0004"),
    "a delim after the pack": (FETCH, PACKFILE + PROGRESS + b"0001"),
    "no sideband in a whole answer": (BANDED, PACKFILE),
}


@pytest.mark.parametrize("name", HOST_NONSENSE)
@given(places=cuts)
@settings(max_examples=20)
def test_a_host_that_is_not_understood_passes(name: str, places: list[int]) -> None:
    request, says = HOST_NONSENSE[name]
    heard = opened(request)
    for part in pieces(says, places):
        heard.host(part)
    assert (heard.conversation.host, heard.conversation.reason) == (HostState.ASIDE, Reason.MALFORMED)
    assert heard.passed == says and heard.pieces[-1].kind is Kind.UNREAD


@given(st.binary(max_size=300), st.binary(max_size=300), cuts)
def test_any_bytes_pass_whole(client: bytes, host: bytes, places: list[int]) -> None:
    heard = Heard(Conversation())
    for part in pieces(host, places):
        heard.host(part)
    for part in pieces(client, places):
        heard.client(part)
    assert heard.passed + heard.conversation.take_held() == host
    assert b"".join(request.raw for request in heard.requests) + heard.conversation.partial == client[: _told(heard)]


def _told(heard: Heard) -> int:
    """How many bytes of the client the conversation has parsed as requests."""
    return sum(len(request.raw) for request in heard.requests) + len(heard.conversation.partial)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("client"), st.sampled_from([LS, NEGOTIATE, FETCH, BANDED, LS[:9], LS[9:], b"0000", b"0001", b"0003", b"x"])),
        st.tuples(
            st.just("host"),
            st.sampled_from(
                [
                    ADVERTISEMENT,
                    REF,
                    REF[:9],
                    REF[9:],
                    b"0000",
                    b"0001",
                    ACKS,
                    PACKFILE,
                    PROGRESS,
                    KEEPALIVE,
                    PACK,
                    PACK[:7],
                    PACK[7:] + PACK,
                ]
            ),
        ),
        st.tuples(st.just("host"), st.sampled_from([pkt_line(b"ERR x"), pkt_line(b"\3x"), pkt_line(b"\1packfile\n"), b"zzzz"])),
        st.tuples(st.sampled_from(["spool", "do not spool", "reopen"]), st.just(b"")),
    ),
    max_size=30,
)


# prefixes of the random events: states that a random walk seldom reaches
starts = st.sampled_from(
    [
        [],
        [("client", FETCH), ("host", PACKFILE + PROGRESS)],
        [("client", FETCH), ("spool", b""), ("host", PACKFILE + PACK[:7])],
        [("client", FETCH), ("spool", b""), ("host", PACKFILE + PACK[:7]), ("do not spool", b"")],
        [("client", LS + NEGOTIATE), ("host", REF + REF[:9]), ("reopen", b""), ("host", ADVERTISEMENT + REF[:9])],
    ]
)


@given(starts, steps)
@settings(max_examples=800)
def test_any_order_of_events_keeps_the_promises(start: list[tuple[str, bytes]], events: list[tuple[str, bytes]]) -> None:
    heard = Heard(Conversation(keep_refs=True))
    conversation = heard.conversation
    received, lost = b"", False
    for what, data in [("host", ADVERTISEMENT), *start, *events]:
        if what == "client":
            heard.client(data)
        elif what == "host":
            received += data
            heard.host(data)
        elif what in ("spool", "do not spool"):
            conversation.spooling = what == "spool"
        elif what == "reopen" and conversation.replayable:
            asked = conversation.reopen()
            assert conversation.request is None or asked.startswith(conversation.request.raw)
            lost = True
        assert (conversation.reason is not None) <= (conversation.host in (HostState.ASIDE, HostState.DIFFERENT))
        assert not (conversation.settled and conversation.request is not None)
        assert not (conversation.aside and conversation.replayable)
    if not lost:
        assert heard.passed + conversation.take_held() == received
    ended = sum(piece.last for piece in heard.pieces)
    assert ended <= sum(bool(request.command) for request in heard.requests)


# -- bounds ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1 << 30, 4_000])
@pytest.mark.parametrize("tail", [b"", b"0000"], ids=["endless", "whole"])
def test_a_request_has_a_bound(step: int, tail: bytes) -> None:
    want = pkt_line(b"want " + A)
    data = pkt_line(b"command=fetch") + b"0001" + want * (REQUEST_MOST_BYTES // len(want)) + tail
    assert len(data) > REQUEST_MOST_BYTES - 100
    heard = opened()
    for place in range(0, len(data), step):
        heard.client(data[place : place + step])
    more = pkt_line(b"want " + B) * 4
    if not tail:
        heard.client(more)
        assert heard.conversation.reason is Reason.TOO_LONG and heard.conversation.partial == data + more
    else:
        assert heard.conversation.host is HostState.HEADER
        heard.client(LS * 10)
        assert heard.conversation.reason is Reason.TOO_LONG  # the bound applies to the sum of all unanswered requests
        assert b"".join(request.raw for request in heard.requests) + heard.conversation.partial == data + LS * 10


def test_a_list_too_long_to_keep_cannot_be_repeated_and_the_next_answer_can() -> None:
    heard = opened(LS, keep_refs=True)
    most = KEPT_MOST_BYTES // len(REF)
    heard.host(REF * most)
    assert heard.conversation.replayable
    heard.host(REF)
    assert not heard.conversation.replayable and not heard.conversation.aside
    heard.host(b"0000")
    assert heard.conversation.settled and heard.conversation.replayable and heard.conversation.refs is None
    assert len(heard.passed) == (most + 1) * len(REF) + 4


@pytest.mark.parametrize("step", [1 << 30, 1_000])
def test_an_advertisement_has_a_bound(step: int) -> None:
    line = pkt_line(b"capability=" + bytes(900))
    for count, reason in ((ADVERTISEMENT_MOST_BYTES // len(line) - 1, None), (ADVERTISEMENT_MOST_BYTES // len(line) + 1, Reason.TOO_LONG)):
        said = VERSION_2 + line * count + b"0000"
        heard = Heard(Conversation())
        for place in range(0, len(said), step):
            heard.host(said[place : place + step])
        assert heard.conversation.reason is reason and heard.passed == said


def test_no_more_than_a_packet_is_held() -> None:
    longest = pkt_line(b"\2" + bytes(PACKET_MOST_BYTES - 5))
    heard = opened(FETCH)
    heard.host(PACKFILE + longest[:-1])
    assert heard.passed == PACKFILE
    heard.host(longest[-1:])
    assert heard.passed == PACKFILE + longest


def test_pieces_are_slices_and_not_copies() -> None:
    heard = opened(LS)
    data = REF * 100
    (piece,) = heard.conversation.host_data(data)
    assert isinstance(piece.data, memoryview) and piece.data.obj is data and len(piece.data) == len(data)
