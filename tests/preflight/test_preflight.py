"""A configuration with the files it names, and all its possible problems: one line each, reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.config import Config, UpstreamSettings
from relay.config.load import Loaded, load_config
from relay.errors import ConfigError
from relay.preflight import check, load_all, remarks
from tests.preflight.helpers import Setup
from tests.support.keys import make_key
from tests.support.toml import toml_text


def test_a_valid_configuration_has_no_problems(setup: Setup) -> None:
    assert setup.problems() == []
    loaded = load_config(setup.path)
    assert loaded == Loaded(
        setup.path, Config(upstreams={"main": UpstreamSettings(addresses=["10.0.0.5:22"], host_keys=[setup.far.host_line])})
    )
    assert check(loaded) == []
    assert loaded.base == setup.folder
    assert loaded.resolve("keys") == setup.folder / "keys"
    assert loaded.resolve("/etc/keys") == Path("/etc/keys")


def test_paths_are_relative_to_the_file_and_not_to_the_process(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.write({})
    monkeypatch.chdir("/")
    assert check(load_config(setup.path)) == []
    monkeypatch.chdir(setup.folder)
    assert check(load_config(Path("relay.toml"))) == []
    (setup.folder / "host_ed25519").unlink()
    with pytest.raises(ConfigError, match=r"^relay\.toml: host_keys: host_ed25519 is missing, must be a private key"):
        load_all(Path("relay.toml"))


def test_all_problems_are_reported_at_once(setup: Setup) -> None:
    (setup.folder / "host_ed25519").chmod(0o644)
    (setup.folder / "keys" / "bob.pub").write_text("ssh-dss AAAA")
    (setup.folder / "access.toml").write_text('[[rule]]\nrepositories = "**"\nwho = ["@core"]\nallow = "write"\n')
    (setup.folder / "routes.toml").write_text('[[route]]\nrepositories = "**"\nupstream = "mian"\npath = "{repository}"\n')
    main = {"prot": 22, "private_key": "none", "host_keys": ["junk"]}
    problems = setup.problems(limits={"login_grace_seconds": -3}, upstreams={"main": main}, workers="two", wrokers=1)
    assert [line.split(",")[0] for line in problems] == [
        "relay.toml: wrokers: unknown key",
        "relay.toml: upstreams.main.prot: unknown key",
        'relay.toml: workers: is "two"',
        "relay.toml: limits.login_grace_seconds: is -3",
        "relay.toml: host_keys: host_ed25519 is open to group or others (mode 0644)",
        "relay.toml: upstreams.main.private_key: none is missing",
        'relay.toml: upstreams.main.host_keys: item 1 begins with "junk"',
        "keys/bob.pub:1: is a DSA key (ssh-dss)",
        'access.toml: rule#1.who: "@core" is no group',
        'routes.toml: route#1.upstream: is "mian"',
    ]
    allowed = ", ".join(UpstreamSettings.__struct_fields__)
    assert problems[1] == f"relay.toml: upstreams.main.prot: unknown key, allowed are {allowed}"
    assert problems[3] == "relay.toml: limits.login_grace_seconds: is -3, must be a number of seconds above 0 and at most 86400"
    with pytest.raises(ConfigError) as caught:
        load_config(setup.path)
    assert len(caught.value.problems) == 4  # the problems in the file itself


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"keys": {"path": "none"}},
            "none: cannot be read (No such file or directory), must be a folder of .pub files, or a file of lines as in authorized_keys"),
        ({"keys": {"source": "ldap"}}, 'relay.toml: keys.source: is "ldap", allowed are "file", "http", "redis", "exec"'),
        ({"access": {"path": "none.toml"}}, "none.toml: is missing, must be a TOML file"),
        ({"routes": {"path": "none.toml"}}, "none.toml: is missing, must be a TOML file"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_two_people_with_one_key(setup: Setup) -> None:
    (setup.folder / "keys" / "bob.pub").write_text(setup.alice.line)
    assert setup.problems() == [
        f"keys/bob.pub: bob has the key {setup.alice.fingerprint} of alice (keys/alice.pub), must have a key of their own"
    ]


def test_what_is_no_toml_is_one_line(setup: Setup) -> None:
    setup.path.write_text("user = git\n")
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert caught.value.problems == [f"{setup.path}:1: Invalid value in column 8, must be TOML"]
    with pytest.raises(ConfigError, match=r"none\.toml: is missing, must be a TOML file"):
        load_all(setup.folder / "none.toml")


def test_a_folder_without_keys_is_a_warning(setup: Setup) -> None:
    assert setup.problems() == []
    assert remarks(load_all(setup.path)) == []
    for path in (setup.folder / "keys").glob("*.pub"):
        path.rename(path.with_suffix(""))
    told = f"{setup.folder / 'keys'}: holds no key yet, so nobody can log in; only files that end in .pub are read"
    stray = f"{setup.folder / 'keys' / 'alice'}: is not read: only files that end in .pub are"
    assert remarks(load_all(setup.path)) == [stray, told]
    (setup.folder / "list").touch()
    assert setup.problems(keys={"source": "file", "path": "list"}) == []
    assert remarks(load_all(setup.path)) == [f"{setup.folder / 'list'}: holds no key yet, so nobody can log in"]
    assert setup.problems(keys={"source": "exec", "command": ["/bin/true"]}) == []
    assert remarks(load_all(setup.path)) == []


def test_settings_that_are_probably_not_intended_are_warnings_of_check(setup: Setup) -> None:
    rules = [{"repositories": "team/*", "who": ["alice", "bob"], "allow": "read"}]
    rules.append({"repositories": "team/a", "who": ["alice"], "allow": "read"})
    (setup.folder / "access.toml").write_text(toml_text({"rule": rules}))
    route = {"repositories": "lib/**", "upstream": "main", "path": "{repository}"}
    (setup.folder / "routes.toml").write_text(toml_text({"route": [route, {**route, "repositories": "lib/x"}]}))
    (setup.folder / "keys" / "bob.pub.txt").touch()
    other = {**setup.table["upstreams"]["main"], "addresses": ["10.0.0.6:22"]}
    assert setup.problems(upstreams={"other": other}) == []
    assert [line.replace(f"{setup.folder}/", "") for line in remarks(load_all(setup.path))] == [
        "keys/bob.pub.txt: is not read: only files that end in .pub are",
        'access.toml:4: rule#1.who: no key is of "bob"',
        'access.toml:3: rule#1.repositories: no route leads to a repository that "team/*" matches',
        'access.toml:8: rule#2.repositories: no route leads to a repository that "team/a" matches',
        "access.toml:7: rule#2: has no effect beside rule#1",
        'routes.toml:7: route#2: is never taken: route#1 matches all that "lib/x" does, and comes before',
        "relay.toml:8: upstreams.other: no route leads there",
    ]


def test_a_folder_of_packs_that_cannot_be_used_is_a_warning(setup: Setup) -> None:
    folder = setup.folder / "packs"
    assert setup.problems(packs={"folder": "packs", "max_bytes": 100_000, "free_bytes": 0}) == []
    assert remarks(load_all(setup.path)) == []
    assert not folder.exists(), "nothing is made"
    folder.mkdir(0o755)
    folder.chmod(0o755)
    assert remarks(load_all(setup.path)) == [
        f"{setup.path}:9: packs.folder: {folder} has the mode 0755, must have 0700: chmod 0700 {folder}; until then nothing is kept"
    ]


def test_names_are_not_judged_where_they_cannot_be_known(setup: Setup) -> None:
    (setup.folder / "access.toml").write_text(toml_text({"rule": [{"repositories": "**", "who": ["bob"], "allow": "read"}]}))
    assert setup.problems(keys={"source": "exec", "command": ["/bin/true"]}) == []
    assert remarks(load_all(setup.path)) == []
    ca = make_key(setup.folder / "far", "ca")
    (setup.folder / "ca.pub").write_text(ca.line)
    assert setup.problems(keys={"source": "file"}, certificates={"ca_keys": ["ca.pub"]}) == []
    assert remarks(load_all(setup.path)) == []


def test_a_problem_names_one_file_whatever_folder_the_command_runs_in(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    (setup.folder / "routes.toml").write_text('[[route]]\nrepositories = "**"\nupstream = "mian"\npath = "{repository}"\n')
    (setup.folder / "access.toml").unlink()
    setup.write({})
    monkeypatch.chdir(setup.folder)
    with pytest.raises(ConfigError) as caught:
        load_all(Path("relay.toml"))
    assert [line.split(" ")[0] for line in caught.value.problems] == ["access.toml:", "routes.toml:3:"]
    assert caught.value.problems[1].startswith('routes.toml:3: route#1.upstream: is "mian"')
