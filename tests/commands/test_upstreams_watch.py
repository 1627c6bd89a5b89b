"""`relay upstreams --watch` without a screen: tables and JSON, again and again. What all commands with --watch do is in test_asking.py."""

from __future__ import annotations

import json
import signal

from tests.commands.test_upstreams import ask
from tests.commands.watching import next_that, watching
from tests.support.relay_process import RelayProcess


def test_plain_tables_without_a_terminal(relay: RelayProcess) -> None:
    with watching(relay, "upstreams") as (process, lines):
        for _ in range(3):
            assert next_that(lines, lambda line: line != "\n").split()[:2] == ["UPSTREAM", "STATE"]
            assert next_that(lines, lambda line: line != "\n").split()[0] == "main"
            next(lines)  # its address
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_one_json_object_for_each_look_and_a_switch_is_seen(relay: RelayProcess) -> None:
    with watching(relay, "upstreams", "--json") as (_, lines):
        look = json.loads(next(lines))
        assert look["silent"] == 0 and [one["upstream"] for one in look["upstreams"]] == ["main"]
        assert ask(relay, "pause", "main").returncode == 0
        try:
            next_that(lines, lambda line: json.loads(line)["upstreams"][0]["states"] == ["paused"])
        finally:
            ask(relay, "resume", "main")
        next_that(lines, lambda line: json.loads(line)["upstreams"][0]["states"] == ["up"])
