"""Clients behind a load balancer: which headers the relay believes, the address it shows, and a real HAProxy with its health checks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay.admission.farewell import message
from relay.admission.proxy_protocol import crc32c
from relay.ssh.algorithms import SERVER_VERSION
from tests.e2e.helpers import audited
from tests.support.gitrepo import commit, git, make_repo
from tests.support.haproxy import Haproxy
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
HELLO = b"SSH-2.0-check\r\n"
BANNER = b"SSH-2.0-git-ssh-relay\r\n"
TURNED_AWAY = message(SERVER_VERSION, "proxy")
TRUSTED = ["127.0.0.1", "10.0.0.0/8"]
V4, V6 = ("192.0.2.7", 4711), ("2001:db8::7", 4712)


def behind(mode: str, **more: Any) -> dict[str, Any]:
    return {"proxy_protocol": {"mode": mode, "trusted": TRUSTED}, **more}


def v1(client: tuple[str, int]) -> bytes:
    kind, here = ("TCP6", "::1") if ":" in client[0] else ("TCP4", "127.0.0.1")
    return f"PROXY {kind} {client[0]} {here} {client[1]} 22\r\n".encode()


def v2(client: tuple[str, int] | None, tlvs: bytes = b"", command: int = 1, checksum: bool = False) -> bytes:
    """Version 2, section 2.2; without a client AF_UNSPEC."""
    if client is None:
        family, addresses = 0, b""
    else:
        kind, here = (socket.AF_INET6, "::1") if ":" in client[0] else (socket.AF_INET, "127.0.0.1")
        family = 0x21 if kind == socket.AF_INET6 else 0x11
        addresses = socket.inet_pton(kind, client[0]) + socket.inet_pton(kind, here) + struct.pack("!HH", client[1], 22)
    tlvs += b"\x03\0\x04\0\0\0\0" if checksum else b""
    header = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20 | command, family, len(addresses) + len(tlvs)) + addresses + tlvs
    return header[:-4] + struct.pack("!I", crc32c(header)) if checksum else header


HEADERS: dict[str, tuple[bytes, tuple[str, int] | None]] = {
    "v1 IPv4": (v1(V4), V4),
    "v1 IPv6": (v1(V6), V6),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v2 IPv4": (v2(V4), V4),
    "v2 IPv6": (v2(V6), V6),
    "v2 IPv4-mapped": (v2(("::ffff:192.0.2.7", 4711)), V4),
    "v2 local": (v2(None, command=0), None),
    "v2 local with addresses": (v2(V4, command=0), None),
    "v2 unspecified": (v2(None), None),
    "v2 TLVs": (v2(V4, b"\x02\0\x09localhost" + b"\xe0\x04\0" + bytes(1024)), V4),
    "v2 checksum": (v2(V6, checksum=True), V6),
}


@pytest.fixture(scope="module", params=["allow", "require"])
def relay(request: pytest.FixtureRequest, sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, config=behind(request.param)) as process:
        yield process


def dialed(relay: RelayProcess, *pieces: bytes, source: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", relay.port), timeout=30, source_address=(source, 0))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        client.sendall(piece)
    return client


def answer(client: socket.socket) -> bytes:
    """All that the relay sends until it closes, or until it has sent its version line and more."""
    with client:
        said = b""
        try:
            while not (said.startswith(BANNER) and len(said) > len(BANNER)) and (data := client.recv(65536)):
                said += data
        except ConnectionResetError:
            pass
        return said


async def logged_in(relay: RelayProcess, sock: socket.socket) -> asyncssh.SSHClientConnection:
    known_hosts = asyncssh.import_known_hosts(f"127.0.0.1 {relay.host_key_line}\n")
    return await asyncssh.connect(
        "127.0.0.1", sock=sock, username=relay.user, client_keys=[relay.key.load()], known_hosts=known_hosts, agent_path=None, config=None
    )


def live_sessions(relay: RelayProcess) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "relay", "sessions", "--json", "-c", str(relay.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- which headers the relay believes, and the address it shows


@pytest.mark.parametrize("name", list(HEADERS))
async def test_the_real_address_is_what_sessions_and_audit_show(name: str, relay: RelayProcess) -> None:
    header, client = HEADERS[name]
    mark = len(relay.audit_lines())
    sock = dialed(relay, header)
    shown = client or sock.getsockname()
    async with await logged_in(relay, sock) as connection:
        process = await connection.create_process("git-upload-pack 'stub/half/5'", encoding=None)
        assert await process.stdout.readexactly(5)
        if name in ("v1 IPv4", "v2 IPv6", "v2 local"):  # the command is slow to start
            assert [line["address"] for line in live_sessions(relay)] == [f"{shown[0]}:{shown[1]}"]
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 0
    (line,) = audited(relay, mark, event="session")
    assert (line["address"], line["port"]) == shown


async def test_a_failed_login_is_told_with_the_real_address(relay: RelayProcess) -> None:
    mark = len(relay.audit_lines())
    with dialed(relay, v1(V6)) as sock:
        sock.sendall(b"SSH-1.0-nobody\r\n")
        answer(sock)
    with pytest.raises(asyncssh.PermissionDenied):
        stranger = asyncssh.generate_private_key("ssh-ed25519")
        await asyncssh.connect("x", sock=dialed(relay, v2(V6)), username=relay.user, client_keys=[stranger], known_hosts=None, config=None)
    lines = audited(relay, mark, 2, event="auth_failed")
    assert [(line["address"], line["port"], line["reason"]) for line in lines] == [(*V6, "protocol"), (*V6, "unknown_key")]


@pytest.mark.parametrize("name", ["v1 IPv6", "v2 TLVs"])
def test_a_header_in_single_bytes(name: str, relay: RelayProcess) -> None:
    header, _ = HEADERS[name]
    whole = header + b"SSH-2.0-test\r\n"
    assert answer(dialed(relay, *(whole[at : at + 1] for at in range(len(whole))))).startswith(BANNER)


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_and_the_clients_first_words_in_one_segment(name: str, relay: RelayProcess) -> None:
    said = answer(dialed(relay, HEADERS[name][0] + b"SSH-2.0-test\r\n"))
    assert said.startswith(BANNER)
    assert len(said) > len(BANNER), "the key exchange has begun: not a byte of the client's was taken for the header"


@pytest.mark.parametrize(
    "garbage",
    [
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n",
        b"PROXY TCP4 192.0.2.777 127.0.0.1 4711 22\r\n",
        b"PROXY " + b"x" * 200,
        v2(V4).replace(b"\x21\x11", b"\x31\x11"),
        v2(V4, checksum=True)[:-1] + b"\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ],
)
def test_a_broken_header_ends_the_connection(garbage: bytes, relay: RelayProcess) -> None:
    before = relay.metric("relay_connections_total", outcome="proxy")
    said = answer(dialed(relay, garbage + b"SSH-2.0-test\r\n"))
    assert said in (TURNED_AWAY, b""), "nothing, when this address has read why four times in two seconds"
    assert relay.metric("relay_connections_total", outcome="proxy") == before + 1


def said_to(relay: RelayProcess, data: bytes, source: str = "127.0.0.1") -> bytes:
    """What the relay sends; dials again while this address has used up its reasons (four in two seconds)."""
    return wait_until(lambda: answer(dialed(relay, data, source=source)), message="the relay says something")


def test_without_a_header(relay: RelayProcess) -> None:
    said = said_to(relay, b"SSH-2.0-test\r\n")
    assert (said != TURNED_AWAY) == (relay.config["proxy_protocol"]["mode"] == "allow")
    assert (relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3) == (relay.config["proxy_protocol"]["mode"] == "allow")


def test_a_peer_that_is_not_trusted_is_not_believed(relay: RelayProcess) -> None:
    ask = said_to if relay.config["proxy_protocol"]["mode"] == "require" else lambda *given: answer(dialed(*given[:2], source=given[2]))
    believed = ask(relay, v1(V4) + b"SSH-2.0-test\r\n", "127.0.0.9")
    plain = ask(relay, b"SSH-2.0-test\r\n", "127.0.0.9")
    if relay.config["proxy_protocol"]["mode"] == "require":
        assert (believed, plain) == (TURNED_AWAY, TURNED_AWAY)
    else:
        assert believed in (b"", BANNER), "it is read as what SSH it would be, and is none"
        assert plain.startswith(BANNER) and len(plain) > len(BANNER)


def test_off_means_that_nobody_is_believed(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=behind("off"))
    for header in (v1(V4), v2(V4)):
        assert answer(dialed(relay, header + b"SSH-2.0-test\r\n")) in (b"", BANNER)
    assert relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3


# -- limits


def test_limits_count_the_real_address(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=behind("require", limits={"connections_per_source": 2}))
    with ExitStack() as stack:

        def comes_in(client: tuple[str, int]) -> bool:
            sock = stack.enter_context(dialed(relay, v2(client)))
            return sock.recv(100) == BANNER

        assert [comes_in(V4), comes_in(V4), comes_in(V4)] == [True, True, False]
        assert [comes_in(("192.0.2.8", 1)), comes_in(("192.0.2.8", 2))] == [True, True]
        same_64 = [("2001:db8::1", 1), ("2001:db8::ffff:2", 2), ("2001:db8::3", 3)]
        assert [comes_in(client) for client in same_64] == [True, True, False]
        assert comes_in(("2001:db8:0:1::1", 1))


def test_the_balancer_itself_is_not_counted(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """The balancer's health checks connect without a limit, and leave without logging in."""
    relay = make_relay(sshd, config=behind("allow", limits={"connections_per_source": 2, "penalty_seconds": 100}))
    with ExitStack() as stack:
        for header in (v2(None, command=0), b"PROXY UNKNOWN\r\n", b"") * 5:
            assert stack.enter_context(dialed(relay, header + b"SSH-2.0-check\r\n")).recv(23) == BANNER
    wait_until(lambda: relay.metric("relay_connections_open") == 0)
    assert answer(dialed(relay, v1(V4) + b"SSH-2.0-test\r\n")).startswith(BANNER)


