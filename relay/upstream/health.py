"""Whether an address of a git host is up, from three sources.

1. Its connections: a check asks an idle one, or sees when one in use last received something.
2. Without a connection a check is a key exchange up to the host key. It needs no login, and finds what TCP alone cannot: an sshd that
   is stopped, a host with another key.
3. Dials: a login proves more than a check, so a successful one counts at once. A failed dial counts in the breaker, which only a login
   closes again: a host that answers but refuses every login is not up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from relay.errors import Unavailable
from relay.events import Observer
from relay.upstream.breaker import Breaker

SUSPECT_SECONDS = 2.0  # the longest pause between checks while results differ from the known state, but not often enough to change it
JITTER = 0.25  # of the interval, in both directions, so that workers and addresses are not checked in step

_random = random.SystemRandom()
_log = logging.getLogger("relay.upstream")


class Health:
    """One address's health. Each change is reported to observer and log once; `quiet`: never."""

    def __init__(self, upstream: str, address: str, fall: int, rise: int, observer: Observer, *, quiet: bool = False) -> None:
        self.breaker = Breaker(fall)
        self.heard = -1e9  # when a dial last ended, or news came from another worker (time.monotonic())
        self.logged_in = -1e9  # when a dial last succeeded
        self._upstream, self._address, self._observer = upstream, address, observer
        self._fall, self._rise = fall, rise
        self._answers: bool | None = None  # the state according to checks
        self._against = 0  # checks in a row with another result
        self._told: bool | None = None
        self._quiet = quiet

    def __repr__(self) -> str:
        return f"<health {self._address} {'unknown' if self.up is None else 'up' if self.up else 'down'} {self.breaker!r}>"

    @property
    def up(self) -> bool | None:
        """None: nothing is known yet."""
        if self._answers is False or self.breaker.state != "closed":
            return False
        return True if self._answers or self.breaker.proven else None

    @property
    def checks_pass(self) -> bool:
        return self._answers is True and not self._against

    @property
    def suspect(self) -> bool:
        """Whether the last checks had another result than the known state."""
        return self._against > 0

    def dialed(self, error: Unavailable | None, because: str = "") -> None:
        """A login succeeded or failed, or a warm connection did not accept a command in time."""
        self.heard = time.monotonic()
        if error is None:
            self.logged_in = self.heard
            self.breaker.succeeded()
            self._answers, self._against = True, 0
        else:
            self.breaker.failed(at_once=error.reason == "host_key")
        self._tell(because or str(error))

    def checked(self, error: Unavailable | None) -> None:
        """A check succeeded or failed: `fall` failures in a row mark the address down, `rise` successes up again."""
        answers = error is None
        if answers is self._answers:
            self._against = 0
        else:
            self._against += 1
            enough = self._rise if answers else self._fall
            if self._answers is None or self._against >= enough or (error is not None and error.reason == "host_key"):
                self._answers, self._against = answers, 0
        self._tell(str(error))

    def _tell(self, detail: str) -> None:
        up, before = self.up, self._told
        if up is None or up is before or self._quiet:
            return
        self._told = up
        if not up:
            _log.warning("upstream %s: %s is down: %s", self._upstream, self._address, detail)
        elif before is False:
            _log.warning("upstream %s: %s is back", self._upstream, self._address)
        self._observer.upstream_health(self._upstream, self._address, up, "" if up else detail)


async def check_for_ever(
    health: Health,
    check: Callable[[float], Awaitable[bool]],
    seconds: float,
    patience: float,
    after: Callable[[Unavailable | None], None],
) -> None:
    """Awaits `check` about every `seconds`; calls `after` with each result.

    `check` gets the number of seconds within which a sign of life is recent enough. It raises Unavailable, or returns False if another
    worker will find out. A check that takes longer than `patience` seconds has failed.
    """
    while True:
        pause = min(seconds, SUSPECT_SECONDS) if health.suspect else seconds
        await asyncio.sleep(pause * _random.uniform(1 - JITTER, 1 + JITTER))
        if time.monotonic() - health.heard < pause and time.monotonic() - health.logged_in >= pause:
            continue  # a dial failed, or another worker sent news
        error: Unavailable | None = None
        try:
            async with asyncio.timeout(patience):
                if not await check(pause):
                    continue
        except Unavailable as known:
            error = known.with_traceback(None)
        except TimeoutError:
            error = Unavailable(f"no answer within {patience:g} s", reason="timeout")
        health.checked(error)
        after(error)
