"""`relay sessions` with a relay that carries sessions: the list, ending one, and which users may ask."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from relay.commands import sessions
from relay.process import messages
from relay.text import escaped, printable
from tests.support.keys import make_key
from tests.support.machine import python_for
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


def ask(relay: RelayProcess, *arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "sessions", "-c", str(config or relay.config_file), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env, cwd="/")


def live(relay: RelayProcess) -> list[dict[str, Any]]:
    done = ask(relay, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def hanging(relay: RelayProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A session that has carried 5 bytes in and 100,000 out, and now waits for ever."""
    with relay.ssh().popen("git-receive-pack 'stub/half/100000'") as client:
        try:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(b"12345")
            client.stdin.flush()
            assert len(client.stdout.read(100_000)) == 100_000
            wait_until(lambda: relay.metric("relay_bytes_total", direction="in", service="git-receive-pack") >= 5)
            yield client
        finally:
            client.kill()
            client.communicate()
    wait_until(lambda: not live(relay), message="no session is left")


def test_no_sessions(relay: RelayProcess) -> None:
    done = ask(relay)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["ID", "WHO", "FROM", "SERVICE", "REPOSITORY", "UPSTREAM", "HOST", "AGE", "IN", "OUT"]


def test_the_list_for_people(relay: RelayProcess, hanging: subprocess.Popen[bytes]) -> None:
    done = ask(relay)
    assert (done.returncode, done.stderr) == (0, "")
    _, line = done.stdout.splitlines()
    pattern = r"[0-9a-f]{12}-1  alice  127\.0\.0\.1:\d+  git-receive-pack  stub/half/100000  main +"
    pattern += r"127\.0\.0\.1:\d+  [\d.]+s  5 B  100\.0 kB"
    assert re.fullmatch(pattern, line), line


def test_the_list_for_programs(relay: RelayProcess, sshd: Sshd, hanging: subprocess.Popen[bytes]) -> None:
    (line,) = live(relay)
    assert line["worker"] in {process.pid for process in relay.processes()}
    assert line["address"].startswith("127.0.0.1:") and line["seconds"] > 0
    expected = {
        "identity": "alice",
        "service": "git-receive-pack",
        "repository": "stub/half/100000",
        "upstream": "main",
        "host": f"{sshd.address}:{sshd.port}",
        "bytes_in": 5,
        "bytes_out": 100_000,
    }
    assert expected.items() <= line.items()


def test_the_client_of_an_ended_session_reads_a_message(relay: RelayProcess, hanging: subprocess.Popen[bytes]) -> None:
    (line,) = live(relay)
    done = ask(relay, "--kill", line["id"])
    told = f"session {line['id']} is ended; its client reads that an operator ended it\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    _, said = hanging.communicate(timeout=30)
    assert hanging.returncode == 255
    assert b"relay: the session was ended by an operator" in said
    ended = wait_until(lambda: [audit for audit in relay.audit_lines() if audit.get("session") == line["id"]])
    assert [(audit["result"], audit["reason"], audit["exit_status"]) for audit in ended] == [("relay", "killed", 255)]
    assert re.fullmatch(r"\S+ \(uid \d+\) ended it", ended[0]["detail"])


