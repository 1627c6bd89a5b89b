"""`relay sessions --watch` without a screen: lists and JSON, again and again. What all commands with --watch do is in test_asking.py."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from relay.cli import main
from tests.commands.watching import next_that, watching
from tests.support.relay_process import RelayProcess


@pytest.fixture
def quiet(relay: RelayProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A session that has carried 100,000 bytes out and now waits."""
    with relay.ssh().popen("git-receive-pack 'stub/half/100000'") as client:
        assert client.stdout is not None
        assert len(client.stdout.read(100_000)) == 100_000
        yield client
        client.kill()
        client.communicate()


def test_plain_lists_without_a_terminal(relay: RelayProcess, quiet: subprocess.Popen[bytes]) -> None:
    with watching(relay, "sessions") as (process, lines):
        for _ in range(3):
            assert next_that(lines, lambda line: line != "\n").split()[:3] == ["ID", "WHO", "FROM"]
            assert next_that(lines, lambda line: line != "\n").split()[1] == "alice"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_one_json_object_for_each_list(relay: RelayProcess, quiet: subprocess.Popen[bytes]) -> None:
    with watching(relay, "sessions", "--json") as (_, lines):
        for _ in range(2):
            look = json.loads(next_that(lines, lambda line: '"alice"' in line))
        (session,) = look["sessions"]
        assert (session["identity"], session["service"], session["bytes_out"]) == ("alice", "git-receive-pack", 100_000)
        assert {"rate_in", "rate_out", "quiet_seconds", "worker"} <= set(session)
        assert look["silent"] == 0 and look["rate_out"] >= 0


@pytest.mark.parametrize("given", ["0", "x", "-1", "3601", "nan"])
def test_an_interval_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sessions", "--watch", f"--interval={given}"])
    assert ended.value.code == 2
    assert f"is '{given}', must be a number of seconds from 0.1 to 3600" in capsys.readouterr().err
