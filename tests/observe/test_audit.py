"""The audit: one complete line for each end, whatever clients send and whatever happens to the file."""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay import config
from relay.events import ConnectionRecord, Outcome, SessionRecord
from relay.git.push_commands import CommandList
from relay.model import Certified, Command, Exit, Identity, RefUpdate
from relay.observe import audit as module
from relay.observe.audit import Audit, tell_of_lost_worker
from relay.observe.audit_lines import (
    LINE_BYTES,
    AuditLine,
    AuditSession,
    AuthFailed,
    CommandRejected,
    LoginFailed,
    SessionBegan,
    WorkerLost,
)
from tests.support.wait import wait_until_async

ROOT = Path(__file__).parents[2]


def new_session(**values: Any) -> SessionRecord:
    connection = ConnectionRecord(id="c1", address="192.0.2.7", port=4711, user="git", client_version="SSH-2.0-OpenSSH_9.9")
    session = SessionRecord(id="c1-2", connection=connection, identity=Identity(name="alice", fingerprint="SHA256:abc"))
    session.command = Command(service="git-upload-pack", repository="team/app", protocol="version=2")
    session.upstream = "main"
    session.address, session.bytes_in, session.bytes_out = "10.0.0.5:22", 340, 12_300_000
    for name, value in values.items():
        setattr(session, name, value)
    return session


def pushed(*refs: str, more: int = 0) -> CommandList:
    """A push of these refs and `more` refs, which the record does not keep."""
    commands = CommandList(1)
    commands.updates = [RefUpdate(ref=ref, old="a" * 64, new="b" * 64) for ref in refs]
    commands.count = len(refs) + more
    return commands


OK = Outcome(result="ok", reason="ok", exit=Exit(status=0), seconds=1.25)


def lines(path: Path) -> list[AuditLine]:
    return [msgspec.json.decode(line, type=AuditLine) for line in path.read_bytes().splitlines()]


def one(tmp_path: Path, tell: Callable[[Audit], object], format: Any = "json") -> str:
    """The only audit line that `tell` causes."""
    path = tmp_path / "audit.log"
    path.unlink(missing_ok=True)
    audit = Audit(str(path), format)
    tell(audit)
    audit.close()
    text = path.read_text()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text


# -- lines -------------------------------------------------------------------------------------------------------------------


def test_a_session_is_one_line_with_everything(tmp_path: Path) -> None:
    text = one(tmp_path, lambda audit: audit.session_ended(new_session(served_by="host"), OK))
    found = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "event": "session",
        "connection": "c1",
        "address": "192.0.2.7",
        "port": 4711,
        "session": "c1-2",
        "identity": "alice",
        "key": "SHA256:abc",
        "certificate": None,
        "service": "git-upload-pack",
        "repository": "team/app",
        "moved_from": "",
        "protocol": "version=2",
        "operation": "",
        "upstream": "main",
        "host": "10.0.0.5:22",
        "kind": "",
        "git_version": None,
        "served_by": "host",
        "replays": 0,
        "refs": [],
        "refs_more": 0,
        "refs_truncated": False,
        "bytes_in": 340,
        "bytes_out": 12_300_000,
        "seconds": 1.25,
        "waited_seconds": 0.0,
        "exit_status": 0,
        "exit_signal": None,
        "result": "ok",
        "reason": "ok",
        "detail": "",
    }


def test_a_signal_has_no_status(tmp_path: Path) -> None:
    outcome = Outcome(result="signal", reason="signal", exit=Exit(signal="KILL"), seconds=1)
    line = msgspec.json.decode(one(tmp_path, lambda audit: audit.session_ended(new_session(), outcome)), type=AuditSession)
    assert (line.exit_status, line.exit_signal, line.result) == (None, "KILL", "signal")


def test_a_session_that_never_got_anywhere_still_has_its_line(tmp_path: Path) -> None:
    session = new_session(command=None, upstream="", address="", bytes_in=0, bytes_out=0)
    line = msgspec.json.decode(one(tmp_path, lambda audit: audit.session_ended(session, OK)), type=AuditSession)
    assert (line.service, line.repository, line.upstream, line.host) == ("", "", "", "")


