"""Pinned host keys and known_hosts files: which keys the relay accepts for a host. ssh-keygen hashes names and must find the same lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import UpstreamSettings
from relay.upstream.hostkeys import HostKeys, parse_known_hosts, parse_pinned, read_host_keys
from tests.support.keys import Key, SoftwareSecurityKey, make_key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("made")
    keys = {name: make_key(folder, name) for name in ("one", "two", "three")}
    return keys | {"ecdsa": make_key(folder, "ecdsa", "ecdsa"), "rsa": make_key(folder, "rsa", "rsa")}


def blob(key: Key) -> bytes:
    return key.load().public_data


def owners(found: HostKeys, made: dict[str, Key]) -> set[str]:
    return {name for name, key in made.items() if found.match(blob(key))}


def test_a_pinned_key_matches_byte_for_byte(made: dict[str, Key]) -> None:
    found, faults = parse_pinned([made["one"].host_line, made["rsa"].line, made["one"].line])
    assert faults == []
    assert owners(found, made) == {"one", "rsa"}
    assert not found.match(blob(made["one"])[:-1])
    assert not found.match(blob(made["one"]) + b"\0")
    assert not found.match(b"")
    assert found.fingerprints == [made["one"].fingerprint, made["rsa"].fingerprint]
    assert {kind: len(blobs) for kind, blobs in found.blobs.items()} == {"ssh-ed25519": 1, "ssh-rsa": 1}


def test_only_what_a_pinned_key_can_sign_with_is_negotiated(made: dict[str, Key]) -> None:
    assert parse_pinned([made["rsa"].line, made["ecdsa"].line, made["one"].line])[0].types == [
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "rsa-sha2-512",
        "rsa-sha2-256",
    ]
    assert parse_pinned([made["rsa"].line])[0].types == ["rsa-sha2-512", "rsa-sha2-256"]
    assert not HostKeys()
    assert not HostKeys().match(blob(made["one"]))


def test_faulty_pins_are_told_by_number(made: dict[str, Key]) -> None:
    token = SoftwareSecurityKey()
    found, faults = parse_pinned([made["one"].line, "ssh-ed25519 AAAA", f"git.internal {made['two'].line}", token.line])
    assert owners(found, made) == {"one"}
    assert [(number, text.split(",")[0]) for number, text in faults] == [
        (2, "the ssh-ed25519 key is cut off or damaged"),
        (3, "has something in front of the key (options or a host name)"),
        (4, "sk-ssh-ed25519@openssh.com is not possible here; allowed are ssh-ed25519"),
    ]


# -- known_hosts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "host", "port", "found"),
    [
        ("git.internal", "git.internal", 22, True),
        ("git.internal", "GIT.internal", 22, True),
        ("GIT.internal", "git.internal", 22, True),
        ("git.internal", "git.internal", 2222, False),
        ("[git.internal]:2222", "git.internal", 2222, True),
        ("[git.internal]:2222", "git.internal", 22, False),
        ("a,git.internal,b", "git.internal", 22, True),
        ("*.internal", "git.internal", 22, True),
        ("*", "git.internal", 22, True),
        ("g?t.*", "git.internal", 22, True),
        ("*.internal,!git.internal", "git.internal", 22, False),
        ("!git.internal,*.internal", "git.internal", 22, False),
        ("*.internal,!git.internal", "other.internal", 22, True),
        ("!other", "git.internal", 22, False),
        ("git.internal.evil", "git.internal", 22, False),
        ("gitxinternal", "git.internal", 22, False),
        ("git", "git.internal", 22, False),
        ("2001:db8::1", "2001:db8::1", 22, True),
        ("[2001:db8::1]:2222", "2001:db8::1", 2222, True),
        ("[*]:2222", "git.internal", 2222, True),
    ],
)
def test_host_names_and_patterns(made: dict[str, Key], tmp_path: Path, hosts: str, host: str, port: int, found: bool) -> None:
    line = f"{hosts} {made['one'].host_line} a comment\n"
    keys, faults = parse_known_hosts(line, host, port)
    assert (owners(keys, made), faults) == ({"one"} if found else set(), [])
    (tmp_path / "known_hosts").write_text(line)
    name = (host if port == 22 else f"[{host}]:{port}").lower()
    told = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", tmp_path / "known_hosts"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (made["one"].host_line.split()[1] in told.stdout) == found  # OpenSSH agrees


@pytest.mark.parametrize("address", [("git.internal", 22), ("git.internal", 2222), ("2001:db8::1", 22)])
def test_names_hashed_by_ssh_keygen(made: dict[str, Key], tmp_path: Path, address: tuple[str, int]) -> None:
    host, port = address
    path = tmp_path / "known_hosts"
    path.write_text(f"other {made['two'].host_line}\n{host if port == 22 else f'[{host}]:{port}'} {made['one'].host_line}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, timeout=60, capture_output=True)
    text = path.read_text()
    assert "|1|" in text
    assert host not in text
    keys, faults = parse_known_hosts(text, host, port)
    assert (owners(keys, made), faults) == ({"one"}, [])
    assert not parse_known_hosts(text, host, port + 1)[0]


def test_markers_comments_and_types_that_nobody_asked_for(made: dict[str, Key]) -> None:
    text = f"""
