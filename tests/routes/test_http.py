"""Routes of an HTTP authority, valid and invalid."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay import config
from relay.errors import Undecided
from relay.model import Command, Identity, Route
from relay.routes.http import HttpRoutes
from tests.support.answering import Answering, Said

COMMAND, ALICE = Command(service="git-upload-pack", repository="team/app"), Identity(name="alice", fingerprint="SHA256:x")


async def find(body: bytes) -> Route:
    async with Answering(Said(200, body)) as server:
        routes = HttpRoutes(config.HttpRoutesSettings(url=server.url), Path(), {"main"})
        try:
            return await routes.find(COMMAND, ALICE)
        finally:
            await routes.close()
            assert server.asked[0].query == {"repository": "team/app", "service": "git-upload-pack", "identity": "alice"}


async def test_a_route() -> None:
    assert await find(b'{"upstream": "main", "path": "/srv/app.git"}') == Route(upstream="main", path="/srv/app.git")


@pytest.mark.parametrize(
    "body",
    [
        b'{"upstream": "other", "path": "/srv/app.git"}',
        b'{"upstream": "main", "path": "-x"}',
        b'{"upstream": "main", "path": "/a\\u0000b"}',
        b'{"upstream": "main"}',
        b'{"upstream": "main", "path": "/a", "read_upstream": "other"}',
        b'{"upstream": "main", "path": "/a", "read_fallback": "no"}',
        b"[]",
    ],
)
async def test_a_route_to_an_unknown_upstream_is_undecided(body: bytes) -> None:
    with pytest.raises(Undecided) as caught:
        await find(body)
    assert caught.value.why == "invalid"