def test_a_rejected_command_is_one_line_and_no_session(tmp_path: Path) -> None:
    def tell(audit: Audit) -> None:
        session = new_session(upstream="", address="")
        audit.session_started(session)
        audit.command_rejected(session, "denied", "no rule")
        audit.session_ended(session, Outcome(result="policy", reason="denied", exit=Exit(status=128), seconds=0.01, detail="no rule"))

    line = msgspec.json.decode(one(tmp_path, tell), type=CommandRejected)
    assert (line.identity, line.repository, line.exit_status) == ("alice", "team/app", 128)
    assert (line.upstream, line.host) == ("", "")
    assert (line.result, line.reason, line.detail) == ("policy", "denied", "no rule")


def test_after_a_rejection_the_next_session_of_the_same_connection_is_a_session(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit, session = Audit(str(path)), new_session()
    audit.command_rejected(session, "denied", "")
    audit.session_ended(session, OK)
    audit.session_ended(session, OK)
    audit.close()
    assert [type(line) for line in lines(path)] == [CommandRejected, AuditSession]


def refused(audit: Audit, connection: ConnectionRecord, number: int) -> None:
    """Reports a session beyond the limit, as the connection does."""
    session = SessionRecord(id=f"c1-{number}", connection=connection, identity=Identity(name="alice", fingerprint="SHA256:abc"))
    audit.session_started(session)
    audit.command_rejected(session, "too_many", "10 are open")
    audit.session_ended(session, Outcome(result="client", reason="too_many", exit=Exit(status=128), seconds=0.0, detail="10 are open"))


def test_the_first_excess_session_has_a_line_and_further_ones_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    audit, one, two = Audit(str(path), "json"), new_session().connection, new_session().connection
    for number in range(10_000):
        refused(audit, one, number)
    refused(audit, two, 1)
    told = lines(path)
    assert [(line.session, line.times) for line in told if isinstance(line, CommandRejected)] == [("c1-0", 1), ("c1-1", 1)]
    monkeypatch.setattr(module, "EXCESS_SECONDS", 0.0)  # as if the window had passed
    refused(audit, one, 10_000)
    audit.connection_closed(two, "ok")  # this connection has nothing left to report
    monkeypatch.undo()
    refused(audit, one, 10_001)
    audit.connection_closed(one, "ok")
    audit.connection_closed(one, "ok")
    audit.close()
    more = lines(path)[len(told) :]
    assert [(line.session, line.times) for line in more if isinstance(line, CommandRejected)] == [("c1-10000", 10_000), ("c1-10001", 1)]
    assert len(more) == 2 and not audit._excess


def test_other_rejections_have_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit, session = Audit(str(path), "json"), new_session()
    for _ in range(3):
        audit.command_rejected(session, "denied", "no rule")
        audit.session_ended(session, Outcome(result="policy", reason="denied", exit=Exit(status=128), seconds=0.01))
    audit.close()
    assert [line.times for line in lines(path) if isinstance(line, CommandRejected)] == [1, 1, 1]


def test_the_supervisor_writes_a_line_about_a_lost_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config.LogSettings(audit="audit.log", format="json")
    tell_of_lost_worker(settings, tmp_path, 4711, "signal SIGKILL", 3)
    (line,) = lines(tmp_path / "audit.log")
    assert isinstance(line, WorkerLost)
    assert (line.pid, line.how, line.sessions) == (4711, "signal SIGKILL", 3)
    tell_of_lost_worker(config.LogSettings(audit="nowhere/audit.log"), tmp_path, 4711, "signal SIGKILL", 3)
    assert "cannot be opened, so the worker that died has no line" in caplog.text


def test_a_refused_authentication_is_one_line(tmp_path: Path) -> None:
    connection = new_session().connection
    line = msgspec.json.decode(
        one(tmp_path, lambda audit: audit.auth_failed(connection, "unknown_key", "SHA256:x", "nobody's")), type=AuthFailed
    )
    assert (line.address, line.port, line.user, line.key) == ("192.0.2.7", 4711, "git", "SHA256:x")
    assert (line.reason, line.detail) == ("unknown_key", "nobody's")


def test_a_failed_login_has_one_line_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit, connection = Audit(str(path), "json"), new_session().connection
    audit.auth_failed(connection, "unknown_key", "SHA256:x")
    audit.auth_failed(connection, "wrong_user")
    audit.auth_failed(connection, "too_many", "", "6 attempts")  # reported in addition to the last attempt
    audit.connection_closed(connection, "auth_failed")
    audit.close()
    *attempts, failed = lines(path)
    assert [type(line) for line in attempts] == [AuthFailed] * 3
    assert isinstance(failed, LoginFailed)
    assert (failed.address, failed.port, failed.user, failed.client_version) == ("192.0.2.7", 4711, "git", "SSH-2.0-OpenSSH_9.9")
    assert (failed.attempts, failed.reason, failed.key) == (2, "wrong_user", "SHA256:x")


def test_refused_attempts_before_a_login_are_not_a_failed_login(tmp_path: Path) -> None:
    """An agent offers several keys; a backend that is down is not the client's fault; a scanner without an attempt has not failed."""
    path = tmp_path / "audit.log"
    audit, connection = Audit(str(path), "json"), new_session().connection
    audit.auth_failed(connection, "unknown_key", "SHA256:x")
    audit.auth_succeeded(connection, new_session().identity)
    audit.connection_closed(connection, "ok")
    audit.auth_failed(connection, "undecided", "SHA256:x")
    audit.connection_closed(connection, "auth_failed")
    audit.connection_closed(connection, "no_auth")
    audit.close()
    assert [type(line) for line in lines(path)] == [AuthFailed] * 2
    assert not audit._failing


def test_a_client_that_tries_only_passwords_has_a_failed_login(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit, connection = Audit(str(path), "json"), new_session().connection
    audit.connection_closed(connection, "auth_failed")
    audit.auth_failed(connection, "too_many", "", "6 attempts")
    audit.connection_closed(connection, "auth_failed")
    audit.close()
    failed = [line for line in lines(path) if isinstance(line, LoginFailed)]
    assert [(line.reason, line.attempts, line.key) for line in failed] == [("no_key", 0, "")] * 2


def test_for_people_it_is_text(tmp_path: Path) -> None:
    said = one(tmp_path, lambda audit: audit.session_ended(new_session(), OK), "text")
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z ok       alice        192\.0\.2\.7       fetch    team/app on main", said)


ON_TERMINAL = """
from relay import config
from relay.observe.audit import Audit, tell_of_lost_worker
from tests.observe.test_audit import OK, new_session
audit = Audit("-")
audit.session_ended(new_session(), OK)
audit.close()
"""


@pytest.mark.parametrize(("environment", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)])
def test_on_a_terminal_it_is_text_with_colours_unless_unwanted(environment: dict[str, str], coloured: bool) -> None:
    master, slave = pty.openpty()
    environment = {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, **environment}
    subprocess.run([sys.executable, "-c", ON_TERMINAL], stdout=slave, check=True, cwd=ROOT, env=environment, timeout=60)
    said = os.read(master, 4096).decode()
    os.close(slave)
    os.close(master)
    assert ("\x1b[32mok" in said) is coloured
    assert "alice        192.0.2.7       fetch    team/app" in said


def test_the_journal_gets_a_priority_with_each_line() -> None:
    read, write = os.pipe()
    there = os.fstat(write)
    environment = {**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
    subprocess.run([sys.executable, "-c", ON_TERMINAL], stdout=write, check=True, cwd=ROOT, env=environment, timeout=60)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    assert said.startswith("<6>{") and json.loads(said[3:])["event"] == "session"


def test_stdout_gets_json_when_it_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    audit = Audit("-")
    audit.session_ended(new_session(), OK)
    audit.reopen()
    audit.close()
    print("still open", flush=True)
    line, after = capfd.readouterr().out.splitlines()
    assert json.loads(line)["identity"] == "alice"
    assert after == "still open"


# -- strangers ---------------------------------------------------------------------------------------------------------------

ANY = st.text(st.characters(exclude_categories=[]), max_size=6000)
LONG = st.sampled_from(["\x00", "\x1b[2J", "é", "🐙", '"', "\\", "\n", "\udcff", "\u202e"]).map(lambda piece: piece * 3000)


def _certified(name: str, fingerprint: str) -> Identity:
    told = Certified(ca=fingerprint, key_id=name, serial=(1 << 64) - 1)
    return Identity(name=name, fingerprint=fingerprint, method="certificate", certificate=told)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY | LONG, min_size=13, max_size=13), st.sampled_from(["json", "text"]))
