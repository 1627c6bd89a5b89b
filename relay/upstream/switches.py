"""What an operator has switched for one upstream, as a worker applies it: paused, draining addresses, frozen."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class UpstreamSwitches(msgspec.Struct, frozen=True, array_like=True):
    """The switches of one upstream."""

    paused: bool = False  # no session gets a connection; those that have one go on
    drained: list[str] = []  # addresses, host:port, that get no new sessions
    frozen: str = ""  # the text that clients read when they push; empty: not frozen


Switched = Mapping[str, UpstreamSwitches]  # by the upstream's name; an upstream that is missing has no switch

NONE = UpstreamSwitches()
