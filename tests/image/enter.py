"""Runs a command in the image's root file system as a container engine would with --read-only; root only. Needs nothing but Python.

    python enter.py ROOT IMAGE.JSON CONFIG_FOLDER [COMMAND ...]     without a command: the image's own; what follows `--` is ignored

Mounts of its own: the root read-only, tmpfs on /tmp and /run/relay, the folder as /etc/relay. Then: the image's user, no new privileges.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

CLONE_NEWNS = 0x00020000
PR_SET_NO_NEW_PRIVS = 38


def main(root: str, image_file: str, folder: str, *given: str) -> None:
    with open(image_file) as file:
        config = json.load(file)["Docker"]["config"]
    command = list(given[: given.index("--")] if "--" in given else given) or [*config["Entrypoint"], *config["Cmd"]]
    uid, gid = map(int, config["User"].split(":"))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for arguments in (
        ["--make-rprivate", "/"],
        ["--bind", root, root],
        ["-t", "proc", "proc", f"{root}/proc"],
        ["--bind", "/dev", f"{root}/dev"],
        ["-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/tmp"],
        ["-t", "tmpfs", "-o", f"mode=0700,uid={uid},gid={gid}", "tmpfs", f"{root}/run/relay"],
        ["--bind", folder, f"{root}/etc/relay"],
        ["-o", "remount,bind,ro", f"{root}/etc/relay"],
        ["-o", "remount,bind,ro", root],
    ):
        subprocess.run(["mount", *arguments], check=True)
    os.chroot(root)
    os.chdir(config["WorkingDir"] or "/")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execvpe(command[0], command, dict(variable.split("=", 1) for variable in config["Env"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
