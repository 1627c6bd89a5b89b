"""A configuration with the files it names, and all its possible problems: one line each, reported together."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import asyncssh
import pytest

import relay.preflight
from relay.config import Config, UpstreamSettings
from relay.config.load import Loaded, load_config
from relay.errors import ConfigError
from relay.preflight import SOCKET_PATH_BYTES, check, load_all, remarks
from tests.support.certificates import PAST, Ca
from tests.support.keys import make_key
from tests.support.problems import unplaced
from tests.support.toml import merge, toml_text


class Setup:
    """A folder with a valid configuration, which tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "relay.toml"
        self.host = make_key(folder, "host_ed25519")
        self.upstream = make_key(folder, "upstream_ed25519")
        self.far = make_key(folder / "far", "host")
        self.alice = make_key(folder / "far", "alice")
        (folder / "keys").mkdir()
        (folder / "keys" / "alice.pub").write_text(self.alice.line)
        (folder / "access.toml").write_text(toml_text({"rule": [{"repositories": "**", "who": ["*"], "allow": "read"}]}))
        (folder / "routes.toml").write_text(toml_text({"route": [{"repositories": "**", "upstream": "main", "path": "{repository}"}]}))
        self.table: dict[str, Any] = {"upstreams": {"main": {"addresses": ["10.0.0.5:22"], "host_keys": [self.far.host_line]}}}

    def write(self, changes: dict[str, Any]) -> None:
        self.path.write_text(toml_text(merge(self.table, changes)))

    def problems(self, **changes: Any) -> list[str]:
        """The problems without the folder's name and without line numbers, which tests/config/test_toml.py tests."""
        self.write(changes)
        try:
            load_all(self.path)
        except ConfigError as error:
            return [unplaced(line.replace(f"{self.folder}/", "")) for line in error.problems]
        return []


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


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


def test_a_user_certificate_is_judged(setup: Setup) -> None:
    def problems(**certificate: Any) -> list[str]:
        main = {**setup.table["upstreams"]["main"], "private_key": "none", "user_certificate": {"ca_key": "relay_ca", **certificate}}
        return setup.problems(upstreams={"main": main})

    where = "relay.toml: upstreams.main.user_certificate"
    [line] = problems()
    assert line.startswith(f"{where}.ca_key: relay_ca is missing, must be a private key (make one: ssh-keygen -t ed25519")
    make_key(setup.folder, "relay_ca")
    assert problems() == [], "no other private key is asked for"
    assert problems(ca_key="host_ed25519") == [f"{where}.ca_key: host_ed25519 is a host key too, must be a key of its own"]
    assert problems(key_id="{name}", user="{}", principals=["{identity}", "a,b"], check_identity="@x", valid_seconds=5) == [
        f"{where}.valid_seconds: is 5, must be a number of seconds from 10 to 86400",
        f"{where}.key_id: has braces besides {{identity}}, which is the only placeholder that is allowed",
        f"{where}.user: has braces besides {{identity}}, which is the only placeholder that is allowed",
        f'{where}.principals: "a,b" must have printable characters only, and no comma',
        f'{where}.check_identity: "@x" must not be * and must not begin with @, which have a meaning in access rules',
    ]


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
        ({"listen": ["0.0.0.0"]}, 'relay.toml: listen: "0.0.0.0" must be host:port or [v6]:port, or "systemd"'),
        ({"listen": ["::1:22"]}, 'relay.toml: listen: "::1:22" must have brackets around an IPv6 address: [v6]:port, or "systemd"'),
        ({"listen": ["1.2.3.4:1", "1.2.3.4:1"]}, "relay.toml: listen: names an address twice, must name each once"),
        ({"listen": []}, "relay.toml: listen: is an empty list, must be a list of text of 1 to 256 characters"
            " (host:port, [v6]:port, or systemd where allowed), at least 1"),
        ({"admin": {"listen": "systemd"}}, 'relay.toml: admin.listen: "systemd" must be host:port or [v6]:port'),
        ({"admin": {"listen": "0.0.0.0:2222"}}, 'relay.toml: admin.listen: "0.0.0.0:2222" is taken by listen, must be another port'),
        ({"greeting": "Hi {name}"}, "relay.toml: greeting: has braces besides {identity}, which is the only placeholder that is allowed"),
        ({"greeting": "{"}, "relay.toml: greeting: has braces besides {identity}, which is the only placeholder that is allowed"),
        ({"proxy_protocol": {"mode": "require"}},
            'relay.toml: proxy_protocol.trusted: is empty though mode is "require", must name the load balancers\' addresses or networks'),
        ({"proxy_protocol": {"mode": "allow", "trusted": ["10.0.0.0/8", "lb"]}},
            'relay.toml: proxy_protocol.trusted: "lb" must be an IP address or a network such as 10.0.0.0/8 or 2001:db8::/32'),
        ({"proxy_protocol": {"trusted": ["10.0.0.1/8"]}},
            'relay.toml: proxy_protocol.trusted: "10.0.0.1/8" has bits set beyond its prefix, must be 10.0.0.0/8 or a single address'),
        ({"limits": {"penalty_seconds": 700}}, "relay.toml: limits.penalty_seconds: is 700, must be at most penalty_max_seconds (600)"),
        ({"upstreams": {"main": {"addresses": ["git"]}}}, 'relay.toml: upstreams.main.addresses: "git" must be host:port or [v6]:port'),
        ({"upstreams": {"main": {"addresses": ["[::1]:22", "[0::1]:22"]}}},
            'relay.toml: upstreams.main.addresses: "[::1]:22" is listed twice, must be listed once'),
        ({"upstreams": {"main": {"addresses": ["git.example.com:22"]}}},
            'relay.toml: upstreams.main.addresses: "git.example.com:22" is an example, must be the host:port of your git host'),
        ({"upstreams": {"main": {"idle_connections": 65}}},
            "relay.toml: upstreams.main.idle_connections: is 65, must be at most connections_max (64)"),
        ({"upstreams": {"main": {"known_hosts": "known_hosts"}}},
            "relay.toml: upstreams.main.known_hosts: is set beside host_keys, must be one of the two"),
        ({"upstreams": {"main": {"addresses": None}}},
            "relay.toml: upstreams.main.addresses: is missing, must be a list of text of 1 to 256 characters"
            " (host:port, [v6]:port, or systemd where allowed), at least 1"),
        ({"upstreams": None}, "relay.toml: upstreams: is missing, must be tables: [upstreams.NAME]"),
        ({"upstreams": 5}, "relay.toml: upstreams: is 5, must be tables: [upstreams.NAME]"),
        ({"upstreams": {"main": 5}}, "relay.toml: upstreams.main: is 5, must be a table: [upstreams.main]"),
        ({"keys": {"path": "none"}},
            "none: cannot be read (No such file or directory), must be a folder of .pub files, or a file of lines as in authorized_keys"),
        ({"keys": {"source": "ldap"}}, 'relay.toml: keys.source: is "ldap", allowed are "file", "http", "redis", "exec"'),
        ({"access": {"path": "none.toml"}}, "none.toml: is missing, must be a TOML file"),
        ({"routes": {"path": "none.toml"}}, "none.toml: is missing, must be a TOML file"),
        ({"host_keys": ["keys"]}, "relay.toml: host_keys: keys cannot be read (Is a directory), must be a private key"),
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


