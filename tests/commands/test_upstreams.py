"""`relay upstreams` with a relay of two workers: the table, and every action. tests/e2e/test_operate.py tests it with sessions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from relay.cli import main
from relay.commands.upstreams import print_lines, rows, states
from relay.process.messages import AddressState, UpstreamState
from relay.text import CLIENT_TEXT_BYTES
from tests.commands.test_sessions import HOSTILE
from tests.commands.test_sessions import ask as ask_sessions
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
ONE, TWO = "10.0.0.5:22", "10.0.0.6:22"


def ask(relay: RelayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "upstreams", *arguments, "-c", str(relay.config_file)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env, cwd="/")


def look(relay: RelayProcess) -> dict[str, dict[str, Any]]:
    """The upstreams of the JSON output, by name."""
    done = ask(relay, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["upstream"]: line for line in lines}


def address(sshd: Sshd) -> str:
    return f"{sshd.address}:{sshd.port}"


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    """`main` has one address, `twin` two."""
    twin = {**upstream(sshd), "addresses": [address(sshd), f"localhost:{sshd.port}"], "host_keys": [sshd.host_key_line]}
    with RelayProcess(sshd, config={"workers": 2, "upstreams": {"twin": twin}}) as process:
        wait_until(lambda: all(line["states"] == ["up"] and line["idle"] == 8 * len(line["addresses"]) for line in look(process).values()))
        yield process


def test_the_table_for_people(relay: RelayProcess, sshd: Sshd) -> None:
    done = ask(relay)
    assert (done.returncode, done.stderr) == (0, "")
    assert [re.sub(" +", " ", line) for line in done.stdout.splitlines()] == [
        "UPSTREAM STATE SINCE BY LEASED IDLE WAITING",
        "main up 0 8 0",
        f" {address(sshd)} up 0 8",
        "twin up 0 16 0",
        f" {address(sshd)} up 0 8",
        f" localhost:{sshd.port} up 0 8",
    ]


def test_the_table_for_programs(relay: RelayProcess, sshd: Sshd) -> None:
    assert look(relay)["main"] == {
        "upstream": "main",
        "states": ["up"],
        **dict.fromkeys(("paused_since", "paused_by", "frozen_since", "frozen_by", "frozen")),
        "leased": 0,
        "idle": 8,
        "dialing": 0,
        "waiting": 0,
        "addresses": [
            {
                "address": address(sshd),
                "up": True,
                "draining_since": None,
                "draining_by": None,
                "leased": 0,
                "idle": 8,
                "dialing": 0,
            }
        ],
    }


def test_an_upstream_is_paused_and_resumed(relay: RelayProcess) -> None:
    done = ask(relay, "pause", "main")
    assert (done.returncode, done.stdout, done.stderr) == (0, "upstream main is paused\n", "")
    try:
        again = ask(relay, "pause", "main")
        assert (again.returncode, again.stdout) == (0, "upstream main is paused; it was so before\n")
        line = look(relay)["main"]
        assert line["states"] == ["paused"] and line["paused_since"].endswith("Z")
        assert line["paused_by"] == f"{psutil.Process().username()} (uid {os.geteuid()})"
        wait_until(lambda: look(relay)["main"]["idle"] == 0, message="idle connections are closed")
        assert look(relay)["twin"]["states"] == ["up"], "it alone"
        assert relay.get("/ready") == (200, "ready; paused: main\n")
        assert f"operator {line['paused_by']}: upstream main is paused" in relay.log_text()
    finally:
        done = ask(relay, "resume", "main")
    assert (done.returncode, done.stdout, done.stderr) == (0, "upstream main is not paused any more\n", "")
    assert ask(relay, "resume", "main").stdout == "upstream main is not paused any more; it was so before\n"
    wait_until(lambda: look(relay)["main"]["idle"] == 8, message="warm connections are dialed again")
    assert relay.get("/ready") == (200, "ready\n")


def test_an_address_is_drained_and_ready_again(relay: RelayProcess, sshd: Sshd) -> None:
    local = f"localhost:{sshd.port}"
    done = ask(relay, "drain", "twin", local)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"upstream twin: {local} is draining\n", "")
    try:
        one, two = look(relay)["twin"]["addresses"]
        assert one["draining_since"] is None and two["draining_since"] is not None
        done = ask(relay, "drain", "twin", address(sshd))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{address(sshd)} is the last address of upstream twin that takes new sessions")
        assert re.search(rf"^  {local} +up, draining +[\d.]+s +\S+ +0 +\d+$", ask(relay).stdout, re.MULTILINE)
    finally:
        done = ask(relay, "ready", "twin", local)
    assert (done.returncode, done.stdout) == (0, f"upstream twin: {local} takes new sessions again\n")


def test_an_upstream_is_frozen_and_thawed(relay: RelayProcess) -> None:
    done = ask(relay, "freeze", "main", "moving to a new disk, back at 14:00")
    assert done.returncode == 0, done.stderr
    try:
        assert done.stdout == "upstream main is frozen; who pushes reads: moving to a new disk, back at 14:00\n"
        line = look(relay)["main"]
        assert (line["states"], line["frozen"]) == (["up", "frozen"], "moving to a new disk, back at 14:00")
        assert "\n  who pushes reads: moving to a new disk, back at 14:00\n" in ask(relay).stdout
    finally:
        done = ask(relay, "thaw", "main")
    assert (done.returncode, done.stdout) == (0, "upstream main is not frozen any more\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pause", "mian"), 'there is no upstream "mian"; the upstreams are: main, twin'),
        (("drain", "main", "10.9.9.9:22"), 'upstream main has no address "10.9.9.9:22"; its addresses are: '),
        (("freeze", "main", ""), "the text that clients are to read is empty, must say why"),
        (("freeze", "main", "x" * (CLIENT_TEXT_BYTES + 1)), f"has {CLIENT_TEXT_BYTES + 1} bytes, at most {CLIENT_TEXT_BYTES} are allowed"),
        (("pause", "\udcff"), "the command line is not valid UTF-8"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_1(relay: RelayProcess, arguments: tuple[str, ...], said: str) -> None:
    done = ask(relay, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_pause_waits_for_nobody_when_nothing_is_leased(relay: RelayProcess) -> None:
    try:
        done = ask(relay, "pause", "main", "--wait", "60")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "upstream main is paused\nno connection to it is leased; 0 sessions wait\n"
    finally:
        ask(relay, "resume", "main")


def test_a_worker_that_hangs_is_named_and_the_others_take_the_order(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2})
    _, stopped, _ = relay.processes()
    stopped.send_signal(signal.SIGSTOP)
    try:
        done = ask(relay, "pause", "main")
        assert (done.returncode, done.stdout) == (1, "upstream main is paused\n")
        assert done.stderr == f"1 worker did not take it in time: {stopped.pid}\n"
        done = ask(relay)
        assert (done.returncode, done.stderr) == (1, "1 worker did not answer, its connections are missing here\n")
        done = ask(relay, "pause", "main", "--wait", "0")
        assert done.returncode == 1, "nobody knows what that worker has leased"
        assert "after 0 s 0 connections are still leased, and 1 worker did not answer" in done.stderr
    finally:
        stopped.send_signal(signal.SIGCONT)
    wait_until(lambda: stopped.status() == psutil.STATUS_SLEEPING)
    wait_until(lambda: ask(relay).returncode == 0)
    assert ask(relay, "resume", "main").returncode == 0


def test_who_may_not_ask_for_sessions_may_not_switch(relay: RelayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands use one socket with one check: tests/process/test_console.py tests the users."""
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text())
    assert main(["upstreams", "pause", "main", "-c", str(config)]) == 1
    assert "no relay listens here" in capsys.readouterr().err
    assert ask_sessions(relay).returncode == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ["pause"],
        ["pause", "main", "--wait", "-1"],
        ["pause", "main", "--wait", "x"],
        ["drain", "main"],
        ["freeze", "main"],
        ["melt", "main"],
    ],
)
def test_a_wrong_command_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upstreams", *wrong])
    assert ended.value.code == 2
    assert "usage: relay upstreams" in capsys.readouterr().err


