"""A server that breaks the protocol causes a clean error or is ignored, and the process lives."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.native import hostile
from tests.native.client import EAGAIN, library
from tests.native.hostile import CIPHERS, Hostile, mpint, string, u32

LIBSSH2_CALLBACK_RECV = 6  # libssh2.h
VICTIM_TIMEOUT = 60.0  # seconds for a client to notice
GCM, CTR, ETM, CHACHA = CIPHERS
Script = Callable[[Hostile], None]


def attack(script: Script, algorithms: tuple[str, str] = GCM, **order: Any) -> dict[str, Any]:
    """Run `script` on the server's side of a client's connection; returns the client's report. A crash of the client fails."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        order = {"cipher": algorithms[0], "mac": algorithms[1], **order}
        command = [sys.executable, "-m", "tests.native.victim", str(listener.getsockname()[1]), json.dumps(order)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as victim:
            try:
                listener.settimeout(VICTIM_TIMEOUT)
                sock, _ = listener.accept()
                with sock:
                    try:
                        script(Hostile(sock, *algorithms))
                    except ConnectionError:  # the client disconnected; its report has the reason
                        pass
                output, errors = victim.communicate(timeout=VICTIM_TIMEOUT)
            finally:
                victim.kill()
    assert victim.returncode == 0, f"the client died ({victim.returncode}): {errors[-2000:]}"
    seen: dict[str, Any] = json.loads(output)
    return seen


def instead_of_accept(act: Script) -> Script:
    """Act while the client waits for SERVICE_ACCEPT: keys are in use, its application has not seen the host key yet."""

    def script(server: Hostile) -> None:
        server.serve_versions()
        server.serve_kex()
        server.expect(hostile.SERVICE_REQUEST)
        act(server)
        server.wait_gone()

    return script


def in_session(act: Script, **channel: int) -> Script:
    """Act while the command runs, then read what the client still sends."""

    def script(server: Hostile) -> None:
        server.serve_exec(**channel)
        act(server)
        server.wait_gone()

    return script


@pytest.mark.parametrize("algorithms", CIPHERS, ids="-".join)
def test_the_server_is_one_while_it_behaves(algorithms: tuple[str, str]) -> None:
    """Without an attack the session succeeds, with a rekey, on any library: so the tests below fail only by the attack."""

    def act(server: Hostile) -> None:
        for size in (1, 12, 15, 16, 17, 1_000, 32_768):
            server.send(server.data(bytes(size)))
        server.serve_kex()
        server.send(server.data(bytes(100)))
        server.finish(3)

    seen = attack(in_session(act), algorithms, write=100_000)
    assert (seen["stage"], seen["read"], seen["status"]) == ("done", 33_929, 3)


SHORT = [
    *((GCM, length, length) for length in (1, 4, 8, 11, 12, 15, 17)),
    *((ETM, length, length) for length in (1, 8, 15, 17)),
    *((CHACHA, length, length) for length in (1, 2, 3, 7, 9)),
    *((CTR, length, length) for length in (1, 8, 13, 29)),
    (ETM, 0xFFFF_FFF0, 64),
    (CHACHA, 0xFFFF_FFF8, 64),
    (GCM, 0xFFFF_FFF0, 64),
    (CTR, 0xFFFF_FFFC, 64),
]


@pytest.mark.parametrize(("algorithms", "length", "body"), SHORT, ids=lambda value: "-".join(value) if isinstance(value, tuple) else None)
def test_packet_length(algorithms: tuple[str, str], length: int, body: int, hardened: str) -> None:
    """An invalid packet length is an error, even from a sender that has the keys."""

    def act(server: Hostile) -> None:
        server.send_raw(server.seal(length, bytes(body)) + bytes(100))

    seen = attack(instead_of_accept(act), algorithms)
    assert seen["stage"] == "handshake"
    assert seen["error"] is not None


@pytest.mark.parametrize("algorithms", CIPHERS, ids="-".join)
@pytest.mark.parametrize("padding", [15, 16, 200, 255])
def test_padding_without_a_message(algorithms: tuple[str, str], padding: int, hardened: str) -> None:
    """Padding that leaves no byte for the message, or is longer than the packet, is an error."""

    def act(server: Hostile) -> None:
        size = 16 if server.cipher != CTR[0] or server.mac != CTR[1] else 12
        server.send_raw(server.seal(size, bytes([padding]) + bytes(size - 1)))

    seen = attack(instead_of_accept(act), algorithms)
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


@pytest.mark.parametrize("name", ["ext-info-c", "kex-strict-c-v00@openssh.com"])
def test_key_exchange_that_is_none(name: str, hardened: str) -> None:
    """A name that only announces an extension is not chosen as the key exchange."""

    def script(server: Hostile) -> None:
        server.kex = name
        server.serve_versions()
        server.send(server.kexinit())
        server.wait_gone()

    seen = attack(script)
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


@pytest.mark.parametrize("value", [0, 1])
def test_diffie_hellman_public_value(value: int, hardened: str) -> None:
    """A public value that makes the shared secret a constant is refused, even with a valid signature."""

    def script(server: Hostile) -> None:
        server.kex, server.public_value = "diffie-hellman-group14-sha256", value
        server.serve_login()

    seen = attack(script, kex="diffie-hellman-group14-sha256")
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


@pytest.mark.parametrize("modulus", [0, 2**1023 + 1, 2**8192 + 1], ids=["zero", "1024 bits", "8193 bits"])
def test_group_of_another_size(modulus: int, hardened: str) -> None:
    """A group of a size that was not requested is refused before any computation with it."""

    def script(server: Hostile) -> None:
        server.kex = "diffie-hellman-group-exchange-sha256"
        server.serve_versions()
        server.send(server.kexinit())
        server.expect(hostile.GEX_REQUEST)
        server.send(bytes([hostile.GEX_GROUP]) + mpint(modulus) + mpint(2))
        with pytest.raises(ConnectionError):
            server.receive()

    seen = attack(script, kex="diffie-hellman-group-exchange-sha256")
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


def test_extension_list_without_end(hardened: str) -> None:
    """An extension count beyond the packet is an error, at once (CVE-2026-55199)."""
    seen = attack(instead_of_accept(lambda server: server.send(bytes([hostile.EXT_INFO]) + u32(2**32 - 1))))
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


@pytest.mark.parametrize(("first", "second"), [(CHACHA, GCM), (GCM, CHACHA), (CTR, GCM), (CTR, ETM)], ids="-".join)
def test_rekey_with_other_methods(first: tuple[str, str], second: tuple[str, str], hardened: str) -> None:
    """A rekey cannot change cipher or MAC under the keys that are in use."""

    def act(server: Hostile) -> None:
        server.cipher, server.mac = second
        server.serve_kex()

    order = {"cipher": f"{first[0]},{second[0]}", "mac": "hmac-sha2-256,hmac-sha2-256-etm@openssh.com"}
    seen = attack(instead_of_accept(act), first, **order)
    assert (seen["stage"], seen["error"] is not None) == ("handshake", True)


MALFORMED_REQUESTS: dict[str, Callable[[Hostile], bytes]] = {
    "exit signal, name beyond the packet": lambda server: server.request("exit-signal", u32(2**32 - 2) + b"KILL"),
    "exit signal, name a little beyond": lambda server: server.request("exit-signal", u32(5) + b"KILL"),
    "exit signal without a name": lambda server: server.request("exit-signal"),
    "exit status cut short": lambda server: server.request("exit-status", b"\0\0"),
    "type beyond the packet": lambda server: bytes([hostile.CHANNEL_REQUEST]) + u32(0) + u32(2**32 - 8) + b"x",
    "nothing but a channel": lambda server: bytes([hostile.CHANNEL_REQUEST]) + u32(0),
}


@pytest.mark.parametrize("name", MALFORMED_REQUESTS)
def test_malformed_channel_request(name: str, hardened: str) -> None:
    """A string that does not end within the packet is an error; data before it is delivered."""
    seen = attack(in_session(lambda server: server.send(server.data(bytes(1_000)), MALFORMED_REQUESTS[name](server))))
    assert (seen["stage"], seen["read"], seen["error"] is not None) == ("read", 1_000, True)


def test_exit_signal_twice(hardened: str) -> None:
    """The last exit-signal counts, and there is no exit status then."""

    def act(server: Hostile) -> None:
        rest = bytes([0]) + string("") + string("")
        server.send(*(server.request("exit-signal", string(name) + rest) for name in ("KILL", "TERM")))
        server.finish(None)

    seen = attack(in_session(act))
    assert (seen["stage"], seen["signal"], seen["has_status"], seen["status"]) == ("done", "TERM", False, 0)


def test_window_beyond_its_limit(hardened: str) -> None:
    """A window adjustment past 2^32 - 1 does not wrap: the client can still send."""
    received = 0

    def act(server: Hostile) -> None:
        nonlocal received
        server.send(bytes([hostile.WINDOW_ADJUST]) + u32(0) + u32(2**32 - 1))  # 1 + this wraps to 0
        while received < 300_000:
            received += len(server.expect(hostile.CHANNEL_DATA)) - 9
        server.finish()

    seen = attack(in_session(act, window=1), write=300_000)
    assert (seen["stage"], received) == ("done", 300_000)


def test_channel_that_accepts_nothing(hardened: str) -> None:
    """A maximum packet size of 0 would make a write send empty packets for ever."""
    seen = attack(in_session(lambda server: server.finish(), packet_size=0), write=100)
    assert (seen["stage"], seen["error"] is not None) == ("exec", True)


def test_refusal_without_a_reason(hardened: str) -> None:
    """A refused channel with nothing behind its number is just that."""

    def script(server: Hostile) -> None:
        server.serve_login()
        server.expect(hostile.CHANNEL_OPEN)
        server.send(bytes([hostile.OPEN_FAILURE]) + u32(0))
        server.wait_gone()

    seen = attack(script)
    assert (seen["stage"], seen["error"]) == ("exec", "ChannelFailure")


def test_request_for_a_reply_while_output_is_pending(hardened: str) -> None:
    """The reply waits for the packet that is partly sent, and carries the server's number of the channel."""
    size = 3_000_000
    received = 0

    def act(server: Hostile) -> None:
        nonlocal received
        for _ in range(20):  # each reaches a client whose write waits for this server
            server.send(*[server.request("keepalive@openssh.com", want_reply=True)] * 3)
            for kind in [hostile.CHANNEL_FAILURE] * 3:
                while (payload := server.receive())[0] != kind:
                    assert payload[0] == hostile.CHANNEL_DATA
                    received += len(payload) - 9
                assert payload[1:] == u32(7)
        while received < size:
            received += len(server.expect(hostile.CHANNEL_DATA)) - 9
        server.finish()

    seen = attack(in_session(act, window=2**30), write=size, send_buffer=4_096)
    assert (seen["stage"], received) == ("done", size)


def test_data_end_and_status_before_a_broken_packet(hardened: str) -> None:
    """Everything before the broken packet is delivered: all data, the end of the stream, the exit status."""

    def act(server: Hostile) -> None:
        said = b"".join([server.packet(server.data(bytes(30_000))) for _ in range(10)])
        said += server.packet(server.request("exit-status", u32(9))) + server.packet(bytes([hostile.CHANNEL_EOF]) + u32(0))
        said += server.packet(bytes([hostile.CHANNEL_CLOSE]) + u32(0))
        server.send_raw(said + bytes(64))

    seen = attack(in_session(act))
    assert (seen["stage"], seen["read"], seen["status"], seen["has_status"]) == ("done", 300_000, 9, True)


def test_ignored_stderr_while_output_is_pending(hardened: str) -> None:
    """Extended data that the channel ignores is refunded once, though the refund has to wait for the writer."""
    size = 2_000_000
    received = 0

    def act(server: Hostile) -> None:
        nonlocal received
        for _ in range(50):
            server.send(bytes([hostile.EXTENDED_DATA]) + u32(0) + u32(1) + string(bytes(30_000)))
            received += len(server.expect(hostile.CHANNEL_DATA)) - 9
        while received < size:
            received += len(server.expect(hostile.CHANNEL_DATA)) - 9
        server.finish()

    seen = attack(in_session(act, window=2**30), write=size, send_buffer=4_096, ignore_stderr=True)
    assert (seen["stage"], seen["read"], received) == ("done", 0, size)


def test_packets_that_nobody_asks_for(hardened: str) -> None:
    """The client keeps them up to a limit, then disconnects."""

    def act(server: Hostile) -> None:
        for _ in range(70):
            server.send(*[bytes([192])] * 1_000)

    seen = attack(in_session(act))
    assert (seen["stage"], seen["error"] is not None) == ("read", True)


def test_call_comes_back_under_a_flood(hardened: str) -> None:
    """A server that sends without a pause cannot keep a non-blocking handshake from returning."""
    lib = library()
    lib.libssh2_session_init_ex.restype = ctypes.c_void_p
    lib.libssh2_session_callback_set2.restype = ctypes.c_void_p
    ours, theirs = socket.socketpair()
    flood = Hostile(theirs, *GCM).packet(bytes([hostile.IGNORE]) + string(bytes(1_000)))
    received: list[int] = []

    def receive(fd: int, buffer: int, size: int, flags: int, abstract: int) -> int:
        """The version line, byte by byte as libssh2 reads it, then SSH_MSG_IGNORE; EOF after far too many."""
        version = b"SSH-2.0-flood\r\n"
        received.append(size)
        if len(received) <= len(version):
            ctypes.memmove(buffer, version[len(received) - 1 :], 1)
            return 1
        if len(received) > 10_000:
            return 0
        data = flood * (size // len(flood))
        ctypes.memmove(buffer, data, len(data))
        return len(data)

    signature = ctypes.CFUNCTYPE(
        ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    )  # LIBSSH2_RECV_FUNC
    callback = signature(receive)
    session = ctypes.c_void_p(lib.libssh2_session_init_ex(None, None, None, None))
    with ours, theirs:
        try:
            lib.libssh2_session_set_blocking(session, 0)
            lib.libssh2_session_callback_set2(session, LIBSSH2_CALLBACK_RECV, callback)
            for _ in range(10):
                before = len(received)
                assert lib.libssh2_session_handshake(session, ours.fileno()) == EAGAIN
                assert 0 < len(received) - before < 200
        finally:
            lib.libssh2_session_free(session)
