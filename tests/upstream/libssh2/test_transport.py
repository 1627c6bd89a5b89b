"""The transport to a git host: TCP, key exchange, the host key, and a close, which every waiter learns of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from relay.config import HostAlgorithms
from relay.errors import Unavailable
from relay.upstream.algorithms import Offer, offer
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.libssh2 import loaded_library, probe, transport
from relay.upstream.libssh2.transport import State
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key, make_key
from tests.support.machine import free_port
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import Dial, login

WIDE = offer("compatible", hardened=True)


async def test_nobody_listens(dial: Dial) -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}: .*Connect") as told:
        await dial(port)
    assert told.value.reason == "dial"
    with pytest.raises(Unavailable, match=rf"^\[::1\]:{port}: "):
        await dial(port, host="::1")


async def test_a_name_is_resolved_or_the_dial_says_that_it_was_not(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await dial(host="localhost")).usable

    async def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # a real lookup would use the network

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(Unavailable, match=r"git\.invalid:22: name not resolved: .*not known") as told:
        await dial(22, host="git.invalid")
    assert told.value.reason == "dial"


async def test_a_server_that_speaks_no_ssh_or_disconnects(dial: Dial, sshd: Sshd) -> None:
    async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 100)
        writer.close()

    async with await asyncio.start_server(junk, "127.0.0.1", 0) as server, FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("reset")
        for port in (server.sockets[0].getsockname()[1], proxy.port):
            with pytest.raises(Unavailable, match="key exchange failed") as told:
                await dial(port)
            assert told.value.reason == "handshake"


STRANGERS = {  # what the host sends at once, whether the connection then stays open, the error's text
    "http": (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", False, 'no SSH server, its first line is "HTTP/1.1 400 Bad Request"'),
    "smtp, which waits": (b"220 mail.example ESMTP\r\n", True, 'no SSH server, its first line is "220 mail.example ESMTP"'),
    "escapes": (b"\x1b]0;x\x07" + b"y" * 3_000 + b"\r\n", False, 'its first line is "?]0;x?yyyy'),
    "tls": (b"\x15\x03\x01\x00\x02\x02\x46", False, "it speaks TLS"),
    "nothing": (b"", False, "closed the connection without a word"),
    "a full sshd": (b"Exceeded MaxStartups\r\n", False, "raise MaxStartups"),
    "a version and no more": (b"SSH-2.0-half\r\n", False, '"SSH-2.0-half"'),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_the_first_line_of_what_is_no_git_host_is_quoted(dial: Dial, stranger: str) -> None:
    sends, stays, said = STRANGERS[stranger]
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sends)
        if stays:
            await done.wait()
        else:
            await reader.readline()  # with unread input the close would be a reset, which drops the bytes sent
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable) as told:
            await dial(port)
        done.set()
    assert told.value.reason == "handshake"
    text = str(told.value)
    assert text.startswith(f"127.0.0.1:{port}: ") and said in text
    assert text.isprintable() and len(text) < 400 and "banner" not in text and "Error" not in text


NEVER = {  # by kind: algorithms in no profile
    "key exchange": ("diffie-hellman-group-exchange-sha256", "diffie-hellman-group18-sha512"),
    "cipher": ("aes192-ctr", "aes128-cbc"),
    "MAC": ("hmac-sha1", "umac-128@openssh.com", "hmac-sha1-etm@openssh.com"),
}
SINGLE = [  # sshd's configuration, the kind, the only algorithm that sshd then offers
    *((f"KexAlgorithms {name}", "key exchange", name) for name in (*WIDE.key_exchanges, *NEVER["key exchange"])),
    *((f"Ciphers {name}", "cipher", name) for name in (*WIDE.ciphers, *NEVER["cipher"])),
    *((f"Ciphers aes256-ctr\nMACs {name}", "MAC", name) for name in (*WIDE.macs, *NEVER["MAC"])),
]


@pytest.mark.parametrize(("held", "kind", "name"), SINGLE, ids=[name for _, _, name in SINGLE])
async def test_a_host_with_one_algorithm_is_spoken_to_or_both_lists_are_told(
    dial: Dial, make_sshd: Callable[..., Sshd], held: str, kind: str, name: str
) -> None:
    one = make_sshd(config=[held])
    profiles: tuple[HostAlgorithms, ...] = ("modern", "compatible")
    for profile in profiles:
        ours = offer(profile, bool(loaded_library().build))
        listed = {"key exchange": ours.key_exchanges, "cipher": ours.ciphers, "MAC": ours.macs}[kind]
        if name in listed:
            assert (await dial(to=one, algorithms=profile)).usable
            continue
        with pytest.raises(Unavailable) as told:
            await dial(to=one, algorithms=profile)
        assert told.value.reason == "handshake"
        assert f"127.0.0.1:{one.port}: key exchange failed: no common {kind}: the host offers {name}, the relay {','.join(listed)}" in str(
            told.value
        )
        cured = name in everything(WIDE)  # on the stock library by the hardened one
        assert ('algorithms = "compatible"' in str(told.value)) is cured
        with pytest.raises(Unavailable, match=f"no common {kind}: "):
            await probe(one.address, one.port, login(one).host_keys, profile)


def everything(one: Offer) -> list[str]:
    return [*one.key_exchanges, *one.ciphers, *one.macs]


async def test_another_host_key_is_refused_with_both_fingerprints(dial: Dial, sshd: Sshd, key: Key) -> None:
    mark = sshd.log_mark()
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([key.host_line])[0])
    assert told.value.reason == "host_key"
    assert f"offered {sshd.host_key.fingerprint}, pinned {key.fingerprint}" in str(told.value)
    await wait_until_async(lambda: "Connection closed" in sshd.log_text(mark))
    assert "publickey" not in sshd.log_text(mark)  # the relay sent sshd no authentication request


async def test_a_host_without_a_key_of_a_pinned_type_is_not_even_asked(dial: Dial, tmp_path: Any) -> None:
    ecdsa = make_key(tmp_path, "ecdsa", "ecdsa")
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([ecdsa.host_line])[0])
    assert told.value.reason == "handshake"
    assert "no common host key type: the host offers ssh-ed25519, the relay ecdsa-sha2-nistp256; pin a host key" in str(told.value)


async def test_close_wakes_the_operation_that_waits(dial: Dial, sshd: Sshd) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        proxy.stall("down")
        waiting = asyncio.create_task(connection.run(sshd.stub("exit/0"), []))
        await wait_until_async(lambda: connection.sessions == 1 and connection._waiter is not None)
        connection.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting


async def test_a_probe_exchanges_keys_and_logs_in_nowhere(sshd: Sshd, key: Key) -> None:
    mark, before = sshd.log_mark(), psutil.Process().num_fds()
    await probe(sshd.address, sshd.port, login(sshd).host_keys)
    await wait_until_async(lambda: "Received disconnect" in sshd.log_text(mark), message="it says that it leaves")
    assert "publickey" not in sshd.log_text(mark)
    with pytest.raises(Unavailable, match="HOST KEY MISMATCH") as told:
        await probe(sshd.address, sshd.port, parse_pinned([key.host_line])[0])
    assert told.value.reason == "host_key"
    with pytest.raises(Unavailable) as told:
        await probe("127.0.0.1", free_port(), login(sshd).host_keys)
    assert told.value.reason == "dial"
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await probe("127.0.0.1", proxy.port, login(sshd).host_keys)
    assert psutil.Process().num_fds() == before


async def test_a_closed_connection_cannot_become_ready_again(dial: Dial) -> None:
    connection = await dial()
    connection.close()
    with pytest.raises(AssertionError, match=r"closed .* cannot become ready"):
        connection._enter(State.READY)
    assert not connection.usable


def test_every_state_can_be_closed() -> None:
    assert [state for state in State if state is not State.CLOSED and State.CLOSED not in transport._NEXT[state]] == []