# -- the table by itself -----------------------------------------------------------------------------------------------------


def made(*ups: bool | None, name: str = "main", **more: Any) -> UpstreamState:
    return UpstreamState(name, 5, [AddressState(f"10.0.0.{number}:22", up, 1, 2, 0) for number, up in enumerate(ups, 5)], **more)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (made(True, True), ["up"]),
        (made(True, False), ["up"]),
        (made(None, True), ["up"]),
        (made(None, False), ["unknown"]),
        (made(False, False), ["down"]),
        (made(True, frozen_since=1.0, frozen="x"), ["up", "frozen"]),
        (made(False, frozen_since=1.0, frozen="x"), ["frozen", "down"]),
        (made(False, paused_since=1.0), ["paused"]),
        (made(True, paused_since=1.0, frozen_since=1.0, frozen="x"), ["frozen", "paused"]),
    ],
)
def test_the_state_that_matters_most_is_the_last(line: UpstreamState, words: list[str]) -> None:
    assert states(line) == words


def test_since_when_and_by_whom(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    line = made(False, paused_since=now - 125, paused_by="root (uid 0)", frozen_since=now - 7200, frozen_by="bob (uid 7)", frozen="moving")
    line.addresses[0] = AddressState(ONE, False, 1, 0, 0, draining_since=now - 10, draining_by="eve (uid 8)")
    assert [row.cells for row in rows([line], now)] == [
        ("main", "frozen, paused", "2m05s", "root", "1", "0", "5"),
        (f"  {ONE}", "down, draining", "10.0s", "eve", "1", "0", ""),
        ("  who pushes reads: moving",),
    ]
    print_lines([line], as_json=False)
    shown = capsys.readouterr().out.splitlines()
    end = shown[0].index("LEASED") + len("LEASED")
    assert [line[:end].split()[-1] for line in shown[:3]] == ["LEASED", "1", "1"], "the column is straight"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_others_wrote_is_escaped_for_a_terminal(capsys: pytest.CaptureFixture[str], text: str) -> None:
    line = made(True, name=f"a{text}b", paused_since=1.0, paused_by=f"x{text}y (uid 7)", frozen_since=1.0, frozen=f"c{text}d")
    print_lines([line], as_json=False)
    print_lines([line], as_json=True)
    shown = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert json.loads(shown.splitlines()[-1])["frozen"] == f"c{text}d", "for programs it is exact"
