"""The manual page: man and mandoc take it without a complaint, and it names all that the command line has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relay import __version__
from relay.cli import tree
from relay.commands.command_tree import Argument, Command
from relay.commands.manual import manual


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "relay.1"
    path.write_text(manual(tree(), __version__))
    return path


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_man_formats_it_without_a_warning(page: Path) -> None:
    done = run("man", "--warnings", "--local-file", page)
    assert (done.returncode, done.stderr) == (0, "")
    text = re.sub(r".\x08", "", done.stdout)
    assert re.search(r"^ +relay upstreams pause \[--config CONFIG\] \[--wait SECONDS\] NAME$", text, re.MULTILINE)
    assert f"git-ssh-relay {__version__}" in text


def test_mandoc_has_nothing_to_object_but_the_missing_date(page: Path) -> None:
    """A date would be wrong at the next commit; the version is there."""
    said = [line for line in run("mandoc", "-Tlint", page).stdout.splitlines() if "missing date" not in line]
    assert said == [] or all("STYLE: input text line longer than 80 bytes" in line and "[\\fB" in line for line in said)


def test_it_names_every_command_and_option() -> None:
    text = manual(tree(), __version__).replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")

    def names(command: Command, path: str) -> None:
        if not command.needs_command:
            assert f"\n{path} " in text or f"\n{path}\n" in text, path
        for option in command.options:
            assert all(flag in text for flag in option.flags), option
        for one in command.commands:
            names(one, f"{path} {one.name}")

    names(tree(), "relay")


def test_text_cannot_become_a_request_of_troff() -> None:
    argument = Argument(("--x",), ".SH a\\b 'c' -d", "any", ("N",))
    text = manual(Command("relay", "what it is", (argument,), (), (), False), "1")
    assert "\n\\&.SH a\\eb \\(aqc\\(aq \\-d.\n" in text
