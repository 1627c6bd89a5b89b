"""RelayProcess with a stand-in that logs as the relay does: tests what RelayProcess accepts as a clean end."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.keys import Key
from tests.support.pattern import stub_bytes, stub_stderr
from tests.support.processes import alive
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

STAND_IN = """
import http.server, json, os, pathlib, signal, subprocess, sys, threading, tomllib
command, flag, path = sys.argv[1:]
assert (command, flag) == ("serve", "-c")
config = tomllib.loads(pathlib.Path(path).read_text())
mode = os.environ.get("STAND_IN", "")
if mode == "dies":
    sys.exit("relay.toml: listen: no such address")

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = METRICS if self.path == "/metrics" else "draining"
        self.send_response(200 if self.path == "/metrics" else 503)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_): pass

METRICS = '''# TYPE relay_sessions counter
relay_sessions_total{service="git-upload-pack",result="ok"} 3
relay_sessions_total{service="git-receive-pack",result="ok"} 4
relay_sessions_total{service="git-upload-pack",result="failed"} 1
# TYPE relay_connections_open gauge
relay_connections_open 2
# TYPE relay_commands_rejected counter
# TYPE relay_session_seconds histogram
relay_session_seconds_bucket{le="+Inf"} 8
relay_session_seconds_count 8
relay_session_seconds_sum 1.5
'''
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()

def ended(*_):
    if mode == "traceback":
        print("Traceback (most recent call last)", file=sys.stderr)
    os._exit(1 if mode == "fails" else 0)

child = subprocess.Popen(["sleep", "60"]) if mode == "leaves a process" else None
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "ignores" else ended)
audit = pathlib.Path(path).parent / config["log"]["audit"]
audit.write_text('{"identity": "alice"}\\n{"identity": "bo')
print(json.dumps({"message": "listening on 127.0.0.1:4022", "worker": 0}), file=sys.stderr)
print(json.dumps({"message": f"admin on http://127.0.0.1:{server.server_port}"}), file=sys.stderr)
while True:
    signal.pause()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., RelayProcess]:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)

    def make(mode: str = "", sshd: Sshd | None = None) -> RelayProcess:
        return RelayProcess(sshd, tmp_path / "relay", program=(sys.executable, str(program)), env={"STAND_IN": mode})

    return make


def test_ports_and_known_hosts_are_learned_from_the_log(start: Callable[..., RelayProcess]) -> None:
    with start() as relay:
        assert relay.port == 4022
        assert relay.known_hosts.read_text() == f"[127.0.0.1]:4022 {relay.host_key_line}\n"
        assert relay.url("team/app") == "ssh://git@127.0.0.1:4022/team/app"
        assert relay.get("/ready") == (503, "draining")


def test_metrics_are_read_by_name_and_labels(start: Callable[..., RelayProcess]) -> None:
    with start() as relay:
        assert relay.metric("relay_sessions_total") == 8
        assert relay.metric("relay_sessions_total", result="ok") == 7
        assert relay.metric("relay_sessions_total", result="ok", service="git-upload-pack") == 3
        assert relay.metric("relay_sessions_total", result="nothing") == 0
        assert relay.metric("relay_connections_open") == 2
        assert relay.metric("relay_commands_rejected_total") == 0
        assert relay.metric("relay_session_seconds_count") == 8
        with pytest.raises(KeyError):
            relay.metric("relay_no_such_metric")


def test_a_half_written_audit_line_waits(start: Callable[..., RelayProcess]) -> None:
    with start() as relay:
        assert relay.audit_lines() == [{"identity": "alice"}]


def test_what_it_takes(start: Callable[..., RelayProcess]) -> None:
    with start("leaves a process") as relay:
        wait_until(lambda: len(relay.processes()) == 2)
        assert relay.rss() > 5_000_000
        assert relay.fds() >= 6
        processes = relay.processes()
        with pytest.raises(AssertionError, match="the relay left processes"):
            relay.stop()
    assert not any(map(alive, processes))


