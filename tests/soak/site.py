"""The set-up of the soak: git's clients, a link, the relay, a link, a real sshd; and the record of the faults."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.faultproxy import FaultProxy
from tests.support.gitrepo import git_env, make_big_repo, make_repo, refs, rev_list
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd

WORKERS = 2
AFTERMATH_SECONDS = 0.5  # until a fault's packets have reached the peers, and the programs were scheduled
CONNECT_SECONDS = 100  # a client's timeout: longer than the pause before a killed worker is replaced
CLIENT_ALIVE_SECONDS = 3  # sshd disconnects after three unanswered keepalives: must not happen while the relay's client reads slowly
CLONED = "soak/cloned"
CLONED_MEGABYTES = 4
LISTED = "soak/listed"
LISTED_COMMITS = 5


@dataclass
class Faults:
    """The faults and their times: an operation must succeed if none happened during it."""

    counts: Counter[str] = field(default_factory=Counter)
    _spans: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Records a fault that excuses every operation that overlaps with it."""
        began = time.monotonic()
        self.counts[kind] += 1
        index = len(self._spans)
        self._spans.append((began, float("inf")))
        try:
            yield
        finally:
            self._spans[index] = (began, time.monotonic() + AFTERMATH_SECONDS)

    def count(self, kind: str) -> None:
        """Records a fault that excuses no operation, or only the one that caused it."""
        self.counts[kind] += 1

    def touched(self, began: float, ended: float) -> bool:
        return any(first <= ended and began <= last for first, last in self._spans)


@dataclass(frozen=True)
class Site:
    """`front` is the link from the clients to the relay, `back` the one from the relay to sshd."""

    sshd: Sshd
    relay: RelayProcess
    front: FaultProxy
    back: FaultProxy
    folder: Path
    env: dict[str, str]
    client: SshClient
    faults: Faults
    listed: dict[str, str]  # refs of LISTED
    cloned: list[str]  # objects of CLONED

    def url(self, repository: str) -> str:
        return f"ssh://{self.relay.user}@127.0.0.1:{self.front.port}/{repository}"

    def upstream(self, repository: str) -> Path:
        return self.sshd.root / f"{repository}.git"


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[Site]:
    """Starts everything; at the end asserts that the relay ended cleanly."""
    with Sshd(config=[f"ClientAliveInterval {CLIENT_ALIVE_SECONDS}"]) as sshd:
        make_big_repo(sshd.root / f"{CLONED}.git", CLONED_MEGABYTES)
        make_repo(sshd.root / f"{LISTED}.git", LISTED_COMMITS)
        async with FaultProxy("127.0.0.1", sshd.port) as back:
            config = {"workers": WORKERS, "upstreams": {"main": {"addresses": [f"127.0.0.1:{back.port}"]}}}
            with RelayProcess(sshd, config=config) as relay:
                async with FaultProxy("127.0.0.1", relay.port) as front:
                    known = folder / "known_hosts"
                    known.write_text(f"[127.0.0.1]:{front.port} {relay.host_key_line}\n")
                    patience = f"ConnectTimeout={CONNECT_SECONDS}"
                    env = git_env(folder / "home", key=relay.key.private, known_hosts=known, ssh_options=(patience,))
                    yield Site(
                        sshd=sshd,
                        relay=relay,
                        front=front,
                        back=back,
                        folder=folder,
                        env=env,
                        client=SshClient(front.port, relay.key.private, known, relay.user, options=(patience,)),
                        faults=Faults(),
                        listed=refs(sshd.root / f"{LISTED}.git", env),
                        cloned=rev_list(sshd.root / f"{CLONED}.git", env),
                    )
