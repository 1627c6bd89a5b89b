"""Which side must send next: requests in any pieces, and the ends of a git host's output."""

from __future__ import annotations

import pytest
from hypothesis import given

from relay.git.pktline import FLUSH_PKT, pkt_line
from relay.git.turn import Requests, wants_more
from tests.support.pieces import cuts, pieces

WANT = pkt_line(b"want " + b"1" * 36 + b"0000")  # its end looks like a flush-pkt
WHOLE = {
    "flush": FLUSH_PKT,
    "want": WANT + FLUSH_PKT,
    "done": WANT + FLUSH_PKT + pkt_line(b"done\n"),
    "bare done": WANT + FLUSH_PKT + pkt_line(b"done"),
    "v2": pkt_line(b"command=fetch") + b"0001" + WANT + pkt_line(b"done\n") + FLUSH_PKT,
    "no packets": b"zzzz and so on",
}
BEGUN = {
    "head": b"00",
    "half a packet": WANT[:-1],
    "no flush": WANT,
    "delim": b"0001",
    "next": FLUSH_PKT + b"0",
    "not done": pkt_line(b"dont\n"),
}


@pytest.mark.parametrize("said", WHOLE.values(), ids=WHOLE.keys())
@given(where=cuts)
def test_a_whole_request_is_known_in_any_pieces(said: bytes, where: list[int]) -> None:
    requests = Requests()
    for piece in pieces(said, where):
        requests.feed(piece)
    assert requests.whole


@pytest.mark.parametrize("said", BEGUN.values(), ids=BEGUN.keys())
@given(where=cuts)
def test_a_request_that_was_only_begun_is_known_in_any_pieces(said: bytes, where: list[int]) -> None:
    requests = Requests()
    for piece in pieces(said, where):
        requests.feed(piece)
    assert not requests.whole


def test_after_done_comes_the_pack() -> None:
    requests = Requests()
    requests.feed(WHOLE["want"])
    assert not requests.done
    requests.feed(pkt_line(b"done\n"))
    assert requests.done


@pytest.mark.parametrize("tail", [b"...0000", b"0008NAK\n", b" 0123 common\n", b" 0123 continue\n"])
def test_output_after_which_the_git_host_waits(tail: bytes) -> None:
    assert wants_more(tail)


@pytest.mark.parametrize("tail", [b"", b"000", b"0005\1", b"ACK 0123 ready\n", b"ACK 0123\n", b"unpack ok\n"])
def test_output_after_which_the_git_host_may_go_on(tail: bytes) -> None:
    assert not wants_more(tail)
