"""`relay init`: its files are complete and valid, it overwrites nothing, and following its output gives a relay that starts."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest

from relay.commands.init import EXAMPLE, config_text, init
from relay.config import Config, PolicyRuleSettings, PolicySettings, UpstreamSettings, UserCertificateSettings
from relay.config.load import load_config
from relay.config.schema import tables
from relay.config.toml import TomlFault, decode
from relay.errors import ConfigError
from relay.preflight import load_all
from tests.support.keys import make_key
from tests.support.sshd import Sshd

NAMES = {"relay.toml", "access.toml", "routes.toml", "host_ed25519", "host_ed25519.pub", "upstream_ed25519", "upstream_ed25519.pub", "keys"}


def parsed(text: str) -> Config:
    faults: list[TomlFault] = []
    config = decode(Config, tomllib.loads(text), faults)
    assert faults == []
    return config


def test_the_example_is_the_defaults() -> None:
    assert parsed(config_text(EXAMPLE)) == Config(upstreams={"main": UpstreamSettings(addresses=["git.example.com:22"])})


def settings(kind: type[msgspec.Struct], table: str) -> Iterator[tuple[str, str]]:
    """(table, setting) of every plain setting below `kind`."""
    for field in msgspec.structs.fields(kind):
        kinds = [one for one in tables(kind)[1:] if one is field.type or one in typing.get_args(field.type)]
        inner = next((one for one in kinds if len(kinds) == 1 or one is field.default_factory), None)
        key = f"{table}.{field.name}".strip(".")
        if field.name == "upstreams":
            yield from settings(UpstreamSettings, "upstreams.main")
        elif inner is not None:
            yield from settings(inner, key)
        else:
            yield table, field.name


def written(text: str) -> dict[tuple[str, str], str]:
    """(table, setting) of every line, also of those in comments, and the line."""
    found, table = {}, ""
    for line in text.splitlines():
        if head := re.match(r"(?:# )?\[\[?(.+?)\]", line):
            table = head[1]
        elif setting := re.match(r"(?:# )*(\w+) = ", line):
            found[table, setting[1]] = line
    return found


def test_every_setting_of_every_struct_is_in_the_example_with_its_default() -> None:
    lines = written(config_text(EXAMPLE))
    expected = list(settings(Config, ""))
    assert len(expected) > 30
    sources = {(table, "source") for table in ("keys", "access", "routes")}
    assert set(lines) == set(expected) | sources
    # a default value may be left out: the configuration is the same
    whole = tomllib.loads(config_text(EXAMPLE))
    for table, name in expected:
        if (table, name) == ("upstreams.main", "addresses") or lines[table, name].startswith("#"):
            continue
        without = tomllib.loads(config_text(EXAMPLE))
        place: Any = without
        for part in filter(None, table.split(".")):
            place = place[part]
        del place[name]
        assert parsed(config_text(EXAMPLE)) == msgspec.convert(without, Config), (table, name)
    assert "addresses" in whole["upstreams"]["main"]


def test_settings_carry_the_comments_of_the_structs() -> None:
    lines = written(config_text(EXAMPLE))
    assert lines["limits", "buffer_bytes"].endswith("# data of all sessions of a worker that waits to be sent")
    assert lines["log", "level"].endswith("# debug | info | warning | error")
    assert lines["upstreams.main", "known_hosts"].startswith('# known_hosts = "known_hosts"')


def test_a_table_that_may_be_left_out_stands_in_comments_that_can_be_taken_away() -> None:
    text = config_text(EXAMPLE)
    start = text.index("# [upstreams.main.user_certificate]")
    there = re.sub(r"^# ", "", text[start : text.index("\n\n", start)], flags=re.MULTILINE)
    config = parsed(text + "\n" + there)
    assert config.upstreams["main"].user_certificate == UserCertificateSettings(ca_key="ca_key")
    assert parsed(config_text(config)) == config


def test_any_configuration_survives_being_written() -> None:
    config = Config(
        upstreams={
            "a-b": UpstreamSettings(addresses=["[::1]:22"], known_hosts='x "y"\\ü'),
            "c": UpstreamSettings(addresses=["c:1"], send_identity=False),
        },
        policy=PolicySettings(rule=[PolicyRuleSettings(who=["@ops"], expires="20300102Z"), PolicyRuleSettings(who=["*"], rsa_bits=4096)]),
        greeting="two\nlines\t{identity}",
    )
    text = config_text(config)
    assert parsed(text.replace('# known_hosts = "known_hosts"', "")) == config


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "relay"
    assert init(folder) == 0
    assert {path.name for path in folder.iterdir()} == NAMES
    for name in ("host_ed25519", "upstream_ed25519"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        public = asyncssh.read_public_key(folder / f"{name}.pub")
        assert asyncssh.read_private_key(folder / name).public_data == public.public_data
    assert (folder / "host_ed25519").read_bytes() != (folder / "upstream_ed25519").read_bytes()
    said = capsys.readouterr()
    assert said.err == ""
    assert (folder / "upstream_ed25519.pub").read_text().strip() in said.out
    assert "PRIVATE" not in said.out


def test_check_right_after_names_exactly_what_is_left(tmp_path: Path) -> None:
    init(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_all(tmp_path / "relay.toml")
    assert caught.value.problems == [
        f'{tmp_path}/relay.toml:15: upstreams.main.addresses: "git.example.com:22" is an example, must be the host:port of your git host',
        f"{tmp_path}/relay.toml:19: upstreams.main.host_keys: is empty, must pin the git host's key as in a .pub file"
        " (get it: ssh-keyscan -t ed25519 -p 22 GIT_HOST), or known_hosts must name a file",
    ]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("mine")
    assert init(tmp_path) == 1
    assert capsys.readouterr() == ("", f"{tmp_path / name}: is there already, must not be; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").symlink_to(tmp_path / "elsewhere")
    assert init(tmp_path) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_second_time_names_every_file_and_people_s_keys_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").mkdir()
    make_key(tmp_path / "keys", "alice")
    assert init(tmp_path) == 0
    assert (tmp_path / "keys" / "alice.pub").exists()
    capsys.readouterr()
    assert init(tmp_path) == 1
    assert len(capsys.readouterr().err.splitlines()) == len(NAMES) - 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert init(tmp_path / "file" / "relay") == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "cannot be written (Not a directory); nothing was written" in said.err


def test_files_written_before_a_failure_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from relay.commands import init as module

    real = module._write

    def full(file: module.NewFile, done: list[Path]) -> None:
        real(file, done)
        if len(done) == 4:
            raise OSError(28, "No space left on device", str(file.path))

    monkeypatch.setattr(module, "_write", full)
    assert init(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_following_the_printed_steps_gives_a_relay_that_starts(
    tmp_path: Path, make_sshd: Callable[..., Sshd], capsys: pytest.CaptureFixture[str]
) -> None:
    """Follows the printed steps, with the real ssh-keyscan and a real sshd, and edits the file as a person would."""
    sshd = make_sshd()
    folder = tmp_path / "a relay"
    init(folder)
    said = capsys.readouterr().out
    scan = next(line.strip() for line in said.splitlines() if "ssh-keyscan" in line)
    scan = scan.replace("GIT_HOST", "127.0.0.1").replace("-p 22 ", f"-p {sshd.port} ")
    pinned = subprocess.run(["sh", "-c", scan], capture_output=True, text=True, timeout=60, check=True)
    assert sshd.host_key.fingerprint in pinned.stdout
    line = next(line for line in pinned.stderr.splitlines() if line.startswith("ssh-ed25519 "))

    config = folder / "relay.toml"
    text = config.read_text().replace("git.example.com:22", f"127.0.0.1:{sshd.port}")
    config.write_text(text.replace("host_keys = []  ", f'host_keys = ["{line}"]  '))
    (folder / "keys" / "alice.pub").write_text(make_key(tmp_path / "far", "alice").line)

    command = next(line for line in said.splitlines() if "relay check" in line)
    assert shlex.split(command)[-1] == str(config)
    loaded = load_all(config)
    assert loaded == load_config(config)
    assert loaded.config.upstreams["main"].host_keys == [line]
