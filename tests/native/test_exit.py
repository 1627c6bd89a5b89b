"""How a command ended: its exit status, none at all, or a signal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.client import Client, exit_of


@pytest.mark.parametrize(
    ("command", "status", "received", "signal"),
    [
        ("exit 0", 0, True, ""),
        ("exit 7", 7, True, ""),
        ("exit 255", 255, True, ""),
        ("kill -KILL $$", 0, False, "KILL"),
        ("kill -TERM $$", 0, False, "TERM"),
        ("ulimit -c 0; kill -SEGV $$", 0, False, "SEGV"),
    ],
)
def test_end_of_a_command(command: str, status: int, received: bool, signal: str, connect: Callable[..., Client], hardened: str) -> None:
    """A status of 0 and no status are told apart, and a signal has its name (RFC 4254 section 6.10)."""
    client = connect(cipher="aes128-gcm@openssh.com")
    client.execute(command)
    channel = client.channel
    assert exit_of(channel) == (False, "")
    while client.drive(channel.read)[0]:
        pass
    client.drive(channel.wait_closed)
    assert (channel.get_exit_status(), *exit_of(channel)) == (status, received, signal)


def test_a_shell_finds_no_start_up_files_of_the_account(connect: Callable[..., Client], tmp_path: Path) -> None:
    """bash under sshd reads ~/.bashrc before each command; what that does, and how long, depends on who runs the tests."""
    client = connect(cipher="aes128-gcm@openssh.com")
    client.execute('echo "$HOME"; ls -A "$HOME"')
    said = b""
    while (read := client.drive(client.channel.read))[0]:
        said += read[1]
    assert said.decode().splitlines() == [str(tmp_path / "sshd0" / "home")]
