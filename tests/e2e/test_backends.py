"""Backends that fail, disappear and come back under load, with real clients: an allowed client is served, a denied one never is,
and no client learns the reason."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited
from tests.support.authority import Authority
from tests.support.keys import Key, make_key
from tests.support.redis import RedisServer
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

UNDECIDED = b"relay: access could not be decided just now, try again in a moment\n"
DENIED = b"relay: repository not found, or you may not do this\n"
EMIT = "git-upload-pack 'stub/emit/1000'"
OUTAGE_SECONDS = 60.0  # for conditions within one
CACHE = {"ttl_seconds": 0.5, "negative_seconds": 0.2, "stale_seconds": 3600}
OFF = {"ttl_seconds": 0, "negative_seconds": 0, "stale_seconds": 0}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with Authority(tmp_path / "authority") as server:
        yield server


async def session(relay: RelayProcess, key: Key) -> str:
    """One connection and one session: "ok", "denied", "undecided", "refused" (the login), or the unexpected answer."""
    try:
        async with alice(relay, key, preferred_auth="publickey") as connection:
            done = await run(connection, EMIT)
    except asyncssh.PermissionDenied:
        return "refused"
    ends = {(0, b""): "ok", (128, DENIED): "denied", (255, UNDECIDED): "undecided"}
    return ends.get((done.exit_status or 0, done.stderr), f"{done}") if done.exit_status or len(done.stdout) == 1000 else f"{done}"


async def load(relay: RelayProcess, key: Key, ends: Counter[str], over: asyncio.Event) -> None:
    while not over.is_set():
        ends[await session(relay, key)] += 1


@pytest.mark.parametrize("way", ["killed", "frozen"])
async def test_backends_go_away_mid_load_and_come_back(
    sshd: Sshd, redis: RedisServer, authority: Authority, tmp_path: Path, way: str
) -> None:
    keys = {name: make_key(tmp_path / "keys", name) for name in ("mallory", "carol", "stranger")}
    config = {
        "keys": {"source": "redis", "path": None, "urls": [redis.url], "timeout_seconds": 0.5, "cache": CACHE},
        "access": {"source": "http", "path": None, "url": authority.url, "timeout_seconds": 0.5, "cache": CACHE},
        "routes": {"source": "redis", "path": None, "urls": [redis.url], "timeout_seconds": 0.5, "cache": CACHE},
    }
    authority.write(access={"stub/emit/1000": {"alice": "write", "carol": "read"}})
    redis.run("HSET", "relay:route:**", "upstream", "main", "path", f"{sshd.root}/{{repository}}.git")
    with RelayProcess(sshd, config=config) as relay:
        for name, key in {"alice": relay.key, "mallory": keys["mallory"], "carol": keys["carol"]}.items():
            redis.run("HSET", "relay:keys", key.fingerprint, name)
        people = {"alice": relay.key, "mallory": keys["mallory"], "stranger": keys["stranger"]}
        ends: dict[str, Counter[str]] = {name: Counter() for name in people}
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(load(relay, key, ends[name], over)) for name, key in people.items() for _ in range(2)]

        def metric(name: str, **labels: str) -> float:
            return relay.metric(f"relay_{name}_total", **labels)

        def logged(text: str) -> bool:
            return text in relay.log_text()

        async def more(name: str, count: int) -> None:
            """Waits until so many more sessions of this load have ended."""
            mark = ends[name].total()
            await wait_until_async(lambda: ends[name].total() >= mark + count, OUTAGE_SECONDS)

        try:
            for name in people:
                await more(name, 3)
            assert {name: set(ends[name]) for name in people} == {"alice": {"ok"}, "mallory": {"denied"}, "stranger": {"refused"}}
            assert metric("cache", result="stale") == 0

            for backend in (redis, authority):
                backend.kill() if way == "killed" else backend.freeze()
            why = "unreachable" if way == "killed" else "timeout"
            for question in ("keys", "access", "routes"):
                await wait_until_async(partial(metric, "cache", question=question, result="stale"), OUTAGE_SECONDS)
            for name in people:
                await more(name, 5)
            await wait_until_async(lambda: ends["mallory"]["undecided"], OUTAGE_SECONDS)
            assert await session(relay, keys["carol"]) == "refused"  # no client has offered her key yet
            for question, source in (("keys", "redis"), ("access", "http"), ("routes", "redis")):
                assert metric("backend_answers", question=question, source=source, result=why) > 0
                assert relay.log_text().count(f"{question} {source} does not answer") == 1
            assert metric("auth_failures", reason="undecided") > 0
            assert metric("commands_rejected", reason="undecided") > 0
            rejected = audited(relay, 0, event="command_rejected", identity="mallory", reason=f"undecided_{why}")
            assert rejected[0]["detail"].startswith("access http: POST /access: ")
            refused = audited(relay, 0, event="auth_failed", key=keys["carol"].fingerprint, reason="undecided")
            assert refused[0]["detail"].startswith(f"{why}: keys redis: ")

            for backend in (redis, authority):
                backend.start() if way == "killed" else backend.freeze(False)

            async def let_in() -> bool:
                return await session(relay, keys["carol"]) == "ok"

            await wait_until_async(let_in, OUTAGE_SECONDS)
            for question in ("keys redis", "access http", "routes redis"):
                await wait_until_async(partial(logged, f"{question} answers again"), OUTAGE_SECONDS)

            async def all_fresh() -> bool:
                """Whether all workers have it: each notices by itself that a backend is back."""
                stale = metric("cache", result="stale")
                for name in people:
                    await more(name, 5)
                return metric("cache", result="stale") == stale

            await wait_until_async(all_fresh, OUTAGE_SECONDS)
        finally:
            over.set()
            await asyncio.gather(*tasks)
        # no allowed client was refused, and no denied client was served
        assert set(ends["alice"]) == {"ok"}
        assert set(ends["mallory"]) == {"denied", "undecided"}
        assert set(ends["stranger"]) == {"refused"}


async def test_many_logins_at_once_are_one_question_and_an_access_answer_saves_the_route_s(
    sshd: Sshd, authority: Authority, tmp_path: Path
) -> None:
    http = {"source": "http", "path": None, "url": authority.url, "timeout_seconds": 30}
    with RelayProcess(sshd, config={"keys": http, "access": http, "routes": http}) as relay:
        authority.write(
            keys={relay.key.fingerprint: "alice"},
            access={"team/app": {"alice": "write"}},
            routes={"team/app": {"upstream": "main", "path": f"{sshd.root}/stub/emit/1000.git"}},
        )

        async def login() -> tuple[int | None, int]:
            async with alice(relay) as connection:
                done = await run(connection, "git-upload-pack 'team/app'")
            return done.exit_status, len(done.stdout)

        assert set(await asyncio.gather(*(login() for _ in range(40)))) == {(0, 1000)}
        assert [authority.asked(path) for path in ("/keys", "/access", "/routes")] == [1, 1, 0]
        assert relay.metric("relay_backend_seconds_count", question="keys", source="http") == 1
        assert relay.metric("relay_cache_total", question="keys", result="miss") == 1


async def test_a_revoked_key_is_refused_by_every_worker(sshd: Sshd, redis: RedisServer) -> None:
    with RelayProcess(sshd, config={"workers": 2, "keys": {"source": "redis", "path": None, "urls": [redis.url]}}) as relay:
        redis.run("HSET", "relay:keys", relay.key.fingerprint, "alice")

        async def remembered() -> bool:
            assert await session(relay, relay.key) == "ok"
            return relay.metric("relay_cache_total", question="keys", result="hit") >= 4

        await wait_until_async(remembered, OUTAGE_SECONDS)
        redis.run("HDEL", "relay:keys", relay.key.fingerprint)
        redis.run("PUBLISH", "relay:changes", f"keys {relay.key.fingerprint}")

        async def refused() -> bool:
            return await session(relay, relay.key) == "refused"

        await wait_until_async(refused)
        assert {await session(relay, relay.key) for _ in range(10)} == {"refused"}


def test_every_failure_is_told_apart_by_metrics_and_audit_and_not_to_the_client(sshd: Sshd, redis: RedisServer) -> None:
    settings = {"source": "redis", "path": None, "urls": [redis.url], "timeout_seconds": 0.5, "cache": OFF}
    with RelayProcess(sshd, config={"access": settings}) as relay:

        def failed(why: str) -> None:
            mark = len(relay.audit_lines())
            done = relay.ssh().run(EMIT)
            assert (done.returncode, done.stdout, done.stderr) == (255, b"", UNDECIDED)
            (line,) = audited(relay, mark, event="command_rejected")
            assert (line["reason"], line["result"]) == (f"undecided_{why}", "relay")
            assert line["detail"].startswith("access redis: ")
            assert relay.metric("relay_backend_answers_total", question="access", source="redis", result=why) == 1

        redis.run("HSET", "relay:access:**", "alice", "write")
        assert relay.ssh().run(EMIT).returncode == 0
        redis.run("HSET", "relay:access:**", "alice", "everything")
        failed("invalid")
        redis.run("DEL", "relay:access:**")
        assert relay.ssh().run(EMIT).stderr == DENIED
        redis.run("SET", "relay:access:**", "write")
        failed("failed")
        redis.freeze()
        failed("timeout")
        redis.freeze(False)
        redis.kill()
        failed("unreachable")
        redis.start()
        redis.run("DEL", "relay:access:**")
        redis.run("HSET", "relay:access:**", "*", "read")
        wait_until(lambda: relay.ssh().run(EMIT).returncode == 0)


def test_a_key_that_cannot_be_looked_up_is_refused_with_a_word_to_the_client(sshd: Sshd) -> None:
    """The real ssh prints the relay's banner before its own error message."""
    config = {"keys": {"source": "http", "path": None, "url": "http://127.0.0.1:1"}}
    with RelayProcess(sshd, config=config) as relay:
        done = relay.ssh().run(EMIT)
        assert done.returncode == 255
        assert UNDECIDED.strip() in done.stderr and b"Permission denied (publickey)" in done.stderr
        assert done.stderr.count(UNDECIDED.strip()) == 1
        assert b"127.0.0.1:1" not in done.stderr.replace(b"git@127.0.0.1", b"")


