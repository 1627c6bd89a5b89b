"""The splice between a real client and a real sshd: all bytes, half-closes, exits and backpressure."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import Callable

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited, stands_still, streamed
from tests.support.pattern import stub_bytes, stub_sha256, stub_stderr
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

MIB = 1 << 20
RSS_ALLOWED = 24 * MIB  # beyond its idle size, for one stalled session: windows, one read, socket buffers

# -- bytes and exits ---------------------------------------------------------------------------------------------------------


def test_stdout_interleaved_with_stderr_and_status_37(relay: RelayProcess) -> None:
    size, since = 80_000_000, len(relay.audit_lines())
    with relay.ssh().popen(f"git-upload-pack 'stub/mixed/{size}/37'") as ssh:
        got = streamed(ssh)
    assert (got.returncode, got.length) == (37, size)
    assert got.sha256 == stub_sha256(size)
    assert got.stderr == stub_stderr(size)
    [line] = audited(relay, since, event="session")
    assert (line["result"], line["exit_status"], line["exit_signal"]) == ("exit", 37, None)
    assert line["bytes_out"] == size + len(got.stderr)


@pytest.mark.parametrize("size", [0, 1, 255, 32_767, 32_768, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 5_000_000])
def test_the_last_byte_arrives_before_the_end(relay: RelayProcess, size: int) -> None:
    done = relay.ssh().run(f"git-upload-pack 'stub/emit/{size}/5'")
    assert (done.returncode, done.stderr) == (5, b"")
    assert done.stdout == stub_bytes(size)


def test_stderr_alone(relay: RelayProcess) -> None:
    done = relay.ssh().run("git-upload-pack 'stub/stderr/3000000/1'")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == stub_bytes(3_000_000)


@pytest.mark.parametrize("status", [0, 1, 37, 128, 255])
def test_an_exit_status_is_the_git_hosts(relay: RelayProcess, status: int) -> None:
    done = relay.ssh().run(f"git-upload-pack 'stub/exit/{status}'")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.parametrize(("name", "size"), [("KILL", 0), ("KILL", 3_000_000), ("TERM", 1000), ("SEGV", 0)])
async def test_a_death_by_signal_is_told_as_one(relay: RelayProcess, name: str, size: int) -> None:
    since = len(relay.audit_lines())
    async with alice(relay) as connection:
        result = await run(connection, f"git-upload-pack 'stub/signal/{name}/{size}'")
    assert (result.exit_status, result.exit_signal) == (None, name)
    assert (result.stdout, result.stderr) == (stub_bytes(size), b"")
    [line] = await asyncio.to_thread(audited, relay, since, event="session")
    assert (line["result"], line["exit_status"], line["exit_signal"]) == ("signal", None, name)


def test_a_death_by_signal_is_a_failure_to_ssh(relay: RelayProcess) -> None:
    done = relay.ssh().run("git-upload-pack 'stub/signal/KILL/100000'")
    assert (done.returncode, done.stdout) == (255, stub_bytes(100_000))


def test_stdin_to_its_end(relay: RelayProcess) -> None:
    data, since = os.urandom(60_000_001), len(relay.audit_lines())
    done = relay.ssh().run("git-receive-pack 'stub/checksum'", data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"
    [line] = audited(relay, since, event="session")
    assert (line["result"], line["bytes_in"], line["bytes_out"]) == ("ok", len(data), len(done.stdout))


def test_both_directions_at_once(relay: RelayProcess) -> None:
    data = os.urandom(30_000_000)
    done = relay.ssh().run("git-upload-pack 'stub/cat'", data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


async def test_input_that_the_command_never_reads_does_not_hold_its_exit(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        result = await run(connection, "git-receive-pack 'stub/exit/3'", os.urandom(5_000_000))
    assert (result.exit_status, result.exit_signal) == (3, None)


# -- half-close --------------------------------------------------------------------------------------------------------------


async def test_the_clients_eof_arrives_and_output_goes_on(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/half/1000000'", encoding=None)
        assert await process.stdout.readexactly(1_000_000) == stub_bytes(1_000_000)
        assert process.exit_status is None  # the command reads stdin, which has not ended
        process.stdin.write(b"more")
        process.stdin.write_eof()
        await process.wait_closed()
        assert process.exit_status == 0


async def test_the_git_hosts_eof_arrives_before_its_exit(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    async with alice(make_relay(sshd)) as connection:
        process = await connection.create_process("git-upload-pack 'stub/eof/1000/7'", encoding=None)
        async with asyncio.timeout(60):
            assert await process.stdout.read() == b"eof\n"  # to the EOF, while the command sleeps on
        assert process.exit_status is None
        assert sshd.signal_commands(signal.SIGTERM)
        await process.wait_closed()
        assert process.exit_status == 128 + signal.SIGTERM or process.exit_signal is not None


async def test_input_goes_on_after_the_git_hosts_eof(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    async with alice(make_relay(sshd)) as connection:
        process = await connection.create_process("git-upload-pack 'stub/eof/1000'", encoding=None)
        assert await process.stdout.read() == b"eof\n"
        process.stdin.write(bytes(3 * MIB))  # more than a window: the relay reads from the client only as fast as it sends to the git host
        await wait_until_async(lambda: process.channel.get_write_buffer_size() < MIB, message="the input is on its way")
        sshd.signal_commands(signal.SIGTERM)
        await process.wait_closed()


async def test_a_git_host_that_never_exits_after_its_eof_is_given_up(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    relay = make_relay(make_sshd(), config={"limits": {"stall_seconds": 1}})
    async with alice(relay) as connection:
        done = await run(connection, "git-upload-pack 'stub/eof/1000'")
        assert (done.stdout, done.exit_status) == (b"eof\n", 255)  # no message: none may follow the EOF that was passed on
    [line] = await asyncio.to_thread(audited, relay, 0, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "no_exit", 255)
    assert "ended its output" in line["detail"]
    wait_until(lambda: not relay.metric("relay_upstream_connections", state="leased"), message="its connection is closed")


async def test_a_connection_lost_after_the_git_hosts_eof_is_no_success(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    async with alice(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/eof/1000'", encoding=None)
        assert await process.stdout.read() == b"eof\n"
        sshd.signal_sessions(signal.SIGKILL)
        await process.wait_closed()
        assert process.exit_status == 255
    [line] = await asyncio.to_thread(audited, relay, 0, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "lost", 255)


# -- a client that disconnects -----------------------------------------------------------------------------------------------

EOF_AT_SSHD = re.compile(r"channel \d+: rcvd eof")
SESSION_LOST = re.compile(r"^(Connection (closed|reset) by|Read error from|ssh_dispatch_run_fatal)", re.MULTILINE)


def test_sshd_does_note_an_eof_when_there_is_one(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(config=["LogLevel DEBUG2"])
    done = make_relay(sshd).ssh().run("git-receive-pack 'stub/checksum'", b"all of it")
    assert done.returncode == 0
    assert EOF_AT_SSHD.search(sshd.log_text())


@pytest.mark.parametrize("way", ["kill", "reset", "disconnect", "channel"])
async def test_a_client_that_goes_in_mid_push_never_becomes_an_eof(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd], way: str
) -> None:
    sshd = make_sshd(config=["LogLevel DEBUG2"])
    relay = make_relay(sshd)
    before = await asyncio.to_thread(relay.metric, "relay_bytes_total", service="git-receive-pack", direction="in")
    assert before == 0

    def arrived() -> bool:
        return relay.metric("relay_bytes_total", direction="in") == 3 * MIB

    if way == "kill":
        with relay.ssh().popen("git-receive-pack 'stub/checksum'") as ssh:
            assert ssh.stdin is not None
            ssh.stdin.write(bytes(3 * MIB))
            ssh.stdin.flush()
            await wait_until_async(lambda: asyncio.to_thread(arrived), message="the relay has all that was sent")
            ssh.kill()
    else:
        async with alice(relay) as connection:
            process = await connection.create_process("git-receive-pack 'stub/checksum'", encoding=None)
            process.stdin.write(bytes(3 * MIB))
            await wait_until_async(lambda: asyncio.to_thread(arrived), message="the relay has all that was sent")
            if way == "reset":
                connection.abort()
            elif way == "disconnect":
                connection.disconnect(asyncssh.DISC_BY_APPLICATION, "enough")
            else:
                process.channel.abort()
                await process.channel.wait_closed()
            [line] = await asyncio.to_thread(audited, relay, 0, event="session")  # while the connection may live on
            assert (line["result"], line["reason"]) == ("client", "client_gone")
    [line] = await asyncio.to_thread(audited, relay, 0, event="session")
    assert (line["result"], line["reason"], line["bytes_in"]) == ("client", "client_gone", 3 * MIB)
    await wait_until_async(lambda: SESSION_LOST.search(sshd.log_text()), message="sshd has lost the connection")
    assert not EOF_AT_SSHD.search(sshd.log_text())


# -- backpressure ------------------------------------------------------------------------------------------------------------


def carried(relay: RelayProcess, direction: str) -> float:
    return relay.metric("relay_bytes_total", direction=direction)


def test_a_client_that_stops_reading_holds_the_git_host_not_memory(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd)
    size = 150_000_000
    relay.ssh().run("git-upload-pack 'stub/emit/20000000'")  # so that the memory of a first session is allocated already
    idle, before = relay.rss(), carried(relay, "out")
    with relay.ssh().popen(f"git-upload-pack 'stub/emit/{size}/9'") as ssh:
        wait_until(lambda: carried(relay, "out") > before, message="bytes move")
        wait_until(stands_still(lambda: carried(relay, "out")), message="the git host is held")
        assert carried(relay, "out") - before < size / 4
        assert relay.rss() - idle < RSS_ALLOWED
        got = streamed(ssh)  # the client reads on: no byte was lost
    assert (got.returncode, got.length, got.sha256) == (9, size, stub_sha256(size))


def test_a_client_that_pauses_for_longer_than_the_git_host_waits_for_an_answer(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    """sshd's ClientAliveInterval uses the transport, which the relay reads however slow the client is; only the channel's window fills."""
    host = make_sshd(config=["ClientAliveInterval 1", "ClientAliveCountMax 2", "RekeyLimit default 2", "LogLevel DEBUG1"])
    relay = make_relay(host)
    size = 150_000_000
    mark = host.log_mark()
    with relay.ssh().popen(f"git-upload-pack 'stub/emit/{size}/9'") as ssh:
        wait_until(lambda: carried(relay, "out") > 0, message="bytes move")

        def answered() -> int:
            return host.log_text(mark).count(" for keepalive")

        wait_until(lambda: ssh.poll() is not None or answered() >= 8, message="sshd's keepalives are answered")
        assert ssh.poll() is None
        assert "set_newkeys: rekeying" in host.log_text(mark)
        assert carried(relay, "out") < size / 4, "the client is still slow"
        got = streamed(ssh)
    assert (got.returncode, got.length, got.sha256) == (9, size, stub_sha256(size))


async def test_a_window_of_2_gib_whose_socket_is_not_read_costs_no_memory(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd)
    await asyncio.to_thread(relay.ssh().run, "git-upload-pack 'stub/emit/20000000'")
    idle, before = relay.rss(), await asyncio.to_thread(carried, relay, "out")
    size = 150_000_000
    async with alice(relay) as connection:
        digest, length, done = hashlib.sha256(), 0, asyncio.Event()

        class Reader(asyncssh.SSHClientSession[bytes]):
            status: int | None = None

            def data_received(self, data: bytes, datatype: int | None) -> None:
                nonlocal length
                digest.update(data)
                length += len(data)

            def exit_status_received(self, status: int) -> None:
                self.status = status

            def connection_lost(self, exc: Exception | None) -> None:
                done.set()

        reader = Reader()
        await connection.create_session(
            lambda: reader, f"git-upload-pack 'stub/emit/{size}/9'", encoding=None, window=(1 << 31) - 1, max_pktsize=32_768
        )
        transport = connection._transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        await wait_until_async(lambda: asyncio.to_thread(lambda: carried(relay, "out") > before), message="bytes move")
        await asyncio.to_thread(wait_until, stands_still(lambda: carried(relay, "out")), message="the git host is held")
        assert await asyncio.to_thread(carried, relay, "out") - before < size / 4
        assert relay.rss() - idle < RSS_ALLOWED
        transport.resume_reading()
        await done.wait()
    assert (length, digest.hexdigest(), reader.status) == (size, stub_sha256(size), 9)


def test_a_git_host_that_stops_reading_holds_the_client_not_memory(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd)
    data = os.urandom(50_000_000)
    digest = f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"
    assert relay.ssh().run("git-receive-pack 'stub/checksum'", data).stdout.decode() == digest
    idle, before = relay.rss(), carried(relay, "in")
    with relay.ssh().popen("git-receive-pack 'stub/hang'") as ssh:
        assert ssh.stdin is not None
        os.set_blocking(ssh.stdin.fileno(), False)
        written = 0

        def push() -> int:
            nonlocal written
            try:
                written += os.write(ssh.stdin.fileno(), data[written : written + MIB])  # type: ignore[union-attr]
            except BlockingIOError:
                pass  # the timeout is expected
            return written

        wait_until(lambda: push() and carried(relay, "in") - before > 2 * MIB, message="the git host's window is used up")
        wait_until(stands_still(lambda: (push(), carried(relay, "in"))), message="the client is held")
        assert carried(relay, "in") - before < len(data) / 2
        assert relay.rss() - idle < RSS_ALLOWED
        mark = len(relay.audit_lines())
        ssh.kill()  # the relay notices although it does not read the client's socket
    [line] = audited(relay, mark, event="session")
    assert (line["result"], line["reason"]) == ("client", "client_gone")
    assert relay.ssh().run("git-receive-pack 'stub/checksum/30000000'", data).stdout.decode() == digest


# -- quiet is no stall -------------------------------------------------------------------------------------------------------


def test_a_quiet_session_lives_longer_than_the_stall_time(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"stall_seconds": 0.5}})
    done = relay.ssh().run("git-upload-pack 'stub/slowstart/3/100000'")
    assert (done.returncode, done.stdout, done.stderr) == (0, stub_bytes(100_000), b"")


def test_bytes_that_could_move_and_do_not_are_a_stall(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"stall_seconds": 0.5}})
    with relay.ssh().popen("git-upload-pack 'stub/emit/100000000'"):  # whose output nobody reads
        [line] = audited(relay, 0, event="session")
    assert (line["result"], line["reason"]) == ("client", "stalled")
    done = relay.ssh().run("git-receive-pack 'stub/hang'", bytes(20_000_000))
    assert done.returncode == 255
    assert done.stderr == b"relay: no progress was made for too long, the session was ended\n"
    [line] = audited(relay, 1, event="session")
    assert (line["result"], line["reason"]) == ("upstream", "stalled")
