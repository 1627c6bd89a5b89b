"""The command line as data: every command, option and value is there, with its kind."""

from __future__ import annotations

from relay.cli import tree
from relay.commands.command_tree import Argument, Command


def command(*path: str) -> Command:
    found = tree()
    for name in path:
        [found] = [one for one in found.commands if one.name == name]
    return found


def option(flag: str, *path: str) -> Argument:
    [found] = [one for one in command(*path).options if flag in one.flags]
    return found


def test_commands_are_there_with_those_below_them() -> None:
    assert {one.name for one in tree().commands} >= {"serve", "check", "sessions", "upstreams", "completion"}
    assert {one.name for one in command("upstreams").commands} == {"pause", "resume", "drain", "ready", "freeze", "thaw"}
    assert tree().needs_command and not command("upstreams").needs_command
    assert command("serve").help.startswith("serve in the foreground")


def test_what_an_option_takes_is_known() -> None:
    assert option("--config", "check").value == "file"
    assert option("-c", "upstreams", "pause").value == "file"
    assert option("--strict", "check").value == ""
    assert option("--explain", "check").names == ("IDENTITY", "SERVICE", "REPOSITORY")
    assert option("--repository", "check").repeated
    assert option("--clear", "packs").optional
    assert (option("--sort", "sessions").value, "rate" in option("--sort", "sessions").choices) == ("choice", True)


def test_what_an_argument_is_is_known() -> None:
    assert [one.value for one in command("init").arguments] == ["folder"]
    assert command("completion").arguments[0].choices == ("bash", "zsh", "fish")
    assert [one.names for one in command("upstreams", "drain").arguments] == [("NAME",), ("ADDRESS",)]
