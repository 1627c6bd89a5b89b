"""News about git hosts between the workers of one relay, so that one worker checks a host for all.

OpenSSH from 9.8 on counts connections that leave without a login, and logins that fail, and for a while turns away the address they come
from (PerSourcePenalties): one worker that keeps asking would shut out all. A worker without a supervisor does its own checks.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Colleagues:
    """The other workers, from inside one."""

    def __init__(self) -> None:
        self.probing = True  # whether this worker is the one that probes a host of which no worker has news
        self.first = True  # whether this worker logs in to git hosts at once, and does not wait for another worker's news
        self._send: Callable[[HostNews], None] = lambda news: None
        self._listeners: dict[tuple[str, str], list[Callable[[HostNews], None]]] = {}

    def connect(self, send: Callable[[HostNews], None], *, first: bool = True) -> None:
        """Called when there is a supervisor: `send` passes news to the other workers, and the supervisor chooses the worker that probes.

        `first`: as the supervisor's Start message says.
        """
        self.probing = False
        self.first = first
        self._send = send

    def listen(self, upstream: str, address: str, call: Callable[[HostNews], None]) -> None:
        """`call` is called with each news of an address from another worker."""
        self._listeners.setdefault((upstream, address), []).append(call)

    def tell(self, news: HostNews) -> None:
        self._send(news)

    def told(self, news: HostNews) -> None:
        """Passes another worker's news to the listeners; news of an upstream that is not configured here is dropped."""
        for call in self._listeners.get((news.upstream, news.address), ()):
            call(news)


class HostNews(msgspec.Struct, frozen=True, array_like=True):
    """One worker's news of an address. `identity` is set only if a login of that identity was refused.

    The reason `auth` without an identity means a login with the upstream's own key: refused, or (no `problem`) accepted,
    for the first time or after a refusal.
    """

    upstream: str
    address: str
    problem: str = ""  # empty: the address answers
    reason: str = ""  # of the Unavailable, with `problem`
    identity: str = ""
    seconds: float = 0.0  # with `auth`: for how long no login is to be tried again
