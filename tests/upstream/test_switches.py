"""The switches of an upstream, as encoded for a worker."""

from __future__ import annotations

import msgspec

from relay.upstream.switches import NONE, UpstreamSwitches


def test_an_upstream_without_switches_is_as_it_always_was() -> None:
    assert (NONE.paused, NONE.drained, NONE.frozen) == (False, [], "")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(UpstreamSwitches()), type=UpstreamSwitches) == NONE
