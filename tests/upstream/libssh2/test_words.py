"""Each error of the binding gets a text of the relay: without class names, and without libssh2's phrases."""

from __future__ import annotations

import re

import pytest

from relay.upstream.libssh2.binding import SSH2Error, exceptions
from relay.upstream.libssh2.words import words

ERRORS = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, SSH2Error)]


class Session:
    def last_errno(self) -> int:
        return -43


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_a_plain_sentence(kind: type[SSH2Error]) -> None:
    said = words(kind("Failed getting banner"), None)
    assert said and "banner" not in said
    assert not re.search(r"[a-z][A-Z]|Error|Exception", said.replace("MaxSessions", "").replace("OpenSSH", ""))


def test_libssh2s_number_follows_where_there_is_one() -> None:
    assert words(exceptions.SocketRecvError(), Session()) == "the git host ended the connection (libssh2 error -43)"
    assert words(exceptions.SocketRecvError(), None) == "the git host ended the connection"


def test_an_error_that_is_not_known_is_said_to_be_none() -> None:
    assert words(type("NewError", (SSH2Error,), {})(), None) == "libssh2 failed and does not say why"
