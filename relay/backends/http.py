"""Asks an HTTP authority: persistent connections, a timeout, one retry, a limit on the size of answers.

There are three results: 200 is a yes with an answer; 401, 403 and 404 are a no, and a 403 may say why; everything else, such as a timeout
or an answer that cannot be decoded, is unknown (Undecided), never a yes. Redirects are not followed: the token is for this authority only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import aiohttp
import msgspec

from relay import config
from relay.address import url_fault
from relay.backends.slots import Slots
from relay.backends.token import Token
from relay.errors import ConfigError, Denied, Undecided
from relay.events import BackendQuestion, traceparent
from relay.text import client_text, error_text, printable

ANSWER_BYTES = 64 * 1024  # a larger answer is refused
NO = (401, 403, 404)
RETRY_SECONDS = (0.05, 0.25)  # before the second attempt, chosen at random so that workers do not retry in step
KEPT_SECONDS = 60.0  # then an unused connection is closed

T = TypeVar("T")

_log = logging.getLogger("relay.clients.http")
_random = random.SystemRandom()


class Refusal(msgspec.Struct, frozen=True):
    """The body of a 403 that says why; unknown fields are ignored."""

    message: str


class HttpClient:
    """Asks one authority one kind of question. Connects when first asked, in the loop that asks."""

    def __init__(self, question: BackendQuestion, settings: config.HttpSettings, base: Path) -> None:
        """Raises ConfigError with every problem of the settings and the files that they name."""
        self.name = f"{question} http"
        self._url = settings.url.rstrip("/")
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._asking = Slots(self.name, settings.connections, settings.timeout_seconds, "questions are under way")
        self._token: Token | None = None
        problems = [f"{question}.url: {fault}"] if (fault := url_fault(settings.url, settings.plain_http)) is not None else []
        if settings.token_file is not None and settings.jwt_key_file is not None:
            problems.append(f"{question}.jwt_key_file: is set beside token_file, must be one of the two")
        elif settings.token_file is not None:
            self._token = Token(base / settings.token_file, f"{question}.token_file")
        elif settings.jwt_key_file is not None:
            self._token = Token(base / settings.jwt_key_file, f"{question}.jwt_key_file", settings.jwt_audience or self._url)
        if self._token is not None:
            problems += self._token.problems
        self._tls = ssl.create_default_context() if settings.ca_file is None else _trusting(base / settings.ca_file, question, problems)
        if problems:
            raise ConfigError(problems)

    def __repr__(self) -> str:
        return f"<{self.name} {self._url}>"

    async def ask(
        self,
        kind: type[T],
        method: Literal["GET", "POST"],
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
        explained: bool = False,
    ) -> T:
        """The answer decoded as `kind`, whose unknown fields are ignored. Raises Denied, or Undecided with the reason.

        `explained`: a 403 may have a text for the client.
        """
        what = f"{self.name}: {method} {path}"
        async with self._asking.taken():
            status, data = await self._with_retry(what, method, path, query, body)
        if status in NO:
            if status == 401:
                _log.warning("%s: answered 401, which counts as a no; is the token the right one?", what)
            if explained and status == 403 and (text := _refusal_text(data)):
                raise Denied(f"{what}: answered 403: {text}", message=f"relay: access was refused: {text}")
            raise Denied(f"{what}: answered {status}")
        if status != 200:
            raise Undecided(f"{what}: answered {status}", "failed" if 400 <= status < 500 else "invalid")
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Undecided(f"{what}: not an answer: {printable(str(error))}", "invalid") from None

    async def _with_retry(
        self, what: str, method: str, path: str, query: Mapping[str, str] | None, body: msgspec.Struct | None
    ) -> tuple[int, bytes]:
        """Status and body, after a second attempt if the first failed."""
        for attempt in (1, 2):
            try:
                status, data = await self._attempt(what, method, path, query, body)
                if status < 500 and status != 429:
                    break
                raise Undecided(f"{what}: answered {status}", "failed")
            except Undecided as error:
                if attempt == 2 or error.why == "invalid":
                    raise
            await asyncio.sleep(_random.uniform(*RETRY_SECONDS))
        return status, data

    async def close(self) -> None:
        if self._token is not None:
            await self._token.close()
        if self._session is not None:
            await self._session.close()

    async def _attempt(
        self, what: str, method: str, path: str, query: Mapping[str, str] | None, body: msgspec.Struct | None
    ) -> tuple[int, bytes]:
        """Status and body. aiohttp's errors become Undecided here."""
        session = self._opened()
        headers = {} if self._token is None else {"Authorization": await self._token.header()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if traced := traceparent.get():
            headers["traceparent"] = traced
        data = msgspec.json.encode(body) if body is not None else None
        try:
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                session.request(method, self._url + path, params=query, data=data, headers=headers, allow_redirects=False) as answer,
            ):
                read = bytearray()
                while len(read) <= ANSWER_BYTES and (chunk := await answer.content.read(ANSWER_BYTES + 1 - len(read))):
                    read += chunk
                if len(read) > ANSWER_BYTES:
                    answer.close()
                    raise Undecided(f"{what}: the answer is larger than the {ANSWER_BYTES} bytes that are allowed", "invalid")
                return answer.status, bytes(read)
        except TimeoutError:
            raise Undecided(f"{what}: no answer within {self._settings.timeout_seconds:g} s", "timeout") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise Undecided(f"{what}: {printable(error_text(error))}", "unreachable") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise Undecided(f"{what}: not HTTP: {printable(error_text(error))}", "invalid") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._settings.connections, ssl=self._tls, keepalive_timeout=KEPT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),  # the timeout of the whole attempt is ours
                auto_decompress=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "git-ssh-relay"},
            )
        return self._session


def _refusal_text(body: bytes) -> str:
    """The text for the client in the body of a 403; empty for any other body, as a proxy's own page."""
    try:
        return client_text(msgspec.json.decode(body, type=Refusal).message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _trusting(path: Path, question: BackendQuestion, problems: list[str]) -> ssl.SSLContext:
    """A context that trusts these CAs and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies name and certificate; has no CA yet
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        problems.append(f"{question}.ca_file: {path} cannot be read ({error.strerror or error}), must be certificates in PEM")
    return context
