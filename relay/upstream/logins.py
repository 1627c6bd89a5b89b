"""The logins at one address: whether one may be tried now, what all workers have learnt of them, and which worker goes first.

A refused login has its price at the git host (relay.upstream.refusals), so a key that is refused is tried once by all workers together:
of workers that start at the same time one logs in, and the others wait for its news, connect_seconds at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from relay.errors import Unavailable
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.libssh2 import Connection
from relay.upstream.refusals import Refusals

TURN_AFTER = 1.5  # times refused_seconds, after which a worker tries a refused login itself if the probing worker sent no news


class Logins:
    """Of one identity, "" for the upstream's own key; all methods belong to one loop. Without `refusals` each login may be tried.

    `dial` logs in, `is_proven` tells whether a login at the address has succeeded. `on_known` is called when this worker waits no longer
    for another one's news.
    """

    def __init__(
        self,
        upstream: str,
        address: str,
        identity: str,
        dial: Callable[[], Awaitable[Connection]],
        is_proven: Callable[[], bool],
        on_known: Callable[[], None],
        refusals: Refusals | None,
        colleagues: Colleagues,
    ) -> None:
        self.waits = False  # whether no login is made ahead, as another worker finds out whether the host accepts them
        self._upstream, self._address, self._identity = upstream, address, identity
        self._dial, self._is_proven, self._on_known = dial, is_proven, on_known
        self._refusals = refusals
        self._colleagues = colleagues
        self._refused = False  # whether the last login was refused, in this worker or another
        self._turn = asyncio.Lock()
        self._news_due: asyncio.TimerHandle | None = None

    @property
    def shared(self) -> bool:
        """Whether all workers log in as the same user, and tell each other how it went."""
        return self._refusals is not None and not self._identity

    def start(self, connect_seconds: float) -> None:
        """The loop must be running."""
        if self.shared and not self._colleagues.first:
            self.waits = True
            self._news_due = asyncio.get_running_loop().call_later(connect_seconds, self.wait_no_more)

    def stop(self) -> None:
        if self._news_due is not None:
            self._news_due.cancel()

    async def log_in(self) -> Connection:
        """Raises Unavailable as Connection.dial; `auth`, without a login, while a refused one is not to be tried again."""
        refusals = self._refusals
        if refusals is None:
            return await self._dial()
        async with self._turn:  # one login at a time, so that the next one sees whether this was refused
            refusals.check(self._identity, self._address)
            # always for an identity; for the upstream's own key until a login was accepted
            if self._identity or self._refused or not self._is_proven():
                return await self._log_in_now(refusals)
        return await self._log_in_now(refusals)

    async def _log_in_now(self, refusals: Refusals) -> Connection:
        try:
            connection = await self._dial()
        except Unavailable as error:
            if error.reason == "auth":
                self._remember(refusals, str(error), refusals.seconds)
                self._colleagues.tell(HostNews(self._upstream, self._address, str(error), error.reason, self._identity, refusals.seconds))
            raise
        if not self._identity and (self._refused or not self._is_proven()):
            refusals.forget(self._identity, self._address)
            self._colleagues.tell(HostNews(self._upstream, self._address, reason="auth"))
        self._refused = False
        self.wait_no_more()
        return connection

    def _remember(self, refusals: Refusals, detail: str, seconds: float) -> None:
        """Keeps the login from being tried for `seconds`; longer in the workers that wait for the probing worker's news."""
        self._refused = True
        if not self._identity and not self._colleagues.probing:
            seconds *= TURN_AFTER
        refusals.add(self._identity, self._address, detail, seconds)

    def hear(self, news: HostNews) -> bool:
        """Another worker's login with the upstream's own key. True: accepted, for the first time or again; then `wait_no_more` is due."""
        if self._refusals is None:
            return False
        if news.problem:
            self._remember(self._refusals, news.problem, news.seconds)
            self.wait_no_more()  # the dials fail here, without a login at the host, and the address is known to be down
            return False
        self._refused = False
        self._refusals.forget(self._identity, self._address)
        return True

    def pause(self, error: Unavailable) -> float | None:
        """For how many seconds after `error` no login is made ahead; None: only a session makes the next one, after refused_seconds."""
        if self._refusals is None or error.reason != "auth":
            return 0.0
        return None if self._identity else self._refusals.left(self._identity, self._address)

    def wait_no_more(self) -> None:
        """Whether the host accepts logins is known, or no worker has found out within connect_seconds."""
        if self.waits:
            self.waits = False
            self._on_known()
