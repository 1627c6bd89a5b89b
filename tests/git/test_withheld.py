"""Output before git's protocol: held back until the protocol begins or too much has come, and then a refusal, or the client's."""

from __future__ import annotations

import pytest

from relay.errors import Denied, HostLacks, HostRefused, RelayError
from relay.git.host_words import ARCHIVE_ACK, HELD_MOST_BYTES, HostWords
from relay.git.withheld import Withheld

PACKET = b"0009done\n"
PATH, REPOSITORY = "/srv/git/team/app.git", "team/app"


def withheld(service: str = "git-upload-pack") -> Withheld:
    return Withheld(service, HostWords(PATH, REPOSITORY))


@pytest.mark.parametrize(
    ("service", "begins"),
    [
        ("git-upload-pack", PACKET),
        ("git-receive-pack", PACKET),
        ("git-upload-archive", ARCHIVE_ACK + b"0009\1data"),
        ("git-lfs-authenticate", b'{"href": "/srv/x"}'),
    ],
)
def test_a_shells_lines_are_held_back_until_the_protocol_of_the_service_begins(service: str, begins: bytes) -> None:
    one = withheld(service)
    assert not one
    assert not one.add_stdout(b"Welcome to " + PATH.encode() + b"\n")
    assert one and one.refusal() is None
    assert not one.add_stderr(b"warning: /etc/motd\nhalf a")
    assert one.add_stdout(begins)
    assert one.release() == (b"Welcome to team/app\n" + begins, b"warning: (path)\n")


def test_what_is_of_one_service_does_not_begin_another() -> None:
    assert not withheld("git-lfs-authenticate").add_stdout(PACKET)
    assert not withheld("git-upload-archive").add_stdout(ARCHIVE_ACK), "its repository may be missing"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_no_more_than_so_much_is_held_back(stream: str) -> None:
    one = withheld()
    add = one.add_stdout if stream == "stdout" else one.add_stderr
    assert not add(b"x" * HELD_MOST_BYTES)
    assert add(b"y")
    assert sorted(one.release()) == [b"", b"x" * HELD_MOST_BYTES + b"y"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (b"fatal: '/srv/git/team/app.git' does not appear to be a git repository\n", Denied),
        (b"fatal: unrecognized command 'git-upload-pack'\n", HostLacks),
        (b"This account is currently not available.\n", HostRefused),
    ],
)
def test_a_known_refusal_on_either_stream(words: bytes, kind: type[RelayError], stream: str) -> None:
    one = withheld()
    (one.add_stdout if stream == "stdout" else one.add_stderr)(words)
    refusal = one.refusal()
    assert type(refusal) is kind
    assert str(refusal) == f"the git host says: {words.decode().strip()}", "the log is exact"
    assert "/srv" not in refusal.message


def test_nothing_said_is_no_refusal() -> None:
    assert withheld().refusal() is None and withheld().release() == (b"", b"")
