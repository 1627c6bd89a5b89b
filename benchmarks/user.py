"""The account that clients of a run's git host log in to: plain, with /bin/sh, created for the run and removed after it."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import MeasureError, end, read_stat

NAME = "relaybench"
COMMENT = "git-ssh-relay benchmark, safe to remove"


class Account(NamedTuple):
    """The account, and the reason for it in one sentence; the suite removes `created` accounts."""

    name: str
    uid: int
    gid: int
    shell: str
    note: str
    created: bool


def current() -> Account:
    entry = pwd.getpwuid(os.getuid())
    note = f"the upstream logs in as {entry.pw_name} with {entry.pw_shell}, which reads the system's start-up files only"
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_shell, note, created=False)


@contextmanager
def account(name: str = NAME, *, plain: bool = True) -> Iterator[Account]:
    """A plain account for the time of the block; the current user when not root, or when `plain` is false.

    An account of that name without the suite's comment is not the suite's: it is used, and not removed.
    Raises MeasureError when useradd or userdel fails, or another run has the account.
    """
    if not plain or os.getuid() != 0:
        yield current()
        return
    with _alone(name):
        yield from _plain(name)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Only one run at a time may have the account: it removes it, and two runs would disturb each other's measurements. An abstract
    socket is the lock, because it ends with its process."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0git-ssh-relay benchmark {name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise MeasureError(f"another run measures on this machine, with the account {name}: wait for its end") from None
        yield


def _plain(name: str) -> Iterator[Account]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        # -p '*': without a password, but not locked; sshd refuses locked accounts even by key
        _run("useradd", "--system", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh", "-p", "*", "--comment", COMMENT, name)
        entry = pwd.getpwnam(name)
    ours = entry.pw_gecos == COMMENT
    note = f"the upstream logs in as {name} with {entry.pw_shell}" + ("" if ours else ", an account that was there before")
    try:
        yield Account(name, entry.pw_uid, entry.pw_gid, entry.pw_shell, note, created=ours)
    finally:
        if ours:
            end(stat for number in _processes(entry.pw_uid) if (stat := read_stat(number)))
            _run("userdel", name)


def _processes(uid: int) -> list[int]:
    """The processes of an account that exists only for this run."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and folder.stat().st_uid == uid:
                found.append(int(folder.name))
        except FileNotFoundError:
            continue
    return found


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise MeasureError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")
