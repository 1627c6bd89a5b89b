"""Drives the binding of libssh2 without blocking, and reports which library is loaded: `stock` or `hardened`.

The binding is that of the relay (relay/upstream/libssh2/binding.py), chosen here again: a victim starts without an import of the relay.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STOCK = os.environ.get("RELAY_LIBSSH2") == "stock" or importlib.util.find_spec("relay_ssh2") is None
BINDING, LIBRARY = ("ssh2", "libssh2") if STOCK else ("relay_ssh2", "librelay_ssh2")
_session = importlib.import_module(f"{BINDING}.session")
Session: Any = _session.Session
Channel: Any = importlib.import_module(f"{BINDING}.channel").Channel
SSH2Error: type[Exception] = importlib.import_module(f"{BINDING}.exceptions").SSH2Error

EAGAIN = -37
CHUNK = 32_700  # bytes a write: what one packet takes
READ_SIZE = 65_536  # bytes a read: constant: libssh2 resends a WINDOW_ADJUST that met EAGAIN with the old amount
STALL_SECONDS = 20.0  # longer than any operation of these tests waits for its peer


class StalledError(AssertionError):
    """An operation made no progress although its peer was willing."""


def library() -> ctypes.CDLL:
    """The libssh2 that the bindings have loaded into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(LIBRARY) and ".so" in path:
            return ctypes.CDLL(path)
    raise LookupError("no libssh2 in this process")


def relay_build() -> str | None:
    """The name of the hardened build ("relay-N"); None for a stock library."""
    try:
        build = library().libssh2_relay_build
    except AttributeError:
        return None
    build.restype = ctypes.c_char_p
    return bytes(build()).decode()


def exit_of(channel: object) -> tuple[bool, str]:
    """How the command of an ssh2 Channel ended: (an exit status was received, name of the exit signal or "").

    Needs the hardened library. The C channel is the first field of the Cython object.
    """
    lib = library()
    pointer = ctypes.c_void_p.from_address(id(channel) + object.__basicsize__)
    name, size = ctypes.c_void_p(), ctypes.c_size_t()
    rc = lib.libssh2_channel_get_exit_signal(pointer, ctypes.byref(name), ctypes.byref(size), None, None, None, None)
    if rc != 0:
        raise OSError(f"libssh2_channel_get_exit_signal: {rc}")
    signal = ctypes.string_at(name.value, size.value).decode() if name.value else ""
    ctypes.CDLL(None).free(name)  # allocated by the session's allocator, which is malloc
    return bool(lib.libssh2_channel_has_exit_status(pointer)), signal


class Client:
    """One connection with one channel; every operation is retried until it succeeds or fails, with the same arguments."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is connected; it is closed with this client."""
        sock.setblocking(False)
        self.sock = sock
        self.session = Session()
        self.session.set_blocking(False)
        self.channel: Any = None
        self.peer_log: Callable[[], str] = str  # the server's log, if a test sets it

    def handshake(self, cipher: str, mac: str = "", *, kex: str = "curve25519-sha256", cipher_in: str = "") -> None:
        """Exchange keys with these algorithms and no others; `cipher_in` is the server's cipher if it differs."""
        of = _session
        wanted = {of.LIBSSH2_METHOD_KEX: kex, of.LIBSSH2_METHOD_CRYPT_CS: cipher, of.LIBSSH2_METHOD_CRYPT_SC: cipher_in or cipher}
        if mac:
            wanted |= {of.LIBSSH2_METHOD_MAC_CS: mac, of.LIBSSH2_METHOD_MAC_SC: mac}
        for method, names in wanted.items():
            self.session.method_pref(method, names)
        self.drive(self.session.handshake, self.sock)

    def login(self, user: str, private_key: bytes) -> None:
        """Authenticate with an OpenSSH-format ed25519 key."""
        self.drive(self.session.userauth_publickey_frommemory, user, private_key)

    def execute(self, command: str) -> None:
        """Open the channel and run `command` on it."""
        self.channel = self.drive(self.session.open_session)
        self.drive(self.channel.execute, command)

    def wait(self, timeout: float = STALL_SECONDS) -> None:
        """Wait for the direction that the session waits for; if it names none, for both."""
        directions = self.session.block_directions() or _session.LIBSSH2_SESSION_BLOCK_INBOUND | _session.LIBSSH2_SESSION_BLOCK_OUTBOUND
        events = select.POLLIN if directions & _session.LIBSSH2_SESSION_BLOCK_INBOUND else 0
        events |= select.POLLOUT if directions & _session.LIBSSH2_SESSION_BLOCK_OUTBOUND else 0
        poll = select.poll()
        poll.register(self.sock, events)
        if not poll.poll(timeout * 1000):
            raise StalledError(f"nothing happened for {timeout} s, directions {directions}")

    def drive(self, operation: Callable[..., Any], *arguments: object) -> Any:
        """Call until the result is not EAGAIN; raises StalledError after STALL_SECONDS, and the operation's errors."""
        deadline = time.monotonic() + STALL_SECONDS
        while (result := operation(*arguments)) == EAGAIN or (isinstance(result, tuple) and result[0] == EAGAIN):
            if time.monotonic() > deadline:
                raise StalledError(f"{operation} got EAGAIN for {STALL_SECONDS} s")
            self.wait()
        return result

    def write(self, data: bytes) -> None:
        """Write all of `data`, each retry with the same bytes."""
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            while chunk:
                rc, count = self.channel.write(chunk)
                chunk = chunk[count:]
                if rc == EAGAIN:
                    self.wait()

    def read(self, size: int) -> bytes:
        """The next `size` bytes of stdout, all that the peer has sent; raises EOFError when the stream ends before."""
        parts: list[bytes] = []
        while size > 0:
            rc, data = self.drive(self.channel.read, READ_SIZE)
            if rc == 0:
                raise EOFError(f"{size} bytes short")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """End the session without a leak: shut the socket down before freeing the session."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the peer has disconnected already
            pass
        self.channel = self.session = None
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
