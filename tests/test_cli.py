"""The command line: each command's arguments, output and exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relay import __version__, cli
from relay.cli import main
from tests.support.machine import free_port
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

COMMANDS = ["demo", "serve", "check", "init", "schema", "sessions", "packs", "upstreams", "health", "completion"]
ROOT = Path(__file__).parents[1]


def relay(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m relay`, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_python_m_relay_passes_the_exit_status_on() -> None:
    version = relay("--version")
    assert (version.stdout, version.returncode) == (f"relay {__version__}\n", 0)
    missing = relay("check", "-c", "/nonexistent/relay.toml")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert len(missing.stderr.splitlines()) == 1
    assert missing.stderr.startswith("/nonexistent/relay.toml: ")


BUILD_IT = "relay_gcm is not used: packets of AES-GCM are sealed in Python, which costs more; git-ssh-relay-native has it"
BY_PYTHON = "relay_gcm is not used: with RELAY_WIRE=python packets of AES-GCM are sealed in Python, which costs more"
BY_ASYNCSSH = "relay_gcm is not used: with RELAY_WIRE=0 asyncssh seals packets, which costs more"

STOCK = (
    "libssh2 1.11.1 is not the hardened one (RELAY_LIBSSH2=stock asks for it): a machine that poses as a git host can corrupt the relay's "
    "memory before its host key is compared, and streams cost more CPU time; pip install 'git-ssh-relay[native]'"
)


@pytest.mark.parametrize(
    ("extension", "wire", "told"),
    [
        ("Aead = advanced = print", None, "relay_gcm"),
        ("raise ImportError", None, BUILD_IT),
        ("Aead = advanced = print", "python", BY_PYTHON),
        ("raise ImportError", "python", BY_PYTHON),
        ("Aead = advanced = print", "0", BY_ASYNCSSH),
        ("raise ImportError", "0", BY_ASYNCSSH),
    ],
)
def test_check_says_whether_relay_gcm_is_used_and_if_not_why(
    sshd: Sshd, tmp_path: Path, extension: str, wire: str | None, told: str
) -> None:
    """The stand-in for the extension is never called: `check` encrypts no packet as a server."""
    process = RelayProcess(sshd, tmp_path / "relay")
    (tmp_path / "relay_gcm.py").write_text(extension)
    env = {name: value for name, value in os.environ.items() if name != "RELAY_WIRE"} | ({"RELAY_WIRE": wire} if wire else {})
    for more in ([], ["--connect"]):
        done = subprocess.run(
            [sys.executable, "-m", "relay", "check", "-c", str(process.config_file), *more],
            env={**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        named = [line.rpartition("; ")[2] if told == "relay_gcm" else line for line in done.stdout.splitlines() if "libssh2 " in line]
        assert len(named) == 1 + len(more)
        assert all(line == told if told == "relay_gcm" else line.endswith(f"; {told}") for line in named)


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["check"],
        ["check", "--connect"],
        ["check", "--explain", "alice", "git-upload-pack", "team/app"],
        ["demo", "--once"],
        ["init", "DIRECTORY"],
        ["schema"],
        ["sessions"],
        ["packs"],
        ["upstreams"],
        ["health"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_without_a_binding_of_libssh2_a_command_that_needs_one_says_so_in_one_line(sshd: Sshd, tmp_path: Path, command: list[str]) -> None:
    process = RelayProcess(sshd, tmp_path / "relay")
    for name in ("relay_ssh2", "ssh2"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
    arguments = [str(tmp_path / "new") if one == "DIRECTORY" else one for one in command]
    if command[0] not in ("demo", "init", "schema", "completion"):
        arguments += ["-c", str(process.config_file)]
    done = subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={name: value for name, value in os.environ.items() if name != "RELAY_LIBSSH2"}
        | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    if command[0] in ("serve", "check", "demo"):
        why = "git-ssh-relay-native is not installed; ssh2-python is not installed; pip install 'git-ssh-relay[native]'"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"no libssh2 for {sys.executable}: {why}\n")
    else:
        assert "no libssh2" not in done.stderr, "it needs none"


def test_the_commands_without_libssh2_are_all_of_them() -> None:
    """A new command must be in the list above, too."""
    [mark] = test_without_a_binding_of_libssh2_a_command_that_needs_one_says_so_in_one_line.pytestmark  # type: ignore[attr-defined]
    assert {command[0] for command in mark.args[1]} == set(COMMANDS)


def test_serve_warns_once_of_what_is_missing_of_the_native_parts(
    sshd: Sshd, tmp_path: Path, make_relay: Callable[..., RelayProcess]
) -> None:
    (tmp_path / "relay_gcm.py").write_text("raise ImportError")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "RELAY_WIRE": "1", "RELAY_LIBSSH2": "stock"}
    relay = make_relay(sshd, config={"workers": 2, "admin": {"listen": f"127.0.0.1:{free_port()}"}}, env=env)
    warned = [json.loads(line) for line in relay.log_text().splitlines() if "relay_gcm" in line or "hardened" in line]
    told = f"not all of git-ssh-relay-native is used: {STOCK}; {BUILD_IT}"
    assert [(line["level"], line["message"]) for line in warned] == [("warning", told)]
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0, "and serves without them"
    assert [relay.metric("relay_native", part=part) for part in ("libssh2", "gcm")] == [0, 0]


def test_check_warns_of_a_stock_libssh2(sshd: Sshd, tmp_path: Path) -> None:
    process = RelayProcess(sshd, tmp_path / "relay")
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check", "-c", str(process.config_file), "--strict"],
        env={**os.environ, "RELAY_LIBSSH2": "stock"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == f"warning: {STOCK}"
    assert "1 warning; libssh2 1.11.1 (stock)" in done.stdout


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", shown, re.MULTILINE) for command in COMMANDS)


HEAVY = {"asyncssh", "ssh2", "relay_ssh2", "aiohttp", "uvloop", "cryptography"}
MODULES_AFTER = """
import atexit, sys
from relay.cli import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.exit(main(sys.argv[1:]))
"""


def test_commands_that_serve_nothing_import_nothing_that_serves(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """A probe runs `relay health` every few seconds; an operator runs the others."""
    config = str(make_relay(sshd, config={"admin": {"listen": f"127.0.0.1:{free_port()}"}}).config_file)
    wait_until(lambda: main(["health", "-c", config]) == 0, message="it is ready")
    for arguments, unwanted in (
        (["health", "-c", config], HEAVY | {"asyncio"}),
        (["--help"], HEAVY | {"asyncio"}),
        (["--version"], HEAVY | {"asyncio"}),
        (["schema"], HEAVY | {"asyncio"}),
        (["schema", "--audit"], HEAVY | {"asyncio"}),
        (["sessions", "-c", config], HEAVY),
        (["sessions", "--json", "-c", config], HEAVY),
        (["upstreams", "-c", config], HEAVY),
        (["upstreams", "--json", "-c", config], HEAVY),
        (["upstreams", "pause", "main", "--wait", "60", "-c", config], HEAVY),
        (["upstreams", "resume", "main", "-c", config], HEAVY),
    ):
        command = [sys.executable, "-c", MODULES_AFTER, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        imported = set(done.stderr.split())
        assert "relay.cli" in imported
        assert not unwanted & imported, f"{arguments} imports {sorted(unwanted & imported)}"


@pytest.mark.parametrize("wrong", [[], ["serv"], ["init"], ["check", "--conect"], ["sessions", "--kill"], ["demo", "--port", "ssh"]])
def test_a_wrong_command_line_is_2_and_says_how(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "usage: relay" in capsys.readouterr().err


def test_what_init_writes_lacks_only_what_nobody_else_can_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert main(["init", str(folder)]) == 0
    capsys.readouterr()
    assert main(["check", "-c", str(folder / "relay.toml")]) == 1
    problems = capsys.readouterr().err.splitlines()
    assert problems
    assert all(problem.startswith(str(folder)) for problem in problems)
    assert main(["init", str(folder)]) == 1  # `init` does not overwrite files


def test_schema_of_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--audit"]) == 0
    assert "LoginFailed" in json.loads(capsys.readouterr().out)["$defs"]


def test_schema_is_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "git-ssh-relay"


def test_check_reads_it_all_and_connects_when_asked(sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = RelayProcess(sshd, tmp_path)  # not started: for its files
    config = str(process.config_file)
    mark = sshd.log_mark()
    assert main(["check", "-c", config]) == 0
    assert capsys.readouterr().out.startswith(f"{config}: no problems found; libssh2 1.")
    assert sshd.connections(mark) == 0
    assert main(["check", "-c", config, "--strict"]) == 0
    stray = process.config_file.parent / "keys" / "notes.txt"
    stray.touch()
    assert main(["check", "-c", config]) == 0
    out = capsys.readouterr().out.splitlines()[-2:]
    assert out[0].startswith(f"{config}: no problems found, 1 warning; libssh2 1.")
    assert out[1] == f"warning: {stray}: is not read: only files that end in .pub are"
    assert main(["check", "-c", config, "--strict"]) == 1
    stray.unlink()
    capsys.readouterr()
    assert main(["check", "-c", config, "--connect"]) == 0
    assert f"upstream main: logged in to {sshd.address}:{sshd.port} as {sshd.user}" in capsys.readouterr().out
    assert sshd.logins(mark) == 1
    sshd.forbid(sshd.key.line)
    try:
        assert main(["check", "-c", config, "--connect"]) == 1
    finally:
        sshd.authorize(sshd.key.line)
    told = capsys.readouterr()
    assert "no problems" not in told.out
    assert "was refused" in told.err


def test_serve_does_not_start_with_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "relay.toml"
    config.write_text('listen = 5\nunknown = "key"\n')
    assert main(["serve", "-c", str(config)]) == 1
    problems = capsys.readouterr().err.splitlines()
    assert all(problem.startswith(str(tmp_path)) for problem in problems)
    named = {": ".join(problem.split(": ")[:2]) for problem in problems}
    assert {f"{config}:1: listen", f"{config}:2: unknown", f"{config}: upstreams"} <= named


def test_sessions_without_a_relay_says_so_in_one_line(sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = RelayProcess(sshd, tmp_path)
    for more in ([], ["--json"], ["--kill", "abc-1"]):
        assert main(["sessions", "-c", str(process.config_file), *more]) == 1
        said = capsys.readouterr()
        assert len((said.out + said.err).splitlines()) == 1


def test_ctrl_c_is_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_schema", interrupted)
    assert main(["schema"]) == 130


def test_a_closed_pipe_on_stdout_is_no_error() -> None:
    """As in `relay schema | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run([sys.executable, "-m", "relay", "schema"], stdout=writing, stderr=subprocess.PIPE, timeout=30)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_without_c_the_configuration_of_the_folder_goes_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    system = tmp_path / "etc" / "relay.toml"
    monkeypatch.setattr(cli, "SYSTEM_CONFIG", system)

    def asked() -> str:
        assert main(["check"]) == 1
        return capsys.readouterr().err.splitlines()[0]

    assert asked().startswith("relay.toml: "), "when there is neither"
    system.parent.mkdir()
    system.write_text("workers = -1\n")
    assert asked().startswith(f"{system}: upstreams: is missing")
    (tmp_path / "relay.toml").write_text("workers = -2\n")
    assert asked().startswith("relay.toml: upstreams: is missing")
    assert main(["check", "-c", str(system)]) == 1 and f"{system}:1: " in capsys.readouterr().err