def test_an_upstream_s_name_is_a_label(setup: Setup) -> None:
    (setup.folder / "routes.toml").write_text('[[route]]\nrepositories = "**"\nupstream = "a b"\npath = "{repository}"\n')
    table = setup.table["upstreams"]["main"]
    assert setup.problems(upstreams={"main": None, "a b": table}) == [
        'relay.toml: upstreams."a b": has a name that is not allowed, must be 1 to 64 letters, digits, dots, hyphens or underscores'
    ]


def test_no_upstream_at_all(setup: Setup) -> None:
    setup.table = {}
    setup.path.write_text("[upstreams]\n")
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert caught.value.problems == [f"{setup.path}:1: upstreams: is empty, must have at least one git host: [upstreams.NAME]"]


def test_host_keys_of_every_type_stand_side_by_side(setup: Setup) -> None:
    make_key(setup.folder, "host_ecdsa", "ecdsa")
    asyncssh.generate_private_key("ssh-rsa", key_size=3072).write_private_key(str(setup.folder / "host_rsa"))
    (setup.folder / "host_rsa").chmod(0o600)
    assert setup.problems(host_keys=["host_ed25519", "host_ecdsa", "host_rsa"]) == []


def test_a_second_host_key_of_a_type_and_a_short_one(setup: Setup) -> None:
    make_key(setup.folder, "other")
    make_key(setup.folder, "short", "rsa")
    assert setup.problems(host_keys=["host_ed25519", "other", "short", "short"]) == [
        "relay.toml: host_keys: other is a second ssh-ed25519 key beside host_ed25519, allowed is one of each type",
        'relay.toml: host_keys: "short" is listed twice, must be listed once',
        'relay.toml: host_keys: short is an RSA key of 2048 bits, must have 3072 with profile = "modern"',
    ]
    assert setup.problems(host_keys=["short"], algorithms={"profile": "compatible"}) == []


