"""The client of an HTTP authority: yes, no and unknown, timeouts, the retry, sizes, TLS; all compared with the OpenAPI file."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import msgspec
import pytest

from relay import config
from relay.access.http import Ask, HttpAccess
from relay.backends.http import ANSWER_BYTES, HttpClient, Refusal
from relay.errors import ConfigError, Denied, Undecided
from relay.keys.http import HttpKeys, Owner
from relay.model import SERVICES, Command, Grant, Identity, Route
from relay.routes.http import HttpRoutes
from relay.text import CLIENT_TEXT_BYTES
from tests.support.answering import Answering, Asked, Said
from tests.support.authority import Authority
from tests.support.keys import KEY_KINDS, make_key
from tests.support.tls import Ca

ALICE = Identity(name="alice", fingerprint="SHA256:" + "x" * 43)
API = json.loads((Path(__file__).parents[2] / "docs" / "authority.openapi.json").read_text())


def client(url: str, folder: Path = Path(), **settings: Any) -> HttpClient:
    return HttpClient("keys", config.HttpKeysSettings(url=url, **{"timeout_seconds": 10, **settings}), folder)


async def outcome(one: HttpClient) -> str:
    """The identity, "no", or the reason of Undecided."""
    try:
        return (await one.ask(Owner, "GET", "/keys")).identity
    except Denied:
        return "no"
    except Undecided as error:
        assert str(error).startswith("keys http: GET /keys: ")
        return error.why


YES = Said(200, b'{"identity": "alice", "since": 2019}')


@pytest.mark.parametrize(
    ("said", "expected", "requests"),
    [
        (Said(200, YES.body), "alice", 1),
        *((Said(status, YES.body), "no", 1) for status in (401, 403, 404)),
        *((Said(status, YES.body), "failed", 2) for status in (429, 500, 502, 503, 504, 599)),
        *((Said(status, YES.body), "failed", 1) for status in (400, 405, 410, 418)),
        *((Said(status, YES.body), "invalid", 1) for status in (201, 202, 301)),
        (Said(307, YES.body, headers=(("Location", "/elsewhere"),)), "invalid", 1),
        (Said(204, b""), "invalid", 1),
        *(
            (Said(200, body), "invalid", 1)
            for body in (b"", b"null", b"true", b"[]", b"{}", b"<html>", b'{"identity": null}', b'{"identity": 1}', b'{"identity": "\xff"}')
        ),
        (Said(200, b'{"x": ' + b"[" * 60_000), "invalid", 1),
        (Said(200, b'{"identity": "' + b"a" * ANSWER_BYTES + b'"}'), "invalid", 1),
        (Said(200, YES.body[:-1], breaks=True), "unreachable", 2),
        (Said(raw=b""), "unreachable", 2),
        (Said(raw=b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), "invalid", 1),
        (Said(raw=b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"), "invalid", 1),
    ],
)
async def test_yes_no_and_unknown(said: Said, expected: str, requests: int) -> None:
    async with Answering(said) as server:
        one = client(server.url)
        assert await outcome(one) == expected
        assert len(server.asked) >= requests  # aiohttp itself repeats a GET if the connection was closed meanwhile
        assert said.raw is not None or len(server.asked) == requests
        await one.close()


async def test_one_failure_is_retried() -> None:
    async with Answering(Said(503), YES) as server:
        one = client(server.url)
        assert await outcome(one) == "alice"
        assert len(server.asked) == 2
        await one.close()


async def test_an_authority_that_hangs_is_a_timeout_twice() -> None:
    async with Answering(Said(hangs=True)) as server:
        one = client(server.url, timeout_seconds=1)  # in 0.05 s a busy machine does not even pass the first request on
        assert await outcome(one) == "timeout"
        assert len(server.asked) == 2
        await one.close()


async def test_an_authority_that_does_not_listen_is_unreachable() -> None:
    async with Answering(YES) as server:
        url = server.url
    one = client(url)
    assert await outcome(one) == "unreachable"
    await one.close()


async def test_an_answer_of_the_greatest_size() -> None:
    body = b'{"identity": "alice"}'.ljust(ANSWER_BYTES)
    async with Answering(Said(200, body), Said(200, body + b" ")) as server:
        one = client(server.url)
        assert [await outcome(one), await outcome(one)] == ["alice", "invalid"]
        await one.close()


async def test_connections_are_used_again_and_bounded() -> None:
    async with Answering(YES) as server:
        one = client(server.url, connections=3)
        for _ in range(5):
            await outcome(one)
        assert {asked.connection for asked in server.asked} == {1}
        assert await asyncio.gather(*(outcome(one) for _ in range(30))) == ["alice"] * 30
        assert {asked.connection for asked in server.asked} <= {1, 2, 3}
        await one.close()


async def test_the_url_s_path_is_kept_and_the_token_is_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "token").chmod(0o600)
    async with Answering(YES) as server:
        one = client(f"{server.url}/relay/v1/", tmp_path, token_file="token")
        assert await outcome(one) == "alice"
        assert server.asked[0].path == "/relay/v1/keys"
        assert server.asked[0].headers["authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(one)
        await one.close()


async def test_a_401_is_a_no_that_the_log_warns_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with Answering(Said(401)) as server:
        one = client(server.url)
        assert await outcome(one) == "no"
        await one.close()
    assert "401" in caplog.text and "token" in caplog.text


async def test_tls_is_verified_with_an_own_ca(tmp_path: Path) -> None:
    ca, other = Ca(tmp_path / "ca"), Ca(tmp_path / "other")
    async with Answering(YES, tls=ca.context()) as server:
        for trusted, expected in ((ca, "alice"), (other, "unreachable"), (None, "unreachable")):
            one = client(server.url, ca_file=str(trusted.certificate) if trusted else None)
            assert await outcome(one) == expected
            await one.close()
    async with Answering(YES, tls=ca.context("elsewhere", host=None)) as server:
        one = client(server.url, ca_file=str(ca.certificate))
        assert await outcome(one) == "unreachable"  # the certificate of another server
        await one.close()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "https://"}, "keys.url: must be https://HOST[:PORT][/PATH] and nothing else"),
        ({"url": "https://a/b?c"}, "keys.url: must be https://HOST[:PORT][/PATH] and nothing else"),
        ({"url": "https://a/b c"}, "keys.url: must be https://HOST[:PORT][/PATH] and nothing else"),
        ({"url": "https://a:99999"}, "keys.url: is not a URL (Port out of range 0-65535), must be https://HOST[:PORT][/PATH]"),
        (
            {"url": "https://u:hunter2@a"},
            "keys.url: has a user or a password in it, must not: the log shows URLs; use token_file",
        ),
        (
            {"url": "http://10.0.0.1"},
            "keys.url: is http:// to another machine, must be https://, or plain_http = true on a network that is nobody else's",
        ),
        (
            {"url": "http://a.example"},
            "keys.url: is http:// to another machine, must be https://, or plain_http = true on a network that is nobody else's",
        ),
        (
            {"url": "https://a", "token_file": "a", "jwt_key_file": "b"},
            "keys.jwt_key_file: is set beside token_file, must be one of the two",
        ),
        (
            {"url": "https://a", "ca_file": "/nowhere/ca.pem"},
            "keys.ca_file: /nowhere/ca.pem cannot be read (No such file or directory), must be certificates in PEM",
        ),
    ],
)
def test_invalid_settings_are_refused_at_start(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpClient("keys", config.HttpKeysSettings(**settings), Path())
    assert caught.value.problems == [problem]


def test_a_token_that_was_taken_for_a_path_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        client("https://a", token_file="eyJhbGciOiJIUzI1NiJ9.e30.x")
    assert "eyJ" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.9", "http://[::1]:8080/x", "https://a.example:8443"])
def test_valid_urls(url: str) -> None:
    client(url)


def test_plain_http_to_another_machine_is_a_decision() -> None:
    client("http://10.0.0.1", plain_http=True)


# -- the OpenAPI file ----------------------------------------------------------------------------------------------------


def schema(value: Any) -> Any:
    """A schema of the file, with the schemas that it refers to."""
    return json.loads(json.dumps(value).replace("#/components/schemas/", "#/$defs/")) | {"$defs": defs()}


def defs() -> Any:
    return json.loads(json.dumps(API["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/"))


def conforms(value: Any, to: Any) -> None:
    jsonschema.validate(value, schema(to), cls=jsonschema.Draft202012Validator)


def request_conforms(asked: Asked) -> Any:
    """Asserts that the request conforms to the file; returns its operation."""
    operation = API["paths"][asked.path][asked.method.lower()]
    known = {parameter["name"]: parameter for parameter in operation.get("parameters", [])}
    assert set(asked.query) <= set(known)
    assert {name for name, parameter in known.items() if parameter["required"]} <= set(asked.query)
    for name, value in asked.query.items():
        conforms(value, known[name]["schema"])
    if "requestBody" in operation:
        assert asked.headers["content-type"] == "application/json"
        conforms(json.loads(asked.body), operation["requestBody"]["content"]["application/json"]["schema"])
    else:
        assert asked.body == b""
    return operation


async def test_every_request_of_the_client_is_as_the_file_says(tmp_path: Path) -> None:
    async with Answering(Said(404)) as server:
        keys = HttpKeys(config.HttpKeysSettings(url=server.url), tmp_path)
        access = HttpAccess(config.HttpAccessSettings(url=server.url), tmp_path)
        routes = HttpRoutes(config.HttpRoutesSettings(url=server.url), tmp_path, {"main"})
        for kind in KEY_KINDS:
            key = make_key(tmp_path, kind, kind)
            assert await keys.owner(key.fingerprint, " ".join(key.line.split()[:2])) is None
        for service in SERVICES:
            for operation in ("download", "upload") if "lfs" in service else (None,):
                command = Command(service=service, repository="team/ä b", operation=operation)
                with pytest.raises(Denied):
                    await access.check(ALICE, command, "2001:db8::1", "c0ffee-1")
                with pytest.raises(Denied):
                    await routes.find(command, ALICE)
        for asked in server.asked:
            request_conforms(asked)
        assert {(asked.method.lower(), asked.path) for asked in server.asked} == {
            (method, path) for path, methods in API["paths"].items() for method in methods
        }
        for backend in (keys, access, routes):
            await backend.close()


async def test_every_answer_of_the_example_authority_is_as_the_file_says(tmp_path: Path) -> None:
    import aiohttp

    with Authority(tmp_path) as authority:
        authority.write(
            token="t",
            keys={ALICE.fingerprint: "alice"},
            access={"a": {"alice": "read"}, "b": {"alice": "write"}},
            refusals={"b": "nobody reads that: alice may write it", "c": "sign the agreement first"},
            routes={"b": {"upstream": "main", "path": "/b"}},
        )
        ask = {"identity": "alice", "key": "SHA256:x", "service": SERVICES[0], "client_address": "::1", "session_id": "s"}
        seen = set()
        async with aiohttp.ClientSession(authority.url, headers={"Authorization": "Bearer t"}) as session:
            for method, url, body in (
                ("GET", f"/keys?fingerprint={ALICE.fingerprint}&key=x", None),
                ("GET", "/keys?fingerprint=SHA256:y&key=x", None),
                *(("POST", "/access", {**ask, "repository": name, "needs": needs}) for name in "abc" for needs in ("read", "write")),
                *(("GET", f"/routes?repository={name}&service=x&identity=alice", None) for name in "ab"),
            ):
                async with session.request(method, url, json=body) as answer:
                    told = API["paths"][urlsplit(url).path][method.lower()]["responses"][str(answer.status)]
                    if answer.status == 200 or (answer.status == 403 and body is not None and body["repository"] == "c"):
                        conforms(await answer.json(), told["content"]["application/json"]["schema"])
                    seen.add((urlsplit(url).path, answer.status))
        assert seen == {("/keys", 200), ("/keys", 404), ("/access", 200), ("/access", 403), ("/routes", 200), ("/routes", 404)}


def test_the_file_s_schemas_are_the_client_s_types() -> None:
    """Same fields, required fields and choices; the file may limit texts further and have descriptions."""
    mine = msgspec.json.schema_components([Owner, Ask, Grant, Refusal, Route], ref_template="#/$defs/{name}")[1]
    for name, told in defs().items():
        assert set(told["properties"]) == set(mine[name]["properties"]), name
        assert set(told.get("required", ())) == set(mine[name].get("required", ())), name
        for field, entry in told["properties"].items():
            assert _choices(entry) == _choices(mine[name]["properties"][field]), (name, field)
    for path, methods in API["paths"].items():
        for operation in methods.values():
            assert set(operation["responses"]) == {"200", "401", "403", "404", "429", "500"}, path
            for parameter in operation.get("parameters", []):
                conforms(parameter["example"], parameter["schema"])
                assert parse_qs(f"a={parameter['example']}")


def _choices(entry: Any) -> Any:
    """The closed set of values, wherever in the entry it is; None if any text is allowed."""
    if "enum" in entry:
        return {one for one in entry["enum"] if one is not None}
    return next((found for one in entry.get("anyOf", []) if (found := _choices(one))), None)


def test_the_file_s_limits_are_the_client_s() -> None:
    assert f"{ANSWER_BYTES // 1024} KiB" in API["info"]["description"]
    for schema_name, field in (("Refusal", "message"), ("Route", "read_only")):
        assert f"cut to {CLIENT_TEXT_BYTES} bytes" in API["components"]["schemas"][schema_name]["properties"][field]["description"]
    assert re.search(r"0\.05 to 0\.25 s", API["info"]["description"])
