"""Git hosts with one key exchange, cipher or MAC: `algorithms = "compatible"` carries git and 12 MB each way over rekeys."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.commands.check import connect_all
from relay.preflight import load_all
from relay.upstream.algorithms import offer
from relay.upstream.libssh2 import loaded_library
from tests.e2e.helpers import alice
from tests.support.gitrepo import commit, fsck, git, make_repo, rev_list, rev_parse
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import run
from tests.support.sshd import Sshd

SIZE = 12_000_000
REKEYS_LEAST = 10  # with a host that exchanges keys after each megabyte
REKEY = re.compile(r"set_newkeys: rekeying in")

WIDE = offer("compatible", bool(loaded_library().build))
HELD = {  # by its name in the routes: the name-list that has one algorithm
    **{f"kex{number}": f"KexAlgorithms {name}" for number, name in enumerate(WIDE.key_exchanges)},
    **{f"cipher{number}": f"Ciphers {name}" for number, name in enumerate(WIDE.ciphers)},
    **{f"mac{number}": f"Ciphers aes256-ctr\nMACs {name}" for number, name in enumerate(WIDE.macs)},
}

pytestmark = pytest.mark.xdist_group("host-algorithms")


@pytest.fixture(scope="module")
def hosts(sshd: Sshd) -> Iterator[dict[str, Sshd]]:
    with ExitStack() as stack:
        made = {}
        for name, held in HELD.items():
            host = Sshd(authorized=[sshd.key.line], config=[held, "RekeyLimit 1M", "LogLevel DEBUG1"])
            made[name] = stack.enter_context(host)
        yield made


@pytest.fixture(scope="module")
def relay(sshd: Sshd, hosts: dict[str, Sshd]) -> Iterator[RelayProcess]:
    upstreams = {name: {**upstream(host), "algorithms": "compatible", "idle_connections": 0} for name, host in hosts.items()}
    routes = [{"repositories": f"{name}/**", "upstream": name, "path": f"{host.root}/{{repository}}.git"} for name, host in hosts.items()]
    stubs = [{"repositories": f"stub/{name}", "upstream": name, "path": f"{host.root}/stub/checksum.git"} for name, host in hosts.items()]
    with RelayProcess(sshd, config={"upstreams": upstreams}, routes={"route": [*routes, *stubs]}) as process:
        yield process


@pytest.mark.parametrize("name", HELD, ids=lambda name: HELD[name].split()[-1])
async def test_git_and_bulk_both_ways_over_rekeys(relay: RelayProcess, hosts: dict[str, Sshd], tmp_path: Path, name: str) -> None:
    host = hosts[name]
    env, work = relay.git_env(tmp_path / "home", protocol=2), tmp_path / "work"
    bare = make_repo(host.root / name / "app.git")
    git("clone", relay.url(f"{name}/app"), work, env=env)
    assert rev_list(work, env, "HEAD") == rev_list(bare, env, "HEAD")
    pushed = commit(work, env, "big", os.urandom(SIZE))
    git("push", "origin", "HEAD:main", cwd=work, env=env)
    assert rev_parse(bare, env, "main") == pushed
    fsck(bare, env)
    git("clone", relay.url(f"{name}/app"), tmp_path / "again", env=env)
    assert rev_parse(tmp_path / "again", env, "HEAD") == pushed
    data = os.urandom(SIZE)
    async with alice(relay) as connection:
        result = await run(connection, f"git-receive-pack 'stub/{name}'", data)
    assert result.stdout.decode().split() == [hashlib.sha256(data).hexdigest(), str(SIZE)]
    assert len(REKEY.findall(host.log_text())) >= REKEYS_LEAST, "there were no rekeys: the test proves nothing"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("KexAlgorithms ecdh-sha2-nistp256", "no common key exchange: the host offers ecdh-sha2-nistp256, the relay curve25519-sha256,"),
        ("Ciphers chacha20-poly1305@openssh.com", "no common cipher: the host offers chacha20-poly1305@openssh.com, the relay aes128-gcm"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "no common MAC: the host offers hmac-sha1, the relay hmac-sha2-256,hmac-sha2-512"),
    ],
)
async def test_the_log_and_check_name_both_lists_and_the_client_reads_neither(make_sshd: Callable[..., Sshd], held: str, said: str) -> None:
    host = make_sshd(config=[held])
    with RelayProcess(host, config={"upstreams": {"main": {"idle_connections": 0}}}) as relay:
        done = relay.ssh().run("git-upload-pack 'team/app'")
        assert done.returncode != 0 and b"the git host is unavailable" in done.stderr and b"common" not in done.stderr
        assert said in relay.log_text()
        problems = await connect_all(load_all(relay.config_file), lambda line: None)
    (problem,) = [problem for problem in problems if "upstreams.main.addresses" in problem]
    assert f"127.0.0.1:{host.port}: " in problem and said in problem
    assert "Error" not in problem + relay.log_text()
