"""A stranger's bytes at a server without a network: packets before the keys, values of a key exchange, and requests to log in.

`check_login` gives one input to a new connection, and asserts that it causes no internal error of the relay: no record of level
ERROR, no exception in the loop. The first byte of an input selects where it begins:

0  at the start: the rest is the bytes from the socket
1  each packet of the rest, length first, is a message after the version exchange, unencrypted
2  each is a message after the key exchange, as it is decrypted
3  the rest is the public key of a request to log in
4  the rest is the signature of a known key
5  the next byte selects a key exchange, the rest is the client's value for it
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, cast

import asyncssh
from asyncssh.constants import MSG_KEXINIT, MSG_SERVICE_REQUEST, MSG_USERAUTH_REQUEST
from asyncssh.kex import get_kex
from asyncssh.packet import Boolean, MPInt, NameList, String, UInt32

from relay.admission.farewell import Farewells
from relay.admission.limits import Admission
from relay.config import AlgorithmsSettings, Config, UpstreamSettings
from relay.connection import ConnectionHandler, ConnectionServices
from relay.events import Observer
from relay.keys.open import open_certificates, open_policy
from relay.openssh.public_key import CLIENT_SIGNATURES
from relay.session import Services
from relay.ssh.algorithms import PROFILES, server_options
from relay.ssh.backpressure import Budget
from relay.ssh.client_connection import ClientConnection, connection_factory
from relay.tasks import Tasks

PACKETS = 8  # at most in one input
KEYS = {
    name: asyncssh.generate_private_key(name)
    for name in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
}
HOST_KEY = KEYS["ssh-ed25519"]
VERSION = b"SSH-2.0-stranger\r\n"
KEX = [name.encode() for name in PROFILES["compatible"]["kex_algs"]]


class Transport(asyncio.Transport):
    """A transport that drops all writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711)})
        self.closed = False
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Anybody:
    """The keys backend: KEYS are alice's, all others are unknown."""

    _known = frozenset(key.get_fingerprint() for key in KEYS.values())

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        asyncssh.import_public_key(public_key)
        return "alice" if fingerprint in self._known else None


class Faults(logging.Handler):
    """Keeps every record of level ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Desk:
    """One loop and one server for all inputs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults = Faults()
        self.raised: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.raised.append(context))
        logging.getLogger().addHandler(self.faults)
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        config = Config(
            upstreams={"main": UpstreamSettings(addresses=["127.0.0.1:1"])}, algorithms=AlgorithmsSettings(profile="compatible")
        )
        self.observer = Observer()
        services = Services(
            config=config,
            access=cast(Any, None),
            routes=cast(Any, None),
            pools={},
            observer=self.observer,
            tasks=Tasks(),
            budget=Budget(1 << 30),
        )
        certificates = open_certificates(config.certificates, cast(Any, None), config.user)
        self.gate = Admission(config.limits, exempt=lambda address: True)
        self.live: set[ConnectionHandler] = set()
        door = ConnectionServices(
            keys=cast(Any, Anybody()),
            certificates=certificates,
            policy=open_policy(config.policy, None),
            gate=self.gate,
            services=services,
            live=self.live,
            farewells=Farewells("fuzzed"),
        )
        options = await asyncssh.SSHServerConnectionOptions.construct(
            server_factory=lambda: ConnectionHandler(door), config=None, **server_options(config, [HOST_KEY])
        )
        options.proxy_command = None
        self._make = connection_factory(options, self.loop, config.limits.auth_attempts)

    def serve(self, data: bytes) -> None:
        self.loop.run_until_complete(self._serve(data[:1], data[1:]))

    async def _serve(self, kind: bytes, data: bytes) -> None:
        if kind == b"\5":
            name = KEX[(data or b"\0")[0] % len(KEX)]
            await self._connect([lambda connection: _exchange(connection, name, data[1:])])
        elif kind == b"\4":
            for key in KEYS.values():
                await self._connect([_logging_in, lambda connection, key=key: connection.dispatch(_proof(key, data))])
        elif kind == b"\3":
            await self._connect([_logging_in, lambda connection: connection.dispatch(_request(b"ssh-ed25519", data))])
        elif kind == b"\2":
            await self._connect([_logging_in, *(lambda connection, one=one: connection.dispatch(one) for one in _messages(data))])
        elif kind == b"\1":
            await self._connect([lambda connection: connection.data_received(VERSION + b"".join(map(_packet, _messages(data))))])
        else:
            await self._connect([lambda connection: connection.data_received(data)])

    async def _connect(self, acts: list[Any]) -> None:
        connection = self._make(None, 0.0)
        transport = Transport()
        connection.connection_made(transport)
        for act in acts:
            if connection._transport is None:
                break
            try:
                act(connection)
            except asyncssh.DisconnectError as error:  # as relay.ssh.packets handles it
                connection._disconnect(error)
            except Exception:  # noqa: BLE001 - likewise
                connection.internal_error()
            await asyncio.sleep(0)
        connection.abort()
        while self.live:
            await asyncio.sleep(0)
        if self.faults.records or self.raised:
            record = self.faults.records[:1]
            self.faults.records, raised, self.raised = [], self.raised, []
            raise AssertionError(f"a stranger's bytes are told as a fault: {record or raised}") from (
                record[0].exc_info[1] if record and record[0].exc_info else None
            )


