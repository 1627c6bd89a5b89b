"""The switches that the supervisor keeps: every action, refused ones, and which switches a reload keeps."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Config, UpstreamSettings
from relay.process.switches import KINDS, Action, Kind, Switches, Thrown, Wrong, sentence
from relay.text import CLIENT_TEXT_BYTES
from relay.upstream.switches import UpstreamSwitches

BY = "root (uid 0)"
ONE, TWO = "10.0.0.5:22", "[2001:db8::6]:2222"


def configured(**upstreams: list[str]) -> Config:
    return Config(upstreams={name: UpstreamSettings(addresses=addresses) for name, addresses in upstreams.items()})


CONFIG = configured(main=[ONE, TWO], lone=["git.example.com:22"])


@pytest.fixture
def switches() -> Switches:
    return Switches(CONFIG)


def throw(switches: Switches, action: Action, upstream: str = "main", argument: str = "", now: float = 1.0, by: str = BY) -> bool:
    return switches.throw(action, upstream, argument, by, now)


def test_nothing_is_on_at_first(switches: Switches) -> None:
    assert switches.state() == {} and switches.paused() == [] and switches.all_on() == []
    assert switches.counts() == {(name, kind): 0 for name in ("main", "lone") for kind in KINDS}


@pytest.mark.parametrize(
    ("on", "off", "argument", "kind", "state"),
    [
        ("pause", "resume", "", "paused", UpstreamSwitches(paused=True)),
        ("drain", "ready", ONE, "draining", UpstreamSwitches(drained=[ONE])),
        ("freeze", "thaw", "moving", "frozen", UpstreamSwitches(frozen="moving")),
    ],
)
def test_each_switch_goes_on_and_off(
    switches: Switches, on: Action, off: Action, argument: str, kind: Kind, state: UpstreamSwitches
) -> None:
    address = argument if kind == "draining" else ""
    assert not throw(switches, off, argument=argument), "it was off"
    assert throw(switches, on, argument=argument)
    assert not throw(switches, on, argument=argument, now=2.0, by="bob (uid 7)"), "it was on"
    thrown = switches.of("main", kind, address)
    assert thrown is not None and (thrown.since, thrown.by) == (1.0, BY), "since the first time"
    assert switches.state() == {"main": state}
    assert switches.counts()["main", kind] == 1 and sum(switches.counts().values()) == 1
    assert switches.paused() == (["main"] if on == "pause" else [])
    assert throw(switches, off, argument=argument)
    assert switches.state() == {} and switches.of("main", kind, address) is None


def test_the_switches_of_an_upstream_do_not_touch_each_other(switches: Switches) -> None:
    throw(switches, "pause", "lone")
    throw(switches, "pause")
    throw(switches, "freeze", argument="moving")
    throw(switches, "drain", argument=TWO)
    assert switches.state()["main"] == UpstreamSwitches(paused=True, drained=[TWO], frozen="moving")
    assert switches.all_on() == ["lone is paused", "main is paused", "main is frozen", f"main is draining at {TWO}"]
    throw(switches, "resume")
    assert switches.state() == {"lone": UpstreamSwitches(paused=True), "main": UpstreamSwitches(drained=[TWO], frozen="moving")}


def test_another_text_replaces_the_text_of_a_freeze(switches: Switches) -> None:
    throw(switches, "freeze", argument="moving")
    assert throw(switches, "freeze", argument="moved", now=2.0, by="bob (uid 7)")
    assert switches.of("main", "frozen") == Thrown(2.0, "bob (uid 7)", "moved")


@pytest.mark.parametrize("given_address", [TWO, "[2001:0db8:0:0::6]:2222"])
def test_an_address_is_known_in_every_spelling(switches: Switches, given_address: str) -> None:
    assert throw(switches, "drain", argument=given_address)
    assert switches.state()["main"].drained == [TWO]


@pytest.mark.parametrize(
    ("action", "upstream", "argument", "problem"),
    [
        *((action, "mian", ONE, 'there is no upstream "mian"; the upstreams are: lone, main') for action in get_args(Action)),
        ("drain", "main", "10.0.0.7:22", f'upstream main has no address "10.0.0.7:22"; its addresses are: {ONE}, {TWO}'),
        ("ready", "main", "10.0.0.5", f'upstream main has no address "10.0.0.5"; its addresses are: {ONE}, {TWO}'),
        ("drain", "main", "\x1b[2J", f'upstream main has no address "?[2J"; its addresses are: {ONE}, {TWO}'),
        (
            "drain",
            "lone",
            "git.example.com:22",
            "git.example.com:22 is the last address of upstream lone that takes new sessions; to stop all, pause the upstream",
        ),
        ("freeze", "main", "", "the text that clients are to read is empty, must say why"),
        ("freeze", "main", "two\nlines", "the text that clients are to read has control characters, must have none"),
        (
            "freeze",
            "main",
            "x" * (CLIENT_TEXT_BYTES + 1),
            f"the text that clients are to read has {CLIENT_TEXT_BYTES + 1} bytes, at most {CLIENT_TEXT_BYTES} are allowed",
        ),
    ],
)
def test_what_cannot_be_switched_is_one_line_that_says_what_can(
    switches: Switches, action: Action, upstream: str, argument: str, problem: str
) -> None:
    with pytest.raises(Wrong) as raised:
        throw(switches, action, upstream, argument)
    assert str(raised.value) == problem
    assert switches.state() == {}


def test_the_last_address_that_serves_cannot_be_drained(switches: Switches) -> None:
    throw(switches, "drain", argument=ONE)
    with pytest.raises(Wrong, match="last address of upstream main"):
        throw(switches, "drain", argument=TWO)
    assert not throw(switches, "drain", argument=ONE), "it is draining already"
    throw(switches, "ready", argument=ONE)
    assert throw(switches, "drain", argument=TWO)


def test_without_upstreams_the_line_says_so() -> None:
    with pytest.raises(Wrong, match="the upstreams are: none"):
        Switches(configured()).throw("pause", "main", "", BY, 0.0)


def test_a_reload_drops_the_switches_of_what_is_gone_with_a_line_each(switches: Switches) -> None:
    for upstream, action, argument in (
        ("lone", "pause", ""),
        ("lone", "freeze", "moving"),
        ("main", "drain", ONE),
        ("main", "pause", ""),
    ):
        throw(switches, action, upstream, argument)  # type: ignore[arg-type]
    assert switches.reload(CONFIG) == []
    assert switches.reload(configured(main=[TWO, "10.0.0.9:22"])) == [
        "upstream lone is not configured any more; it is no longer paused",
        "upstream lone is not configured any more; it is no longer frozen",
        f"upstream main: {ONE} is not configured any more; it is no longer draining",
    ]
    assert switches.state() == {"main": UpstreamSwitches(paused=True)}
    assert switches.reload(CONFIG) == [], "what was dropped does not come back"
    assert switches.state() == {"main": UpstreamSwitches(paused=True)}


def test_a_reload_that_leaves_only_draining_addresses_is_told(switches: Switches) -> None:
    throw(switches, "drain", argument=ONE)
    assert switches.without_address() == []
    assert switches.reload(configured(main=[ONE], lone=[TWO])) == []
    assert switches.without_address() == ["main"]


@given(st.lists(st.tuples(st.sampled_from(get_args(Action)), st.sampled_from(["main", "lone", "none"]), st.sampled_from([ONE, TWO, "x"]))))
def test_whatever_is_thrown_one_address_of_each_upstream_serves(actions: list[Any]) -> None:
    switches = Switches(CONFIG)
    for action, upstream, argument in actions:
        before = switches.state()
        try:
            changed = throw(switches, action, upstream, argument)
        except Wrong:
            changed = False
        assert (switches.state() != before) == changed
        for name, state in switches.state().items():
            assert set(state.drained) < set(CONFIG.upstreams[name].addresses)


def test_every_action_has_its_sentence() -> None:
    said = {sentence(action, "main", ONE) for action in get_args(Action)}
    assert len(said) == len(get_args(Action))
    assert all("upstream main" in one for one in said)
    assert sentence("freeze", "main", "a\u202eb") == "upstream main is frozen; who pushes reads: a?b"
