"""What every keys backend must do, whatever its source. A new backend adds its factory to BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from relay import config
from relay.keys import Keys, identity_fault, open_keys
from tests.support.authority import Authority
from tests.support.keys import SoftwareSecurityKey, fingerprint, make_key
from tests.support.redis import RedisServer

Open = Callable[[Path, Mapping[str, list[str]]], Keys]  # a folder of its own, and the key lines of each identity
Backend = Callable[[ExitStack, Path, Mapping[str, list[str]]], Keys]


def file_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    (folder / "keys").mkdir()
    for name, lines in people.items():
        (folder / "keys" / f"{name}.pub").write_text("".join(f"{line}\n" for line in lines))
    return open_keys(config.FileKeys(), folder)


def http_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    authority = stack.enter_context(Authority(folder))
    authority.write(keys={fingerprint(line): name for name, lines in people.items() for line in lines})
    return open_keys(config.HttpKeys(url=authority.url), folder)


def redis_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    server = stack.enter_context(RedisServer())
    for name, lines in people.items():
        for line in lines:
            server.run("HSET", "relay:keys", fingerprint(line), name)
    return open_keys(config.RedisKeys(urls=[server.url]), folder)


def exec_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    """A shell script that greps a list, as people write them."""
    (folder / "list").write_text("".join(f"{fingerprint(line)} {name}\n" for name, lines in people.items() for line in lines))
    program = folder / "who-is"
    program.write_text(f"#!/bin/sh\nsed -n \"s|^$1 ||p\" {folder}/list\n")
    program.chmod(0o755)
    return open_keys(config.ExecKeys(command=["who-is", "%f", "%t", "%k"]), folder)


BACKENDS: list[Backend] = [file_backend, http_backend, redis_backend, exec_backend]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__)
def backend(request: pytest.FixtureRequest) -> Iterator[Open]:
    with ExitStack() as stack:  # the servers that the backend asks
        yield partial(request.param, stack)


def plain_line(line: str) -> str:
    return " ".join(line.split()[:2])


async def test_each_key_belongs_to_its_identity(backend: Open, tmp_path: Path) -> None:
    alice, laptop, bob = (make_key(tmp_path / "made", name) for name in ("alice", "laptop", "bob"))
    token = SoftwareSecurityKey("sk-ecdsa")
    keys = backend(tmp_path, {"alice": [alice.line, laptop.line], "bob": [bob.line, token.line]})
    try:
        for key, owner in ((alice, "alice"), (laptop, "alice"), (bob, "bob"), (token, "bob")):
            assert await keys.owner(key.fingerprint, plain_line(key.line)) == owner
    finally:
        await keys.close()


async def test_a_key_that_nobody_has_has_no_owner(backend: Open, tmp_path: Path) -> None:
    alice, stranger = make_key(tmp_path / "made", "alice"), make_key(tmp_path / "made", "stranger")
    keys = backend(tmp_path, {"alice": [alice.line]})
    try:
        assert await keys.owner(stranger.fingerprint, plain_line(stranger.line)) is None
    finally:
        await keys.close()


@pytest.mark.parametrize("name", ["alice", "alice@example.com", "Zoë Å", "build-bot_7"])
async def test_names_come_back_as_they_are(backend: Open, tmp_path: Path, name: str) -> None:
    key = make_key(tmp_path / "made", "key")
    keys = backend(tmp_path, {name: [key.line]})
    try:
        assert await keys.owner(key.fingerprint, plain_line(key.line)) == name
    finally:
        await keys.close()


async def test_the_source_is_named_for_metrics(backend: Open, tmp_path: Path) -> None:
    keys = backend(tmp_path, {})
    assert keys.source in ("file", "http", "redis", "exec")
    await keys.close()


@pytest.mark.parametrize("name", ["", "a" * 256, "a/b", "a\nb", " a", "a ", "*", "@core", "a\u202eb", "a\udcffb"])
def test_names_that_no_identity_may_have(name: str) -> None:
    assert "must" in (fault := identity_fault(name) or "") or "allowed" in fault
