"""A session's requests at its Desk: which fetch an entry may answer, what the git host is asked first, and what goes to whom otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.errors import ClientGone, Lost, NoExit, RelayError
from relay.git.conversation import REQUEST_MOST_BYTES
from relay.git.pktline import pkt_line
from relay.git.v2_request import fetch_of, probe, read_request
from relay.model import Exit
from relay.packs import desk
from tests.packs.bench import (
    ADVERTISEMENT,
    ANSWER,
    EMPTY_PACK,
    ERR,
    FLUSH,
    LS,
    OK,
    PACK,
    PACKFILE,
    REFS,
    SHALLOW,
    A,
    B,
    Bench,
    C,
    Session,
    fetch,
    kept,
    listed,
    says,
)


def probe_of(request: bytes) -> bytes:
    found = fetch_of(read_request(request))
    assert found is not None
    return probe(found)


# -- requests ----------------------------------------------------------------------------------------------------------------


async def test_a_request_is_held_back_until_it_is_whole(bench: Bench) -> None:
    session = Session(bench)
    session.host(ADVERTISEMENT)
    for place in range(len(LS) - 1):
        session.asks(LS[place : place + 1])
        assert session.asked() == b""
    session.asks(LS[-1:])
    assert session.asked() == LS


async def test_requests_that_come_together_are_given_out_one_by_one(bench: Bench) -> None:
    session = Session(bench)
    session.host(ADVERTISEMENT)
    request = fetch(A, done=False)
    session.asks(LS + request + FLUSH)
    assert session.asked() == LS
    session.host(REFS)
    assert session.asked() == request
    session.host(pkt_line(b"acknowledgments\n") + pkt_line(b"NAK\n") + FLUSH)
    assert session.asked() == FLUSH
    assert await session.ended() == OK


async def test_the_clients_eof_follows_its_last_request(bench: Bench) -> None:
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(LS + fetch(A, done=False))
    assert session.splice is not None
    session.splice.client_eof()
    assert not session.upstream.eof
    session.host(REFS)
    assert session.upstream.eof


@pytest.mark.parametrize("version", [b"000eversion 1\n", b"0037" + A + b" HEAD\0"])
async def test_a_host_of_another_version_gets_what_was_held_back(bench: Bench, version: bytes) -> None:
    session = Session(bench)
    session.asks(b"0032want ")
    assert session.asked() == b""
    session.host(version)
    assert session.asked() == b"0032want "
    session.asks(A)
    assert session.asked() == A
    assert session.splice is not None
    session.splice.client_eof()
    assert session.upstream.eof


async def test_a_client_that_is_not_understood_passes_whole(bench: Bench) -> None:
    session = listed(bench)
    session.asks(b"00", b"zz this is nothing", b" and more")
    assert session.asked() == b"00zz this is nothing and more"


async def test_a_request_that_is_too_long_passes_whole(bench: Bench) -> None:
    session = listed(bench)
    wants = [pkt_line(b"want " + A + b"\n")] * (REQUEST_MOST_BYTES // 50 + 100)
    request = pkt_line(b"command=fetch") + b"0001" + b"".join(wants) + FLUSH
    for place in range(0, len(request), 60_000):
        session.asks(request[place : place + 60_000])
    assert session.asked() == request


async def test_after_pack_data_of_the_host_nothing_is_followed(bench: Bench) -> None:
    session = listed(bench)
    request = fetch(A, more=(b"filter sparse:oid=main:x\n",))
    session.asks(request)
    session.host(ANSWER[:-4])
    assert (session.asked(), bench.told.asked) == (request, ["passed"])
    session.host(PACK[1], FLUSH)
    session.asks(LS, FLUSH)
    assert session.asked() == LS + FLUSH
    assert session.output == ANSWER[:-4] + PACK[1] + FLUSH


# -- what is not answered from an entry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        fetch(A, done=False),
        fetch(A, more=(b"have " + B + b"\n",)),
        fetch(A, more=(b"shallow " + B + b"\n",)),
        fetch(A, more=(b"wait-for-done\n",)),
        fetch(A, more=(b"sideband-all\n",)),
        fetch(A, more=(b"packfile-uris https\n",)),
        fetch(A, more=(b"deepen-not refs/heads/x\n",)),
        fetch(A, more=(b"want-ref refs/heads/main\n",)),
        fetch(A, more=(b"something-new\n",)),
        fetch(A).replace(pkt_line(b"command=fetch"), pkt_line(b"command=fetch") + pkt_line(b"server-option=x")),
    ],
)
async def test_what_is_not_kept_passes(bench: Bench, request_bytes: bytes) -> None:
    session = listed(bench)
    session.asks(request_bytes)
    assert session.asked() == request_bytes
    assert not bench.hosts


@pytest.mark.parametrize(
    "request_bytes",
    [
        fetch(A, more=(b"filter blob:none\n",)),  # the lazy fetch of a partial clone
        fetch(A, B),
        fetch(A, more=(b"include-tag\n",)),  # the tags are not known
    ],
)
async def test_a_fetch_without_refs_that_is_none_of_ci_passes_without_a_probe(bench: Bench, request_bytes: bytes) -> None:
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(request_bytes)
    assert (session.asked(), bench.told.asked) == (request_bytes, ["passed"])


async def test_the_first_of_its_kind_passes_and_the_second_fills(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir(mode=0o700)
    bench = Bench(tmp_path / "packs", first=False)
    session = listed(bench)
    session.asks(fetch(A))
    assert session.asked() == fetch(A)
    second = listed(bench)
    second.asks(fetch(A))
    assert second.asked() == FLUSH
    assert bench.told.asked == ["passed"], "the second is told once it has parked"
    await bench.close()


async def test_a_negotiation_counts_once(bench: Bench) -> None:
    session = listed(bench)
    for _ in range(3):
        session.asks(fetch(A, done=False, more=(b"have " + B + b"\n",)))
        session.host(pkt_line(b"acknowledgments\n") + pkt_line(b"NAK\n") + FLUSH)
    session.asks(fetch(A, more=(b"have " + B + b"\n",)))
    assert bench.told.asked == ["passed"]


# -- agreement ---------------------------------------------------------------------------------------------------------------


async def test_a_want_in_the_refs_needs_no_probe(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    await session.reads(ANSWER)
    assert bench.told.asked == ["hit"] and session.desk.served == "hit"


async def by_sha(bench: Bench) -> Session:
    """A session that has asked for a commit by its id, of which there is an entry, and whose git host is probed."""
    await kept(bench)
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(fetch(A))
    assert session.asked() == probe_of(fetch(A))
    return session


async def test_a_want_by_its_id_alone_is_probed(bench: Bench) -> None:
    session = await by_sha(bench)
    assert session.splice is not None
    session.splice.upstream_stderr(memoryview(b"a hook's chatter"))
    session.host(EMPTY_PACK[:20], EMPTY_PACK[20:])
    await session.parks()
    await session.reads(ANSWER)
    assert (session.client.stderr, bench.told.asked) == (b"", ["hit"])
    session.asks(FLUSH)
    assert await session.outcome() == OK


async def test_a_host_that_disagrees_is_asked_by_the_client_itself(bench: Bench) -> None:
    session = await by_sha(bench)
    session.host(ERR)
    assert session.splice is not None
    session.splice.upstream_stderr(memoryview(b"fatal: git upload-pack: not our ref"))
    await session.ended(Exit(status=128))
    assert session.desk.parked and session.desk.reader is None
    session.connect()
    assert session.asked() == fetch(A)
    session.host(ADVERTISEMENT, ERR)
    assert (session.output, session.client.stderr) == (ERR, b"")
    assert await session.ended(Exit(status=128)) == Exit(status=128)
    assert bench.told.asked == ["passed"]


@pytest.mark.parametrize("how", [Lost("cut"), NoExit("no exit"), Exit(signal="KILL")])
async def test_a_host_that_is_lost_before_it_has_answered_the_probe_is_replaced(bench: Bench, how: Exit | RelayError) -> None:
    session = await by_sha(bench)
    session.host(EMPTY_PACK[:20])
    assert isinstance(await session.ended(how), RelayError)
    assert session.splice is not None and session.splice.moved and not session.desk.parked
    session.connect()
    assert session.asked() == fetch(A), "the other host is asked by the client itself"
    session.host(ADVERTISEMENT, ANSWER)
    assert session.output == ANSWER


@pytest.mark.parametrize(
    "answer",
    [
        PACKFILE + pkt_line(b"\1PACK" + bytes(60_000)) + pkt_line(b"\1" + bytes(60_000)),  # far from empty
        PACKFILE + FLUSH,  # no pack
        pkt_line(b"acknowledgments\n") + pkt_line(b"NAK\n") + FLUSH,
        b"no packets",
    ],
)
async def test_an_answer_to_the_probe_that_is_none_is_no_agreement(bench: Bench, answer: bytes) -> None:
    session = await by_sha(bench)
    session.host(answer)
    assert await session.left() == Exit()
    assert session.desk.parked and session.desk.reader is None and session.upstream.aborted
    session.connect()
    assert session.asked() == fetch(A)


async def test_a_host_that_does_not_answer_the_probe_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PROBE_SECONDS", 0.01)
    session = await by_sha(bench)
    assert await session.left() == Exit()
    assert session.upstream.aborted and session.desk.reader is None
    session.connect()
    assert session.asked() == fetch(A)


async def test_who_fills_needs_no_probe(bench: Bench) -> None:
    """The answer that the entry is filled with is the git host's own to this session's environment."""
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(fetch(A))
    await session.parks()
    assert session.desk.served == "filled"


async def test_a_client_that_leaves_while_the_host_is_probed_is_gone(bench: Bench) -> None:
    session = await by_sha(bench)
    assert session.splice is not None
    session.splice.client_gone("closed")
    assert isinstance(await session.left(), ClientGone)
    assert session.upstream.aborted


# -- parking -----------------------------------------------------------------------------------------------------------------


async def test_a_host_that_does_not_exit_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PARK_SECONDS", 0.01)
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    assert await session.left() == Exit()
    assert session.upstream.aborted and session.desk.parked
    session.deliver()
    await session.reads(ANSWER)


@pytest.mark.parametrize("how", [Lost("cut"), NoExit("no exit"), Exit(signal="KILL"), Exit(status=128)])
async def test_a_host_that_is_lost_while_it_exits_is_not_needed(bench: Bench, how: Exit | RelayError) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    await session.ended(how)
    assert session.splice is not None and session.splice.moved and session.desk.parked
    session.deliver()
    await session.reads(ANSWER)


async def test_what_a_parking_host_says_is_not_the_clients(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    session.host(b"0009ERR x")
    assert session.splice is not None
    session.splice.upstream_stderr(memoryview(b"chatter"))
    await session.parks()
    await session.reads(ANSWER)
    assert session.client.stderr == b""


async def test_what_the_client_sends_while_its_host_parks_is_read_after_the_answer(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    session.asks(LS[:10])
    await session.parks()
    session.asks(LS[10:])
    await session.reads(ANSWER)
    assert await session.outcome() is None
    session.connect()
    assert session.asked() == b""
    session.host(ADVERTISEMENT)
    assert session.asked() == LS
    assert session.record.bytes_in == 2 * len(LS) + len(fetch(A))


async def test_a_flood_while_the_host_parks_pauses_the_client(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    session.asks(bytes(200_000))
    assert not session.client.paused
    session.asks(bytes(200_000))
    assert session.client.paused


async def test_a_later_fetch_of_the_session_may_be_answered_too(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    await session.reads(ANSWER)
    session.asks(LS)
    assert await session.outcome() is None
    session.connect()
    session.host(ADVERTISEMENT, REFS)
    assert session.asked() == LS
    session.asks(fetch(A))
    await session.parks()
    await session.reads(ANSWER + REFS + ANSWER)
    assert bench.told.asked == ["hit", "hit"]


async def test_a_host_that_says_something_else_after_an_entry_ends_the_session(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    await session.reads(ANSWER)
    session.asks(LS)
    assert await session.outcome() is None
    session.connect()
    session.host(ADVERTISEMENT.replace(b"filter", b"nothng"))
    assert isinstance(await session.left(), Lost)


# -- the key -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "asked"),
    [
        (fetch(A), "full"),
        (fetch(A, more=(b"deepen 1\n",)), "depth 1"),
        (fetch(A, more=(b"filter blob:none\n", b"deepen 50\n")), "depth 50, filter blob:none"),
        (fetch(A, more=(b"deepen-since 1700000000\n",)), "since 1700000000"),
    ],
)
async def test_what_people_see_of_an_entry(bench: Bench, request_bytes: bytes, asked: str) -> None:
    session = listed(bench)
    session.asks(request_bytes)
    sought = session.desk._sought
    assert sought is not None and sought.about == ("main", "team/app", "", asked)


async def test_order_agent_and_progress_make_no_difference(bench: Bench) -> None:
    await kept(bench, fetch(A, B, more=(b"deepen 1\n", b"thin-pack\n", b"no-progress\n")), SHALLOW + ANSWER)
    session = listed(bench)
    other = fetch(B, A, more=(b"thin-pack\n", b"deepen 1\n"))
    session.asks(other.replace(pkt_line(b"command=fetch"), pkt_line(b"command=fetch") + pkt_line(b"agent=jgit/6")))
    await session.parks()
    await session.reads(SHALLOW + ANSWER)


async def test_tags_make_a_difference_for_who_wants_them_along(bench: Bench) -> None:
    request = fetch(A, more=(b"include-tag\n",))
    await kept(bench, request)
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(LS)
    assert session.asked() == LS
    session.host(REFS.replace(B, C))  # a tag has moved
    session.asks(request)
    await session.parks()
    assert session.desk.served == "filled"
    same = listed(bench)
    same.asks(request)
    await same.parks()
    assert same.desk.served == "hit"


async def test_trouble_with_a_fill_is_the_hosts_to_tell(bench: Bench) -> None:
    """A fill that the git host refuses is not tried again: the client reads what the host says."""
    session = Session(bench)
    session.host(ADVERTISEMENT)
    session.asks(fetch(C))
    await session.parks()
    host = await bench.host()
    says(host, ADVERTISEMENT, ERR)
    assert await session.outcome() is None
    session.connect()
    assert session.asked() == fetch(C)
    session.host(ADVERTISEMENT, ERR)
    assert session.output == ERR
    assert bench.told.asked == ["filled", "failed", "passed"]
