"""Authentication requests and their Judge, from asyncssh's client and from hand-made packets."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_USERAUTH_REQUEST
from asyncssh.packet import Boolean, SSHPacket, String
from asyncssh.public_key import decode_ssh_public_key

from relay.ssh import client_key
from relay.ssh.client_key import ClientKey, KnownKeys
from relay.ssh.userauth import Judge
from tests.ssh.test_client_connection import KEY, Place, listening
from tests.support.wait import wait_until_async


class Everybody(Judge):
    """Accepts every key, or none; records its calls."""

    def __init__(self, knows: bool = True) -> None:
        self.knows = knows
        self.touched = True  # whether it accepts the signatures of security keys
        self.flags: int | None = -1
        self.told: list[str] = []
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0
        self.cancelled = 0
        self.peer: Any = None
        self.ended: list[Exception | None] = []

    def begin_auth(self, username: str) -> bool:
        self.told.append(f"begin {username}")
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_key(self, username: str, key: ClientKey) -> bool:
        self.asked += 1
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.knows

    async def validate_certificate(self, username: str, blob: bytes) -> asyncssh.SSHKey | None:
        self.told.append("certificate")
        return None

    def unusable_key(self, detail: str) -> None:
        self.told.append("unusable")

    def bad_signature(self, detail: str = "") -> None:
        self.told.append("bad signature")

    def accepts_flags(self, flags: int | None) -> bool:
        self.flags = flags
        return self.touched or flags is None

    def failure_due(self) -> None:
        self.told.append("failure")

    def is_candidate(self) -> bool:
        return self.knows

    def auth_completed(self) -> None:
        self.told.append("completed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


class Raw(asyncssh.SSHClient):
    """Keeps its connection, so that a test can send packets that a client would not."""

    def __init__(self) -> None:
        self.connection: Any = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    def request(self, method: str, *parts: bytes, user: str = "git") -> None:
        connection = self.connection
        connection._auth = None
        connection.send_packet(MSG_USERAUTH_REQUEST, String(user), String("ssh-connection"), String(method), *parts)


OFFER = (Boolean(False), String(KEY.algorithm), String(KEY.public_data))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The key blobs that were decoded."""
    seen: list[bytes] = []
    decode = decode_ssh_public_key

    def note(blob: bytes) -> asyncssh.SSHKey:
        seen.append(blob)
        return decode(blob)

    monkeypatch.setattr(client_key, "decode_ssh_public_key", note)
    return seen


async def test_a_key_is_offered_proven_and_decoded_once(decoded: list[bytes]) -> None:
    judge = Everybody()
    async with listening(server=judge) as place:
        async with place.connect():
            assert judge.told == ["begin git", "completed"]
            assert (judge.asked, decoded) == (2, [KEY.public_data])
        assert await place.end() is None


async def test_a_remembered_key_is_not_decoded_again_but_validated(decoded: list[bytes]) -> None:
    judge = Everybody()
    async with listening(server=judge) as place:
        async with place.connect():
            pass
        judge.knows = False
        with pytest.raises(asyncssh.PermissionDenied):
            await place.connect()
        assert (judge.asked, decoded) == (3, [KEY.public_data])
        judge.knows = True
        async with place.connect():
            assert (judge.asked, decoded) == (5, [KEY.public_data])
        await wait_until_async(lambda: len(judge.ended) == 3)


def spelled(key: asyncssh.SSHKey, zeros: int) -> bytes:
    """The blob of an RSA key with so many zeros in front of its modulus."""
    packet = SSHPacket(key.public_data)
    kind, e, n = packet.get_string(), packet.get_string(), packet.get_string()
    return String(kind) + String(e) + String(bytes(zeros) + n)


async def test_a_key_is_remembered_once_it_was_proven_and_as_it_is_written() -> None:
    """All spellings of a key share one entry of the cache: else one known key would evict all others."""
    rsa = asyncssh.generate_private_key("ssh-rsa")
    [wrong] = asyncssh.load_keypairs([rsa])
    wrong.sign = lambda data: b""  # type: ignore[method-assign]
    for zeros in range(3):
        judge = Everybody()
        async with listening(server=judge) as place:
            wrong.public_data = spelled(rsa, zeros)
            with pytest.raises(asyncssh.PermissionDenied):
                await place.connect(client_keys=[wrong])
            assert "bad signature" in judge.told
            assert len(place.connection._once.keys) == 0, "offered, and not proven"
            await place.end()
    for zeros in (0, 7):
        async with listening(server=Everybody()) as place:
            [pair] = asyncssh.load_keypairs([rsa])
            pair.public_data = spelled(rsa, zeros)
            async with place.connect(client_keys=[pair]):
                known = place.connection._once.keys
                assert len(known) == 1 and known.get(rsa.public_data) is not None
            await place.end()