def _packet(payload: bytes) -> bytes:
    """RFC 4253 section 6, without encryption."""
    padding = -(5 + len(payload)) % 8 + 8
    return (1 + len(payload) + padding).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)


def _messages(data: bytes) -> Iterator[bytes]:
    for _ in range(PACKETS):
        if not data:
            return
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size] or b"\x02"
        data = data[2 + size :]


def joined(*messages: bytes) -> bytes:
    """The rest of an input with these messages."""
    return b"".join(len(one).to_bytes(2, "big") + one for one in messages)


def _logging_in(connection: ClientConnection) -> None:
    """Puts the connection into the state after the key exchange and the service request."""
    state: Any = connection
    state._client_version = VERSION[:-2]
    state._session_id = bytes(32)
    state._kex_complete = True
    state._recv_encryption = _NoCipher()
    state._next_service = b"ssh-userauth"
    connection.dispatch(bytes([MSG_SERVICE_REQUEST]) + String(b"ssh-userauth"))


class _NoCipher:
    """Stands for the cipher of messages that are already decrypted."""


def _exchange(connection: ClientConnection, name: bytes, value: bytes) -> None:
    """Sends the first message of this key exchange, with this value."""
    state: Any = connection
    state._client_version, state._client_kexinit = VERSION[:-2], b"x"
    state._server_host_key = next(iter(state._server_host_keys.values()))
    lists = [[name], [b"ssh-ed25519"], *[[b"aes128-gcm@openssh.com"]] * 2, *[[b"hmac-sha2-256"]] * 2, *[[b"none"]] * 2, [], []]
    kexinit = bytes([MSG_KEXINIT]) + bytes(16) + b"".join(NameList(names) for names in lists) + bytes(5)
    connection.data_received(VERSION + _packet(kexinit) + _packet(bytes([30]) + String(value)))


def _request(algorithm: bytes, blob: bytes, proves: bool = False) -> bytes:
    fields = [String(b"git"), String(b"ssh-connection"), String(b"publickey"), Boolean(proves), String(algorithm), String(blob)]
    return bytes([MSG_USERAUTH_REQUEST]) + b"".join(fields)


def _proof(key: asyncssh.SSHKey, signature: bytes) -> bytes:
    return _request(key.algorithm, key.public_data, proves=True) + String(signature)


_desk: Desk | None = None


def check_login(data: bytes) -> None:
    global _desk
    if _desk is None:
        _desk = Desk()
    _desk.serve(data)


# -- the seeds ---------------------------------------------------------------------------------------------------------------


def _rsa(e: int, n: int) -> bytes:
    return String(b"ssh-rsa") + MPInt(e) + MPInt(n)


