"""What the workers of one relay tell each other about their git hosts, so that a host is asked once a relay and not once a worker.

OpenSSH from 9.8 on counts connections that leave without a login, and logins that fail, and for a while turns away the address they come
from (PerSourcePenalties): one worker that goes on asking shuts out all. A worker without a supervisor has no colleagues, and asks itself.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Colleagues:
    """The other workers, from inside one."""

    def __init__(self) -> None:
        self.probing = True  # whether it is this worker that asks a host of which nobody knows anything
        self._send: Callable[[HostNews], None] = lambda news: None
        self._listeners: dict[tuple[str, str], list[Callable[[HostNews], None]]] = {}

    def connect(self, send: Callable[[HostNews], None]) -> None:
        """There is a supervisor, which passes `send` on to the others, and says which worker probes."""
        self.probing = False
        self._send = send

    def listen(self, upstream: str, address: str, call: Callable[[HostNews], None]) -> None:
        """`call` is told what the others say of an address."""
        self._listeners.setdefault((upstream, address), []).append(call)

    def tell(self, news: HostNews) -> None:
        self._send(news)

    def told(self, news: HostNews) -> None:
        """From the supervisor: a colleague's news; of an upstream that is not configured here they are dropped."""
        for call in self._listeners.get((news.upstream, news.address), ()):
            call(news)


class HostNews(msgspec.Struct, frozen=True, array_like=True):
    """One worker's news of an address; `identity` is empty unless a login of that identity was refused.

    With the reason `auth`, and no identity, it is about logins with the upstream's own key: refused, or without a problem accepted again.
    """

    upstream: str
    address: str
    problem: str = ""  # empty: the address answers
    reason: str = ""  # of the Unavailable, with `problem`
    identity: str = ""
    seconds: float = 0.0  # with `auth`: for how long its login is not to be tried again
