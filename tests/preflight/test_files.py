"""The files that the relay writes, and files that others may write."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from relay.errors import ConfigError
from relay.preflight import load_all
from relay.preflight.files import SOCKET_PATH_BYTES
from tests.preflight.helpers import Setup


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"log": {"audit": "keys"}}, 'relay.toml: log.audit: keys is a folder, must be a file or "-" for stdout'),
        ({"log": {"audit": "none/audit.json"}},
            "relay.toml: log.audit: none/audit.json lies in a folder that is missing, must lie in a folder that the relay may write to"),
        ({"admin": {"sessions_socket": "keys"}},
            "relay.toml: admin.sessions_socket: keys is there and is no socket, must be a path that is free"),
        ({"admin": {"sessions_socket": "none/relay.sock"}},
            "relay.toml: admin.sessions_socket: none/relay.sock lies in a folder that is missing,"
            " must lie in a folder that the relay may write to"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_files_that_everyone_may_write(setup: Setup) -> None:
    setup.write({})
    for name in ("relay.toml", "access.toml", "keys"):
        (setup.folder / name).chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert [line.replace(f"{setup.folder}/", "") for line in caught.value.problems] == [
        "relay.toml: may be written by everyone (mode 0777), must not: chmod o-w relay.toml",
        "keys: may be written by everyone, must not: chmod o-w keys",
        "access.toml: may be written by everyone (mode 0777), must not: chmod o-w access.toml",
    ]


@pytest.mark.parametrize("up", [0, 1], ids=["folder", "folder above"])
def test_a_folder_of_the_configuration_in_which_others_may_replace_it(setup: Setup, up: int) -> None:
    setup.write({})
    place = [setup.folder, setup.folder.parent][up]
    before = place.stat().st_mode
    place.chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert caught.value.problems == [f"{setup.path}: {place} may be written by others (mode 0777), must not: chmod go-w {place}"]
    place.chmod(0o1777)
    load_all(setup.path)
    place.chmod(before)


def test_a_socket_of_a_running_relay_and_a_path_too_long_for_one(setup: Setup) -> None:
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(setup.folder / "relay.sock"))
        assert setup.problems() == []
    name = "x" * (SOCKET_PATH_BYTES - len(str(setup.folder)) - 1)
    assert setup.problems(admin={"sessions_socket": name}) == []
    assert setup.problems(admin={"sessions_socket": name + "x"}) == [
        f"relay.toml: admin.sessions_socket: {name}x is longer than the {SOCKET_PATH_BYTES} bytes that a socket's path may have"
    ]


def test_a_folder_that_may_not_be_written(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root, access(2) always allows writing, so the test replaces it."""
    asked: list[Path] = []

    def refuse(path: Path, mode: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr("relay.preflight.files.os.access", refuse)
    assert setup.problems(log={"audit": "audit.json"}) == [
        f"relay.toml: {key}: {name} lies in a folder that may not be written, must lie in a folder that the relay may write to"
        for key, name in (("log.audit", "audit.json"), ("admin.sessions_socket", "relay.sock"))
    ]
    assert asked == [setup.folder, setup.folder]
    (setup.folder / "audit.json").touch()
    assert setup.problems(log={"audit": "audit.json"})[0] == (
        'relay.toml: log.audit: audit.json may not be written, must be a writable file or "-" for stdout'
    )
