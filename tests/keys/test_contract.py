"""What every keys backend must do, whatever its source. A new backend adds its factory to BACKENDS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from relay import config
from relay.keys import Keys, identity_fault
from relay.keys.open import open_keys
from relay.tasks import Tasks
from tests.support.authority import Authority
from tests.support.keys import SoftwareSecurityKey, fingerprint, make_key
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async

Open = Callable[[Path, Mapping[str, list[str]]], Keys]  # arguments: an own folder, and the key lines of each identity
Backend = Callable[[ExitStack, Path, Mapping[str, list[str]]], Keys]


def file_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    (folder / "keys").mkdir()
    for name, lines in people.items():
        (folder / "keys" / f"{name}.pub").write_text("".join(f"{line}\n" for line in lines))
    return open_keys(config.FileKeysSettings(), folder)


def http_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    authority = stack.enter_context(Authority(folder))
    authority.write(keys={fingerprint(line): name for name, lines in people.items() for line in lines})
    return open_keys(config.HttpKeysSettings(url=authority.url), folder)


def redis_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    server = stack.enter_context(RedisServer())
    for name, lines in people.items():
        for line in lines:
            server.run("HSET", "relay:keys", fingerprint(line), name)
    return open_keys(config.RedisKeysSettings(urls=[server.url]), folder)


def exec_backend(stack: ExitStack, folder: Path, people: Mapping[str, list[str]]) -> Keys:
    """A keys program as people write it: a shell script that greps a list."""
    (folder / "list").write_text("".join(f"{fingerprint(line)} {name}\n" for name, lines in people.items() for line in lines))
    program = folder / "who-is"
    program.write_text(f'#!/bin/sh\nsed -n "s|^$1 ||p" {folder}/list\n')
    program.chmod(0o755)
    return open_keys(config.ExecKeysSettings(command=["who-is", "%f", "%t", "%k"]), folder)


BACKENDS: list[Backend] = [file_backend, http_backend, redis_backend, exec_backend]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__)
def backend(request: pytest.FixtureRequest) -> Iterator[Open]:
    with ExitStack() as stack:  # the backend's servers
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


async def test_an_unknown_key_has_no_owner(backend: Open, tmp_path: Path) -> None:
    alice, stranger = make_key(tmp_path / "made", "alice"), make_key(tmp_path / "made", "stranger")
    keys = backend(tmp_path, {"alice": [alice.line]})
    try:
        assert await keys.owner(stranger.fingerprint, plain_line(stranger.line)) is None
    finally:
        await keys.close()


@pytest.mark.parametrize("name", ["alice", "alice@example.com", "Zoë Å", "build-bot_7"])
async def test_names_are_returned_unchanged(backend: Open, tmp_path: Path, name: str) -> None:
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
def test_invalid_names_of_identities(name: str) -> None:
    assert "must" in (fault := identity_fault(name) or "") or "allowed" in fault


# -- a flood of strange keys ---------------------------------------------------------------------------------------------

FLOOD, TIMEOUT_SECONDS = 98, 5.0
CACHE = config.CacheSettings(ttl_seconds=0, negative_seconds=0, stale_seconds=3600)


class Holding:
    """A TCP proxy that never forwards data that contains `word`; `count` is how often it got such data."""

    def __init__(self, url: str, word: bytes) -> None:
        self.count = 0
        self._target = urlsplit(url)
        self._word = word

    async def __aenter__(self) -> Self:
        self._tasks = Tasks()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._tasks.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), "a connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._target.scheme == "unix":
            back, forth = await asyncio.open_unix_connection(self._target.path)
        else:
            back, forth = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            await asyncio.gather(self._pass(reader, forth), self._pass(back, writer))
        finally:
            writer.close()
            forth.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self._word in data:
                    self.count += 1
                else:
                    writer.write(data)
        except ConnectionError:
            pass  # the client gave up
        writer.close()


class Flooded:
    """A backend that answers at once for known keys and never for unknown ones; `strangers` counts the latter."""

    def __init__(self, keys: Keys, people: dict[str, str], write: Callable[[dict[str, str]], None], strangers: Callable[[], int]) -> None:
        self.keys, self.people, self._write, self.strangers = keys, people, write, strangers
        write(people)

    def revoke(self, key: str) -> None:
        del self.people[key]
        self._write(self.people)


def flooded_exec(folder: Path, people: dict[str, str]) -> Flooded:
    program, asked = folder / "who-is", folder / "asked"
    asked.touch()
    program.write_text(f'#!/bin/sh\ncase $1 in *strange*) echo >>{asked}; exec sleep 1000;; esac\nsed -n "s|^$1 ||p" {folder}/list\n')
    program.chmod(0o755)
    settings = config.ExecKeysSettings(command=["who-is", "%f"], timeout_seconds=TIMEOUT_SECONDS, cache=CACHE)

    def write(people: dict[str, str]) -> None:
        (folder / "list").write_text("".join(f"{key} {name}\n" for key, name in people.items()))

    return Flooded(open_keys(settings, folder), people, write, lambda: len(asked.read_text()))


async def flooded_http(stack: AsyncExitStack, folder: Path, people: dict[str, str]) -> Flooded:
    authority = stack.enter_context(Authority(folder))
    held = await stack.enter_async_context(Holding(authority.url, b"strange"))
    settings = config.HttpKeysSettings(url=f"http://127.0.0.1:{held.port}", timeout_seconds=TIMEOUT_SECONDS, cache=CACHE)
    return Flooded(open_keys(settings, folder), people, lambda people: authority.write(keys=dict(people)), lambda: held.count)


async def flooded_redis(stack: AsyncExitStack, folder: Path, people: dict[str, str]) -> Flooded:
    server = stack.enter_context(RedisServer())
    held = await stack.enter_async_context(Holding(server.url, b"strange"))
    settings = config.RedisKeysSettings(urls=[f"redis://127.0.0.1:{held.port}"], timeout_seconds=TIMEOUT_SECONDS, cache=CACHE)

    def write(people: dict[str, str]) -> None:
        server.run("DEL", "relay:keys")
        for key, name in people.items():
            server.run("HSET", "relay:keys", key, name)

    return Flooded(open_keys(settings, folder), people, write, lambda: held.count)


@pytest.mark.parametrize("kind", ["exec", "http", "redis"])
async def test_a_revoked_key_is_refused_while_strangers_keep_the_backend_busy(tmp_path: Path, kind: str) -> None:
    people = {"SHA256:alice": "alice", "SHA256:bob": "bob"}
    async with AsyncExitStack() as stack:
        if kind == "exec":
            flooded = flooded_exec(tmp_path, people)
        else:
            flooded = await (flooded_http if kind == "http" else flooded_redis)(stack, tmp_path, people)
        assert [await flooded.keys.owner(key, "ssh-ed25519 AAAA") for key in ("SHA256:alice", "SHA256:bob")] == ["alice", "bob"]
        flood = [asyncio.ensure_future(flooded.keys.owner(f"SHA256:strange{number}", "ssh-ed25519 AAAA")) for number in range(FLOOD)]
        await wait_until_async(lambda: flooded.strangers() > 0)
        flooded.revoke("SHA256:alice")
        assert [await flooded.keys.owner(key, "ssh-ed25519 AAAA") for key in ("SHA256:alice", "SHA256:bob")] == [None, "bob"]
        assert not any(one.done() for one in flood), "they were all waiting or asked while alice and bob were told"
        assert flooded.strangers() <= 4, "a quarter of the slots"
        for one in flood:
            one.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await flooded.keys.close()
