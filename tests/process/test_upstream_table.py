"""The table of `relay upstreams`, summed over workers."""

from __future__ import annotations

import pytest

from relay.config import Config, UpstreamSettings
from relay.process.messages import AddressState, UpstreamState
from relay.process.switches import Switches
from relay.process.upstream_table import summed

ONE, TWO = "10.0.0.5:22", "10.0.0.6:22"
CONFIG = Config(upstreams={"main": UpstreamSettings(addresses=[ONE, TWO]), "other": UpstreamSettings(addresses=[TWO])})


def state(name: str, waiting: int, *addresses: AddressState) -> UpstreamState:
    return UpstreamState(name, waiting, list(addresses))


def test_workers_are_added_up_address_by_address() -> None:
    workers = [
        [
            state("main", 1, AddressState(ONE, True, 2, 3, 4), AddressState(TWO, None, 0, 1, 0)),
            state("other", 0, AddressState(TWO, True, 5, 0, 0)),
        ],
        [state("main", 2, AddressState(ONE, False, 10, 20, 30), AddressState(TWO, False, 0, 0, 0))],
    ]
    main, other = summed(workers, CONFIG, Switches(CONFIG))
    assert main == state("main", 3, AddressState(ONE, True, 12, 23, 34), AddressState(TWO, False, 0, 1, 0))
    assert (main.leased, main.idle, main.dialing) == (12, 24, 34)
    assert other == state("other", 0, AddressState(TWO, True, 5, 0, 0))


@pytest.mark.parametrize("workers", [[], [[]], [[state("gone", 1, AddressState(ONE, True, 1, 1, 1))]]])
def test_every_configured_upstream_and_nothing_else_is_there(workers: list[list[UpstreamState]]) -> None:
    assert summed(workers, CONFIG, Switches(CONFIG)) == [
        state("main", 0, AddressState(ONE, None, 0, 0, 0), AddressState(TWO, None, 0, 0, 0)),
        state("other", 0, AddressState(TWO, None, 0, 0, 0)),
    ]


def test_an_address_that_only_draining_workers_have_is_listed_while_it_is_in_use() -> None:
    """`pause --wait` waits for the sessions of draining workers, too."""
    used, unused = AddressState("10.0.0.9:22", True, 1, 0, 0), AddressState("10.0.0.8:22", True, 0, 2, 0)
    main, _ = summed([[state("main", 0, used, unused, AddressState(ONE, True, 1, 0, 0))]], CONFIG, Switches(CONFIG))
    assert main.leased == 2
    assert [one.address for one in main.addresses] == [ONE, TWO, "10.0.0.9:22"]


def test_the_switches_are_in_it() -> None:
    switches = Switches(CONFIG)
    switches.throw("pause", "main", "", "root (uid 0)", 1.0)
    switches.throw("freeze", "other", "moving", "bob (uid 7)", 2.0)
    switches.throw("drain", "main", TWO, "eve (uid 8)", 3.0)
    main, other = summed([], CONFIG, switches)
    assert (main.paused_since, main.paused_by, main.frozen_since) == (1.0, "root (uid 0)", 0.0)
    assert [(one.draining_since, one.draining_by) for one in main.addresses] == [(0.0, ""), (3.0, "eve (uid 8)")]
    assert (other.frozen_since, other.frozen_by, other.frozen, other.paused_since) == (2.0, "bob (uid 7)", "moving", 0.0)
    assert other.addresses[0].draining_since == 0.0, "the same address of another upstream"
