"""`relay serve` as a process in front of a test sshd, with its configuration written, its log, metrics and audit read.

    with Sshd() as sshd, RelayProcess(sshd) as relay:
        git("clone", relay.url("team/app"), "work", env=relay.git_env(home))
        relay.ssh().run("git-upload-pack 'stub/emit/1000/37'")
        relay.metric("relay_sessions_total", result="ok")

Every repository `x/y` is routed to `<sshd.root>/x/y.git`; one identity, alice, may write all of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from relay.backends.watched import LOOK_SECONDS
from tests.support.gitrepo import git_env
from tests.support.keys import Key, make_key
from tests.support.loopback import urlopen
from tests.support.processes import alive, send_signal
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd
from tests.support.toml import merge, toml_text
from tests.support.wait import WaitTimeoutError, wait_until

START_TIMEOUT = 60.0  # seconds until the log has the listening address
STOP_TIMEOUT = 60.0  # seconds from SIGTERM to the end, without sessions to drain
HTTP_TIMEOUT = 60.0  # seconds
LOG_SHOWN = 20_000  # characters

_ROOT = Path(__file__).parents[2]
_LISTENING = re.compile(r"listening on (?:127\.0\.0\.1|\[::\]):(\d+)")  # [::]: a socket of both families
_ADMIN = re.compile(r"admin on (http://127\.0\.0\.1:\d+)")


class RelayProcess:
    """One `relay serve`; a context manager that stops it and asserts that it ended cleanly.

    `config` is merged over the configuration written by default (tables are merged, other values replaced); `access` and
    `routes` replace those files. Defaults that differ from relay's: port 0, one worker, audit in a file, no
    penalties, since all tests share the source 127.0.0.1, no wait for a git host that is down and no message to clients that wait.
    """

    def __init__(
        self,
        sshd: Sshd | None,
        folder: Path | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        access: Mapping[str, Any] | None = None,
        routes: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "relay"),
    ) -> None:
        self._own_folder = folder is None
        # short, because the sessions socket is in there and a Unix socket's path has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="relay-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = 0
        self.admin_url = ""
        self.user = "git"
        self.key: Key = make_key(self.folder / "client", "alice")
        self.host_key: Key = make_key(self.folder, "host_ed25519")
        self.known_hosts = self.folder / "client" / "known_hosts"
        self.config_file = self.folder / "relay.toml"
        self._program = program
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._known: list[psutil.Process] = []
        self._log = self.folder / "log"
        self._audit = self.folder / "audit.jsonl"
        self.config: dict[str, Any] = merge(self._defaults(sshd), config or {})
        self.add_key("alice", self.key.line)
        self.write_config()
        self.write_access(access or {"rule": [{"repositories": "**", "who": ["alice"], "allow": "write"}]})
        root = sshd.root if sshd is not None else Path("/srv/git")
        self.write_routes(routes or {"route": [{"repositories": "**", "upstream": "main", "path": f"{root}/{{repository}}.git"}]})

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None and self.running:
                self.stop()
        finally:
            print(f"--- log of {self!r}\n{self.log_text()[-LOG_SHOWN:]}", file=sys.stderr)  # pytest shows it when the test failed
            self.close()

    def __repr__(self) -> str:
        return f"<RelayProcess 127.0.0.1:{self.port} {'running' if self.running else 'stopped'}>"

    # -- configuration

    def write_config(self, changes: Mapping[str, Any] | None = None) -> None:
        """Merge `changes` into the configuration and write it; it applies from the next start or SIGHUP."""
        self.config = merge(self.config, changes or {})
        self.config_file.write_text(toml_text(self.config))

    def write_access(self, access: Mapping[str, Any]) -> None:
        (self.folder / "access.toml").write_text(toml_text(access))

    def write_routes(self, routes: Mapping[str, Any]) -> None:
        (self.folder / "routes.toml").write_text(toml_text(routes))

    def add_key(self, identity: str, line: str) -> Path:
        """Write `keys/<identity>.pub`; an identity such as `alice@laptop` is another key of alice.

        A running relay has the key when this returns: it reads the files at most every LOOK_SECONDS, so the method waits that long.
        """
        keys = self.folder / "keys"
        keys.mkdir(exist_ok=True)
        path = keys / f"{identity}.pub"
        path.write_text(line + "\n")
        if self.running:
            time.sleep(LOOK_SECONDS)
        return path

    # -- for clients

    @property
    def host_key_line(self) -> str:
        return self.host_key.host_line

    def url(self, repository: str) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}/{repository}"

    def ssh(self, *options: str, key: Key | None = None, user: str | None = None) -> SshClient:
        """The real ssh, as alice unless told otherwise."""
        return SshClient(self.port, (key or self.key).private, self.known_hosts, user or self.user, options=options)

    def git_env(self, home: Path, key: Key | None = None, protocol: int | None = None) -> dict[str, str]:
        return git_env(home, key=(key or self.key).private, known_hosts=self.known_hosts, protocol=protocol)

    # -- life

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the relay was not started"
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until the log has the listening address; raises AssertionError with the log if it never does."""
        assert not self.running, "the relay already runs"
        mark = len(self.log_text())
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **self._env}
        with self._log.open("ab") as log, (self.folder / "stdout").open("ab") as stdout:
            arguments = [*self._program, "serve", "-c", str(self.config_file)]
            # in "/", so that a path which is not relative to the configuration file is noticed
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, env=env, cwd="/")
        process = self._process
        try:
            wait_until(lambda: process.poll() is not None or self._is_ready(mark), START_TIMEOUT, "the relay listens")
            assert process.poll() is None, f"the relay ended with {process.returncode} before it listened"
        except AssertionError as error:
            said = self.log_text()
            self.close()
            raise AssertionError(f"{error}\n{said}") from None
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key_line}\n")

    def signal(self, number: int) -> None:
        """Signal the supervisor only."""
        assert self._process is not None, "the relay was not started"
        self._known = [*filter(alive, self._known), *self.processes()]  # an orphaned worker is no longer the supervisor's child
        self._process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """The exit status, or the negative signal number; raises subprocess.TimeoutExpired."""
        assert self._process is not None, "the relay was not started"
        return self._process.wait(timeout)

    def stop(self, status: int = 0) -> None:
        """SIGTERM, then assert the exit status, that no traceback was logged and that no process is left."""
        self.signal(signal.SIGTERM)
        try:
            ended_with = self.wait()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the relay did not end within {STOP_TIMEOUT:g} s of SIGTERM:\n{self.log_text()[-4000:]}") from None
        log = self.log_text()
        assert ended_with == status, f"the relay ended with {ended_with}, not {status}:\n{log[-4000:]}"
        assert "Traceback (most recent call last)" not in log, f"the relay logged a traceback:\n{log[-8000:]}"
        left = [process for process in self._known if alive(process)]
        assert not left, f"the relay left processes: {left}"

    def close(self) -> None:
        """Kill the relay whatever its state, and remove the folder if this object made it; asserts nothing."""
        processes = [*self._known, *self.processes()]
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
        for process in processes:
            send_signal(process, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, processes)), STOP_TIMEOUT, "the processes of the relay are gone")
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- log, audit and metrics

    def log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stdout_text(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    def wait_for_log(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait (blocking) until the log matches `pattern`; in a coroutine use wait_until_async on `log_text`."""
        try:
            return wait_until(lambda: re.search(pattern, self.log_text()), timeout, f"the relay logs {pattern!r}")
        except WaitTimeoutError as error:
            raise WaitTimeoutError(f"{error}\n{self.log_text()[-4000:]}") from None

    def audit_lines(self) -> list[dict[str, Any]]:
        """The audit lines so far; a line that is being written is left for the next call."""
        text = self._audit.read_text() if self._audit.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the admin address; blocks."""
        try:
            with urlopen(self.admin_url + path, timeout=HTTP_TIMEOUT) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()

    def metrics(self) -> dict[str, list[Sample]]:
        """The samples of one scrape by sample name (`relay_sessions_total`, `relay_session_seconds_bucket`, ...).

        A family without samples has an empty list under its own name, a counter's with `_total`.
        """
        status, text = self.get("/metrics")
        assert status == 200, f"/metrics answers {status}: {text[:500]}"
        samples: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text):
            samples.setdefault(family.name + ("_total" if family.type == "counter" else ""), [])
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
        return samples

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels, 0 if there is none; raises KeyError for a metric that does not exist."""
        return sum(sample.value for sample in self.metrics()[name] if labels.items() <= sample.labels.items())

    # -- processes and resources

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all workers."""
        if not self.running:
            return []
        supervisor = psutil.Process(self.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def rss(self) -> int:
        """Resident bytes of all processes together (pages that they share count more than once)."""
        return sum(process.memory_info().rss for process in self.processes())

    def fds(self) -> int:
        """Open file descriptors of all processes together."""
        return sum(process.num_fds() for process in self.processes())

    # -- inside

    def _defaults(self, sshd: Sshd | None) -> dict[str, Any]:
        config: dict[str, Any] = {
            "user": self.user,
            "listen": ["127.0.0.1:0"],
            "host_keys": [self.host_key.private.name],
            "workers": 1,
            "admin": {"listen": "127.0.0.1:0"},
            "log": {"level": "info", "audit": self._audit.name},
            "limits": {"penalty_seconds": 0},
            "keys": {"source": "file", "path": "keys"},
            "access": {"source": "file", "path": "access.toml"},
            "routes": {"source": "file", "path": "routes.toml"},
        }
        if sshd is not None:
            shutil.copy(sshd.key.private, self.folder / "upstream_ed25519")  # copies the mode too
            config["upstreams"] = {"main": upstream(sshd)}
        return config

    def _is_ready(self, mark: int) -> bool:
        text = self.log_text()[mark:]
        listening, admin = _LISTENING.search(text), _ADMIN.search(text)
        if listening is None or admin is None:
            return False
        self.port, self.admin_url = int(listening[1]), admin[1]
        return True


def upstream(sshd: Sshd, port: int | None = None) -> dict[str, Any]:
    """The `[upstreams.x]` table for an sshd, perhaps reached by another port (a fault proxy's)."""
    return {
        "addresses": [f"{sshd.address}:{port or sshd.port}"],
        "user": sshd.user,
        "wait_seconds": 0,
        "notice_seconds": 0,
        "private_key": "upstream_ed25519",
        "host_keys": [sshd.host_key_line],
    }
