"""A target that is wrong on purpose: it asserts that no PROXY header has the command LOCAL. The fuzzer must find one that has."""

from __future__ import annotations

from relay.admission.proxy_protocol import BadHeader, Header, parse
from tests.fuzz.targets import SEEDS as REAL_SEEDS


def planted(data: bytes) -> None:
    try:
        header = parse(data)
    except BadHeader:
        return
    assert not (isinstance(header, Header) and header.local), "planted"


TARGETS = {"planted": planted}
SEEDS = {"planted": REAL_SEEDS["proxy"][:5]}  # none of them is LOCAL
