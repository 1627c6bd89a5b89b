"""Keys of an HTTP authority: the request, and answers that are invalid."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay import config
from relay.errors import Undecided
from relay.keys.http import HttpKeys
from relay.keys.open import open_keys
from tests.support.answering import Answering, Said
from tests.support.heard import Heard
from tests.support.keys import make_key
from tests.support.wait import wait_until_async


async def test_fingerprint_and_key_are_asked_for(tmp_path: Path) -> None:
    key = make_key(tmp_path, "alice", "rsa")
    async with Answering(Said(200, b'{"identity": "alice"}')) as server:
        keys = HttpKeys(config.HttpKeysSettings(url=server.url), tmp_path)
        assert await keys.owner(key.fingerprint, key.host_line) == "alice"
        assert server.asked[0].query == {"fingerprint": key.fingerprint, "key": key.host_line}
        await keys.close()


async def test_a_thousand_logins_at_once_with_one_key_are_one_request(tmp_path: Path) -> None:
    key = make_key(tmp_path, "alice")
    heard = Heard()
    async with Answering(Said(200, b'{"identity": "alice"}')) as server:
        server.gate.clear()
        keys = open_keys(config.HttpKeysSettings(url=server.url, timeout_seconds=60), tmp_path, heard)
        loop = asyncio.get_running_loop()
        logins = [loop.create_task(keys.owner(key.fingerprint, key.host_line)) for _ in range(1000)]
        await wait_until_async(lambda: len(heard.cache) == 1000 and server.asked)
        server.gate.set()
        assert await asyncio.gather(*logins) == ["alice"] * 1000
        assert len(server.asked) == 1
        assert heard.answers == ["ok"]
        await keys.close()


@pytest.mark.parametrize("name", [b"", b"*", b"@core", b"a/b", b"a\\nb", b"\\ud800", b"a" * 256])
async def test_an_invalid_identity_is_no_answer(tmp_path: Path, name: bytes) -> None:
    async with Answering(Said(200, b'{"identity": "%s"}' % name)) as server:
        keys = HttpKeys(config.HttpKeysSettings(url=server.url), tmp_path)
        with pytest.raises(Undecided) as caught:
            await keys.owner("SHA256:x", "ssh-ed25519 x")
        assert caught.value.why == "invalid"
        await keys.close()
