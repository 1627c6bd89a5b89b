"""A small world: a workspace and a git host for the current user, so that no account is made; no network for the Go toolchain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.clients import Clients
from benchmarks.contenders import Contender, Fleet, make_keys
from benchmarks.processes import Runner
from benchmarks.user import current
from benchmarks.workspace import Workspace, workspace


class World:
    """The parts of the suite, connected."""

    def __init__(self, space: Workspace, fleet: Fleet, clients: Clients) -> None:
        self.space, self.fleet, self.clients = space, fleet, clients

    @property
    def direct(self) -> Contender:
        return self.fleet.direct()


@pytest.fixture(autouse=True, scope="session")
def go_from_cache_only() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOPROXY", "off")
        patch.setenv("GOTOOLCHAIN", "local")
        yield


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path, current()) as made:
        yield made


@pytest.fixture(scope="module")
def world(go_from_cache_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        space = stack.enter_context(workspace(tmp_path_factory.mktemp("bench"), current()))
        runner = Runner(space.env)
        stack.callback(runner.close)
        keys = make_keys(space)
        host = sshd.git_host(space, "git_host", keys.host_upstream, [keys.client.public, keys.upstream.public])
        stack.callback(host.stop)
        space.repository("small", 100)
        space.repository("big", 300_000)
        yield World(space, Fleet(space, keys, host, pool_idle=1), Clients(space, runner))