def test_no_text_of_a_client_breaks_a_line_or_makes_it_too_long(tmp_path: Path, texts: list[str], format: str) -> None:
    said: Any = iter(texts)
    connection = ConnectionRecord(id=next(said), address=next(said), port=65535, user=next(said), client_version=next(said))
    session = SessionRecord(id=next(said), connection=connection, identity=_certified(next(said), next(said)))
    session.command = Command(service="git-upload-archive", repository=next(said), protocol=next(said))
    session.upstream, session.address = next(said), next(said)
    session.moved_from = texts[0]
    session.bytes_in = session.bytes_out = 1 << 60
    session.asked = pushed(*texts)
    outcome = Outcome(result="upstream", reason=next(said), exit=Exit(signal=texts[0]), seconds=86_400.123456, detail=next(said))

    def reject(audit: Audit) -> None:
        audit.command_rejected(session, "malformed", "")
        audit.session_ended(session, outcome)

    def end(audit: Audit) -> None:
        audit.session_ended(session, outcome)

    def refuse(audit: Audit) -> None:
        audit.auth_failed(connection, "unknown_key", texts[1], texts[2])

    def fail(audit: Audit) -> None:
        audit._failing[id(connection)] = module._Failing(1 << 30, "unknown_key", texts[1])
        audit.connection_closed(connection, "auth_failed")

    def begin(audit: Audit) -> None:
        audit.begin(session)

    for tell in (end, reject, refuse, fail, begin):
        text = one(tmp_path, tell, format)
        assert text.removesuffix("\n").isprintable()
        assert len(text.encode()) <= LINE_BYTES
        if format == "json":
            line = msgspec.json.decode(text, type=AuditLine)
            assert list(json.loads(text))[:5] == ["event", "time", "connection", "address", "port"], line