# a comment
git {made["one"].line}\r
git {made["two"].line}
git {made["ecdsa"].line}
git {made["rsa"].line}
git ssh-dss AAAAB3NzaC1kc3MAAA
@cert-authority * {made["three"].line}
@revoked * {made["two"].line}
@revoked other {made["rsa"].line}
"""
    keys, faults = parse_known_hosts(text, "git", 22)
    assert (owners(keys, made), faults) == ({"one", "ecdsa", "rsa"}, [])
    # a revocation in front of the key's line revokes it, too
    keys, _ = parse_known_hosts(f"@revoked git {made['one'].line}\ngit {made['one'].line}\n", "git", 22)
    assert not keys


def test_damaged_lines_are_told_by_number(made: dict[str, Key]) -> None:
    one = made["one"].host_line
    lines = ["git ssh-ed25519", f"git {one[:-4]}", f"@trusted git {one}", f"|1|xx|yy {one}", f"|2|a|b {one}"]
    keys, faults = parse_known_hosts("\n".join(lines), "git", 22)
    assert not keys
    assert faults == [
        (1, "is cut off, must be 'hosts type base64'"),
        (2, "the ssh-ed25519 key is cut off or damaged, must be copied whole from a .pub file"),
        (3, 'begins with "@trusted", allowed markers are @revoked and @cert-authority'),
        (4, "has a damaged host name hash, must be |1|salt|hash as ssh-keygen -H writes it"),
        (5, "has a damaged host name hash, must be |1|salt|hash as ssh-keygen -H writes it"),
    ]


pieces = ["git", "*", "!", "|1|", "|", "@revoked", "@x", ",", " ", "\n", "ssh-ed25519", "AAAA", "#", "ssh-rsa"]


@given(st.lists(st.sampled_from(pieces)).map("".join))
def test_any_text_is_keys_or_faults(text: str) -> None:
    keys, faults = parse_known_hosts(text, "git", 22)
    assert not keys
    assert all(number >= 1 and said for number, said in faults)


# -- of an upstream ------------------------------------------------------------------------------------------------------

WHERE = "relay.toml: upstreams.main"


def test_pinned_keys_of_an_upstream(made: dict[str, Key], tmp_path: Path) -> None:
    upstream = UpstreamSettings(addresses=["git:22"], host_keys=[made["one"].line, "junk"])
    keys, problems = read_host_keys(upstream, f"{WHERE}.{{}}".format, tmp_path)
    assert owners(keys, made) == {"one"}
    assert [line.split(",")[0] for line in problems] == [f'{WHERE}.host_keys: item 2 begins with "junk"']


def test_a_known_hosts_file_has_a_key_for_every_address(made: dict[str, Key], tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"a {made['one'].line}\n[b]:2222 {made['two'].line}\n")
    keys, problems = read_host_keys(
        UpstreamSettings(addresses=["a:22", "b:2222"], known_hosts="known_hosts"), f"{WHERE}.{{}}".format, tmp_path
    )
    assert (owners(keys, made), problems) == ({"one", "two"}, [])
    keys, problems = read_host_keys(
        UpstreamSettings(addresses=["a:22", "b:22"], known_hosts="known_hosts"), f"{WHERE}.{{}}".format, tmp_path
    )
    assert owners(keys, made) == {"one"}
    assert problems == [f"{WHERE}.known_hosts: {path} has no usable key of b:22, must have one for every address"]


def test_a_damaged_line_is_told_once_whatever_the_number_of_addresses(made: dict[str, Key], tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"a,b {made['one'].line}\nb\n")
    _, problems = read_host_keys(
        UpstreamSettings(addresses=["a:22", "b:22"], known_hosts=str(path)), f"{WHERE}.{{}}".format, Path("/nowhere")
    )
    assert problems == [f"{path}:2: is cut off, must be 'hosts type base64'"]


def test_exactly_one_of_the_two(made: dict[str, Key], tmp_path: Path) -> None:
    keys, problems = read_host_keys(UpstreamSettings(addresses=["a:2222"]), f"{WHERE}.{{}}".format, tmp_path)
    assert not keys
    assert problems == [
        f"{WHERE}.host_keys: is empty, must pin the git host's key as in a .pub file (get it: ssh-keyscan -t ed25519 -p 2222 a),"
        " or known_hosts must name a file"
    ]
    both = UpstreamSettings(addresses=["a:22"], host_keys=[made["one"].line], known_hosts="x")
    keys, problems = read_host_keys(both, f"{WHERE}.{{}}".format, tmp_path)
    assert not keys
    assert problems == [f"{WHERE}.known_hosts: is set beside host_keys, must be one of the two"]


def test_a_known_hosts_file_that_is_not_there(tmp_path: Path) -> None:
    keys, problems = read_host_keys(UpstreamSettings(addresses=["a:22"], known_hosts="none"), f"{WHERE}.{{}}".format, tmp_path)
    assert not keys
    assert problems == [f"{WHERE}.known_hosts: {tmp_path}/none cannot be read (No such file or directory), must be a known_hosts file"]
