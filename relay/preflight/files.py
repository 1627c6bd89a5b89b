"""The files that the relay writes, and who else may write those that it reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from relay.config import FileAccessSettings, FileRoutesSettings
from relay.config.load import Loaded
from relay.config.toml import Problems
from relay.config.trust import path_fault

SOCKET_PATH_BYTES = 107  # sun_path of unix(7) without its NUL


def check_audit(loaded: Loaded, problems: Problems) -> None:
    if (audit := loaded.config.log.audit) != "-":
        path = loaded.resolve(audit)
        if path.is_dir():
            problems.add("log.audit", f'{path} is a folder, must be a file or "-" for stdout')
        elif path.exists() and not os.access(path, os.W_OK):
            problems.add("log.audit", f'{path} may not be written, must be a writable file or "-" for stdout')
        elif not path.exists():
            _check_folder("log.audit", path, problems)


def check_operators_socket(loaded: Loaded, problems: Problems) -> None:
    socket = loaded.resolve(loaded.config.admin.sessions_socket)
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES:
        problems.add("admin.sessions_socket", f"{socket} is longer than the {SOCKET_PATH_BYTES} bytes that a socket's path may have")
    elif socket.exists() and not stat.S_ISSOCK(socket.stat().st_mode):
        problems.add("admin.sessions_socket", f"{socket} is there and is no socket, must be a path that is free")
    else:
        _check_folder("admin.sessions_socket", socket, problems)


def _check_folder(key: str, path: Path, problems: Problems) -> None:
    folder = path.parent
    if not folder.is_dir():
        problems.add(key, f"{path} lies in a folder that is missing, must lie in a folder that the relay may write to")
    elif not os.access(folder, os.W_OK | os.X_OK):
        problems.add(key, f"{path} lies in a folder that may not be written, must lie in a folder that the relay may write to")


def check_places(loaded: Loaded, problems: Problems) -> None:
    """Other users must not be able to write or replace the configuration and the files of rules."""
    config = loaded.config
    rules = [
        loaded.resolve(part.path) for part in (config.access, config.routes) if isinstance(part, FileAccessSettings | FileRoutesSettings)
    ]
    faults: dict[str, None] = {}
    for path in (loaded.path, *rules):
        try:
            fault = path_fault(path, private_group=True)
        except OSError:
            continue  # reported where the file is read
        if fault is not None and not (fault.startswith(f"{path} may be written") and path.stat().st_mode & stat.S_IWOTH):
            faults[fault] = None  # a world-writable file is reported where it is read
    problems.take(f"{loaded.path}: {fault}" for fault in faults)
