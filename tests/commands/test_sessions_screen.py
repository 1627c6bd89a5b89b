"""The live view on a real terminal, of a relay under load, and its text at every size."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from relay.commands.sessions_screen import COLUMNS, Screen
from relay.observe.snapshot import Untaken
from relay.process.messages import Sessions
from tests.commands.test_sessions_rates import line
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.terminal import Terminal
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def load(relay: RelayProcess) -> Iterator[None]:
    """One session that carries bytes all the time, and one that is idle."""
    client = relay.ssh()
    with client.popen("git-upload-pack 'stub/emit/100000000000/37'") as fast, client.popen("git-receive-pack 'stub/half/100000'") as still:
        assert fast.stdout is not None
        reader = threading.Thread(target=sip, args=(fast.stdout,), daemon=True)
        reader.start()
        yield
        for process in (fast, still):
            process.kill()
        reader.join(30)
        still.communicate()


def sip(stream: IO[bytes]) -> None:
    """Reads about a megabyte a second: enough for the view, and little load for the machine."""
    while stream.read(100_000):
        time.sleep(0.1)


def shown(relay: RelayProcess, *arguments: str, **options: Any) -> Terminal:
    command = [sys.executable, "-m", "relay", "sessions", "-c", str(relay.config_file), "--watch", "--interval", "0.2", *arguments]
    return Terminal(command, **{"columns": 170, "env": {"PYTHONPATH": str(ROOT)}, **options})


def test_shows_sessions_and_their_rates(relay: RelayProcess, load: None) -> None:
    with shown(relay) as terminal:
        terminal.wait_for(r"fetch .* [\d.]+ [kM]?B/s\n(.*\n)+ 2 sessions of 1 person.*\n.*q quit")
        head, fast, still = terminal.lines()[3:6]
        assert head.split() == ["ID", "WHO", "FROM", "WHAT", "REPOSITORY", "UPSTREAM", "AGE", "QUIET", "IN", "OUT", "IN/s", "OUT/s▼"]
        assert re.match(r"[0-9a-f]{12}-\d  +alice +127\.0\.0\.1:\d+ +fetch +stub/emit/\d+/37 +main +\S+ ", fast)
        assert re.match(r"[0-9a-f]{12}-\d  +alice +127\.0\.0\.1:\d+ +push +stub/half/100000 +main +\S+ ", still)
        assert re.search(r"out +[\d.]+ [kM]B/s +[▁▂▃▄▅▆▇█]+", terminal.lines()[1])
        terminal.send("q")
        assert terminal.wait() == 0
        wait_until(terminal.as_it_was)


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_the_id_that_kill_needs_is_whole_at_every_width(relay: RelayProcess, load: None, columns: int) -> None:
    with shown(relay, columns=columns) as terminal:
        terminal.wait_for("2 sessions")
        rows = terminal.lines()[4:6]
        assert all(re.match(r"[0-9a-f]{12}-\d +\S", row) for row in rows), rows
        terminal.send("q")
        assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_however_it_ends(relay: RelayProcess, number: int) -> None:
    with shown(relay) as terminal:
        terminal.wait_for("0 sessions|1 session|2 sessions")
        assert terminal.settings() != terminal._before
        if number == signal.SIGINT:
            terminal.send("\x03")
        else:
            terminal.process.send_signal(number)
        assert terminal.wait() == 0
        wait_until(terminal.as_it_was)


def test_ctrl_z_stops_it_and_fg_continues_it(relay: RelayProcess) -> None:
    with shown(relay) as terminal:
        terminal.wait_for("q quit")
        terminal.send("\x1a")
        wait_until(terminal.stopped, message="it is suspended")
        wait_until(terminal.as_it_was)
        seen = len(terminal.raw)
        terminal.go_on()
        wait_until(lambda: b"order:" in terminal.raw[seen:] and terminal.settings() != terminal._before, message="it is back")
        terminal.send("q")
        assert terminal.wait() == 0
        wait_until(terminal.as_it_was)


def test_keys_choose_the_order(relay: RelayProcess, load: None) -> None:
    with shown(relay) as terminal:
        terminal.wait_for("fetch")
        for key, head in (("w", "WHO▼"), ("w", "WHO▲"), ("n", "REPOSITORY▼"), ("o", "OUT▼"), ("a", "AGE▼"), ("x", "AGE▼")):
            terminal.send(key)
            terminal.wait_for(rf"{head} ")
        terminal.send(" ")
        terminal.wait_for("held")
        terminal.send("\x1b[B\x1b[6~ ")
        terminal.send("q")
        assert terminal.wait() == 0


def test_it_follows_the_size_of_the_window(relay: RelayProcess, load: None) -> None:
    with shown(relay) as terminal:
        terminal.wait_for("fetch")
        for columns, lines in ((80, 10), (200, 40), (50, 8)):
            terminal.resize(columns, lines)
            wait_until(
                lambda: "2 sessions" in terminal.lines()[-2] and re.match(r"WHO|ID", terminal.lines()[3]),
                message=f"it fits {columns} x {lines}",
            )
        assert terminal.process.poll() is None


def test_it_goes_on_when_the_relay_restarts(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd)
    with shown(relay) as terminal:
        terminal.wait_for("every 0.2 s")
        relay.stop()
        terminal.wait_for(r"no relay listens here")
        relay.start()
        terminal.wait_for("every 0.2 s")
        assert "no relay" not in terminal.text()


def test_no_colours_where_they_are_not_wanted(relay: RelayProcess) -> None:
    env = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    with shown(relay, env=env) as terminal:
        terminal.wait_for("q quit")
        assert not re.search(rb"\x1b\[[\d;]*3[0-7]m", terminal.raw)


# -- the text of the screen --------------------------------------------------------------------------------------------------


def picture(width: int, height: int, looks: list[Sessions | str], keys: bytes = b"") -> list[str]:
    """The lines of the last screen."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, highlight=False, color_system=None)
    screen = Screen(Path("relay.toml"), 1.0, "rate", console)
    for look in looks:
        screen._take(look)
    for key in keys:
        screen._key(bytes((key,)))
    return ["".join(segment.text for segment in row) for row in console.render_lines(screen.picture(), pad=False)]


