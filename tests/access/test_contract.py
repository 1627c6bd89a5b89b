"""What every access backend must do, whatever its source. A new backend adds its factory to BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from relay import config
from relay.access import Access
from relay.access.open import open_access
from relay.errors import Denied
from relay.model import AccessLevel as Kind
from relay.model import Command, Grant, Identity
from tests.support.authority import Authority
from tests.support.redis import RedisServer
from tests.support.toml import toml_text


class Allowed(NamedTuple):
    """One right in the backend's data."""

    who: str
    repository: str
    access: Kind


Open = Callable[[Path, Sequence[Allowed]], Access]
Backend = Callable[[ExitStack, Path, Sequence[Allowed]], Access]


def file_backend(stack: ExitStack, folder: Path, allowed: Sequence[Allowed]) -> Access:
    rules = [{"repositories": one.repository, "who": [one.who], "allow": one.access} for one in allowed]
    (folder / "access.toml").write_text(toml_text({"rule": rules}) if rules else "")
    return open_access(config.FileAccessSettings(), folder)


def http_backend(stack: ExitStack, folder: Path, allowed: Sequence[Allowed]) -> Access:
    authority = stack.enter_context(Authority(folder))
    authority.write(access={one.repository: {one.who: one.access} for one in allowed})
    return open_access(config.HttpAccessSettings(url=authority.url), folder)


def redis_backend(stack: ExitStack, folder: Path, allowed: Sequence[Allowed]) -> Access:
    server = stack.enter_context(RedisServer())
    for one in allowed:
        server.run("HSET", f"relay:access:{one.repository}", one.who, one.access)
    return open_access(config.RedisAccessSettings(urls=[server.url]), folder)


BACKENDS: list[Backend] = [file_backend, http_backend, redis_backend]

UPLOAD, RECEIVE = Command(service="git-upload-pack", repository="team/app"), Command(service="git-receive-pack", repository="team/app")
LFS_UPLOAD = Command(service="git-lfs-authenticate", repository="team/app", operation="upload")
LFS_DOWNLOAD = Command(service="git-lfs-authenticate", repository="team/app", operation="download")


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__)
def backend(request: pytest.FixtureRequest) -> Iterator[Open]:
    with ExitStack() as stack:  # the backend's servers
        yield partial(request.param, stack)


async def ask(access: Access, who: str, command: Command) -> Grant:
    return await access.check(Identity(name=who, fingerprint="SHA256:x"), command, "192.0.2.1", "s1")


async def denied(access: Access, who: str, command: Command) -> bool:
    try:
        await ask(access, who, command)
    except Denied as error:
        # the client gets the same answer for every reason; the exact one is for the log
        assert error.message == Denied.message
        assert error.exit_status == 128
        return True
    return False


async def test_read_covers_fetching_and_not_pushing(backend: Open, tmp_path: Path) -> None:
    access = backend(tmp_path, [Allowed("alice", "team/app", "read")])
    assert (await ask(access, "alice", UPLOAD)).access == "read"
    assert (await ask(access, "alice", LFS_DOWNLOAD)).access == "read"
    assert await denied(access, "alice", RECEIVE)
    assert await denied(access, "alice", LFS_UPLOAD)
    await access.close()


async def test_write_covers_both(backend: Open, tmp_path: Path) -> None:
    access = backend(tmp_path, [Allowed("alice", "team/app", "write")])
    for command in (UPLOAD, RECEIVE, LFS_DOWNLOAD, LFS_UPLOAD):
        grant = await ask(access, "alice", command)
        assert grant.access in (command.needs, "write")
    await access.close()


async def test_another_identity_and_another_repository_are_denied(backend: Open, tmp_path: Path) -> None:
    access = backend(tmp_path, [Allowed("alice", "team/app", "write")])
    assert await denied(access, "bob", UPLOAD)
    assert await denied(access, "Alice", UPLOAD)
    assert await denied(access, "alice", Command(service="git-upload-pack", repository="team/app2"))
    assert await denied(access, "alice", Command(service="git-upload-pack", repository="x/team/app"))
    await access.close()


async def test_without_rules_everything_is_denied(backend: Open, tmp_path: Path) -> None:
    access = backend(tmp_path, [])
    assert await denied(access, "alice", UPLOAD)
    assert access.source in ("file", "http", "redis", "exec")
    await access.close()
