"""Runs one server and waits for every process that descends from it, so that no CPU time is lost when a parent does not wait.

sshd's monitor ends without waiting for its unprivileged half when a client disconnects; that half is then init's child, and no other
process counts its CPU time. As a child subreaper (prctl(2)) this process inherits such orphans, and its own count of waited-for
children has them all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: list[str]) -> int:
    """Run `argv` until it ends; SIGTERM, also sent by the kernel when the suite itself dies, is passed on to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is a server to pass it on to
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(server.pid, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        pid, status = os.wait()
        if pid == server.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code if code >= 0 else 128 - code)  # at once: this process has reaped the server, which subprocess does not know