MANY = [Sessions([line(float(age), age, age * 1000, id=f"c-{age}", identity=f"who-{age}") for age in range(1, 60)], 0)]


@pytest.mark.parametrize("width", [20, 40, 80, 100, 140, 250])
@pytest.mark.parametrize("height", [8, 24])
@pytest.mark.parametrize(
    "looks", [[], MANY, [*MANY, "relay.sock: no relay listens here"], [Sessions([], 2)]], ids=["none", "many", "gone", "silent"]
)
def test_it_is_as_large_as_the_terminal(width: int, height: int, looks: list[Sessions | str]) -> None:
    rows = picture(width, height, looks)
    assert len(rows) == height
    assert max(map(len, rows)) <= width


def test_control_characters_in_a_name_are_not_sent_to_the_terminal() -> None:
    hostile = "[bold]x[/bold]\x1b[2J\u202e"
    text = "\n".join(picture(200, 10, [Sessions([line(1, identity=hostile[:12]), line(1, identity=hostile[14:], id="c-2")], 0)]))
    assert "[bold]x[/bol" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_more_than_fit_are_scrolled() -> None:
    first = picture(200, 16, list(MANY), b"a")
    assert "who-59" in first[4] and "rows 1 to 10" in first[-2]
    assert "rows 4 to 13" in picture(200, 16, list(MANY), b"ajjj")[-2]
    assert "rows 50 to 59" in picture(200, 16, list(MANY), b"a" + b"j" * 100)[-2]


def test_a_worker_that_does_not_answer_is_shown() -> None:
    assert "2 workers did not answer, their sessions are missing here" in picture(150, 10, [Sessions([], 2)])[0]


def test_a_change_that_is_not_in_force_is_shown_below_the_title() -> None:
    changes = [Untaken("access", 0.0, "access.toml:3: bad"), Untaken("audit", 1.0, "full")]
    told = picture(150, 10, [Sessions([], 0, changes)])
    assert told[2] == " access: a change is not in force since 1970-01-01T00:00:00.000Z: access.toml:3: bad (and 1 more)"
    assert picture(150, 10, [Sessions([], 0, changes), Sessions([], 0)])[2].strip() == ""


def test_columns_have_an_order_or_none() -> None:
    assert {column.head for column in COLUMNS if not column.order} == {"WHAT"}
