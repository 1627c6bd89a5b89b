"""`relay packs` on the folder of a relay that runs, and of one that does not."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.cli import main
from relay.commands.packs import as_object, print_lines, sentence
from relay.packs.inventory import Listed, Removed
from relay.packs.store import About, Store
from relay.text import is_shown
from tests.commands.test_sessions import HOSTILE
from tests.packs.helpers import filling, keep, key_of, make_store, read_all, reading
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

ROOT = Path(__file__).parents[2]
APP = About("main", "team/app", "", "depth 1")
LIB = About("main", "team/lib", "", "full")
NOW = 1_800_000_000.0


def ask(relay: RelayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "packs", "-c", str(relay.config_file), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env, cwd="/")


@pytest.fixture
def idle(sshd: Sshd, tmp_path: Path) -> RelayProcess:
    """A relay that is never started: the command needs only its configuration."""
    return RelayProcess(sshd, tmp_path / "relay", config={"packs": {"folder": "packs", "free_bytes": 0, "max_bytes": 1_000_000}})


@pytest.fixture
def store(idle: RelayProcess) -> Iterator[Store]:
    one = make_store(idle.folder / "packs")
    yield one
    one.close()


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        Listed("a" * 64, APP, True, 12_300_000, NOW - 125, NOW - 3, 98),
        Listed("b" * 64, LIB, False, 340, NOW - 2, NOW - 2, 0),
    ]
    print_lines(entries, NOW)
    assert capsys.readouterr().out.splitlines() == [
        "REPOSITORY  UPSTREAM  ASKED    STATE       SIZE    AGE  USED  TIMES",
        "team/app    main      depth 1  kept     12.3 MB  2m05s  3.0s     98",
        "team/lib    main      full     filling    340 B   2.0s  2.0s      0",
    ]
    print_lines([entries[0]._replace(about=APP._replace(identity="alice", asked=""))], NOW)
    assert capsys.readouterr().out.splitlines() == [
        "REPOSITORY  UPSTREAM  FOR    ASKED  STATE     SIZE    AGE  USED  TIMES",
        "team/app    main      alice  -      kept   12.3 MB  2m05s  3.0s     98",
    ]
    print_lines([], NOW)
    assert not capsys.readouterr().out


def test_names_of_clients_do_not_reach_the_terminal_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE.values():
        print_lines([Listed("a" * 64, About(text, text, text, text), True, 1, NOW, NOW, 1)], NOW)
        print(sentence(Removed(1, 1, 0), text))
        shown = capsys.readouterr().out
        assert shown.count("\n") == 3 and all(is_shown(line) for line in shown.splitlines()), shown


def test_an_object_for_programs() -> None:
    assert as_object(Listed("a" * 64, APP, True, 340, NOW - 125, NOW - 3, 98)) == {
        "repository": "team/app",
        "upstream": "main",
        "identity": None,
        "asked": "depth 1",
        "state": "kept",
        "bytes": 340,
        "made": "2027-01-15T07:57:55.000Z",
        "used": "2027-01-15T07:59:57.000Z",
        "uses": 98,
        "file": "a" * 64,
    }


async def test_the_folder_of_a_relay_that_does_not_run(idle: RelayProcess, store: Store) -> None:
    folder = idle.folder / "packs"
    empty = ask(idle)
    assert (empty.returncode, empty.stderr) == (0, "")
    assert empty.stdout == f"0 answers, 0 B of 1.0 MB (max_bytes); {folder} is not there yet\n"
    assert ask(idle, "--clear").stdout == "no answer is kept\n"

    await keep(store, key_of("one"), b"x" * 1000, APP)
    await keep(store, key_of("two"), b"x" * 2000, LIB)
    os.utime(folder / key_of("one").hex(), (time.time() - 60, time.time() - 60))
    listed = ask(idle)
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["REPOSITORY", "team/lib", "team/app", "2"]
    assert lines[3].startswith(f"2 answers, 3.0 kB of 1.0 MB (max_bytes); {folder} has ")
    objects = [json.loads(line) for line in ask(idle, "--json").stdout.splitlines()]
    assert [(one["repository"], one["bytes"]) for one in objects] == [("team/lib", 2000), ("team/app", 1000)]

    nothing = ask(idle, "--clear", "team/none")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "no answer of team/none is kept\n", "")
    assert ask(idle, "--clear", "").stdout == "no answer of  is kept\n", "an empty variable of a script does not remove all"
    removed = ask(idle, "--clear", "team/app")
    assert removed.stdout == "1 answer of team/app was removed: 1.0 kB; who reads one reads on\n"
    assert removed.stderr == "no relay runs with this configuration, so no log names who did it\n"
    (folder / key_of("three").hex()).write_text("no entry")
    assert ask(idle).stderr == f"1 file of {folder} cannot be used; a relay removes such files\n"
    assert ask(idle, "--clear").stdout == "2 answers were removed: 2.0 kB, 1 of them damaged; who reads one reads on\n"
    assert ask(idle, "--json").stdout == ""


async def test_a_running_relay_logs_who_removed_answers_and_its_sessions_read_on(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    relay = make_relay(sshd, config={"workers": 1, "packs": {"folder": "packs", "free_bytes": 0}})
    await wait_until_async(lambda: (relay.folder / "packs").exists())
    store = make_store(relay.folder / "packs")
    await keep(store, key_of("one"), b"x" * 1000, APP)
    slow = reading(store, key_of("one"), "hit")
    filler, writer = filling(store, key_of("two"), APP)
    writer.write(b"y" * 500)
    assert [line.split()[3:5] for line in ask(relay).stdout.splitlines()[1:3]]
    done = ask(relay, "--clear", "team/app")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 answers of team/app were removed: ")
    who = pwd.getpwuid(os.geteuid()).pw_name
    assert f"operator {who} (uid {os.geteuid()}): removed 2 kept answers of team/app: " in relay.log_text()
    writer.publish()
    assert await read_all(slow) == b"x" * 1000 and await read_all(filler) == b"y" * 500
    slow.close()
    filler.close()
    store.close()
    await wait_until_async(lambda: relay.metric("relay_packs_disk_bytes") == 0)


def test_a_configuration_without_packs_and_a_folder_that_is_not_used(idle: RelayProcess, capsys: pytest.CaptureFixture[str]) -> None:
    folder = idle.folder / "packs"
    folder.mkdir(0o755)
    folder.chmod(0o755)
    for arguments in ([], ["--json"], ["--clear"]):
        assert main(["packs", "-c", str(idle.config_file), *arguments]) == 1
        said = capsys.readouterr()
        assert not said.out
        assert f"packs.folder: {folder} has the mode 0755, must have 0700" in said.err
    text = idle.config_file.read_text()
    idle.config_file.write_text(text[: text.index("[packs]")] + "\n".join(text[text.index("[packs]") :].split("\n\n")[1:]))
    assert main(["packs", "-c", str(idle.config_file)]) == 1
    assert capsys.readouterr().err == f"{idle.config_file}: has no table [packs], so nothing is kept\n"