def test_a_client_cannot_forge_a_field(tmp_path: Path) -> None:
    session = new_session()
    session.connection.user = 'x","address":"198.51.100.1","event":"session","user":"y'
    text = one(tmp_path, lambda audit: audit.auth_failed(session.connection, "wrong_user", "", session.connection.user))
    assert re.findall(r'(?<!\\)"address":"([^"]*)"', text) == ["192.0.2.7"]
    assert json.loads(text)["user"] == session.connection.user


def test_a_legal_repository_name_is_never_cut(tmp_path: Path) -> None:
    for name in ("a" * 1024, "é" * 512, "🐙" * 256):
        session = new_session(command=Command(service="git-upload-pack", repository=name))
        assert json.loads(one(tmp_path, lambda audit, session=session: audit.session_ended(session, OK)))["repository"] == name  # type: ignore[misc]


# -- the file ----------------------------------------------------------------------------------------------------------------


def test_the_file_is_appended_to_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("before\n")
    path.chmod(0o600)
    for _ in range(2):
        audit = Audit(path.name, base=tmp_path)
        audit.session_ended(new_session(), OK)
        audit.close()
    assert len(path.read_text().splitlines()) == 3
    fresh = tmp_path / "fresh.log"
    old = os.umask(0)
    try:
        Audit(str(fresh)).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_opened_raises_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Audit(str(tmp_path / "no such folder" / "audit.log"))
    with pytest.raises(IsADirectoryError):
        Audit(str(tmp_path))


def test_rotation_while_lines_are_written_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(str(path))
    for number in range(100):
        audit.session_ended(new_session(id=f"s{number}"), OK)
        if number % 10 == 5:
            path.rename(tmp_path / f"audit.log.{number}")
        if number % 10 == 8:
            audit.reopen()
    audit.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 11
    found = [line for file in files for line in lines(file)]
    assert sorted(int(line.session[1:]) for line in found if isinstance(line, AuditSession)) == list(range(100))


def test_a_rotation_that_fails_keeps_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    audit = Audit(str(folder / "audit.log"))
    folder.rename(tmp_path / "moved")
    audit.reopen()
    assert "cannot be opened again" in caplog.text
    audit.session_ended(new_session(), OK)
    audit.close()
    assert len(lines(tmp_path / "moved" / "audit.log")) == 1


