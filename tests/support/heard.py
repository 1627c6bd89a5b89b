"""An observer that records the events of backends and caches."""

from __future__ import annotations

from relay.events import BackendQuestion, Observer


class Heard(Observer):
    """`cache` and `answers` hold the results in order."""

    def __init__(self) -> None:
        self.cache: list[str] = []
        self.answers: list[str] = []

    def cache_asked(self, question: BackendQuestion, result: str) -> None:
        self.cache.append(result)

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        self.answers.append(result)