def _seeds() -> Iterator[bytes]:
    rsa: Any = KEYS["ssh-rsa"].convert_to_public().pyca_key
    modulus = rsa.public_numbers().n
    for version in (VERSION, b"SSH-1.5-x\r\n", b"SSH-2.0-\xff\xfe\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\n", b"SSH-2.0-" + b"x" * 300):
        yield b"\0" + version
    lists = [KEX, [b"ssh-ed25519"], *[[b"aes128-ctr"]] * 2, *[[b"hmac-sha2-256"]] * 2, *[[b"none"]] * 2, [], []]
    kexinit = bytes([MSG_KEXINIT]) + bytes(16) + b"".join(NameList(names) for names in lists) + bytes(5)
    yield b"\1" + joined(kexinit, bytes([30]) + String(bytes(32)), b"\x15")
    yield b"\1" + joined(kexinit, kexinit)
    yield b"\1" + joined(kexinit.replace(b"aes128-ctr", b"aes128-\xff\xfe\xfd"))
    for key in KEYS.values():
        data = key.public_data
        yield b"\2" + joined(_request(key.algorithm, data), _proof(key, String(key.algorithm) + String(bytes(64))))
        yield b"\3" + data
        yield b"\3" + data[:-1]
        yield b"\3" + data[:-32] + bytes(32)  # not a point of the curve
        yield b"\3" + data[:-32] + b"\xff" * 32
        yield b"\4" + key.sign(b"x", key.sig_algorithms[0])
        yield b"\4" + String(key.sig_algorithms[0]) + String(MPInt(0) + MPInt(-1))
        yield b"\4" + String(key.sig_algorithms[0]) + String(b"")
    for e in (0, 1, 2, -3, modulus):
        yield b"\3" + _rsa(e, modulus)
    for n in (0, 1, -modulus, 1 << 20_000):
        yield b"\3" + _rsa(65_537, n)
    for name in (*CLIENT_SIGNATURES, "ssh-dss", "ssh-ed448", "webauthn-sk-ecdsa-sha2-nistp256@openssh.com", "x509v3-ssh-rsa", "ssh-\xff"):
        yield b"\3" + String(name) + String(b"nistp256") + String(b"\4" + bytes(64)) + String(b"ssh:")
        yield b"\3" + String(name) + String(bytes(32)) + String(b"ssh:")
        yield b"\3" + String(name) + MPInt(7) * 4
        yield b"\3" + String(name.replace("@openssh.com", "") + "-cert-v01@openssh.com") + String(bytes(32)) * 9
    for user in (b"\xff", b"x" * 2_000, "\u202e".encode(), b"\0", b""):
        yield b"\2" + joined(bytes([MSG_USERAUTH_REQUEST]) + String(user) + String(b"ssh-connection") + String(b"none"))
    yield b"\2" + joined(bytes([MSG_USERAUTH_REQUEST]) + String(b"git") + String(b"ssh-\xff") + String(b"none"))
    yield b"\2" + joined(bytes([MSG_USERAUTH_REQUEST]) + String(b"git") + String(b"ssh-connection") + String(b"password\xff") + UInt32(9))
    yield b"\2" + joined(b"\x01" + UInt32(2) + String(b"\xff") * 2, b"\x02", b"\x03" + UInt32(1), b"\x04\1" + String(b"\xff") * 2)
    yield b"\2" + joined(b"\x07" + UInt32(1) + String(b"server-sig-algs") + String(b"\xff"), b"\x3c", b"\x50", b"\x5a", b"\xc0")
    for value in (bytes(32), b"\1", b"\4" + bytes(64), b"\4" + b"\xff" * 96, bytes(1_216), b"\xff" * 1_216, b"", b"\4"):
        for choice in range(len(KEX)):
            yield bytes([5, choice]) + value
    for choice, kex in enumerate(KEX):
        prime = getattr(get_kex(cast(Any, _Server()), kex), "_p", 0)
        for number in (0, 1, 2, prime - 1, prime, prime + 1, -1) if prime else ():
            yield bytes([5, choice]) + MPInt(number)[4:]


class _Server:
    """The part of a connection that a key exchange uses when it is made."""

    logger = None

    def is_client(self) -> bool:
        return False


SEEDS = list(_seeds())