def test_a_byte_now_and_then_does_not_outlive_the_grace_by_its_header(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """The header uses half of the grace, so the version line has only the other half."""
    relay = make_relay(sshd, config=behind("require", limits={"login_grace_seconds": 4}))
    began = time.monotonic()
    with dialed(relay) as client:
        header = v1(V4)
        for byte in header[:-1]:
            client.sendall(bytes([byte]))
            time.sleep(2.5 / len(header))
        client.sendall(header[-1:])
        client.settimeout(20)
        assert client.recv(100) == BANNER
        assert client.recv(100) == b""
        assert time.monotonic() - began < 2.5 + 3.5, "the connection had a grace of its own"
    wait_until(lambda: relay.metric("relay_connections_total", outcome="grace") == 1)


def test_one_that_never_says_who_it_is_goes_with_its_grace_and_with_the_worker(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=behind("require", limits={"login_grace_seconds": 1, "drain_seconds": 60}))
    with dialed(relay, v1(V4)[:10]) as slow:
        assert slow.recv(1_000) == TURNED_AWAY
    assert relay.metric("relay_connections_total", outcome="grace") == 1
    with dialed(relay, v1(V4)[:10]) as slow:
        relay.signal(signal.SIGTERM)
        relay.wait_for_log("draining for at most 60 s")
        slow.sendall(v1(V4)[10:])
        assert slow.recv(100) == BANNER, "the drain waits for who is on the way"
    assert relay.wait() == 0


# -- HAProxy


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_git_through_haproxy(options: str, sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config=behind("require", limits={"penalty_seconds": 100, "penalty_max_seconds": 600}))
    repository = sshd.root / "team" / "app.git"
    if not repository.exists():
        make_repo(repository)
    with Haproxy(relay.port, f"{options} check check-send-proxy inter 50ms") as balancer:
        wait_until(lambda: balancer.server_state() == "UP" and int(balancer.statistics()["check_duration"]) >= 0)
        checks = relay.metric("relay_connections_total")
        wait_until(lambda: relay.metric("relay_connections_total") > checks + 10, 30, "health checks come and go")

        relay.known_hosts.write_text(f"[127.0.0.1]:{balancer.port} {relay.host_key_line}\n")
        env = relay.git_env(tmp_path / "home")
        env["GIT_SSH_COMMAND"] += " -o BindAddress=127.0.0.77"
        git("clone", "-q", f"ssh://git@127.0.0.1:{balancer.port}/team/app", tmp_path / "work", env=env)
        (line,) = audited(relay, 0, event="session")
        assert (line["address"], line["result"]) == ("127.0.0.77", "ok")

        hook = repository / "hooks" / "pre-receive"
        hook.write_text('#!/bin/sh\necho "push of $RELAY_IDENTITY from $RELAY_CLIENT in $RELAY_SESSION"\n')
        hook.chmod(0o755)
        commit(tmp_path / "work", env)
        pushed = subprocess.run(
            ["git", "push", "origin", "HEAD"], cwd=tmp_path / "work", env=env, capture_output=True, text=True, check=True
        )
        hook.unlink()
        (line,) = audited(relay, 1, event="session")
        assert f"remote: push of alice from 127.0.0.77 in {line['session']}" in pushed.stderr

        client = SshClient(balancer.port, relay.key.private, relay.known_hosts, relay.user, options=("BindAddress=127.0.0.78",))
        assert client.run("git-upload-pack 'stub/emit/1000/9'").returncode == 9
        assert audited(relay, 2, event="session")[0]["address"] == "127.0.0.78"
        assert balancer.server_state() == "UP"
        assert int(balancer.statistics()["chkfail"]) == 0
        outcomes = {sample.labels["outcome"] for sample in relay.metrics()["relay_connections_total"] if sample.value}
        assert outcomes <= {"ok", "no_auth", "probe"}, "health checks are no errors"
        assert not re.search(r'"logger":"relay.(proxy|connection|transport)"', relay.log_text())


def test_haproxy_sees_a_reload_and_a_stop_as_it_should(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=behind("require"))
    with Haproxy(relay.port, "send-proxy-v2 check check-send-proxy inter 50ms fall 1 rise 1") as balancer:
        wait_until(lambda: balancer.server_state() == "UP")
        for number in (1, 2):
            relay.signal(signal.SIGHUP)
            wait_until(lambda count=number: relay.metric("relay_reloads_total") == count, 30)  # type: ignore[misc]
        assert int(balancer.statistics()["chkfail"]) == 0, "no check failed through two reloads"
        relay.stop()
        wait_until(lambda: balancer.server_state() == "DOWN")


def test_a_client_that_a_header_names_is_counted_wherever_in_the_trusted_networks_it_is(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    """Only the socket's peer is a balancer."""
    relay = make_relay(sshd, config=behind("allow", workers=1, limits={"connections_per_source": 1, "unauthenticated_connections": 100}))
    for number in range(3):  # health checks are not counted, however many
        with dialed(relay, HELLO) as one, dialed(relay, HELLO) as two:
            assert one.recv(64).startswith(BANNER) and two.recv(64).startswith(BANNER), number
    with dialed(relay, v1(("127.0.0.1", 4711))) as one, dialed(relay, v1(("127.0.0.1", 4712))) as two:  # counted also with a header
        assert one.recv(64).startswith(BANNER) and two.recv(64).startswith(BANNER)
    with dialed(relay, v1(("10.0.0.9", 4711))) as first:
        assert first.recv(64).startswith(BANNER)
        assert answer(dialed(relay, v1(("10.0.0.9", 4712)))) == message(SERVER_VERSION, "source")
    relay.wait_for_log("a connection from 10.0.0.9 was turned away")
