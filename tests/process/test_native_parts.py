"""What is said of each native part that is not there."""

from __future__ import annotations

import pytest

from relay.observe.metrics import NATIVE_PARTS
from relay.process import native_parts
from relay.upstream.libssh2 import loaded_library


def with_parts(monkeypatch: pytest.MonkeyPatch, *, build: str, why: str, unused: str) -> None:
    monkeypatch.setattr(loaded_library(), "build", build)
    monkeypatch.setattr(native_parts, "WHY_STOCK", why)
    monkeypatch.setattr(native_parts, "UNUSED", unused)


def test_nothing_is_said_when_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch, build="relay-2", why="", unused="")
    assert native_parts.used() == list(NATIVE_PARTS)
    assert (native_parts.unsafe(), native_parts.slow(), native_parts.warning()) == ("", "", "")


def test_a_stock_library_is_named_with_its_reason_and_its_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch, build="", why="git-ssh-relay-native is not installed", unused="")
    assert native_parts.used() == ["gcm"]
    assert native_parts.warning() == native_parts.unsafe()
    for word in ("(git-ssh-relay-native is not installed)", "before its host key is compared", "pip install 'git-ssh-relay[native]'"):
        assert word in native_parts.unsafe()


def test_a_replaced_library_without_a_name_is_not_taken_for_the_hardened_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator may have put a libssh2 of his own in its place: the binding alone proves nothing."""
    with_parts(monkeypatch, build="", why="", unused="")
    assert "(it has no name of a hardened build)" in native_parts.unsafe()


def test_without_any_both_are_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch, build="", why="relay_ssh2 cannot be loaded: libcrypto.so.3", unused="it is away")
    assert native_parts.used() == []
    assert native_parts.warning() == f"{native_parts.unsafe()}; relay_gcm is not used: it is away"
    assert "\n" not in native_parts.warning()
