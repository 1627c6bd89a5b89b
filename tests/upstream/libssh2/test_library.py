"""Calls of the loaded libssh2 beside the bindings: its version, and a library whose exit status cannot be read is refused at the start.

The answers themselves (status, signal, neither) are in libssh2/test_streams.py, against real servers.
"""

from __future__ import annotations

import ctypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.model import Exit
from relay.upstream.libssh2 import Connection, library, loaded_library
from relay.upstream.libssh2.binding import LIBRARY
from relay.upstream.libssh2.library import Library, UnknownLibrary, channel_pointer
from tests.support.sshd import Sshd
from tests.upstream.peers import Receiver, login


@pytest.fixture
async def connection(sshd: Sshd) -> AsyncIterator[Connection]:
    made = await Connection.dial(sshd.address, sshd.port, login(sshd), 15)
    yield made
    made.close()


def test_it_is_the_library_that_this_process_has_loaded() -> None:
    found = loaded_library()
    assert Path(found.path).exists()
    assert Path(found.path).name.startswith(LIBRARY)
    assert found.path in Path("/proc/self/maps").read_text()
    assert found.version in str(found)
    assert bool(found.build) == ("+" in str(found)) != ("(stock)" in str(found))


def test_a_library_that_is_not_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = library._mapped
    monkeypatch.setattr(library, "_mapped", lambda name: mapped("libnobodyhasthis"))
    with pytest.raises(UnknownLibrary, match="libnobodyhasthis is not loaded"):
        Library(LIBRARY)


def test_a_libssh2_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay does not know the layout of its structures, so it could read a wrong status."""

    class Version:
        restype: Any = None

        def __call__(self, required: int) -> bytes:
            return b"1.10.0"

    class Older:
        libssh2_version = Version()

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Older())
    with pytest.raises(UnknownLibrary, match=r"libssh2 1\.10\.0 at .* cannot say whether an exit status came"):
        Library(LIBRARY)


async def test_a_channel_whose_status_is_not_where_it_is_expected_is_refused(connection: Connection) -> None:
    found = loaded_library()
    if found._has_status is not None:
        found.before_exec(connection._channel)  # this library has a function for it: nothing is marked
        found.before_exec(connection._channel)
        return
    found.before_exec(connection._channel)
    with pytest.raises(UnknownLibrary, match="its channel is not laid out as in"):
        found.before_exec(connection._channel)  # the field is not 0


async def test_no_status_is_none_before_and_after_a_mark(connection: Connection, sshd: Sshd) -> None:
    found = loaded_library()
    found.before_exec(connection._channel)
    assert found.after_close(connection._channel) is None
    other = await Connection.dial(sshd.address, sshd.port, login(sshd), 15)
    await other.run(sshd.stub("exit/0"), [])
    assert await Receiver(other).ended == Exit(status=0)
    assert found.after_close(other._channel) == Exit(status=0)
    other.close()


def test_what_is_no_channel_is_not_taken_for_one() -> None:
    class Other:
        session = object()

    with pytest.raises(UnknownLibrary, match="a Channel object is not laid out as expected"):
        channel_pointer(Other())
