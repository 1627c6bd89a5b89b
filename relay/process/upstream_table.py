"""The table of `relay upstreams`: what all workers have, summed, with the operator's switches; pure."""

from __future__ import annotations

from collections.abc import Sequence

from relay.address import format_address, parse_address
from relay.config import Config
from relay.process.messages import AddressState, UpstreamState
from relay.process.switches import Switches, Thrown

_OFF = Thrown(0.0, "")


def summed(workers: Sequence[Sequence[UpstreamState]], config: Config, switches: Switches) -> list[UpstreamState]:
    """One state for each upstream of the configuration, in its order.

    Upstreams that only draining workers have are left out. An address that only they have is listed as long as it is in use.
    """
    table = []
    for name, settings in config.upstreams.items():
        states = [state for states in workers for state in states if state.name == name]
        paused, frozen = switches.of(name, "paused") or _OFF, switches.of(name, "frozen") or _OFF
        addresses = []
        known = [format_address(*parse_address(given)) for given in settings.addresses]
        used = [one.address for state in states for one in state.addresses if one.leased or one.dialing]
        for address in dict.fromkeys([*known, *used]):
            seen = [one for state in states for one in state.addresses if one.address == address]
            draining = switches.of(name, "draining", address) or _OFF
            addresses.append(
                AddressState(
                    address,
                    up=_up([one.up for one in seen]),
                    leased=sum(one.leased for one in seen),
                    idle=sum(one.idle for one in seen),
                    dialing=sum(one.dialing for one in seen),
                    draining_since=draining.since,
                    draining_by=draining.by,
                )
            )
        table.append(
            UpstreamState(
                name,
                waiting=sum(state.waiting for state in states),
                addresses=addresses,
                paused_since=paused.since,
                paused_by=paused.by,
                frozen_since=frozen.since,
                frozen_by=frozen.by,
                frozen=frozen.text,
            )
        )
    return table


def _up(known: Sequence[bool | None]) -> bool | None:
    """An address is up when any worker reaches it, as in the metrics."""
    return True if True in known else False if False in known else None
