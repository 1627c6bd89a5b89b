"""Keys from a program: its arguments, every way in which it may fail, and that no process is left."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from relay import config
from relay.errors import ConfigError, Undecided
from relay.keys.exec import OUTPUT_BYTES, ExecKeys
from tests.support.processes import alive
from tests.support.wait import wait_until_async


def program(folder: Path, body: str, interpreter: str = "/bin/sh") -> str:
    path = folder / "who-is"
    path.write_text(f"#!{interpreter}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def keys(folder: Path, body: str, *arguments: str, interpreter: str = "/bin/sh", **settings: Any) -> ExecKeys:
    command = [program(folder, body, interpreter), *(arguments or ("%f", "%t", "%k"))]
    return ExecKeys(config.ExecKeysSettings(command=command, **{"timeout_seconds": 30, **settings}), folder)


async def why(one: ExecKeys) -> str:
    with pytest.raises(Undecided) as caught:
        await one.owner("SHA256:x", "ssh-ed25519 AAAA")
    assert str(caught.value).startswith("keys exec: ")
    return caught.value.why


async def test_the_program_gets_the_key_and_nothing_of_the_relay_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SECRET", "hunter2")
    body = """import json, os, sys
json.dump([sys.argv[1:], dict(os.environ), os.getcwd(), sys.stdin.read()], open(sys.argv[1], 'w'))
print('alice')"""
    seen = tmp_path / "seen"
    one = keys(tmp_path, body, str(seen), "%f", "%t", "%k", "100%%", "x;$(id)%f", interpreter=sys.executable)
    assert await one.owner("SHA256:a/b+c", "ssh-ed25519 AAAA") == "alice"
    arguments, environment, folder, stdin = json.loads(seen.read_text())
    assert arguments[1:] == ["SHA256:a/b+c", "ssh-ed25519", "AAAA", "100%", "x;$(id)SHA256:a/b+c"]
    assert "hunter2" not in str(environment) and "PATH" in environment
    assert (folder, stdin) == ("/", "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo alice", "alice"),
        ("printf alice", "alice"),
        ("printf 'alice\\r\\n'", "alice"),
        ("echo noise >&2; echo Zoë", "Zoë"),
        (f"head -c 300000 /dev/zero >&2; printf %{OUTPUT_BYTES}s alice | tail -c 5", "alice"),
        ("true", None),
        ("echo", None),
    ],
)
async def test_yes_and_no(tmp_path: Path, body: str, expected: str | None) -> None:
    assert await keys(tmp_path, body).owner("SHA256:x", "ssh-ed25519 AAAA") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo alice; exit 1", "failed"),
        ("kill -9 $$", "failed"),
        ("echo alice; echo bob", "invalid"),
        ("echo @core", "invalid"),
        ("echo 'a/b'", "invalid"),
        ("printf '\\377'", "invalid"),
        ("yes", "invalid"),
        ("#\n" + "x" * 10, "failed"),
    ],
)
async def test_every_failure_has_its_own_reason(tmp_path: Path, body: str, expected: str) -> None:
    assert await why(keys(tmp_path, body)) == expected


async def test_the_program_s_stderr_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(Undecided, match="ended with status 3: ldap is down"):
        await keys(tmp_path, "echo ldap is down >&2; exit 3").owner("SHA256:x", "ssh-ed25519 AAAA")


async def test_a_program_that_was_removed_after_the_start(tmp_path: Path) -> None:
    one = keys(tmp_path, "echo alice")
    (tmp_path / "who-is").unlink()
    assert await why(one) == "unreachable"


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    "body", ["sleep 1000 & echo $$ $! > pids.new; mv pids.new pids; wait", "sleep 1000 & echo $$ $! > pids.new; mv pids.new pids"]
)
def test_after_the_timeout_the_program_and_its_children_are_killed(tmp_path: Path, body: str, loop: Any) -> None:
    """The second program leaves a child that keeps its output open."""

    async def run() -> None:
        assert await why(keys(tmp_path, f"cd {tmp_path}; {body}", timeout_seconds=1)) == "timeout"
        await gone(tmp_path / "pids")

    loop(run())


async def test_the_program_is_killed_when_the_client_disconnects(tmp_path: Path) -> None:
    one = keys(tmp_path, f"cd {tmp_path}; sleep 1000 & echo $$ $! > new; mv new pids; wait")
    task = asyncio.get_running_loop().create_task(one.owner("SHA256:x", "ssh-ed25519 AAAA"))
    await wait_until_async((tmp_path / "pids").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(tmp_path / "pids")


async def test_the_program_is_killed_when_the_client_disconnects_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs, and has started a child, before asyncio has connected its pipes, because the loop is busy."""
    one = keys(tmp_path, f"cd {tmp_path}; sleep 1000 & echo $$ $! > new; mv new pids; wait")
    real, started = asyncio.create_subprocess_exec, asyncio.Event()

    async def slow(*arguments: Any, **named: Any) -> Any:
        process = await real(*arguments, **named)
        await wait_until_async((tmp_path / "pids").exists)
        started.set()
        await asyncio.sleep(0)  # the question is cancelled here
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    task = asyncio.get_running_loop().create_task(one.owner("SHA256:x", "ssh-ed25519 AAAA"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(tmp_path / "pids")


async def gone(pids: Path) -> None:
    def ended() -> bool:
        found = [int(pid) for pid in pids.read_text().split()]
        return not any(psutil.pid_exists(pid) and alive(psutil.Process(pid)) for pid in found)

    await wait_until_async(ended)


async def test_at_most_processes_programs_run_at_once(tmp_path: Path) -> None:
    """Each program makes a folder, counts the existing folders, and removes its own."""
    (tmp_path / "running").mkdir()
    body = f"mkdir {tmp_path}/running/$$; ls {tmp_path}/running | wc -l; sleep 0.05; rmdir {tmp_path}/running/$$"
    one = keys(tmp_path, body, processes=3)
    counts = await asyncio.gather(*(one.owner("SHA256:x", "ssh-ed25519 AAAA") for _ in range(12)))
    assert {int(count or 0) for count in counts} <= {1, 2, 3}


async def test_a_question_that_waits_too_long_for_a_slot_is_busy(tmp_path: Path) -> None:
    one = keys(tmp_path, "exec sleep 1000", processes=1, timeout_seconds=0.3)
    ends = await asyncio.gather(*(why(one) for _ in range(5)))
    assert set(ends) == {"timeout", "busy"}


@pytest.mark.parametrize(
    ("command", "mode", "problem"),
    [
        (["who-is", "%u"], 0o755, 'keys.command: has "%u", allowed are %f, %t, %k and %%'),
        (["who-is", "a%"], 0o755, 'keys.command: has "%", allowed are %f, %t, %k and %%'),
        (["who-is"], 0o644, "keys.command: {0} cannot be executed, must be a program"),
        (["who-is"], 0o775, "keys.command: {0} may be written by others (mode 0775), must not: chmod go-w {0}"),
        (["nowhere"], 0o755, "keys.command: {0} cannot be found (No such file or directory), must be a program"),
    ],
)
def test_invalid_commands_are_refused_at_start(tmp_path: Path, command: list[str], mode: int, problem: str) -> None:
    Path(program(tmp_path, "true")).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        ExecKeys(config.ExecKeysSettings(command=command), tmp_path)
    assert caught.value.problems == [problem.format(tmp_path / command[0])]


async def test_a_program_that_others_could_replace_is_not_run(tmp_path: Path) -> None:
    """The relay checks it at the start and before each run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    one = keys(folder, "echo alice")
    assert await one.owner("SHA256:x", "ssh-ed25519 AAAA") == "alice"
    for place, mode in ((folder, 0o757), (folder, 0o777), (folder / "who-is", 0o775), (folder / "who-is", 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(Undecided, match=f"{place} may be written by others") as caught:
            await one.owner("SHA256:x", "ssh-ed25519 AAAA")
        assert caught.value.why == "unreachable"
        with pytest.raises(ConfigError, match=f"keys.command: {place} may be written by others"):
            ExecKeys(config.ExecKeysSettings(command=[str(folder / "who-is")]), tmp_path)
        place.chmod(before)
    assert await one.owner("SHA256:x", "ssh-ed25519 AAAA") == "alice"
