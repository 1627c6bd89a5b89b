"""Files of keys with faulty lines: with faulty_lines = "skip" the relay starts without those, names them, and follows changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.preflight import load_all, remarks
from tests.support.keys import make_key
from tests.support.machine import free_port
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

DSA = "ssh-dss AAAAB3NzaC1kc3MAAACBAP"


def told(relay: RelayProcess) -> list[str]:
    lines = [json.loads(line) for line in relay.log_text().splitlines()]
    return [line["message"] for line in lines if "left out of the keys" in line["message"] and line["level"] == "warning"]


def test_the_relay_serves_without_them_and_follows_changes(sshd: Sshd, tmp_path: Path, make_relay: Callable[..., RelayProcess]) -> None:
    new, folder = make_key(tmp_path, "new"), tmp_path / "relay" / "keys"
    folder.mkdir(parents=True)
    faulty = folder / "old.pub"
    faulty.write_text(f"{DSA}\n")
    config = {"keys": {"faulty_lines": "skip"}, "admin": {"listen": f"127.0.0.1:{free_port()}"}, "workers": 1}
    relay = make_relay(sshd, tmp_path / "relay", config=config)
    reason = "is a DSA key (ssh-dss), which is too weak; allowed are "
    assert [line.partition(reason)[0] for line in told(relay)] == [f"left out of the keys: {faulty}:1: "]
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    assert relay.metric("relay_keys_left_out") == 1

    faulty.write_text(f"{DSA}\nssh-ed25519\n{new.line}\n")  # another faulty line, and a key behind it
    wait_until(lambda: relay.metric("relay_keys_left_out") == 2, message="the change was read")
    assert [line.partition(": is ")[0] for line in told(relay)[1:]] == [f"left out of the keys: {faulty}:2"]
    relay.write_access({"rule": [{"repositories": "**", "who": ["old", "alice"], "allow": "write"}]})
    wait_until(
        lambda: relay.ssh(key=new).run("git-upload-pack 'stub/exit/0'").returncode == 0, message="the key behind a faulty line is accepted"
    )
    faulty.unlink()
    wait_until(lambda: relay.ssh(key=new).run("git-upload-pack 'stub/exit/0'").returncode == 255, message="and no longer when it is gone")
    assert relay.metric("relay_keys_left_out") == 0


def test_check_names_each_line_and_refuses_them_unless_they_are_skipped(sshd: Sshd, tmp_path: Path) -> None:
    relay = RelayProcess(sshd, tmp_path / "relay")
    (relay.folder / "keys/old.pub").write_text(f"{DSA}\n")
    with pytest.raises(ConfigError) as refused:
        load_all(relay.config_file)
    assert len(refused.value.problems) == 1
    relay.config["keys"] = {**relay.config.get("keys", {}), "faulty_lines": "skip"}
    relay.write_config()
    left = [line for line in remarks(load_all(relay.config_file)) if "old.pub" in line]
    assert left == [f"{refused.value.problems[0]}; this line is left out"]
