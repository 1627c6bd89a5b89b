"""The loaded libssh2 with OpenSSH: every cipher, MAC and key exchange that both support, packets of every size, both ways.

All messages of a connection go through `cat` and have to come back. OpenSSH 9 sends packets of up to 16 KiB from a pipe; an asyncssh
server sends those up to the largest, 32 KiB.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue

import asyncssh
import pytest
from asyncssh.encryption import GCMEncryption

from tests.native.client import CHUNK, Client, library
from tests.native.inetd import USER, new_key, supported

CALLBACK_RECV = 6  # LIBSSH2_CALLBACK_RECV of libssh2.h
LARGEST = 35_000  # bytes, RFC 4253 section 6.1; more than CHUNK takes two packets
PLAIN_CIPHER, PLAIN_MAC = "aes128-ctr", "hmac-sha2-256"
CIPHERS = [  # libssh2's crypt.c, without those that sshd has dropped years ago
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
    "aes128-ctr", "aes192-ctr", "aes256-ctr", "aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc",
]  # fmt: skip
MACS = [  # libssh2's mac.c
    "hmac-sha2-256", "hmac-sha2-512", "hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96",
    "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha1-etm@openssh.com",
]  # fmt: skip
KEX = [  # libssh2's kex.c
    "curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256", "diffie-hellman-group-exchange-sha1", "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512", "diffie-hellman-group14-sha256", "diffie-hellman-group14-sha1",
]  # fmt: skip


def sizes() -> list[int]:
    """Each small size, each around a block, pipe and packet limit, some in between: 1 to LARGEST."""
    near = [limit + offset for limit in (1_024, 4_096, 16_384, 32_700, 32_768, LARGEST) for offset in range(-20, 21)]
    drawn = random.Random(4253).sample(range(1, LARGEST), 60)
    return sorted({size for size in [*range(1, 290), *near, *drawn] if size <= LARGEST})


def exchange(client: Client, lengths: list[int]) -> None:
    """Send a message of each length through `cat`, one at a time, and compare what comes back."""
    source = random.Random(1).randbytes(max(lengths) + 256)
    sent, seen = hashlib.sha256(), hashlib.sha256()
    for number, length in enumerate(lengths):
        message = source[number % 256 : number % 256 + length]
        sent.update(message)
        client.write(message)
        seen.update(client.read(length))
        assert seen.digest() == sent.digest(), f"{length} bytes came back changed"


def test_nothing_is_left_out() -> None:
    """Only listed algorithms may be missing in this OpenSSH: else the tests below could shrink unnoticed."""
    assert set(CIPHERS) <= supported("cipher")
    assert set(MACS) <= supported("mac")
    assert set(KEX) <= supported("kex")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_cipher(cipher: str, connect: Callable[..., Client]) -> None:
    """Each cipher, with one MAC where it needs one."""
    client = connect(f"Ciphers {cipher}", f"MACs {PLAIN_MAC}", cipher=cipher, mac=PLAIN_MAC)
    client.execute("cat")
    exchange(client, sizes())


@pytest.mark.parametrize("mac", MACS)
def test_mac(mac: str, connect: Callable[..., Client]) -> None:
    """Each MAC, with one cipher."""
    client = connect(f"Ciphers {PLAIN_CIPHER}", f"MACs {mac}", cipher=PLAIN_CIPHER, mac=mac)
    client.execute("cat")
    exchange(client, sizes())


@pytest.mark.parametrize("kex", KEX)
def test_key_exchange(kex: str, connect: Callable[..., Client]) -> None:
    """Each key exchange."""
    client = connect(f"KexAlgorithms {kex}", cipher=CIPHERS[0], kex=kex)
    client.execute("cat")
    exchange(client, [1, 100, 10_000])


@pytest.mark.parametrize(
    ("out", "back"),
    [
        ("aes128-gcm@openssh.com", "aes128-ctr"),
        ("aes128-ctr", "aes128-gcm@openssh.com"),
        ("chacha20-poly1305@openssh.com", "aes128-ctr"),
        ("aes128-ctr", "chacha20-poly1305@openssh.com"),
        ("aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"),
        ("chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"),
    ],
)
@pytest.mark.parametrize("mac", ["hmac-sha2-256", "hmac-sha2-256-etm@openssh.com"])
def test_another_cipher_each_way(out: str, back: str, mac: str, connect: Callable[..., Client], hardened: str) -> None:
    """The flags of one direction's cipher do not leak into the other's."""
    client = connect(cipher=out, cipher_in=back, mac=mac)
    client.execute("cat")
    exchange(client, sizes()[::5])


@contextmanager
def asyncssh_echo(cipher: str, mac: str) -> Iterator[int]:
    """The port of an asyncssh server in a thread, which echoes its input."""

    async def echo(process: asyncssh.SSHServerProcess[bytes]) -> None:
        while data := await process.stdin.read(4 * LARGEST):
            process.stdout.write(data)
        process.exit(0)

    class Open(asyncssh.SSHServer):
        """Accepts every login."""

        def begin_auth(self, username: str) -> bool:
            return False

    async def serve() -> None:
        async with await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Open, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            encryption_algs=[cipher], mac_algs=[mac], process_factory=echo, encoding=None, line_editor=False,
        ) as acceptor:  # fmt: skip
            done = asyncio.Event()
            started.put((acceptor.get_port(), asyncio.get_running_loop(), done))
            await done.wait()

    started: Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    port, loop, done = started.get(timeout=60)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)


@pytest.mark.parametrize(
    ("cipher", "mac"),
    [
        ("aes128-gcm@openssh.com", ""),
        ("aes256-gcm@openssh.com", ""),
        ("aes256-ctr", "hmac-sha2-256"),
        ("aes256-ctr", "hmac-sha2-512-etm@openssh.com"),
        ("chacha20-poly1305@openssh.com", ""),
    ],
)
def test_largest_packets_of_a_server(cipher: str, mac: str) -> None:
    """Packets of up to 32 KiB from the server, which OpenSSH does not send from a pipe."""
    with asyncssh_echo(cipher, mac or "hmac-sha2-256") as port, Client(socket.create_connection(("127.0.0.1", port))) as client:
        client.handshake(cipher, mac)
        client.login(USER, new_key()[0])
        client.execute("echo")
        exchange(client, [*range(1, 40), *range(16_000, 32_769, 337), *range(CHUNK - 20, 32_769 + 20), LARGEST])


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
def test_padding_is_random(cipher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bytes of one packet's padding are found in another's, though the library asks for many packets' bytes at once."""
    paddings: list[bytes] = []
    decrypt = GCMEncryption.decrypt_packet

    def decrypted(self: GCMEncryption, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        packet = decrypt(self, seq, first, rest, header_len, mac)
        if packet:
            paddings.append(packet[-packet[0] :])
        return packet

    monkeypatch.setattr(GCMEncryption, "decrypt_packet", decrypted)
    with asyncssh_echo(cipher, "hmac-sha2-256") as port, Client(socket.create_connection(("127.0.0.1", port))) as client:
        client.handshake(cipher)
        client.login(USER, new_key()[0])
        client.execute("echo")
        exchange(client, [*range(1, 200)] * 3)
    assert len(paddings) > 600
    pieces = [padding[at : at + 8] for padding in paddings for at in range(len(padding) - 7)]
    assert len(pieces) > 1_000
    assert len(set(pieces)) == len(pieces)


def test_a_write_within_the_window_reads_nothing(connect: Callable[..., Client], hardened: str) -> None:
    """The socket is read where something may have come that is wanted: by reads, and by writes for which the window is too small."""
    client = connect(cipher=CIPHERS[0])
    client.execute("cat >/dev/null; echo done")
    with received(client) as calls:
        client.write(bytes(20 * CHUNK))
        assert len(calls) == 0
        client.write(bytes(200 * CHUNK))  # three windows of sshd
        assert len(calls) > 0
    client.drive(client.channel.send_eof)
    assert client.read(5) == b"done\n"


@contextmanager
def received(client: Client) -> Iterator[list[int]]:
    """What each call of the session's receive function returned."""
    kind = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
    replace = library().libssh2_session_callback_set2
    replace.argtypes, replace.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    session = ctypes.c_void_p.from_address(id(client.session) + object.__basicsize__)
    calls: list[int] = []

    def receive(sock: int, buffer: int, length: int, flags: int, abstract: int) -> int:
        got = int(original(sock, buffer, length, flags, abstract))
        calls.append(got)
        return got

    ours = kind(receive)
    before = replace(session, CALLBACK_RECV, ctypes.cast(ours, ctypes.c_void_p))
    original = kind(before)
    try:
        yield calls
    finally:
        replace(session, CALLBACK_RECV, before)