def test_a_clean_end(start: Callable[..., RelayProcess]) -> None:
    with start() as relay:
        relay.stop()
        assert not relay.running
        assert relay.wait() == 0


@pytest.mark.parametrize(("mode", "complaint"), [("fails", "the relay ended with 1, not 0"), ("traceback", "the relay logged a traceback")])
def test_an_end_that_is_not_clean_fails_the_test(start: Callable[..., RelayProcess], mode: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint), start(mode):
        pass


def test_another_exit_status_may_be_expected(start: Callable[..., RelayProcess]) -> None:
    with start("fails") as relay:
        relay.stop(status=1)


def test_a_relay_that_does_not_end_fails_the_test(start: Callable[..., RelayProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RelayProcess, "wait", lambda self: subprocess.Popen.wait(self._process, 0.2))
    relay = start("ignores")
    with pytest.raises(AssertionError, match="the relay did not end within"), relay:
        pass
    assert not relay.running


def test_a_relay_that_does_not_start_is_told_in_its_words(start: Callable[..., RelayProcess]) -> None:
    with pytest.raises(AssertionError, match="no such address"):
        start("dies").start()


def test_its_log_is_there_for_the_report_of_a_failed_test(start: Callable[..., RelayProcess], capsys: pytest.CaptureFixture[str]) -> None:
    with start():
        pass
    assert "listening on 127.0.0.1:4022" in capsys.readouterr().err


def test_a_relay_that_the_test_ended_is_left_alone(start: Callable[..., RelayProcess]) -> None:
    with start("ignores") as relay:
        relay.signal(signal.SIGKILL)
        assert relay.wait() == -signal.SIGKILL


def test_the_configuration_that_is_written(sshd: Sshd, tmp_path: Path, key: Key) -> None:
    changes = {"limits": {"stall_seconds": 2}, "upstreams": {"main": {"idle_connections": 0}}}
    access = {"groups": {"core": ["bob"]}, "rule": [{"repositories": "team/*", "who": ["@core"], "allow": "read"}]}
    relay = RelayProcess(sshd, tmp_path / "relay", config=changes, access=access)
    relay.add_key("bob@laptop", key.line)
    config = tomllib.loads(relay.config_file.read_text())
    assert config["upstreams"]["main"] == {**upstream(sshd), "idle_connections": 0}
    assert config["limits"] == {"penalty_seconds": 0, "stall_seconds": 2}
    assert tomllib.loads((relay.folder / "access.toml").read_text()) == access
    (route,) = tomllib.loads((relay.folder / "routes.toml").read_text())["route"]
    assert route == {"repositories": "**", "upstream": "main", "path": f"{sshd.root}/{{repository}}.git"}
    assert sorted(path.name for path in (relay.folder / "keys").iterdir()) == ["alice.pub", "bob@laptop.pub"]
    assert (relay.folder / "upstream_ed25519").stat().st_mode & 0o777 == 0o600
    relay.write_config({"limits": {"stall_seconds": 3}})
    assert tomllib.loads(relay.config_file.read_text())["limits"]["stall_seconds"] == 3


def test_an_own_folder_is_short_and_removed(sshd: Sshd) -> None:
    relay = RelayProcess(sshd)
    assert len(str(relay.folder / "relay.sock")) <= 107
    relay.close()
    assert not relay.folder.exists()


def test_the_real_relay(relay: RelayProcess) -> None:
    done = relay.ssh().run("git-upload-pack 'stub/mixed/200000/37'")
    assert (done.returncode, done.stdout, done.stderr) == (37, stub_bytes(200_000), stub_stderr(200_000))
    (line,) = wait_until(relay.audit_lines)
    assert (line["identity"], line["repository"], line["exit_status"]) == ("alice", "stub/mixed/200000/37", 37)
    assert wait_until(lambda: relay.metric("relay_sessions_total", service="git-upload-pack")) == 1
    assert relay.get("/ready")[0] == 200
    assert len(relay.processes()) == 2  # the supervisor and one worker
