"""Observers: all that one is told, each of several is told, in order and unchanged."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from relay.events import Observer, Observers

METHODS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")]


class Told(Observer):
    """Keeps every call, with its arguments by name."""

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


def test_there_is_something_to_tell() -> None:
    assert {"connection_opened", "connection_closed", "session_started", "session_ended"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_passed_on_to_all_in_order(method: str) -> None:
    assert method in vars(Observers), f"Observers does not pass on {method}"
    calls: list[tuple[str, str, dict[str, Any]]] = []
    both = Observers([Told("one", calls), Told("two", calls)])
    arguments = {name: object() for name in inspect.signature(getattr(Observer, method)).parameters if name != "self"}
    getattr(both, method)(**arguments)
    assert calls == [("one", method, arguments), ("two", method, arguments)]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_the_same_for_one_and_for_several(method: str) -> None:
    assert inspect.signature(getattr(Observers, method)) == inspect.signature(getattr(Observer, method))


@pytest.mark.parametrize("method", METHODS)
def test_the_base_ignores_everything(method: str) -> None:
    count = len(inspect.signature(getattr(Observer, method)).parameters) - 1
    assert getattr(Observer(), method)(*[None] * count) is None