def test_a_protected_key_of_the_relay(setup: Setup) -> None:
    path = setup.folder / "upstream_ed25519"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path), passphrase="secret")
    assert setup.problems() == [
        "relay.toml: upstreams.main.private_key: upstream_ed25519 is protected by a passphrase,"
        " must not be (take it off: ssh-keygen -p -N '' -f upstream_ed25519)"
    ]


def test_two_people_with_one_key(setup: Setup) -> None:
    (setup.folder / "keys" / "bob.pub").write_text(setup.alice.line)
    assert setup.problems() == [
        f"keys/bob.pub: bob has the key {setup.alice.fingerprint} of alice (keys/alice.pub), must have a key of their own"
    ]


def test_a_known_hosts_file_instead_of_pins(setup: Setup) -> None:
    known = {"upstreams": {"main": {"host_keys": None, "known_hosts": "known_hosts"}}}
    assert setup.problems(**known) == [
        "relay.toml: upstreams.main.known_hosts: known_hosts cannot be read (No such file or directory), must be a known_hosts file"
    ]
    (setup.folder / "known_hosts").write_text(f"10.0.0.6 {setup.far.line}\n")
    assert setup.problems(**known) == [
        "relay.toml: upstreams.main.known_hosts: known_hosts has no usable key of 10.0.0.5:22, must have one for every address"
    ]
    (setup.folder / "known_hosts").write_text(f"10.0.0.5 {setup.far.line}\n")
    assert setup.problems(**known) == []


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

    monkeypatch.setattr("relay.preflight.os.access", refuse)
    assert setup.problems(log={"audit": "audit.json"}) == [
        f"relay.toml: {key}: {name} lies in a folder that may not be written, must lie in a folder that the relay may write to"
        for key, name in (("log.audit", "audit.json"), ("admin.sessions_socket", "relay.sock"))
    ]
    assert asked == [setup.folder, setup.folder]
    (setup.folder / "audit.json").touch()
    assert setup.problems(log={"audit": "audit.json"})[0] == (
        'relay.toml: log.audit: audit.json may not be written, must be a writable file or "-" for stdout'
    )


def test_what_is_no_toml_is_one_line(setup: Setup) -> None:
    setup.path.write_text("user = git\n")
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert caught.value.problems == [f"{setup.path}:1: Invalid value in column 8, must be TOML"]
    with pytest.raises(ConfigError, match=r"none\.toml: is missing, must be a TOML file"):
        load_all(setup.folder / "none.toml")


def test_no_private_key_is_ever_repeated(setup: Setup) -> None:
    """A user may paste the key itself instead of its path."""
    secret = setup.upstream.private.read_text()
    problems = setup.problems(upstreams={"main": {"private_key": secret, "host_keys": [secret]}}, host_keys=[secret])
    assert len(problems) == 3
    body = "".join(secret.splitlines()[1:-1])
    shown = "".join(problems)
    assert not any(body[at : at + 24] in shown for at in range(len(body) - 24))


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


def test_policy_names_groups_of_the_file_and_keys_that_it_refuses(setup: Setup) -> None:
    rules = {"groups": {"ops": ["alice"]}, "rule": [{"repositories": "**", "who": ["@ops"], "allow": "read"}]}
    (setup.folder / "access.toml").write_text(toml_text(rules))
    (setup.folder / "keys" / "bob.pub").write_text(make_key(setup.folder / "far", "bob", "rsa").line)
    policy = {"rsa_bits": 3072, "rule": [{"who": ["@ops"], "from_networks": ["10.0.0.0/8"]}, {"who": ["@none"], "expires": "tomorrow"}]}
    [first] = setup.problems(policy=policy)
    assert 'policy.rule#2.expires: has the expiry-time "tomorrow"' in first and first.startswith("relay.toml: ")
    policy["rule"][1] = {"who": ["@none"], "expires": "20200102Z"}  # type: ignore[index]
    [first] = setup.problems(policy=policy)
    assert first == 'relay.toml: policy.rule#2.who: "@none" is no group of access.toml'
    policy["rule"][1] = {"who": ["carol"], "expires": "20200102Z"}  # type: ignore[index]
    assert setup.problems(policy=policy) == []
    told = [unplaced(line).removeprefix(f"{setup.path}: ") for line in remarks(load_all(setup.path))]
    assert told[:3] == [
        "policy.rule#2.expires: 2020-01-02T00:00:00Z has passed: whom the rule names cannot log in",
        'policy.rule#2.who: no key is of "carol"',
        "policy.rule#2: holds for nobody: all whom it names have no key, or are exempt",
    ]
    assert told[3].startswith("policy: bob cannot log in with SHA256:") and told[3].endswith("2048 bits, policy asks for 3072")
    assert len(told) == 4
    [first] = setup.problems(policy=policy, access={"source": "http", "url": "https://a.example.com"})
    assert first.endswith('policy.rule#1.who: "@ops" is a group, and access by http has none, must be an identity')


