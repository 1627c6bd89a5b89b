"""The command line: what is asked, what status it ends with, and that trouble is told in lines and never as a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay import __version__, cli
from relay.errors import ConfigError

ROOT = Path(__file__).parents[1]
COMMANDS = ("demo", "serve", "check", "init", "schema", "sessions")


def relay(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "relay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=cwd, check=False)


def test_version() -> None:
    done = relay("--version")
    assert (done.returncode, done.stdout) == (0, f"relay {__version__}\n")


def test_help_names_every_command() -> None:
    done = relay("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize("arguments", [(), ("fly",), ("serve", "--fast"), ("init",), ("demo", "--port", "ssh"), ("sessions", "--kill")])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    done = relay(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: relay")


@pytest.mark.parametrize("command", ["serve", "check", "sessions"])
def test_without_a_configuration(command: str, tmp_path: Path) -> None:
    """relay.toml of the working folder is the default."""
    done = relay(command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "relay.toml: is missing, must be a TOML file\n"
    assert relay(command, "-c", tmp_path / "x.toml").stderr == f"{tmp_path / 'x.toml'}: is missing, must be a TOML file\n"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_problem_is_a_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text('user = "g it"\nspeed = 9\n[limits]\nauth_attempts = 0\n[upstreams.main]\naddresses = []\n')
    done = relay(command, "-c", tmp_path / "relay.toml")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert all(line.startswith(str(tmp_path)) for line in lines), done.stderr
    for key in ("user", "speed", "limits.auth_attempts", "upstreams.main.addresses"):
        assert sum(f"relay.toml:{key}:" in line for line in lines) == 1, done.stderr


def test_schema_is_json() -> None:
    done = relay("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["$defs"]["Config"]["additionalProperties"] is False


def test_init_then_check_says_what_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    assert relay("init", folder).returncode == 0
    done = relay("check", "-c", folder / "relay.toml")
    assert done.returncode == 1
    assert all("upstreams.main" in line for line in done.stderr.splitlines()) and done.stderr
    again = relay("init", folder)
    assert again.returncode == 1 and "nothing was written" in again.stderr


def test_sessions_without_a_relay(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text('[upstreams.main]\naddresses = ["127.0.0.1:22"]\nhost_keys = []\n')
    done = relay("sessions", "-c", tmp_path / "relay.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'relay.sock'}: no relay listens here; is one running with {tmp_path / 'relay.toml'}?\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_schema", interrupted)
    assert cli.main(["schema"]) == 130


def test_problems_go_to_stderr_one_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(given: object) -> int:
        raise ConfigError(["one", "two"])

    monkeypatch.setattr(cli, "_schema", wrong)
    assert cli.main(["schema"]) == 1
    assert capsys.readouterr() == ("", "one\ntwo\n")