def test_all_sessions_of_an_identity_are_ended_and_no_others(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    relay = make_relay(sshd, access={"rule": [{"repositories": "**", "who": ["*"], "allow": "read"}]})
    robot = make_key(tmp_path, "robot")
    relay.add_key("robot", robot.line)
    wait_until(lambda: relay.ssh(key=robot).run(None).returncode == 0, message="the new key is read")
    with ExitStack() as stack:
        clients = [stack.enter_context(relay.ssh(key=key).popen("git-upload-pack 'stub/half/10'")) for key in (None, robot, robot)]
        for client in clients:
            assert client.stdout is not None and len(client.stdout.read(10)) == 10
        ids = {line["id"] for line in live(relay) if line["identity"] == "robot"}
        done = ask(relay, "--kill-identity", "robot")
        assert (done.returncode, done.stderr, len(ids)) == (0, "", 2)
        assert {line.split()[1] for line in done.stdout.splitlines()} == ids
        for client in clients[1:]:
            assert b"relay: the session was ended by an operator" in client.communicate(timeout=60)[1]
        assert [line["identity"] for line in live(relay)] == ["alice"]
        again = ask(relay, "--kill-identity", "robot")
        assert (again.returncode, again.stderr) == (1, 'no live session is of "robot"; `relay sessions` lists them\n')
        clients[0].kill()


def test_a_session_that_is_not_there_cannot_be_ended(relay: RelayProcess) -> None:
    done = ask(relay, "--kill", "0123456789ab-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no live session has the id '0123456789ab-1'; `relay sessions` lists them\n"


def test_a_connection_without_a_session_is_not_listed(relay: RelayProcess) -> None:
    with relay.ssh().control_master() as master:
        assert master.run("git-upload-pack 'stub/exit/3'").returncode == 3
        assert live(relay) == []


def test_another_user_may_not_ask(relay: RelayProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    relay.folder.chmod(0o755)  # the folder allows everyone, so that only the socket can refuse
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", python_for("nobody"), "-I", "-c", connect]
    done = subprocess.run([*command, str(relay.folder / "relay.sock")], capture_output=True, text=True, check=False, timeout=30, cwd="/")
    assert done.returncode == 1 and "PermissionError" in done.stderr


def test_no_relay_runs(relay: RelayProcess, tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text())
    done = ask(relay, config=config)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'relay.sock'}: no relay listens here; is one running with {config}?\n"


def test_a_worker_that_does_not_answer_is_reported(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2})
    _, stopped, _ = relay.processes()
    stopped.send_signal(signal.SIGSTOP)
    try:
        done = ask(relay)
        assert done.returncode == 1
        assert done.stderr == "1 worker did not answer, its sessions are missing here\n"
    finally:
        stopped.send_signal(signal.SIGCONT)
    wait_until(lambda: stopped.status() == psutil.STATUS_SLEEPING)
    assert ask(relay).stderr == ""


def test_the_longest_session_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [messages.LiveSession(f"c-{age}", "a", "b", "", "", "", "", age, 0, 0, 1) for age in (1.0, 3.0, 2.0)]
    sessions.print_lines(lines, as_json=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ID", "c-3.0", "c-2.0", "c-1.0"]


def test_a_change_that_is_not_in_force_is_shown_above_the_list_and_in_the_metrics(sshd: Sshd) -> None:
    with RelayProcess(sshd, config={"workers": 1}) as relay:
        access = relay.folder / "access.toml"
        good = access.read_text()
        access.write_text(good + '[[rule]]\nrepositories = "x"\nwho = ["@none"]\nallow = "read"\n')
        wait_until(lambda: relay.metric("relay_change_not_taken_since_seconds", what="access") > 0, message="nobody logged in meanwhile")
        done = ask(relay)
        assert done.returncode == 0
        assert re.fullmatch(
            rf'access: a change is not in force since 20\S+Z: {access}:\d+: rule#2\.who: "@none" is no group, .*\n', done.stderr
        )
        access.write_text(good)
        wait_until(lambda: relay.metric("relay_change_not_taken_since_seconds") == 0)
        assert ask(relay).stderr == ""


HOSTILE = {
    "control": "\x1b]0;x\x07", "C1": "\x9b2J", "soft hyphen": "\u00ad", "zero width space": "\u200b", "joiner": "\u200d", "mark": "\u200e",
    "override": "\u202e", "isolate": "\u2066", "byte order mark": "\ufeff", "tag": "\U000e0041",
    "separator": "\u2028", "paragraph": "\u2029",
    "surrogate": "\udc80", "private": "\ue000", "unassigned": "\u0378", "annotation": "\ufff9",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("field", ["identity", "repository", "upstream", "host", "address", "service"])
def test_names_of_clients_are_escaped_for_a_terminal(capsys: pytest.CaptureFixture[str], field: str, text: str) -> None:
    line = msgspec.structs.replace(
        messages.LiveSession("c-1", "alice", "192.0.2.7:1", "git-upload-pack", "team/app", "main", "10.0.0.5:22", 1.0, 2, 3, 4),
        **{field: f"a{text}b"},
    )
    sessions.print_lines([line], as_json=False)
    sessions.print_lines([line], as_json=True)
    shown = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert shown.count("\n") == 3
    assert json.loads(shown.splitlines()[2])[field] == f"a{text}b", "for programs it is exact"
    assert "?" in printable(f"a{text}b") and printable(f"a{text}b").isprintable()
    assert escaped(f"a{text}b", 100).isprintable()