def test_exempt_networks(setup: Setup) -> None:
    assert setup.problems(limits={"exempt": ["10.0.0.1/8", "example.com"]}) == [
        'relay.toml: limits.exempt: "10.0.0.1/8" has bits set beyond its prefix, must be 10.0.0.0/8 or a single address',
        'relay.toml: limits.exempt: "example.com" must be an IP address or a network such as 10.0.0.0/8 or 2001:db8::/32',
    ]
    assert setup.problems(limits={"exempt": ["10.0.0.0/8", "10.1.0.0/16", "::/0", "10.0.0.0/8"]}) == []
    assert [unplaced(line) for line in remarks(load_all(setup.path))] == [
        f'{setup.path}: limits.exempt: "10.1.0.0/16" has no effect beside 10.0.0.0/8',
        f'{setup.path}: limits.exempt: "::/0" is everybody, so no limit by source and no penalty is left',
    ]


def test_texts_for_people(setup: Setup) -> None:
    assert setup.problems(banner="Only for\tstaff.\n見るな\n", notice="moved") == []
    assert setup.problems(banner="bell \x07", notice="two\nlines") == [
        "relay.toml: banner: has control characters besides tabs and line ends, must have none",
        "relay.toml: notice: has control characters, must have none",
    ]


@pytest.mark.parametrize(
    ("tracing", "problem"),
    [
        (
            {"url": "http://collector.test:4318/v1/traces"},
            "tracing.url: is http:// to another machine, must be https://, or plain_http = true on a network that is nobody else's",
        ),
        (
            {"url": "https://a:b@collector.test/"},
            "tracing.url: has a user or a password in it, must not: the log shows URLs; use token_file",
        ),
        (
            {"url": "https://collector.test/", "token_file": "none"},
            "tracing.token_file: the file cannot be read (No such file or directory), must be the path of a file that holds it",
        ),
        (
            {"url": "https://collector.test/", "ca_file": "none.pem"},
            "tracing.ca_file: none.pem cannot be read (No such file or directory), must be certificates in PEM",
        ),
    ],
)
def test_a_collector_of_traces_that_cannot_be_used(setup: Setup, tracing: dict[str, Any], problem: str) -> None:
    assert setup.problems(tracing=tracing) == [f"relay.toml: {problem}"]


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("t0ken\n", 0o644, "the file is open to everyone (mode 0644), must be 0600 or 0640"),
        ("two words\n", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        ("t0ken\n", 0o640, None),
    ],
)
def test_a_token_of_the_collector_is_judged_as_other_secrets_are(setup: Setup, text: str, mode: int, problem: str | None) -> None:
    (setup.folder / "token").write_text(text)
    (setup.folder / "token").chmod(mode)
    told = setup.problems(tracing={"url": "https://collector.test/", "token_file": "token"})
    assert told == ([] if problem is None else [f"relay.toml: tracing.token_file: {problem}"])


def test_a_ca_file_of_the_collector_that_is_none(setup: Setup) -> None:
    (setup.folder / "ca.pem").write_text("no certificate\n")
    [problem] = setup.problems(tracing={"url": "https://collector.test/", "ca_file": "ca.pem"})
    assert problem.startswith("relay.toml: tracing.ca_file: ca.pem cannot be read (")


def test_tracing_without_the_sdk_says_what_to_install(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(relay.preflight, "find_spec", lambda name: None if name == "opentelemetry.sdk" else found(name))
    assert setup.problems(tracing={"url": "https://collector.test/"}) == [
        "relay.toml: tracing: needs OpenTelemetry's SDK, which is not installed: pip install 'git-ssh-relay[tracing]'"
    ]


def test_host_certificates(setup: Setup) -> None:
    ca = Ca(setup.folder / "far")
    problems = setup.problems(host_certificates=[str(ca.sign(setup.host)), "none.pub"])
    assert (
        len(problems) == 2 and "the certificate is a user's, must be a host's" in problems[0] and "none.pub: cannot be read" in problems[1]
    )
    old = ca.sign(setup.host, principals=["relay"], validity=PAST, host=True)
    assert setup.problems(host_certificates=[str(old)]) == []
    [told] = remarks(load_all(setup.path))
    assert "host_certificates: the certificate of the ssh-ed25519 key ran out at 2020-01-0" in told
