"""A worker process: its wired parts, its first and last messages, and a worker without a supervisor."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import asyncssh
import msgspec
import pytest

from relay.config.load import Loaded
from relay.events import Observer
from relay.observe.snapshot import Snapshot
from relay.preflight import load_all
from relay.process import messages
from relay.process.worker import NO_HOME, ensure_home, kill_sessions, session_lines
from relay.wiring import build
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect
from tests.support.sshd import Sshd

ROOT = Path(__file__).parents[2]


@pytest.fixture
def relay(sshd: Sshd, tmp_path: Path) -> RelayProcess:
    """A relay that is never started: a folder with a complete configuration."""
    return RelayProcess(sshd, tmp_path / "relay")


def spawned(loaded: Loaded, control_socket: socket.socket, *listen: socket.socket) -> subprocess.Popen[bytes]:
    fds = [sock.fileno() for sock in (control_socket, *listen)]
    command = [sys.executable, "-m", "relay.process.worker", str(loaded.path), "--control", str(fds[0]), "--listen", *map(str, fds[1:])]
    return subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, cwd=ROOT)


def test_the_first_and_the_last_message(relay: RelayProcess) -> None:
    loaded = load_all(relay.config_file)

    async def talk(ours: socket.socket) -> list[messages.Message]:
        reader, writer = await asyncio.open_connection(sock=ours)
        said: list[messages.Message] = []
        async with asyncio.timeout(30):
            for told in (messages.Start(loaded.config), messages.AskWorker(5, "ready"), messages.Drain(0)):
                messages.write(writer, told)
            while (message := await messages.read(reader)) is not None:
                said.append(message)
        writer.close()
        return said

    ours, theirs = socket.socketpair()
    with theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        process = spawned(loaded, theirs, listener)
    with process:
        ready, *answers, drained = asyncio.run(talk(ours))
        assert process.wait(30) == 0
    assert ready == messages.Ready()
    assert answers == [] or [(answer.number, bytes(answer.body)) for answer in answers if isinstance(answer, messages.Answer)] == [
        (5, messages.encode((True, "ready")))
    ], "it may have gone before it answered"
    assert isinstance(drained, messages.Drained) and drained.cut == 0
    names = {family.name for family in msgspec.msgpack.decode(drained.metrics, type=Snapshot).families}
    assert {"relay_sessions", "relay_connections"} <= names


@pytest.mark.parametrize("first", [b"", b"\0\0"])
def test_a_worker_without_a_supervisor_ends_at_once(first: bytes, relay: RelayProcess) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = spawned(load_all(relay.config_file), theirs)
    with process, ours:
        ours.sendall(first)
        ours.close()
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (1, b"")


async def test_a_session_that_runs_is_listed_and_can_be_ended(relay: RelayProcess) -> None:
    server = build(load_all(relay.config_file), Observer())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.start([listener.dup()])
        try:
            port = listener.getsockname()[1]
            async with connect(port, [relay.key], relay.host_key_line, user=relay.user) as connection:
                process = await connection.create_process("git-upload-pack 'stub/half/5'", encoding=None)
                assert await process.stdout.readexactly(5)
                (line,) = session_lines(server)
                assert (line.identity, line.service, line.repository, line.upstream) == ("alice", "git-upload-pack", "stub/half/5", "main")
                assert (line.bytes_in, line.bytes_out) == (0, 5)
                assert not kill_sessions(server, "root (uid 0)", session_id=line.id + "1")
                assert kill_sessions(server, "root (uid 0)", session_id=line.id) == [line.id]
                assert not kill_sessions(server, "root (uid 0)", session_id=line.id), "it is ending already"
                await process.wait()
                assert process.exit_status == 255
                assert session_lines(server) == []
        finally:
            await server.drain(0)
            await server.stop()


async def test_a_user_without_a_home_folder_can_run_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with systemd's DynamicUser and a container's arbitrary user id."""

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setenv("HOME", "/somewhere")
    ensure_home()
    assert os.environ["HOME"] == "/somewhere"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError, match="home"):
        await asyncssh.SSHServerConnectionOptions.construct(server_factory=asyncssh.SSHServer, config=None)
    ensure_home()
    assert os.environ["HOME"] == NO_HOME
    await asyncssh.SSHServerConnectionOptions.construct(server_factory=asyncssh.SSHServer, config=None)
