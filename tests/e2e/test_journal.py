"""A relay whose stderr and stdout are the journal's socket, as under systemd: each line begins with its priority, and stays whole."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

LINE = re.compile(r"<([3-6])>(\{.*\})")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because a Unix socket is in it."""
    made = Path(tempfile.mkdtemp(prefix="relay-"))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("stream", ["log", "stdout"])
def test_the_lines_of_every_process_have_their_priority(sshd: Sshd, folder: Path, stream: str) -> None:
    (folder / stream).touch()
    there = (folder / stream).stat()
    environment = {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
    with RelayProcess(sshd, folder, config={"log": {"audit": "-"}}, env=environment) as relay:
        assert relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3
        assert relay.ssh().run("ls").returncode == 128
        (folder / "access.toml").write_text("[")
        relay.signal(signal.SIGHUP)
        relay.wait_for_log("the old configuration stays in force")
    other = "log" if stream == "stdout" else "stdout"
    assert (folder / other).read_text().startswith("{"), "what is not the journal has none"
    found = [LINE.fullmatch(line) for line in (folder / stream).read_text().splitlines()]
    assert found and all(found)
    lines = [(int(one[1]), json.loads(one[2])) for one in found if one]
    if stream == "log":
        assert {line["logger"] for _, line in lines} >= {"relay.supervisor", "relay.session"}
        assert {line["level"] for _, line in lines} >= {"info", "error"}
        assert all(number == {"error": 3, "warning": 4, "info": 6}[line["level"]] for number, line in lines)
    else:
        assert {(number, line["event"]) for number, line in lines} == {(6, "session"), (6, "command_rejected")}