def test_an_output_that_cannot_be_written_or_reopened_is_reported_until_it_can_be(tmp_path: Path) -> None:
    path, told = tmp_path / "log" / "audit.log", list[list[str]]()
    path.parent.mkdir()
    audit = Audit(str(path), "json", tell=lambda what, problems: told.append(problems))
    audit.session_ended(new_session(), OK)
    assert told == []
    path.parent.rename(tmp_path / "moved")
    audit.reopen()
    assert told.pop() == [f"audit: {path} cannot be opened again, the old file stays in use: [Errno 2] No such file or directory: '{path}'"]
    audit.session_ended(new_session(), OK)
    assert told == [], "no news"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    audit.reopen()
    assert told.pop() == []
    audit.session_ended(new_session(), OK)
    assert told.pop() == [f"audit: {path} cannot be written: [Errno 28] No space left on device"]
    path.unlink()
    audit.reopen()
    assert told.pop() == []
    audit.close()
    assert len(lines(path)) == 1


WRITER = """
import sys
from relay import config
from relay.observe.audit import Audit, tell_of_lost_worker
from tests.observe.test_audit import OK, new_session
audit = Audit(sys.argv[1])
session = new_session(id=sys.argv[2])
session.connection.client_version = "v" * 200
sys.stdin.readline()
for number in range(400):
    session.bytes_in = number
    audit.session_ended(session, OK)
audit.close()
"""


def test_several_workers_append_to_one_file_without_tearing_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"w{number}"], stdin=subprocess.PIPE, cwd=ROOT) for number in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    found = [line for line in lines(path) if isinstance(line, AuditSession)]
    for number in range(3):
        assert [line.bytes_in for line in found if line.session == f"w{number}"] == list(range(400))


# -- trouble -----------------------------------------------------------------------------------------------------------------


def test_lines_are_written_later_when_the_disk_was_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    audit = Audit(str(path))
    for number in range(50):
        audit.session_ended(new_session(bytes_in=number), OK)
    complaints = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(complaints) == 1, "once a minute, not once a line"
    assert "No space left" in complaints[0].getMessage()
    path.unlink()
    audit.reopen()
    audit.close()
    assert [line.bytes_in for line in lines(path) if isinstance(line, AuditSession)] == list(range(50))
    assert "is written again; 0 lines were lost" in caplog.text


def test_intermittent_trouble_is_logged_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(str(path))
    for _ in range(20):
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
        audit.reopen()
        audit.session_ended(new_session(), OK)
        path.unlink()
        audit.reopen()
    audit.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_the_backlog_is_bounded_and_dropped_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_BYTES", 5_000)
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    audit = Audit(str(path))
    for number in range(100):
        audit.session_ended(new_session(bytes_in=number), OK)
    path.unlink()
    audit.reopen()
    audit.close()
    assert sum(len(line) + 1 for line in path.read_bytes().splitlines()) <= 5_000
    kept = [line.bytes_in for line in lines(path) if isinstance(line, AuditSession)]
    assert kept == list(range(100))[-len(kept) :], "the oldest go first"
    assert audit.lost == 100 - len(kept)


def test_complaints_come_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [1000.0]
    monkeypatch.setattr("relay.observe.audit.time.monotonic", lambda: clock[0])
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    audit = Audit(str(path))
    for _ in range(300):
        audit.auth_failed(new_session().connection, "grace")
        clock[0] += 1
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 5
    audit.close()
    assert "300 lines were never written" in caplog.text


async def test_a_stalled_reader_blocks_nothing_and_gets_all_lines_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(str(path))
    for number in range(1000):  # several times the capacity of a pipe
        audit.session_ended(new_session(bytes_in=number), OK)
    assert audit._backlog, "the pipe took it all: nothing was proved"
    received = bytearray()

    def read() -> bool:
        try:
            received.extend(os.read(reader, 1 << 16))
        except BlockingIOError:
            pass
        return received.count(b"\n") == 1000

    await wait_until_async(read)  # no further event: the timer alone writes the rest
    found = [msgspec.json.decode(line, type=AuditSession).bytes_in for line in received.splitlines()]
    assert found == list(range(1000))
    audit.close()
    os.close(reader)


