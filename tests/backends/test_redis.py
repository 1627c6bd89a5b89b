"""The client of a Redis: single, by TLS, as an ACL user, behind a sentinel, as a cluster; its failures, and changes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay import config
from relay.backends import redis as module
from relay.backends.redis import FOLDERS, VALUE_BYTES, Changes, RedisClient, patterns
from relay.errors import ConfigError, Undecided
from tests.support.machine import free_port
from tests.support.redis import RedisServer
from tests.support.tls import Ca
from tests.support.wait import wait_until_async

FAILOVER_SECONDS = 60.0


class News:
    """Records what a client reports about changes."""

    def __init__(self) -> None:
        self.trusted: bool | None = None
        self.told: list[str | None] = []
        self.times = 0  # how often the subscription became trusted

    def trust(self, trusted: bool) -> None:
        self.trusted = trusted
        self.times += trusted


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@asynccontextmanager
async def opened(settings: config.RedisSettings, news: News | None = None, base: Path = Path()) -> AsyncIterator[RedisClient]:
    news = news or News()
    client = RedisClient("keys", settings, base, Changes(news.trust, news.told.append))
    try:
        yield client
    finally:
        await client.close()


def single(server: RedisServer, **settings: Any) -> config.RedisSettings:
    return config.RedisSettings(urls=[server.url], **{"timeout_seconds": 5, **settings})


async def why(client: RedisClient, *commands: tuple[str, ...]) -> str:
    with pytest.raises(Undecided) as caught:
        await client.ask(*(commands or (("GET", "a"),)))
    return caught.value.why


async def test_one_command_and_several(server: RedisServer) -> None:
    async with opened(single(server)) as client:
        assert await client.ask(("SET", "a", "1")) == [True]
        assert await client.ask(("GET", "a"), ("GET", "b"), ("HGET", "h", "f")) == [b"1", None, None]


async def test_every_failure_has_its_own_reason(server: RedisServer) -> None:
    server.run("SET", "text", "x")
    async with opened(single(server, timeout_seconds=0.5)) as client:
        assert await why(client, ("HGET", "text", "f")) == "failed"
        assert await why(client, ("HGET", "text", "f"), ("GET", "text")) == "failed"
        assert await why(client, ("NOSUCH",)) == "failed"
        server.freeze()
        assert await why(client) == "timeout"
        server.freeze(False)
        assert await client.ask(("GET", "text")) == [b"x"]
        server.kill()
        assert await why(client) == "unreachable"
        server.start()
        assert await client.ask(("GET", "text")) == [b"x"]


async def test_an_answer_that_comes_too_late_is_never_another_question_s(server: RedisServer) -> None:
    for number in range(20):
        server.run("SET", f"key {number}", f"value {number}")
    async with opened(single(server, timeout_seconds=0.2, connections=4)) as client:
        for _ in range(3):
            server.freeze()
            late = await asyncio.gather(*(client.ask(("GET", f"key {number}")) for number in range(8)), return_exceptions=True)
            assert all(isinstance(one, Undecided) for one in late)
            server.freeze(False)
            for number in range(20):
                assert await client.ask(("GET", f"key {number}")) == [f"value {number}".encode()]


async def test_questions_beyond_the_limit_wait_and_then_are_not_asked(server: RedisServer) -> None:
    async with opened(single(server, timeout_seconds=0.3, connections=2)) as client:
        assert await asyncio.gather(*(client.ask(("ECHO", str(number))) for number in range(50))) == [[b"%d" % n] for n in range(50)]
        server.freeze()
        ends = await asyncio.gather(*(client.ask(("ECHO", "x")) for _ in range(20)), return_exceptions=True)
        server.freeze(False)
        assert {end.why for end in ends if isinstance(end, Undecided)} == {"timeout", "busy"}


@pytest.mark.parametrize("value", [b"\xff", b"x" * (VALUE_BYTES + 1), 7, [b"x"]])
async def test_a_value_that_is_no_text(server: RedisServer, value: object) -> None:
    async with opened(single(server)) as client:
        assert client.text(None) is None
        assert client.text("Zoë".encode()) == "Zoë"
        with pytest.raises(Undecided) as caught:
            client.text(value)
        assert caught.value.why == "invalid"


# -- changes -------------------------------------------------------------------------------------------------------------


async def test_only_changes_of_this_question_are_received(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    news = News()
    async with opened(single(server, prefix="x:"), news) as client:
        assert news.trusted is False
        await client.ask(("PING",))
        await wait_until_async(lambda: news.trusted)
        for message in ("keys SHA256:a", "access alice", "routes", "keys", "nonsense"):
            assert server.run("PUBLISH", "x:changes", message) == 1
        await wait_until_async(lambda: len(news.told) == 3)
        assert news.told == ["SHA256:a", None, None]
        assert "unknown message about a change" in caplog.text and "nonsense" in caplog.text


@pytest.mark.parametrize("way", ["kill", "freeze", "drop"])
async def test_a_lost_channel_is_noticed_and_subscribed_to_again(server: RedisServer, way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    news = News()
    async with opened(single(server, timeout_seconds=0.5), news) as client:
        await client.ask(("PING",))
        await wait_until_async(lambda: news.trusted)
        if way == "kill":
            server.kill()
            await wait_until_async(lambda: not news.trusted)
            server.start()
        elif way == "freeze":
            server.freeze()
            await wait_until_async(lambda: not news.trusted)
            server.freeze(False)
        else:
            server.run("CLIENT", "KILL", "TYPE", "pubsub")
        await wait_until_async(lambda: news.trusted and news.times >= 2)
        assert server.run("PUBLISH", "relay:changes", "keys x") >= 1
        await wait_until_async(lambda: "x" in news.told)
    if way != "drop":  # redis-py reconnects before the client notices
        assert caplog.text.count("not subscribed to changes") == 1
        assert caplog.text.count("subscribed to changes again") == 1


async def quiet(server: RedisServer, news: News) -> None:
    """Asserts that a channel without messages stays subscribed, and is pinged."""

    def pings() -> int:
        told = re.search(r"cmdstat_ping:calls=(\d+)", server.run("INFO", "commandstats"))
        return int(told[1]) if told else 0

    await wait_until_async(lambda: news.trusted)
    before, times = pings(), news.times
    await wait_until_async(lambda: pings() >= before + 4)
    assert (news.trusted, news.times) == (True, times)


async def test_a_quiet_channel_is_kept(server: RedisServer) -> None:
    news = News()
    async with opened(single(server), news) as client:
        await client.ask(("GET", "a"))
        await quiet(server, news)


# -- kinds of connections ------------------------------------------------------------------------------------------------


def tls(ca: Ca, port: int, host: str | None = "127.0.0.1") -> list[str]:
    """A server's configuration, with a certificate for `host` or for another machine."""
    certificate, key = ca.sign(str(port), host)
    files = [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {ca.certificate}"]
    return [*files, "tls-auth-clients no", "tls-replication yes", "tls-cluster yes", f"tls-port {port}", "port 0"]


async def test_tls_with_an_own_ca(tmp_path: Path) -> None:
    ca, other, port = Ca(tmp_path / "ca"), Ca(tmp_path / "other"), free_port()
    with RedisServer(*tls(ca, port)):
        news = News()
        settings = config.RedisSettings(urls=[f"rediss://127.0.0.1:{port}/0"], ca_file=str(ca.certificate), timeout_seconds=5)
        async with opened(settings, news) as client:
            assert await client.ask(("PING",)) == [True]
            await wait_until_async(lambda: news.trusted)
        for ca_file in (str(other.certificate), None):
            async with opened(config.RedisSettings(urls=settings.urls, ca_file=ca_file, timeout_seconds=5)) as client:
                assert await why(client) == "unreachable"
    with RedisServer(*tls(ca, port, host=None)):
        async with opened(settings) as client:
            assert await why(client) == "unreachable"  # the certificate of another server


async def test_an_acl_user_with_no_more_than_it_needs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
    [rules] = re.findall(r"^ACL SETUSER relay on >PASSWORD (.*)$", page, re.MULTILINE)
    password = tmp_path / "password"
    password.write_text("opensesame\n")
    password.chmod(0o600)
    with RedisServer(f"user relay on >opensesame {rules}", "user default on +@all ~* &* nopass") as server:
        news = News()
        async with opened(single(server, username="relay", password_file="password"), news, tmp_path) as client:
            assert await client.ask(("HGET", "relay:keys", "x")) == [None]
            assert await client.ask(("HMGET", "relay:access:a", "x"), ("SRANDMEMBER", "relay:groups:a", "9")) == [[None], []]
            await wait_until_async(lambda: news.trusted)
            assert await why(client, ("HSET", "relay:keys", "x", "mallory")) == "failed"
            assert await why(client, ("HGET", "other", "x")) == "failed"
        password.write_text("wrong")
        async with opened(single(server, username="relay", password_file="password"), base=tmp_path) as client:
            assert await why(client) == "failed"
        url = server.url.replace("unix://", "unix://relay:opensesame@")
        async with opened(config.RedisSettings(urls=[url])) as client:
            assert await client.ask(("HGET", "relay:keys", "x")) == [None]


async def test_tls_behind_a_sentinel(tmp_path: Path) -> None:
    ca, port, sentinel_port = Ca(tmp_path / "ca"), free_port(), free_port()
    with (
        RedisServer(*tls(ca, port)),
        RedisServer(*tls(ca, sentinel_port), f"sentinel monitor mine 127.0.0.1 {port} 1", sentinel=True),
    ):
        news = News()
        urls = [f"rediss://127.0.0.1:{sentinel_port}/0"]
        settings = config.RedisSettings(urls=urls, mode="sentinel", service="mine", ca_file=str(ca.certificate), timeout_seconds=5)
        async with opened(settings, news) as client:
            assert await client.ask(("GET", "a")) == [None]
            await wait_until_async(lambda: news.trusted)


async def test_behind_a_sentinel() -> None:
    port, sentinel_port = free_port(), free_port()
    with RedisServer(port=port) as data:
        data.run("SET", "a", "1")
        with RedisServer(f"sentinel monitor mine 127.0.0.1 {port} 1", port=sentinel_port, sentinel=True) as sentinel:
            news = News()
            urls = [f"redis://127.0.0.1:{free_port()}/0", f"redis://127.0.0.1:{sentinel_port}/0"]
            async with opened(config.RedisSettings(urls=urls, mode="sentinel", service="mine", timeout_seconds=5), news) as client:
                assert await client.ask(("GET", "a")) == [b"1"]
                await quiet(data, news)
                data.run("PUBLISH", "relay:changes", "keys x")
                await wait_until_async(lambda: news.told == ["x"])
            async with opened(config.RedisSettings(urls=urls, mode="sentinel", service="another", timeout_seconds=5)) as client:
                assert await why(client) == "unreachable"
            sentinel.kill()


async def test_after_a_primary_dies_the_sentinel_s_new_one_is_asked() -> None:
    first, second, sentinel_port = free_port(), free_port(), free_port()
    watch = ("sentinel down-after-milliseconds mine 300", "sentinel failover-timeout mine 2000")
    with (
        RedisServer(port=first) as master,
        RedisServer(f"replicaof 127.0.0.1 {first}", port=second) as replica,
        RedisServer(f"sentinel monitor mine 127.0.0.1 {first} 1", *watch, port=sentinel_port, sentinel=True) as sentinel,
    ):
        master.run("SET", "a", "1")
        await wait_until_async(lambda: replica.run("GET", "a") == "1" and "slaves=1" in sentinel.run("INFO", "sentinel"), FAILOVER_SECONDS)
        news = News()
        settings = config.RedisSettings(urls=[f"redis://127.0.0.1:{sentinel_port}/0"], mode="sentinel", service="mine", timeout_seconds=2)
        async with opened(settings, news) as client:
            assert await client.ask(("GET", "a")) == [b"1"]
            await wait_until_async(lambda: news.trusted)
            master.kill()
            await wait_until_async(lambda: not news.trusted)
            assert news.times == 1  # no missed change: cached answers are not trusted until the client is subscribed again

            async def answered() -> bool:
                try:
                    return await client.ask(("GET", "a")) == [b"1"]
                except Undecided:
                    return False

            await wait_until_async(answered, FAILOVER_SECONDS)
            assert "role:master" in replica.run("INFO", "replication")
            await wait_until_async(lambda: news.trusted, FAILOVER_SECONDS)
            replica.run("PUBLISH", "relay:changes", "keys x")
            await wait_until_async(lambda: news.told == ["x"])


async def test_a_cluster_of_several_nodes() -> None:
    """A question about one person reads keys on several nodes."""
    slots = ((0, 5460), (5461, 10922), (10923, 16383))
    with ExitStack() as stack:
        ports = [free_port() for _ in slots]
        nodes = [stack.enter_context(RedisServer("cluster-enabled yes", f"cluster-port {free_port()}", port=port)) for port in ports]
        for node, (low, high) in zip(nodes, slots, strict=True):
            assert node.run("CLUSTER", "ADDSLOTSRANGE", str(low), str(high)) == "OK"
            bus = node.run("CONFIG", "GET", "cluster-port")[1]
            assert nodes[0].run("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus) == "OK"
        await wait_until_async(lambda: all("cluster_state:ok" in node.run("CLUSTER", "INFO") for node in nodes), FAILOVER_SECONDS)
        news = News()
        async with opened(config.RedisSettings(urls=[f"redis://127.0.0.1:{ports[1]}"], mode="cluster", timeout_seconds=5), news) as client:
            for number in range(12):
                assert await client.ask(("SET", f"key {number}", str(number))) == [True]
            assert all(node.run("DBSIZE") > 0 for node in nodes)
            told = await client.ask(*(("GET", f"key {number}") for number in range(12)))
            assert told == [b"%d" % number for number in range(12)]
            await wait_until_async(lambda: news.trusted)
            for node in nodes:  # the client has subscribed at one of them
                node.run("PUBLISH", "relay:changes", f"keys {node.port}")
            await wait_until_async(lambda: sorted(map(str, news.told)) == sorted(map(str, ports)))


async def test_a_cluster_by_tls(tmp_path: Path) -> None:
    ca, port = Ca(tmp_path / "ca"), free_port()
    with RedisServer(*tls(ca, port), "cluster-enabled yes", f"cluster-port {free_port()}") as server:
        assert server.run("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "OK"
        await wait_until_async(lambda: "cluster_state:ok" in server.run("CLUSTER", "INFO"))
        news = News()
        settings = config.RedisSettings(urls=[f"rediss://127.0.0.1:{port}"], mode="cluster", ca_file=str(ca.certificate), timeout_seconds=5)
        async with opened(settings, news) as client:
            assert await client.ask(("SET", "a", "1")) == [True]
            assert await client.ask(("GET", "a"), ("GET", "b"), ("GET", "c")) == [b"1", None, None]
            await quiet(server, news)
            server.run("PUBLISH", "relay:changes", "keys x")
            await wait_until_async(lambda: news.told == ["x"])
            server.kill()
            assert await why(client) == "unreachable"
            server.start()
            await wait_until_async(lambda: "cluster_state:ok" in server.run("CLUSTER", "INFO"))
            assert await client.ask(("GET", "a"), ("GET", "b")) == [b"1", None]
            await wait_until_async(lambda: news.times >= 2)


# -- settings ------------------------------------------------------------------------------------------------------------


UNCLEAR = "keys.urls: cannot be understood, must be redis://, rediss:// or unix:// URLs with options of redis-py"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        *(
            ({"urls": urls, **more}, UNCLEAR)
            for urls, more in (
                (["redis://a:hunter2@h:port"], {}),
                (["redis://h:1?nonsense=hunter2"], {}),
                (["redis://a:1", "redis://b:1"], {}),
                (["redis://h:1?nonsense=1"], {"mode": "cluster"}),
            )
        ),
        (
            {"urls": ["redis://h"], "ca_file": "/nowhere"},
            "keys.ca_file: is of no use without TLS, must be set with rediss:// URLs only",
        ),
        ({"urls": ["rediss://h"], "ca_file": "/nowhere"}, "keys.ca_file: /nowhere is missing, must be certificates in PEM"),
        (
            {"urls": ["redis://h"], "password_file": "/nowhere"},
            "keys.password_file: the file cannot be read (No such file or directory), must be the path of a file that holds it",
        ),
    ],
)
def test_invalid_settings_are_refused_at_start(settings: dict[str, Any], problem: str) -> None:
    news = News()
    with pytest.raises(ConfigError) as caught:
        RedisClient("keys", config.RedisSettings(**settings), Path(), Changes(news.trust, news.told.append))
    assert caught.value.problems == [problem]
    assert "hunter2" not in problem


def test_without_the_extra_the_problem_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTALLED", False)
    news = News()
    with pytest.raises(ConfigError, match=r"pip install 'git-ssh-relay\[redis\]'"):
        RedisClient("keys", config.RedisSettings(urls=["redis://h"]), Path(), Changes(news.trust, news.told.append))


def test_the_patterns_of_a_repository() -> None:
    assert patterns("app") == ["app", "**"]
    assert patterns("a/b/c") == ["a/b/c", "a/b/**", "a/**", "**"]
    deep = patterns("/".join("a" * 500))
    assert len(deep) == FOLDERS + 2 and deep[0] == "/".join("a" * 500)