async def test_an_unknown_key_is_not_remembered() -> None:
    judge = Everybody(knows=False)
    async with listening(server=judge) as place:
        with pytest.raises(asyncssh.PermissionDenied):
            await place.connect()
        assert len(place.connection._once.keys) == 0
        await place.end()


def test_keys_that_are_remembered_are_bounded() -> None:
    known, key = KnownKeys(2), ClientKey.of(KEY)
    for came in (b"1", b"2", b"2", b"3"):
        known.add(came, key)
    assert [known.get(came) for came in (b"1", b"2", b"3")] == [None, key, key]
    assert len(known) == 2


async def test_an_unknown_key_is_a_failure_that_names_the_methods() -> None:
    judge = Everybody(knows=False)
    async with listening(server=judge) as place:
        with pytest.raises(asyncssh.PermissionDenied):
            await place.connect()
        assert judge.told == ["begin git", "failure"]
        await place.end()


async def test_a_wrong_signature_is_reported_and_fails() -> None:
    judge = Everybody()
    async with listening(server=judge) as place:
        raw = Raw()

        async def prove() -> asyncssh.SSHKey:
            wrong = KEY.sign(b"something else", KEY.algorithm)
            raw.request("publickey", Boolean(True), String(KEY.algorithm), String(KEY.public_data), String(wrong))
            await asyncio.Event().wait()
            return KEY

        raw.public_key_auth_requested = prove  # type: ignore[method-assign]
        login = asyncio.create_task(connected(place, client_factory=lambda: raw, client_keys=[]))
        await wait_until_async(lambda: judge.told == ["begin git", "bad signature", "failure"])
        assert not place.connection._auth_complete
        await given_up(raw, login)


async def test_an_answer_that_comes_too_late_is_not_sent() -> None:
    """RFC 4252 section 5.1: another request replaces the one that is being judged."""
    judge = Everybody()
    judge.may.clear()
    async with listening(server=judge) as place:
        raw = Raw()
        login = asyncio.create_task(connected(place, client_factory=lambda: raw))
        await wait_until_async(lambda: judge.asked == 1)
        raw.request("publickey", *OFFER)
        await wait_until_async(lambda: judge.asked == 2)
        assert judge.cancelled == 1
        raw.request("none")
        await wait_until_async(lambda: judge.cancelled == 2)
        await given_up(raw, login)
        assert "completed" not in judge.told


async def test_each_user_name_begins_anew() -> None:
    judge = Everybody(knows=False)
    async with listening(server=judge) as place:
        raw = Raw()

        async def other() -> asyncssh.SSHKey | None:
            raw.request("none", user="other")
            await asyncio.Event().wait()
            return None

        raw.public_key_auth_requested = other  # type: ignore[method-assign]
        login = asyncio.create_task(connected(place, client_factory=lambda: raw, client_keys=[]))
        await wait_until_async(lambda: judge.told == ["begin git", "begin other", "failure"])
        await given_up(raw, login)


@pytest.mark.parametrize(
    ("user", "service", "error"),
    [
        (b"g" * 1024, "ssh-connection", asyncssh.IllegalUserName),
        (b"\xff", "ssh-connection", asyncssh.IllegalUserName),
        (b"git", "ssh-userauth", asyncssh.ServiceNotAvailable),
    ],
)
async def test_a_request_that_makes_no_sense_ends_the_connection(user: bytes, service: str, error: type[Exception]) -> None:
    async with listening(server=Everybody()) as place:
        raw = Raw()

        async def ask() -> asyncssh.SSHKey | None:
            raw.connection.send_packet(MSG_USERAUTH_REQUEST, String(user), String(service), String("none"))
            await asyncio.Event().wait()
            return None

        raw.public_key_auth_requested = ask  # type: ignore[method-assign]
        login = asyncio.create_task(connected(place, client_factory=lambda: raw, client_keys=[]))
        assert isinstance(await place.end(), error)
        await given_up(raw, login)


async def test_a_certificate_is_passed_to_the_judge_undecoded() -> None:
    judge = Everybody()
    async with listening(server=judge) as place:
        certificate = KEY.generate_user_certificate(KEY, "alice", principals=["git"])
        async with place.connect(client_keys=[(KEY, certificate)]):
            assert judge.told == ["begin git", "certificate", "failure", "completed"]


async def connected(place: Place, **options: Any) -> Any:
    return await place.connect(**options)


async def given_up(raw: Raw, login: asyncio.Task[Any]) -> None:
    raw.connection.abort()
    await asyncio.wait([login])
    login.exception()  # whether there is an error depends on which side was first