STDOUT_WRITER = """
import sys
from relay import config
from relay.observe.audit import Audit, tell_of_lost_worker
from tests.observe.test_audit import OK, new_session
audit = Audit("-")
for number in range(1000):
    audit.session_ended(new_session(bytes_in=number), OK)
print("not held up", file=sys.stderr)
sys.stdin.read()
audit.close()
"""


def test_an_unread_stdout_blocks_nothing() -> None:
    """stdout is a blocking pipe, perhaps shared, and must stay one: the audit polls for room before each line."""
    with subprocess.Popen(
        [sys.executable, "-c", STDOUT_WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    ) as process:
        assert process.stderr is not None
        killer = threading.Timer(60, process.kill)
        killer.start()
        assert b"the reader does not keep up" in process.stderr.readline()
        assert process.stderr.readline() == b"not held up\n"
        out, errors = process.communicate(b"")
        killer.cancel()
    written = [msgspec.json.decode(line, type=AuditSession).bytes_in for line in out.splitlines()]
    assert written == list(range(len(written)))
    # how many more lines are written at the close depends on how fast the reader is
    assert len(written) == 1000 or f"{1000 - len(written)} lines were never written".encode() in errors


def test_a_closed_pipe_ends_no_session(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(str(path))
    os.close(reader)
    audit.session_ended(new_session(), OK)
    assert "Broken pipe" in caplog.text
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit.session_ended(new_session(), OK)
    audit.close()
    assert os.read(reader, 1 << 16).count(b"\n") == 2
    os.close(reader)


def test_a_line_that_was_torn_is_written_again_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(str(path))
    write = os.write
    monkeypatch.setattr("relay.observe.audit.os.write", lambda fd, data: write(fd, data[:100]))
    audit.session_ended(new_session(), OK)
    monkeypatch.setattr("relay.observe.audit.os.write", write)
    audit.session_ended(new_session(), OK)
    audit.close()
    fragment, *whole = path.read_bytes().splitlines()
    assert len(fragment) == 100
    assert len([msgspec.json.decode(line, type=AuditSession) for line in whole]) == 2


def test_nothing_is_written_to_a_reused_descriptor_after_close(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "audit.log"))
    audit.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    audit.session_ended(new_session(), OK)
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""


# -- audit_required ------------------------------------------------------------------------------------------------------------


def test_the_beginning_of_a_session_is_a_line_of_its_own(tmp_path: Path) -> None:
    session = new_session(identity=_certified("alice", "SHA256:abc"))
    line = msgspec.json.decode(one(tmp_path, lambda audit: audit.begin(session)), type=SessionBegan)
    assert (line.session, line.identity, line.key, line.address) == ("c1-2", "alice", "SHA256:abc", "192.0.2.7")
    assert line.certificate is not None and line.certificate.key_id == "alice"
    assert "began    alice" in one(tmp_path, lambda audit: audit.begin(session), "text")


def test_a_full_disk_is_told_and_leaves_no_line_of_a_session_that_did_not_begin(tmp_path: Path) -> None:
    told: list[list[str]] = []
    audit = Audit("/dev/full", "json", tell=lambda what, problems: told.append(problems))
    assert not audit.unwritable
    assert "No space left" in audit.begin(new_session()) and audit.unwritable
    assert "/dev/full cannot be written" in told[-1][0]
    audit.session_ended(new_session(), OK)
    assert "No space left" in audit.begin(new_session()), "while lines of others wait"
    path = tmp_path / "audit.log"
    audit._output = str(path)
    audit.reopen()
    assert told[-1] == [] and not audit.unwritable
    assert audit.begin(new_session()) == ""
    audit.close()
    assert [type(line) for line in lines(path)] == [AuditSession, SessionBegan]


def test_a_pipe_whose_reader_stalls_lets_no_session_begin_until_it_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(str(path), "json")
    began = 0
    while not (why := audit.begin(new_session())):
        began += 1
    assert "does not keep up" in why
    read = b""
    while chunk := os.read(reader, 1 << 20):
        read += chunk
        if read.count(b"\n") == began:
            break
    assert audit.begin(new_session()) == "" and not audit.unwritable
    audit.close()
    os.close(reader)
