"""Clone, fetch or list, from the requests of protocol versions 0 and 2 in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.fetch_request import REQUEST_MOST_BYTES, FetchRequest
from relay.git.pktline import pkt_line
from tests.support.pieces import cuts, pieces

A = "a" * 40
WANT, HAVE, DONE = pkt_line(f"want {A} thin-pack ofs-delta\n".encode()), pkt_line(f"have {A}\n".encode()), pkt_line(b"done\n")
SHALLOW, DEEPEN = pkt_line(f"shallow {A}".encode()), pkt_line(b"deepen 1")
LS = pkt_line(b"command=ls-refs\n") + pkt_line(b"agent=git/2.39") + b"0001" + pkt_line(b"peel\n") + pkt_line(b"ref-prefix HEAD\n") + b"0000"
BUNDLES = pkt_line(b"command=bundle-uri") + b"0000"
FETCH = pkt_line(b"command=fetch") + pkt_line(b"agent=git/2.39") + b"0001" + pkt_line(b"thin-pack") + WANT

CASES = {
    "0 clone": (WANT + WANT + b"0000" + DONE, "clone", 0),
    "0 shallow clone": (WANT + DEEPEN + b"0000" + DONE, "clone", 0),
    "0 fetch": (WANT + b"0000" + HAVE * 16 + b"0000" + HAVE + DONE, "fetch", 0),
    "0 fetch that shares nothing": (WANT + b"0000" + HAVE + DONE, "fetch", 0),
    "0 unshallow": (WANT + SHALLOW + DEEPEN + b"0000" + DONE, "fetch", 0),
    "0 list": (b"0000", "list", 0),
    "0 aborted": (WANT + b"0000", "", 0),
    "2 clone": (LS + FETCH + DONE + b"0000", "clone", 2),
    "2 clone after bundles": (LS + BUNDLES + FETCH + DONE + b"0000", "clone", 2),
    "2 fetch": (LS + FETCH + HAVE + HAVE + b"0000" + FETCH + HAVE + DONE + b"0000", "fetch", 2),
    "2 deepened": (LS + FETCH + SHALLOW + DEEPEN + DONE + b"0000", "fetch", 2),
    "2 what a partial clone lacks": (FETCH + DONE + b"0000", "fetch", 2),
    "2 list": (LS, "list", 2),
    "2 aborted": (LS + FETCH, "", 2),
    "2 list twice": (LS + LS, "list", 2),
    "2 other": (BUNDLES, "", 2),
    "nothing": (b"", "", None),
    "garbage": (b"GET / HTTP/1.1\r\n", "", None),
}


def read(parts: list[bytes], asked: int = 0) -> FetchRequest:
    request = FetchRequest(asked)
    for part in parts:
        request.feed(part)
    return request


@pytest.mark.parametrize("name", CASES)
@given(places=cuts)
def test_the_kind_of_a_request(name: str, places: list[int]) -> None:
    data, kind, version = CASES[name]
    request = read(pieces(data, places))
    assert (request.kind, request.version) == (kind, version)


def test_version_1_is_known_from_the_environment() -> None:
    assert read([WANT + b"0000" + DONE], asked=1).version == 1
    assert read([LS], asked=1).version == 2


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in CASES.items() if kind in ("clone", "fetch") or name == "garbage"])
def test_data_after_the_kind_is_known_is_ignored(name: str) -> None:
    request = FetchRequest()
    assert request.feed(CASES[name][0])
    assert request.feed(b"anything") and request.kind == CASES[name][1]


@pytest.mark.parametrize("step", [1 << 30, 4_000])
@pytest.mark.parametrize("start", [b"", LS + FETCH])
def test_parsing_ends_at_the_limit(start: bytes, step: int) -> None:
    data = start + WANT * (REQUEST_MOST_BYTES // len(WANT) + 1) + b"0000" + DONE + b"0000"
    request = read([data[place : place + step] for place in range(0, len(data), step)])
    assert request.kind == "" and request.feed(b"")


@given(st.binary(max_size=200), cuts)
def test_any_bytes_are_parsed_the_same_in_any_pieces(data: bytes, places: list[int]) -> None:
    one, other = read([data]), read(pieces(data, places))
    assert (one.kind, one.version) == (other.kind, other.version)
