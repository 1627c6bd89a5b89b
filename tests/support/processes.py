"""Questions and signals to processes that may end at any moment."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

USUALLY_INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def let_children_hear_signals() -> None:
    """A child inherits which signals are ignored: a shell ignores SIGINT and SIGQUIT for what it starts in the background (`make test &`
    in a script), nohup SIGHUP, and a program that a test starts and interrupts then never ends. A handler is not inherited."""
    for number in USUALLY_INHERITED:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def alive(process: psutil.Process) -> bool:
    """Whether the process exists and is no zombie: init reaps an orphan, perhaps late.

    A killed process is a zombie as soon as its first thread has ended. As long as another thread has not, its sockets are open.
    """
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return bool(process.is_running())
        return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(process: psutil.Process) -> bool:
    """Whether SIGSTOP has taken effect, perhaps after kill(2) returned; true for a process that has ended."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def send_signal(process: psutil.Process, number: int) -> bool:
    """True if the process still existed."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def pids_with_environment(setting: str) -> list[int]:
    """Processes started with exactly this `NAME=value`; only root sees those of other users."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # ended, or another user's
        if setting.encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found
