"""A logger that formats nothing."""

from __future__ import annotations

from relay.ssh.quiet import QUIET


def test_nothing_is_formatted_whatever_is_logged() -> None:
    class Loud:
        def __str__(self) -> str:
            raise AssertionError("formatted")

        __repr__ = __format__ = __str__  # type: ignore[assignment]

    for method in (QUIET.debug, QUIET.debug1, QUIET.debug2, QUIET.info, QUIET.warning, QUIET.error, QUIET.packet):
        method("%s", Loud(), Loud())
    assert not QUIET.isEnabledFor(50)
    assert QUIET.get_child("session", 1) is QUIET
