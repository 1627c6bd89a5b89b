"""The error tree: each class's text for client, log and metrics, and that the drawing at the top of the file is the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest

from relay import errors
from relay.errors import Blame, ClientIdle, ConfigError, Denied, Malformed, RelayError, Unavailable, Undecided, Why
from relay.observe.metrics import REJECTIONS

DRAWN = re.compile(r"^([│├└─ ]*)(\w+)(?: {2,}|$)(.*)$")


def tree(kind: type[RelayError] = RelayError) -> Iterator[type[RelayError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


ALL = list(tree())


def made(kind: type[RelayError]) -> RelayError:
    return ConfigError(["one", "two"]) if kind is ConfigError else kind("exact detail")


def test_the_drawing_is_the_tree() -> None:
    """Compares names, parents by the drawing's indentation, and faults: a class's own, or its nearest drawn ancestor's."""
    path: list[str] = []
    seen: dict[str, tuple[str, str]] = {}
    faults: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.split("\n\n")[1].splitlines():
        found = DRAWN.match(line)
        assert found is not None, line
        depth = len(found[1]) // 4
        told = re.search(r"fault: (.+)$", found[3])
        path[depth:], faults[depth:] = [found[2]], [told[1] if told else faults[depth - 1] if depth else "relay"]
        seen[found[2]] = (path[depth - 1] if depth else "", faults[depth])
    assert set(seen) == {kind.__name__ for kind in ALL}
    for kind in ALL[1:]:
        parent, fault = seen[kind.__name__]
        assert kind.__base__ is not None and parent == kind.__base__.__name__
        assert kind.fault in fault.split(" or "), kind


@pytest.mark.parametrize("kind", ALL)
def test_each_has_all_that_ends_a_session(kind: type[RelayError]) -> None:
    error = made(kind)
    assert re.fullmatch(r"[a-z_]+", error.reason)
    assert error.exit_status in (errors.PUSH_REFUSED, errors.GIT_FATAL, errors.SSH_ERROR)
    assert error.fault in get_args(Blame)
    assert error.message == "" or error.message.startswith("relay: ")
    assert "\n" not in error.message
    assert "exact detail" not in error.message  # only the log has it
    assert str(error) in ("exact detail", "one\ntwo")


def test_no_two_share_a_reason_but_a_class_and_what_it_stands_for() -> None:
    reasons: dict[str, type[RelayError]] = {}
    for kind in ALL:
        other = reasons.setdefault(kind.reason, kind)
        assert other is kind or issubclass(kind, other), (kind, other)


def test_every_rejection_has_its_label_in_the_metrics() -> None:
    assert {kind.reason for kind in tree(errors.Refused)} <= set(REJECTIONS)


def test_nothing_that_ends_a_session_is_a_success() -> None:
    assert all(made(kind).exit_status != 0 for kind in ALL)


@pytest.mark.parametrize(("reason", "passes"), [("dial", True), ("timeout", True), ("auth", False), ("host_key", False), ("exec", False)])
def test_what_passes_when_a_git_host_restarts(reason: str, passes: bool) -> None:
    assert Unavailable(reason=reason).passing is passes
    assert Unavailable(reason=reason, passing=not passes).passing is not passes


def test_a_pause_is_the_operators() -> None:
    assert (Unavailable(reason="paused").fault, Unavailable().fault) == ("policy", "upstream")


def test_an_instance_may_say_more_than_its_class() -> None:
    error = ClientIdle("it owed a word", reason="client_idle_busy", message="relay: another")
    assert (error.reason, error.message, str(error)) == ("client_idle_busy", "relay: another", "it owed a word")
    assert ClientIdle.reason == "client_idle"
    assert str(Malformed()) == Malformed.message


@pytest.mark.parametrize("why", get_args(Why))
def test_undecided_says_why_to_the_audit_and_nothing_to_the_client(why: Why) -> None:
    error = Undecided("it answered 500", why)
    assert (error.why, error.reason, error.fault) == (why, f"undecided_{why}", "relay")
    assert error.message == Undecided.message != Denied.message


def test_a_configuration_error_carries_every_problem() -> None:
    assert ConfigError(["a: b", "c: d"]).problems == ["a: b", "c: d"]
