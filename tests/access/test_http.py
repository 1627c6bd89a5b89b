"""Access of an HTTP authority: read does not allow a push, a grant may have a route, invalid answers are undecided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay import config
from relay.access.http import HttpAccess
from relay.errors import Denied, Undecided
from relay.model import Command, Grant, Identity, RefRule, Route
from relay.text import CLIENT_TEXT_BYTES
from tests.support.answering import Answering, Said

ALICE = Identity(name="alice", fingerprint="SHA256:x")
PUSH = Command(service="git-receive-pack", repository="team/app", protocol="version=2")


async def check(body: bytes, command: Command = PUSH) -> Grant:
    async with Answering(Said(200, body)) as server:
        access = HttpAccess(config.HttpAccessSettings(url=server.url), Path(), {"main"})
        try:
            return await access.check(ALICE, command, "192.0.2.1", "c0ffee-1")
        finally:
            await access.close()
            assert json.loads(server.asked[0].body) == {
                "identity": "alice",
                "key": "SHA256:x",
                "service": command.service,
                "repository": "team/app",
                "needs": command.needs,
                "client_address": "192.0.2.1",
                "session_id": "c0ffee-1",
                **({"operation": command.operation} if command.operation else {}),
            }


async def test_a_grant_with_and_without_a_route() -> None:
    assert await check(b'{"access": "write"}') == Grant(access="write")
    route = Route(upstream="main", path="/srv/git/app.git")
    body = b'{"access": "write", "route": {"upstream": "main", "path": "/srv/git/app.git"}}'
    assert await check(body) == Grant(access="write", route=route)


async def test_a_grant_with_rules_for_refs() -> None:
    rules = b'[{"refs": ["refs/heads/main"], "write": false}, {"refs": ["**"], "write": true, "changes": ["create"]}]'
    body = b'{"access": "write", "refs": %s}' % rules
    assert (await check(body)).refs == (
        RefRule(refs=("refs/heads/main",), write=False),
        RefRule(refs=("**",), write=True, changes=("create",)),
    )


async def test_an_identity_that_may_read_may_not_push() -> None:
    with pytest.raises(Denied):
        await check(b'{"access": "read"}')
    with pytest.raises(Denied):
        await check(b'{"access": "read"}', Command(service="git-lfs-authenticate", repository="team/app", operation="upload"))
    assert (await check(b'{"access": "read"}', Command(service="git-upload-pack", repository="team/app"))).access == "read"


@pytest.mark.parametrize(
    "body",
    [
        b'{"access": "admin"}',
        b'{"access": true}',
        b'{"allow": true}',
        b'{"access": "write", "route": "main"}',
        b'{"access": "write", "refs": ["refs/heads/main"]}',
        b'{"access": "write", "refs": [{"refs": ["refs/heads/main"]}]}',
        b'{"access": "write", "refs": [{"refs": ["main"], "write": false}]}',
        b'{"access": "write", "refs": [{"refs": ["**"], "write": false, "changes": ["force"]}]}',
        b'{"access": "write", "refs": [{"refs": ["refs/heads/{main,release}"], "write": false}]}',
        b'{"access": "write", "refs": [{"refs": ["refs/heads/ma in"], "write": false}]}',
        b'{"access": "write", "refs": [{"refs": [], "write": false}]}',
        b'{"access": "write", "refs": [{"refs": ["**"], "write": false, "changes": []}]}',
        b'{"access": "write", "route": {"upstream": "main"}}',
        b'{"access": "write", "route": {"upstream": "elsewhere", "path": "/srv/git/app.git"}}',
        b'{"access": "write", "route": {"upstream": "main", "path": ""}}',
        b'{"access": "write", "route": {"upstream": "main", "path": "--upload-pack=id"}}',
        b'{"access": "write", "route": {"upstream": "main", "path": "/a\\nb"}}',
    ],
)
async def test_an_invalid_answer_is_undecided(body: bytes) -> None:
    with pytest.raises(Undecided) as caught:
        await check(body)
    assert caught.value.why == "invalid"


async def test_a_pattern_that_can_match_nothing_is_named_in_the_log_line() -> None:
    body = b'{"access": "write", "refs": [{"refs": ["**"], "write": true}, {"refs": ["refs/heads/rel?ase"], "write": false}]}'
    with pytest.raises(Undecided) as caught:
        await check(body)
    assert 'rule 2 for refs: "refs/heads/rel?ase" must not have ? in it: only * (within a segment)' in str(caught.value)


async def refused(body: bytes, status: int = 403) -> Denied:
    async with Answering(Said(status, body)) as server:
        access = HttpAccess(config.HttpAccessSettings(url=server.url), Path(), {"main"})
        try:
            with pytest.raises(Denied) as caught:
                await access.check(ALICE, PUSH, "192.0.2.1", "c0ffee-1")
        finally:
            await access.close()
    return caught.value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sign the agreement at https://example.com/cla first", "sign the agreement at https://example.com/cla first"),
        ("Bitte zuerst unterschreiben: 署名", "Bitte zuerst unterschreiben: 署名"),
        ("a\nb\x1b[2Jc\u202e", "a\\x0ab\\x1b[2Jc\\u202e"),
        ("x" * 10_000, "x" * (CLIENT_TEXT_BYTES - 3) + "…"),
    ],
)
async def test_a_refusal_with_a_text_is_read_by_the_client_in_one_line(text: str, shown: str) -> None:
    error = await refused(json.dumps({"message": text, "documentation_url": "https://example.com"}).encode())
    assert (error.message, error.reason, error.exit_status) == (f"relay: access was refused: {shown}", "denied", 128)
    assert str(error) == f"access http: POST /access: answered 403: {shown}"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((403, body) for body in (b"", b"null", b"{}", b"<html>", b"[]", b'{"message": ""}', b'{"message": " "}', b'{"message": null}')),
        (403, b'{"message": 1}'),
        (403, b'{"message": "\xff"}'),
        (403, b'{"message": ' + b"[" * 60_000),
        (401, b'{"message": "sign first"}'),
        (404, b'{"message": "sign first"}'),
    ],
)
async def test_any_other_refusal_is_the_one_answer_for_what_is_not_there(status: int, body: bytes) -> None:
    error = await refused(body, status)
    assert error.message == Denied.message
    assert "sign first" not in str(error)
