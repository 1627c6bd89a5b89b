"""The git shell of a MortalSshd: passes git's output on packet by packet, and dies where the next line of the plan says.

A line of `$STUB_ROOT/.deaths` is `<kind> <packets> <half>`: after so many packets (and half of another one, if <half> is 1) the sshd
process of the connection is killed (kind `sshd`), this process ends its output and stays (`hang`), or it is killed by a signal (its
name). Each command takes one line; without one it
lives. Who is about to die writes how many bytes it wrote to `.written`, waits as long as there is a `.hold`, and gives `.died` a line.
`.packets` has a line for each command that sends a pack: the packets up to the end of the second answer (of ls-refs; the first is the
advertisement), and all before pack data.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = os.environ["STUB_ROOT"]
SHELL = os.environ["MORTAL_GIT_SHELL"]
ON_THE_WAY_SECONDS = 0.005  # so that most of what was written is with the relay when sshd dies, if no test holds it
written = 0


def next_death() -> list[str]:
    with open(f"{ROOT}/.deaths", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        first, *rest = file.read().splitlines() or [""]
        file.truncate(0)
        file.write("".join(f"{line}\n" for line in rest))
    return first.split()


def note(name: str, line: str) -> None:
    with open(f"{ROOT}/.{name}", "a") as file:
        file.write(f"{line}\n")


def write(data: bytes) -> None:
    global written
    written += len(data)
    while data:
        data = data[os.write(1, data) :]


def die(child: subprocess.Popen[bytes], kind: str, at: int) -> None:
    note("written", str(written))
    while Path(f"{ROOT}/.hold").exists():
        time.sleep(0.01)
    note("died", f"{kind} {at}")
    time.sleep(ON_THE_WAY_SECONDS)
    if kind == "sshd":
        os.kill(os.getppid(), signal.SIGKILL)
        child.kill()
        time.sleep(60)  # nobody is there to read the exit
    child.kill()
    child.wait()
    if kind == "hang":
        os.close(1)
        os.close(2)
        time.sleep(600)  # sshd ends it when the relay closes the connection, or the test's sshd is stopped
    os.kill(os.getpid(), getattr(signal, f"SIG{kind}"))


def carry(child: subprocess.Popen[bytes], kind: str, fatal: int, half: bool) -> int:
    packets, in_packfile, in_pack = 0, False, False
    answers: list[int] = []
    source = child.stdout
    assert source is not None
    while head := source.read(4):
        length = int(head, 16)
        data = source.read(length - 4) if length > 4 else b""
        in_packfile = in_packfile or data == b"packfile\n"
        if in_packfile and data[:1] == b"\1" and len(data) > 1 and not in_pack:
            in_pack = True
            if len(answers) > 1:  # else it goes on where another one died
                note("packets", f"{answers[1]} {packets}")
        if kind and packets == fatal:
            if half:
                write((head + data)[: (length + 1) // 2])
            die(child, kind, packets)
        write(head + data)
        packets += 1
        if not length:
            answers.append(packets)
    return child.wait()


death = next_death()
if death:
    kind, packets, half = death[0], int(death[1]), death[2] == "1"
else:
    kind, packets, half = "", -1, False
with subprocess.Popen([SHELL, *sys.argv[1:]], stdout=subprocess.PIPE) as git:
    status = carry(git, kind, packets, half)
sys.exit(status)
