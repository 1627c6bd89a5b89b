"""`relay check --connect` asks every backend, logs in to every git host, and prints one line for each problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.cli import main
from relay.commands.check import connect_all
from relay.preflight import load_all
from tests.support.answering import Answering, Said
from tests.support.authority import Authority
from tests.support.gitrepo import make_repo
from tests.support.penalising import Penalising
from tests.support.problems import unplaced
from tests.support.redis import RedisServer
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd


@pytest.fixture
def relay(sshd: Sshd, tmp_path: Path) -> RelayProcess:
    """A relay that is never started: `check` reads its folder and configuration."""
    return RelayProcess(sshd, tmp_path / "relay")


async def checked(relay: RelayProcess) -> tuple[list[str], list[str]]:
    """The lines about working peers, without figures, and the problems, without the path."""
    said: list[str] = []
    problems = await connect_all(load_all(relay.config_file), said.append)
    said = [line for line in said if "whether it ignores case" not in line]
    return [line.rpartition(" in ")[0] for line in said], [unplaced(line).removeprefix(f"{relay.config_file}: ") for line in problems]


async def test_files_and_a_git_host(relay: RelayProcess, sshd: Sshd) -> None:
    said, problems = await checked(relay)
    assert problems == []
    assert said[1:] == [
        "keys file: answered",
        "access file: answered",
        "routes file: answered",
        f"upstream main: logged in to {sshd.address}:{sshd.port} as {sshd.user}",
    ]


async def test_backends_that_answer_and_backends_that_do_not(relay: RelayProcess, tmp_path: Path) -> None:
    with Authority(tmp_path / "authority") as authority, RedisServer() as redis:
        relay.write_config(
            {
                "keys": {"source": "redis", "path": None, "urls": [redis.url]},
                "access": {"source": "http", "path": None, "url": authority.url},
                "routes": {"source": "http", "path": None, "url": authority.url},
            }
        )
        said, problems = await checked(relay)
        assert problems == []
        assert said[1:4] == ["keys redis: answered", "access http: answered", "routes http: answered"]
        redis.kill()
        authority.kill()
        said, problems = await checked(relay)
    assert [problem.split(":")[:3] for problem in problems] == [
        ["keys", " unreachable", " keys redis"],
        ["access", " unreachable", " access http"],
        ["routes", " unreachable", " routes http"],
    ]
    assert said[1].startswith("upstream main: logged in")


async def test_an_authority_that_says_yes_to_everything(relay: RelayProcess) -> None:
    async with Answering(Said(200, b'{"identity": "root"}')) as server:
        relay.write_config({"keys": {"source": "http", "path": None, "url": server.url}})
        _, problems = await checked(relay)
    assert problems == ["keys: a key that was made just now has an owner, must be nobody's"]


async def test_every_address_of_every_upstream_is_logged_in_to(relay: RelayProcess, sshd: Sshd, make_sshd: Callable[..., Sshd]) -> None:
    other, stranger = make_sshd(authorized=[sshd.key.line]), make_sshd()
    names = [f"{one.address}:{one.port}" for one in (sshd, other, stranger)]
    keys = [one.host_key_line for one in (sshd, other)]
    spare = {"addresses": names[1:2], "user": other.user, "private_key": "upstream_ed25519", "host_keys": keys}
    relay.write_config({"upstreams": {"main": {"addresses": [*names, "127.0.0.1:1"], "host_keys": keys}, "spare": spare}})
    said, problems = await checked(relay)
    reached = ("main", names[0]), ("main", names[1]), ("spare", names[1])
    assert said[4:] == [f"upstream {upstream}: logged in to {name} as {sshd.user}" for upstream, name in reached]
    assert [problem.split(": ")[:3] for problem in problems] == [
        ["upstreams.main.addresses", names[2], "HOST KEY MISMATCH"],
        ["upstreams.main.addresses", "127.0.0.1:1", "Connection refused"],
    ]


async def test_what_can_be_done_about_a_login_that_fails(relay: RelayProcess, make_sshd: Callable[..., Sshd]) -> None:
    stranger = make_sshd()
    address = f"{stranger.address}:{stranger.port}"
    relay.write_config({"upstreams": {"main": {"addresses": [address], "host_keys": [stranger.host_key_line], "user": stranger.user}}})
    _, problems = await checked(relay)
    key = relay.config_file.parent / "upstream_ed25519"
    cure = f"; authorized_keys of {stranger.user} there must have what this prints: ssh-keygen -y -f {key}"
    assert len(problems) == 1
    assert problems[0].startswith(f"upstreams.main.addresses: {address}: the key of user {stranger.user!r} was refused: ")
    assert problems[0].endswith(cure) and "  " not in problems[0]
    relay.write_config({"upstreams": {"main": {"host_keys": [relay.host_key_line]}}})
    _, problems = await checked(relay)
    assert ": HOST KEY MISMATCH: offered SHA256:" in problems[0] and problems[0].count("\n") == 0
    assert problems[0].endswith("only if the git host itself says the same: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")


async def test_a_host_that_turns_the_relay_away_is_recognised(relay: RelayProcess, sshd: Sshd) -> None:
    async with Penalising(sshd) as front:
        for _ in range(4):
            front.penalise("127.0.0.1", "authfail")
        relay.write_config({"upstreams": {"main": {"addresses": [f"127.0.0.1:{front.port}"]}}})
        _, problems = await checked(relay)
    assert len(problems) == 1
    assert "it penalises the relay's address: name it in PerSourcePenaltyExemptList" in problems[0]


def test_the_command_says_so_and_fails(relay: RelayProcess, sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", str(relay.config_file), "--connect"]) == 0
    assert "keys file: answered in" in (out := capsys.readouterr().out) and "no problems found" in out
    relay.write_config({"upstreams": {"main": {"addresses": ["127.0.0.1:1"]}}})
    assert main(["check", "-c", str(relay.config_file), "--connect"]) == 1
    assert f"{relay.config_file}: upstreams.main.addresses: " in unplaced(capsys.readouterr().err)


def test_without_connect_nobody_is_asked(relay: RelayProcess) -> None:
    relay.write_config({"access": {"source": "http", "path": None, "url": "http://127.0.0.1:1"}})
    assert main(["check", "-c", str(relay.config_file)]) == 0


def test_problems_of_a_backend_s_settings_name_the_file(relay: RelayProcess, capsys: pytest.CaptureFixture[str]) -> None:
    relay.write_config({"access": {"source": "http", "path": None, "url": "http://10.0.0.1"}, "keys": {"source": "exec", "path": None}})
    assert main(["check", "-c", str(relay.config_file)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(unplaced(line).startswith(f"{relay.config_file}: access.url: is http:// to another machine") for line in lines)
    assert any(unplaced(line).startswith(f"{relay.config_file}: keys.command: is missing") for line in lines)
    relay.write_config({"keys": {"source": "redis", "command": None, "urls": ["redys://alice:hunter2@h"]}})
    assert main(["check", "-c", str(relay.config_file)]) == 1
    assert "hunter2" not in (said := capsys.readouterr().err) and "keys.urls" in said


async def test_a_git_host_that_ignores_case_and_a_setting_that_does_not_say_so(relay: RelayProcess, sshd: Sshd) -> None:
    path = make_repo(sshd.root / "case/app.git")

    async def compared(*repositories: str) -> tuple[list[str], list[str]]:
        said: list[str] = []
        problems = await connect_all(load_all(relay.config_file), said.append, repositories)
        return [line for line in said if "case" in line], [unplaced(line).replace(f"{relay.config_file}: ", "") for line in problems]

    unknown = "upstream main: whether it ignores case is not known; name a repository that is there: --repository NAME"
    assert await compared() == ([unknown], [])
    assert await compared("case/nothing") == ([unknown], [])
    assert await compared("case/app") == (["upstream main: does not ignore case"], [])
    (path.parent / "APP.git").symlink_to(path)
    why = f'"{path}" is found there in another case too, so whoever spells it so passes the rules about it'
    assert await compared("case/app") == ([], [f"upstreams.main.ignore_case: is false, must be true: {why}"])
    relay.write_config({"upstreams": {"main": {"ignore_case": True}}})
    assert await compared("case/app") == (["upstream main: ignores case"], [])
    assert (await compared("../x"))[1][0].startswith('routes: "../x": ')