def test_a_program_that_is_asked_for_keys_can_be_ended_and_sees_nothing_of_the_relay(sshd: Sshd, tmp_path: Path) -> None:
    """A program inherits the signals that the worker ignores, and so do its children: timeout(1) could not end them."""
    program, seen = tmp_path / "who-is", tmp_path / "seen"
    # read by the shell itself, which blocks every signal while it waits for a program
    masks_of = 'while read -r name mask; do case $name in SigBlk: | SigIgn:) echo "$name $mask" ;; esac; done </proc/$$/status'
    body = f"exec 3>{seen}; {masks_of} >&3; echo /proc/$$/fd/* >&3; env >&3; exec 3>&-; echo alice"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    config = {"keys": {"source": "exec", "path": None, "command": [str(program), "%f"]}}
    with RelayProcess(sshd, config=config, env={"RELAY_SECRET": "hunter2"}) as relay:
        assert relay.ssh().run(EMIT).returncode == 0
    text = seen.read_text()
    masks = {line.split()[0]: int(line.split()[1], 16) for line in text.splitlines()[:2]}
    asked_to_end = sum(1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert {name: mask & asked_to_end for name, mask in masks.items()} == {"SigBlk:": 0, "SigIgn:": 0}
    opened = {int(Path(name).name) for name in text.splitlines()[2].split()}
    assert opened <= {0, 1, 2, 3, 4, 10}  # the script's own: `seen`, the folder that it lists, and itself
    assert "hunter2" not in text


FLOOD = 98  # logins of strangers at any time, each offering one key
TTL_SECONDS = 3.0
QUESTION_SECONDS = 5.0


async def test_a_revoked_key_is_refused_while_strangers_keep_the_program_busy(
    make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path
) -> None:
    """The program never answers about strangers' keys, which are offered all the time. The answer about alice's key is older than
    ttl_seconds when she logs in."""
    program, asked = tmp_path / "who-is", tmp_path / "asked"
    cache = {"ttl_seconds": TTL_SECONDS, "negative_seconds": 0, "stale_seconds": 3600}
    keys = {"source": "exec", "path": None, "command": [str(program), "%f"], "timeout_seconds": QUESTION_SECONDS, "cache": cache}
    limits = {"connections_per_source": 2 * FLOOD, "unauthenticated_connections": 4 * FLOOD, "penalty_seconds": 0}
    program.write_text("#!/bin/sh\necho alice\n")
    program.chmod(0o755)
    relay = await asyncio.to_thread(make_relay, sshd, config={"keys": keys, "limits": limits})
    assert await session(relay, relay.key) == "ok"
    program.write_text(f"#!/bin/sh\n[ $1 = {relay.key.fingerprint} ] || {{ echo >>{asked}; exec sleep 1000; }}\n")  # alice is unknown now

    async def stranger(number: int) -> None:
        await asyncio.sleep(QUESTION_SECONDS * number / FLOOD)
        await load(relay, make_key(tmp_path, f"strange{number}"), Counter(), asyncio.Event())

    flood = [asyncio.ensure_future(stranger(number)) for number in range(FLOOD)]
    await asyncio.sleep(max(TTL_SECONDS, QUESTION_SECONDS))
    await wait_until_async(lambda: asked.exists())
    end = await session(relay, relay.key)
    for one in flood:
        one.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    assert end == "refused"
