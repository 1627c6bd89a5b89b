"""Observers: each of several observers gets every event, in order and unchanged."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from relay.events import Observer, Observers

METHODS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")]


class Told(Observer):
    """An observer that keeps every call, with its arguments by name."""

    def __init__(self, name: str, calls: list[tuple[str, str, dict[str, Any]]]) -> None:
        for method in METHODS:
            setattr(self, method, self._keeper(name, method, calls))

    @staticmethod
    def _keeper(name: str, method: str, calls: list[tuple[str, str, dict[str, Any]]]) -> Any:
        signature = inspect.signature(getattr(Observer, method))

        def keep(*given: Any, **named: Any) -> None:
            bound = signature.bind(None, *given, **named)
            bound.apply_defaults()
            calls.append((name, method, {key: value for key, value in bound.arguments.items() if key != "self"}))

        return keep


def test_the_observer_has_events() -> None:
    assert {"connection_opened", "connection_closed", "session_started", "session_ended"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_event_is_passed_to_all_observers_in_order(method: str) -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = []
    both = Observers([Told("one", calls), Told("two", calls)])
    arguments = {name: object() for name in inspect.signature(getattr(Observer, method)).parameters if name != "self"}
    getattr(both, method)(**arguments)
    assert calls == [("one", method, arguments), ("two", method, arguments)]


class Partly(Observer):
    """An observer of started sessions only."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def session_started(self, session: Any) -> None:
        self.heard.append(session)


def test_an_observer_that_ignores_an_event_is_not_called() -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = []
    one, other = Partly(), Partly()
    several = Observers([one, Observer(), Told("told", calls), other])
    several.session_started("a session")  # type: ignore[arg-type]
    assert (one.heard, other.heard) == (["a session"], ["a session"])
    alone = Observers([Observer(), Partly(), one])
    alone.auth_succeeded("a connection", "an identity")  # type: ignore[arg-type]
    assert "auth_succeeded" not in vars(alone)
    assert Observers([one, Observer()]).session_started == one.session_started


def test_several_within_several() -> None:
    one, other = Partly(), Partly()
    Observers([Observers([one, other]), Observers([Observer()])]).session_started("a session")  # type: ignore[arg-type]
    assert (one.heard, other.heard) == (["a session"], ["a session"])


@pytest.mark.parametrize("method", METHODS)
def test_the_base_ignores_everything(method: str) -> None:
    count = len(inspect.signature(getattr(Observer, method)).parameters) - 1
    assert getattr(Observer(), method)(*[None] * count) is None
