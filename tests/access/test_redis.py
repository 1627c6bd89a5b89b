"""Access in Redis: groups, folders, everyone, invalid answers, and published changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from relay import config
from relay.access import Access
from relay.access.open import AskedAccess, open_access
from relay.access.redis import GROUPS
from relay.errors import Denied, Undecided
from relay.git.refs import RefJudge
from relay.model import Command, Identity, RefUpdate
from tests.support.heard import Heard
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


def opened(server: RedisServer, heard: Heard | None = None) -> Access:
    cache = config.CacheSettings() if heard else config.CacheSettings(ttl_seconds=0, negative_seconds=0)
    return open_access(config.RedisAccessSettings(urls=[server.url], timeout_seconds=5, cache=cache), Path(), heard)


async def may(access: Access, who: str, repository: str, service: str = "git-upload-pack") -> str:
    command = Command(service=service, repository=repository)  # type: ignore[arg-type]
    try:
        return (await access.check(Identity(name=who, fingerprint="SHA256:x"), command, "192.0.2.1", "s")).access
    except Denied:
        return "no"


async def test_people_groups_folders_and_everyone(server: RedisServer) -> None:
    server.run("SADD", "relay:groups:alice", "core", "docs")
    server.run("HSET", "relay:access:team/app", "@core", "write", "bob", "read")
    server.run("HSET", "relay:access:team/**", "@docs", "read")
    server.run("HSET", "relay:access:**", "root", "write")
    server.run("HSET", "relay:access:public/**", "*", "read")
    access = opened(server)
    told = {
        (who, name): (await may(access, who, name), await may(access, who, name, "git-receive-pack"))
        for who in ("alice", "bob", "root", "carol")
        for name in ("team/app", "team/a/b", "public/x", "team", "teams/x")
    }
    await access.close()
    assert {place: answer for place, answer in told.items() if answer != ("no", "no")} == {
        ("alice", "team/app"): ("write", "write"),
        ("alice", "team/a/b"): ("read", "no"),
        ("bob", "team/app"): ("read", "no"),
        **{(who, "public/x"): ("read", "no") for who in ("alice", "bob", "carol")},
        **{("root", name): ("write", "write") for name in ("team/app", "team/a/b", "public/x", "team", "teams/x")},
    }


async def test_an_invalid_answer_is_undecided(server: RedisServer) -> None:
    access = opened(server)
    server.run("HSET", "relay:access:a", "alice", "admin")
    server.run("SET", "relay:access:b", "write")
    server.run("SADD", "relay:groups:many", *(f"g{number}" for number in range(GROUPS + 1)))
    for who, repository, why in (("alice", "a", "invalid"), ("alice", "b", "failed"), ("many", "c", "invalid")):
        with pytest.raises(Undecided) as caught:
            await may(access, who, repository)
        assert caught.value.why == why
    await access.close()


async def test_a_change_is_published_for_one_identity_or_for_all(server: RedisServer) -> None:
    server.run("HSET", "relay:access:a", "alice", "write", "bob", "write")
    heard = Heard()
    access = opened(server, heard)

    async def kept() -> bool:
        """A backend that is subscribed to changes, so that it caches answers."""
        return await may(access, "alice", "a") == "write" and heard.cache[-1] == "hit"

    await wait_until_async(kept)
    assert await may(access, "bob", "a") == "write"
    server.run("DEL", "relay:access:a")

    async def refused(who: str = "alice") -> bool:
        return await may(access, who, "a") == "no"

    server.run("PUBLISH", "relay:changes", "access alice")
    await wait_until_async(refused)
    assert await may(access, "bob", "a") == "write"
    server.run("PUBLISH", "relay:changes", "access")
    await wait_until_async(lambda: refused("bob"))
    await access.close()


PUSH = Command(service="git-receive-pack", repository="team/app")


async def may_push(access: Access, who: str, ref: str, old: str = "1", new: str = "2") -> bool:
    try:
        grant = await access.check(Identity(name=who, fingerprint="SHA256:x"), PUSH, "192.0.2.1", "s")
    except Denied:
        return False
    return RefJudge(grant.refs).allows(RefUpdate(ref=ref, old=old, new=new))


async def test_rules_for_refs(server: RedisServer) -> None:
    server.run("SADD", "relay:groups:alice", "maintainers")
    server.run("HSET", "relay:access:team/**", "alice", "write", "bob", "write", "carol", "read")
    main = {"refs": ["refs/heads/main"], "who": ["@maintainers"], "allow": "write"}
    docs = {"refs": ["refs/heads/docs/*"], "who": ["carol", "bob"], "allow": "write"}
    tags = {"refs": ["refs/tags/**"], "who": ["*"], "deny": "write", "changes": ["delete"]}
    server.run("SET", "relay:refs:team/app", json.dumps([main]))
    server.run("SET", "relay:refs:team/**", json.dumps([docs]))
    server.run("SET", "relay:refs:**", json.dumps([tags]))
    access = opened(server)
    refs = ("refs/heads/main", "refs/heads/docs/x", "refs/heads/topic", "refs/tags/v1")
    told = {who: [await may_push(access, who, ref) for ref in refs] for who in ("alice", "bob", "carol", "dave")}
    assert told == {
        "alice": [True, False, True, True],
        "bob": [False, True, True, True],
        "carol": [False, True, False, False],
        "dave": [False, False, False, False],
    }
    assert not await may_push(access, "alice", "refs/tags/v1", new="0")
    assert await may(access, "carol", "team/app") == "read"
    await access.close()


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "{}",
        '[{"refs": ["refs/heads/main"]}]',
        '[{"refs": [], "who": ["*"], "deny": "write"}]',
        '[{"refs": ["refs/heads/main"], "who": ["*"]}]',
        '[{"refs": ["refs/heads/main"], "who": ["*"], "allow": "write", "deny": "write"}]',
        '[{"refs": ["refs/heads/main"], "who": ["*"], "allow": "read"}]',
        '[{"refs": ["main"], "who": ["*"], "deny": "write"}]',
        '[{"refs": ["**"], "who": ["*"], "deny": "write", "changes": ["force"]}]',
        '[{"refs": ["**"], "who": ["*"], "deny": "write", "change": ["delete"]}]',
        '[{"refs": ["refs/heads/[mr]*"], "who": ["*"], "deny": "write"}]',
        '[{"refs": ["refs/heads/.x"], "who": ["*"], "deny": "write"}]',
        '[{"refs": ["**"], "who": [], "deny": "write"}]',
        '[{"refs": ["**"], "who": ["@"], "deny": "write"}]',
        '[{"refs": ["**"], "who": ["team/alice"], "deny": "write"}]',
        "[" + " " * 8192 + "]",
    ],
)
async def test_rules_for_refs_that_are_wrong_allow_nothing(server: RedisServer, value: str) -> None:
    server.run("HSET", "relay:access:**", "alice", "write")
    server.run("SET", "relay:refs:team/app", value)
    access = opened(server)
    with pytest.raises(Undecided) as caught:
        await may_push(access, "alice", "refs/heads/topic")
    assert caught.value.why == "invalid"
    if "[mr]" in value:
        assert 'rule 1 for refs: "refs/heads/[mr]*" must not have [ in it: only * (within a segment)' in str(caught.value)
    assert await may(access, "alice", "team/app") == "write", "who fetches is not held up"
    await access.close()


async def refusal(access: Access, who: str, repository: str, service: str = "git-upload-pack") -> str:
    """The message for the client."""
    command = Command(service=service, repository=repository)  # type: ignore[arg-type]
    with pytest.raises(Denied) as caught:
        await access.check(Identity(name=who, fingerprint="SHA256:x"), command, "192.0.2.1", "s")
    assert caught.value.reason == "denied"
    return caught.value.message


async def test_who_is_refused_reads_the_most_specific_text(server: RedisServer) -> None:
    server.run("HSET", "relay:access:team/app", "bob", "no not you, bob\n", "carol", "read", "*", "no sign the agreement")
    server.run("HSET", "relay:access:team/**", "*", "no ask your team", "dora", "no", "alice", "write")
    server.run("HSET", "relay:access:**", "root", "write")
    access = opened(server)
    said = "relay: access was refused: "
    assert await refusal(access, "bob", "team/app") == f"{said}not you, bob"
    assert await refusal(access, "eve", "team/app") == f"{said}sign the agreement"
    assert await refusal(access, "eve", "team/other") == f"{said}ask your team"
    assert await refusal(access, "eve", "elsewhere") == Denied.message
    assert await refusal(access, "dora", "team/x") == Denied.message, "a no without a text"
    assert await refusal(access, "carol", "team/app", "git-receive-pack") == f"{said}sign the agreement"
    assert await may(access, "carol", "team/app") == "read", "a no takes nothing away"
    assert await may(access, "alice", "team/app", "git-receive-pack") == "write"
    assert await may(access, "root", "team/app", "git-receive-pack") == "write"
    await access.close()


@pytest.mark.parametrize("value", ["nothing", "No text", "readonly"])
async def test_what_only_looks_like_a_no_is_undecided(server: RedisServer, value: str) -> None:
    server.run("HSET", "relay:access:a", "alice", value)
    access = opened(server)
    with pytest.raises(Undecided) as caught:
        await may(access, "alice", "a")
    assert caught.value.why == "invalid"
    await access.close()


async def test_a_folder_of_the_identitys_own(server: RedisServer) -> None:
    server.run("HSET", "relay:access:users/{identity}/**", "*", "write")
    server.run("SET", "relay:refs:team/app", '[{"refs": ["refs/heads/{identity}/**"], "who": ["*"], "allow": "write"}]')
    server.run("HSET", "relay:access:team/app", "*", "write")
    access = opened(server)
    assert await may(access, "alice", "users/alice/x", "git-receive-pack") == "write"
    for who in ("bob", "**", "..", "Alice"):
        assert await may(access, who, "users/alice/x") == "no"
    assert await may(access, "alice", "users/{identity}/x") == "no"
    command = Command(service="git-receive-pack", repository="users/alice/x", folded=True)
    with pytest.raises(Denied):
        await access.check(Identity(name="Alice", fingerprint=""), replace(command, repository="users/Alice/x"), "", "")
    grant = await access.check(Identity(name="alice", fingerprint=""), replace(command, repository="team/app", folded=False), "", "")
    judge = RefJudge(grant.refs)
    allowed = [judge.allows(RefUpdate(ref=f"refs/heads/{one}", old="0" * 40, new="1" * 40)) for one in ("alice/x", "bob/x", "main")]
    assert allowed == [True, False, True]
    await access.close()


async def test_the_groups_of_an_identity_for_policy(server: RedisServer) -> None:
    server.run("SADD", "relay:groups:alice", "core", "docs")
    access = opened(server)
    assert isinstance(access, AskedAccess) and access.groups is not None
    possible, sure = await access.groups("alice")
    assert set(possible) == set(sure) == {"core", "docs"}
    assert list((await access.groups("bob")).possible) == []
    server.run("SET", "relay:groups:odd", "text")
    with pytest.raises(Undecided):
        await access.groups("odd")
    await access.close()


def test_an_authority_by_http_has_no_groups(tmp_path: Path) -> None:
    assert open_access(config.HttpAccessSettings(url="https://a.example.com"), tmp_path).groups is None
