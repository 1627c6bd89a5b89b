"""The test sshd's stub services and faults do what its docstring says, as seen by the real ssh."""

from __future__ import annotations

import hashlib
import random
import shlex
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.gitrepo import git, git_env, make_repo
from tests.support.keys import Key
from tests.support.machine import SshdMissingError, free_port, sshd_program
from tests.support.pattern import PATTERN_BYTES, stub_bytes, stub_sha256, stub_stderr
from tests.support.sshclient import SshClient, connect, run
from tests.support.sshd import Exec, Sshd
from tests.support.wait import wait_until

SIZES = [0, 1, 65536, 3_000_001, PATTERN_BYTES, 2 * PATTERN_BYTES + 5]


def test_a_missing_sshd_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(SshdMissingError, match=r"^sshd is missing: install the package openssh-server .*$"):
        sshd_program()


# -- stub services


@pytest.mark.parametrize("size", SIZES)
def test_emit(sshd: Sshd, size: int) -> None:
    done = SshClient.to(sshd).run(sshd.stub(f"emit/{size}/37"))
    assert (done.returncode, done.stderr, len(done.stdout)) == (37, b"", size)
    assert done.stdout == stub_bytes(size)
    assert hashlib.sha256(done.stdout).hexdigest() == stub_sha256(size)


def test_stderr(sshd: Sshd) -> None:
    done = SshClient.to(sshd).run(sshd.stub("stderr/70000/2"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == stub_bytes(70000)


@pytest.mark.parametrize("size", SIZES)
def test_mixed(sshd: Sshd, size: int) -> None:
    done = SshClient.to(sshd).run(sshd.stub(f"mixed/{size}/37"))
    assert done.returncode == 37
    assert done.stdout == stub_bytes(size)
    assert done.stderr == stub_stderr(size)


@pytest.mark.parametrize("status", [0, 1, 128, 255])
def test_exit(sshd: Sshd, status: int) -> None:
    done = SshClient.to(sshd).run(sshd.stub(f"exit/{status}"))
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "PIPE", "HUP"])
async def test_signal_is_reported_by_sshd(sshd: Sshd, name: str) -> None:
    async with connect(sshd.port, [sshd.key], sshd.host_key_line) as connection:
        result = await run(connection, sshd.stub(f"signal/{name}/1000"))
    assert (result.exit_signal, result.exit_status, result.stdout) == (name, None, stub_bytes(1000))


def test_checksum(sshd: Sshd) -> None:
    data = random.Random(1).randbytes(3_000_000)
    done = SshClient.to(sshd).run(sshd.stub("checksum"), data)
    assert done.stdout.decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"


def test_checksum_at_a_rate(sshd: Sshd) -> None:
    data = bytes(50_000)
    started = time.monotonic()
    done = SshClient.to(sshd).run(sshd.stub("checksum/100000"), data)
    assert time.monotonic() - started >= 0.5  # never faster than the rate; how much slower depends on the machine
    assert done.stdout.decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"


def test_cat(sshd: Sshd) -> None:
    data = random.Random(2).randbytes(1_000_000)
    done = SshClient.to(sshd).run(sshd.stub("cat"), data)
    assert (done.returncode, done.stdout) == (0, data)


