"""Which entries go, so that the others fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.packs.room import Kept, leaving

NOW, TTL = 1000.0, 100.0

entries = st.lists(
    st.builds(
        Kept,
        name=st.text(),
        inode=st.tuples(st.just(1), st.integers()),
        bytes=st.integers(0, 50),
        made=st.floats(850, 1150),
        used=st.floats(850, 1000),
        whole=st.booleans(),
    ),
    unique_by=lambda one: one.inode,
    max_size=20,
)


@given(entries=entries, most=st.integers(0, 300), short=st.integers(-50, 100))
def test_those_too_old_go_then_those_longest_unused_and_no_more_than_needed(entries: list[Kept], most: int, short: int) -> None:
    going, total = leaving(entries, NOW, TTL, most, short)
    staying = [one for one in entries if one not in going]
    assert total == sum(one.bytes for one in staying)
    assert all(one.whole for one in going), "what is being filled stays"
    old = [one for one in entries if one.whole and abs(NOW - one.made) >= TTL]
    assert set(old) <= set(going)
    whole = [one for one in staying if one.whole]
    given_back = sum(one.bytes for one in going)
    assert not whole or (total <= most and given_back >= short)
    others = [one for one in going if one not in old]
    assert all(one.used <= stays.used for one in others for stays in whole)
    if others:
        last = max(others, key=lambda one: one.used)
        same = [one for one in others if one.used == last.used]
        assert any(total + one.bytes > most or given_back - one.bytes < short for one in same), "one fewer would not have been enough"
