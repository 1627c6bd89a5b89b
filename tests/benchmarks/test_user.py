"""The account of a run: made, used and removed by root; otherwise the current user, with a note."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from benchmarks import user
from benchmarks.processes import MeasureError, read_stat

NAME = f"relaybench-{os.getpid()}"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can create an account")


def exists(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def test_the_current_user_is_taken_when_no_account_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.getuid())
    with user.account(NAME, plain=False) as account:
        assert (account.name, account.uid, account.created) == (me.pw_name, me.pw_uid, False)
        assert "start-up files" in account.note
    monkeypatch.setattr(os, "getuid", lambda: me.pw_uid + 1 if me.pw_uid == 0 else me.pw_uid)
    monkeypatch.setattr(user, "current", lambda: account)
    with user.account(NAME) as another:
        assert another is account
    assert not exists(NAME)


@as_root
def test_an_account_lives_for_the_block_and_takes_its_processes_along() -> None:
    with user.account(NAME) as account:
        entry = pwd.getpwnam(NAME)
        assert (entry.pw_shell, account.created, account.uid) == ("/bin/sh", True, entry.pw_uid)
        left = subprocess.Popen(["sleep", "600"], user=entry.pw_uid)
    left.wait(20)
    assert read_stat(left.pid) is None
    assert not exists(NAME)


@as_root
def test_the_account_goes_also_after_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt), user.account(NAME):
        raise KeyboardInterrupt
    assert not exists(NAME)


@as_root
def test_an_account_of_somebody_else_is_used_and_left() -> None:
    subprocess.run(["useradd", "--system", "-M", "-d", "/", "-s", "/bin/sh", "-p", "*", NAME], check=True)
    try:
        with user.account(NAME) as account:
            assert not account.created
            assert "was there before" in account.note
        assert exists(NAME)
    finally:
        subprocess.run(["userdel", NAME], check=True)


@as_root
def test_two_runs_at_once_are_refused() -> None:
    with user.account(NAME), pytest.raises(MeasureError, match="another run measures"), user.account(NAME):
        pass
    assert not exists(NAME)


@as_root
def test_what_useradd_says_is_told() -> None:
    with pytest.raises(MeasureError, match="useradd ended with"), user.account("no such name!"):
        pass