def test_env(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_PROTOCOL", "version=2")
    monkeypatch.setenv("RELAY_IDENTITY", "alice")
    monkeypatch.setenv("OTHER", "refused")
    done = SshClient.to(sshd, "SendEnv=GIT_PROTOCOL RELAY_* OTHER").run(sshd.stub("env"))
    assert done.stdout == b"GIT_PROTOCOL=version=2\nRELAY_IDENTITY=alice\nRELAY_KEY=(unset)\n"
    assert sshd.commands()[-1] == Exec("version=2", "alice", "", sshd.stub("env"))


def test_sleep_and_slowstart(sshd: Sshd) -> None:
    started = time.monotonic()
    done = SshClient.to(sshd).run(sshd.stub("sleep/0.2"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = SshClient.to(sshd).run(sshd.stub("slowstart/0.2/100"))
    assert (done.returncode, done.stdout) == (0, stub_bytes(100))
    assert time.monotonic() - started >= 0.4


def test_hang_ends_only_with_the_server(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with SshClient.to(sshd).popen(sshd.stub("hang")) as client:
        commands = wait_until(lambda: [p for p in psutil.process_iter() if _is_command_of(sshd, p)])
        assert client.poll() is None
        sshd.stop()
        assert client.wait(10) == 255
    assert not any(command.is_running() and command.status() != psutil.STATUS_ZOMBIE for command in commands)


def test_half_waits_for_the_end_of_stdin(sshd: Sshd) -> None:
    with SshClient.to(sshd).popen(sshd.stub("half/5000")) as client:
        assert client.stdout is not None and client.stdin is not None
        assert client.stdout.read(5000) == stub_bytes(5000)
        assert client.poll() is None
        client.stdin.close()
        assert client.wait(10) == 0
        assert client.stdout.read() == b""


async def test_eof_comes_before_the_exit_status(sshd: Sshd) -> None:
    async with connect(sshd.port, [sshd.key], sshd.host_key_line) as connection:
        process = await connection.create_process(sshd.stub("eof/0.5/9"), encoding=None)
        assert await process.stdout.read() == b"eof\n"
        assert process.exit_status is None
        await process.wait_closed()
        assert process.exit_status == 9


@pytest.mark.parametrize(
    "form",
    [
        "git-upload-pack {quoted}",
        "git upload-pack {quoted}",
        "git-receive-pack {bare}",
        "git-upload-archive {quoted}",
        "git-upload-pack {nogit}",
    ],
)
def test_every_service_and_spelling_reaches_a_stub(sshd: Sshd, form: str) -> None:
    path = f"{sshd.root}/stub/exit/9"
    command = form.format(quoted=f"'{path}.git'", bare=f"{path}.git", nogit=shlex.quote(path))
    assert SshClient.to(sshd).run(command).returncode == 9


@pytest.mark.parametrize("command", ["ls", "sh -c 'exit 9'", None])
def test_other_commands_are_refused(sshd: Sshd, command: str | None) -> None:
    done = SshClient.to(sshd).run(command)
    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.startswith(b"test sshd: not a git command")


def test_an_unknown_stub_is_told(sshd: Sshd) -> None:
    done = SshClient.to(sshd).run(sshd.stub("nothing/1"))
    assert (done.returncode, done.stderr) == (127, b"test sshd: no such stub: nothing/1\n")


def test_lfs_scripts(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    client = SshClient.to(sshd)
    answer = client.run(f"git-lfs-authenticate '{sshd.root}/app.git' download")
    assert b'"href":"https://lfs.example/app.git"' in answer.stdout
    assert client.run(f"git-lfs-transfer '{sshd.root}/app.git' upload").stdout == b"000eversion=1\n000clocking\n0000"
    sshd.lfs_script("git-lfs-authenticate", '#!/bin/sh\necho "$1 $2"; exit 5\n')
    answer = client.run(f"git-lfs-authenticate '{sshd.root}/app.git' upload")
    assert (answer.returncode, answer.stdout.decode()) == (5, f"{sshd.root}/app.git upload\n")


def test_a_missing_repository_is_the_real_git_s_answer(sshd: Sshd) -> None:
    done = SshClient.to(sshd).run(f"git-upload-pack '{sshd.root}/none.git'")
    assert done.returncode == 128
    assert b"does not appear to be a git repository" in done.stderr


# -- settings, log, life


def test_nothing_of_the_user_is_read(sshd: Sshd) -> None:
    """bash reads ~/.bashrc before any command of a session; HOME is a folder of the test sshd, which has none."""
    sshd.lfs_script("git-lfs-authenticate", '#!/bin/sh\necho "$HOME"\n')
    done = SshClient.to(sshd).run(f"git-lfs-authenticate '{sshd.root}/app.git' download")
    assert Path(done.stdout.decode().strip()).is_relative_to(sshd.folder)


def test_authorize_and_forbid(sshd: Sshd, key: Key) -> None:
    client = SshClient(sshd.port, key.private, sshd.known_hosts)
    assert client.run(sshd.stub("exit/3")).returncode == 255
    sshd.authorize(key.line)
    assert client.run(sshd.stub("exit/3")).returncode == 3
    sshd.forbid(key.line)
    assert client.run(sshd.stub("exit/3")).returncode == 255


def test_logins_counts_authentications_not_sessions(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    client = SshClient.to(sshd)
    with client.control_master() as master:
        for _ in range(3):
            assert master.run(sshd.stub("exit/3")).returncode == 3
    assert sshd.logins() == 1
    mark = sshd.log_mark()
    client.run(sshd.stub("exit/0"))
    assert (sshd.logins(), sshd.logins(mark), sshd.connections(mark)) == (2, 1, 1)
    assert len(sshd.commands()) == 4


def test_configure_and_restart_keep_port_key_and_repositories(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    sshd = make_sshd()
    make_repo(sshd.root / "app.git")
    port, line = sshd.port, sshd.host_key_line
    sshd.configure("RekeyLimit 1M", "Ciphers aes256-gcm@openssh.com")
    sshd.restart()
    assert (sshd.port, sshd.host_key_line) == (port, line)
    verbose = SshClient.to(sshd, "LogLevel=DEBUG").run(sshd.stub("emit/3000000"))
    assert verbose.stdout == stub_bytes(3_000_000)
    assert b"aes256-gcm@openssh.com" in verbose.stderr
    assert verbose.stderr.count(b"SSH2_MSG_KEXINIT received") > 1  # the rekey limit applies
    env = git_env(tmp_path / "home", key=sshd.key.private, known_hosts=sshd.known_hosts)
    assert b"refs/heads/main" in git("ls-remote", sshd.url("app.git"), env=env).stdout


def test_the_error_for_a_bad_configuration_quotes_sshd() -> None:
    sshd = Sshd(config=["Nonsense yes"])
    with pytest.raises(RuntimeError, match="Bad configuration option: Nonsense"), sshd:
        pass
    assert not sshd.folder.exists()


def test_a_lost_race_for_the_port_is_tried_again(make_sshd: Callable[..., Sshd], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr("tests.support.server_process.free_port", lambda address: next(ports, None) or free_port(address))
        sshd = make_sshd()
        assert sshd.port != taken.getsockname()[1]
    assert "Address already in use" in sshd.log_text()


def test_a_new_host_key_is_used_after_restart(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    old = sshd.host_key_line
    old_hosts = sshd.known_hosts.read_text()
    sshd.new_host_key()
    sshd.restart()
    assert sshd.host_key_line != old
    assert SshClient.to(sshd).run(sshd.stub("exit/3")).returncode == 3
    sshd.known_hosts.write_text(old_hosts)
    assert SshClient.to(sshd).run(sshd.stub("exit/3")).returncode == 255


# -- faults


def test_frozen_and_thawed(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with SshClient.to(sshd).control_master() as master, master.popen(sshd.stub("half/1000")) as client:
        assert client.stdout is not None
        assert client.stdout.read(1000) == stub_bytes(1000)
        sshd.freeze()
        stopped = [process.status() for process in psutil.Process(sshd.pid).children()]
        assert stopped and set(stopped) == {psutil.STATUS_STOPPED}
        assert psutil.Process(sshd.pid).status() == psutil.STATUS_STOPPED
        sshd.thaw()
        client.communicate()
        assert client.returncode == 0


def test_killing_the_listener_leaves_the_sessions(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with SshClient.to(sshd).popen(sshd.stub("half/1000")) as client:
        assert client.stdout is not None
        assert client.stdout.read(1000) == stub_bytes(1000)
        sshd.signal_listener(signal.SIGKILL)
        assert not sshd.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((sshd.address, sshd.port))
        assert sshd.session_count() > 0
        client.communicate(b"")
        assert client.returncode == 0
    sshd.start()
    assert SshClient.to(sshd).run(sshd.stub("exit/3")).returncode == 3


def test_killing_the_sessions_leaves_the_listener(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with SshClient.to(sshd).popen(sshd.stub("hang")) as client:
        wait_until(sshd.commands)
        assert sshd.signal_sessions(signal.SIGKILL) > 0
        assert client.wait(10) == 255
    wait_until(lambda: sshd.session_count() == 0)
    assert SshClient.to(sshd).run(sshd.stub("exit/3")).returncode == 3


async def test_killing_the_command_is_seen_as_its_signal(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    async with connect(sshd.port, [sshd.key], sshd.host_key_line) as connection:
        process = await connection.create_process(sshd.stub("half/10"), encoding=None)
        assert await process.stdout.readexactly(10) == stub_bytes(10)
        assert sshd.signal_commands(signal.SIGKILL) > 0
        await process.wait_closed()
        assert process.exit_signal is not None and process.exit_signal[0] == "KILL"


def test_close_removes_the_folder_and_every_process(tmp_path: Path) -> None:
    with Sshd() as sshd:
        folder, pid = sshd.folder, sshd.pid
        assert folder.exists()
    assert not folder.exists()
    assert not psutil.pid_exists(pid)
    with Sshd(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept" / "log").exists()


def _is_command_of(sshd: Sshd, process: psutil.Process) -> bool:
    try:
        return process.environ().get("STUB_ROOT") == str(sshd.root) and process.name() == "sleep"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
