"""Git hosts beyond OpenSSH: Dropbear and asyncssh behind the relay carry git, streams, exit statuses and deaths by signal.

And the algorithms that the relay offers to them.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from asyncssh.constants import MSG_KEXINIT
from asyncssh.packet import SSHPacket

from tests.e2e.helpers import alice, streamed
from tests.support.gitrepo import commit, fsck, git, make_repo, rev_list, rev_parse
from tests.support.hosts import AsyncsshHost, Dropbear, HostMissing
from tests.support.pattern import stub_sha256, stub_stderr
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

KEY_EXCHANGES = {"curve25519-sha256", "curve25519-sha256@libssh.org", "ext-info-c", "kex-strict-c-v00@openssh.com"}
CIPHERS = {"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"}
MACS = {"hmac-sha2-256", "hmac-sha2-512"}  # no encrypt-then-MAC: libssh2 1.11.1 overflows there (GHSA-6c79-444r-wx26)

STREAM_BYTES = 20_000_000
REKEY_BYTES = 1_000_000  # often within a stream

HOSTS: dict[str, Callable[[], Sshd]] = {"dropbear": Dropbear, "asyncssh": lambda: AsyncsshHost(rekey_bytes=REKEY_BYTES)}


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest) -> Iterator[Sshd]:
    """The git host of the module's relay, instead of the tests' sshd."""
    try:
        made = HOSTS[request.param]()
    except HostMissing as missing:
        pytest.skip(str(missing))
    with made:
        yield made


@pytest.fixture(scope="module")
def relay(host: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(host) as process:
        yield process


def test_clone_and_push(relay: RelayProcess, host: Sshd, tmp_path: Path) -> None:
    env, work = relay.git_env(tmp_path / "home", protocol=2), tmp_path / "work"
    bare = make_repo(host.root / "team/app.git")
    host.give(bare)
    git("clone", relay.url("team/app"), work, env=env)
    assert rev_list(work, env, "HEAD") == rev_list(bare, env, "HEAD")
    pushed = commit(work, env, "big", os.urandom(3_000_000))
    git("push", "origin", "HEAD:main", cwd=work, env=env)
    assert rev_parse(bare, env, "main") == pushed
    fsck(bare, env)
    assert git("clone", relay.url("team/nowhere"), tmp_path / "no", env=env, check=False).returncode == 128


@pytest.mark.parametrize("status", [0, 1, 37, 128, 255])
def test_an_exit_status_is_the_git_hosts(relay: RelayProcess, status: int) -> None:
    done = relay.ssh().run(f"git-upload-pack 'stub/exit/{status}'")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
async def test_a_death_by_signal_is_told_as_one(relay: RelayProcess, name: str) -> None:
    async with alice(relay) as connection:
        result = await run(connection, f"git-upload-pack 'stub/signal/{name}/100000'")
    assert (result.exit_status, result.exit_signal, len(result.stdout)) == (None, name, 100_000)


def test_a_stream_down_with_stderr_and_a_status(relay: RelayProcess) -> None:
    with relay.ssh().popen(f"git-upload-pack 'stub/mixed/{STREAM_BYTES}/37'") as ssh:
        got = streamed(ssh)
    assert (got.returncode, got.length, got.sha256) == (37, STREAM_BYTES, stub_sha256(STREAM_BYTES))
    assert got.stderr == stub_stderr(STREAM_BYTES)


def test_a_stream_up(relay: RelayProcess) -> None:
    data = os.urandom(STREAM_BYTES)
    done = relay.ssh().run("git-receive-pack 'stub/checksum'", data)
    assert (done.returncode, done.stdout.decode()) == (0, f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"), done.stderr


def test_both_directions_at_once(relay: RelayProcess) -> None:
    data = os.urandom(STREAM_BYTES)
    done = relay.ssh().run("git-upload-pack 'stub/cat'", data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_keys_were_exchanged_within_the_streams(relay: RelayProcess, host: Sshd) -> None:
    if not isinstance(host, AsyncsshHost):
        pytest.skip("dropbear exchanges keys anew after 1 GB or 8 hours, and cannot be told otherwise")
    mark = host.log_mark()
    with relay.ssh().popen(f"git-upload-pack 'stub/emit/{STREAM_BYTES}'") as ssh:
        assert streamed(ssh).sha256 == stub_sha256(STREAM_BYTES)
    assert host.log_text(mark).count("Requesting key exchange") >= STREAM_BYTES // REKEY_BYTES // 2


def test_it_was_warm_and_served_many(relay: RelayProcess) -> None:
    for _ in range(5):
        assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    assert relay.metric("relay_upstream_leases_total", warm="true") > relay.metric("relay_upstream_leases_total", warm="false")
    assert relay.metric("relay_sessions_total", result="upstream") == relay.metric("relay_sessions_total", result="relay") == 0


def test_one_that_dies_in_the_middle_is_no_success_and_is_used_again_when_it_is_back(relay: RelayProcess, host: Sshd) -> None:
    with relay.ssh().popen("git-upload-pack 'stub/half/100000'") as ssh:
        assert ssh.stdout is not None
        assert len(ssh.stdout.read(100_000)) == 100_000
        host.stop()
        _, errors = ssh.communicate(timeout=60)
    assert (ssh.returncode, errors) == (255, b"relay: the connection to the git host was lost, try again\n")
    host.start()
    wait_until(lambda: relay.ssh().run("git-upload-pack 'stub/exit/4'").returncode == 4, message="it is used again")


# -- the relay's offer ---------------------------------------------------------------------------------------------------------


def test_what_is_offered_to_a_git_host(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        relay = make_relay(sshd, config={"upstreams": {"main": {"addresses": [address]}}})
        with relay.ssh().popen("git-upload-pack 'stub/exit/0'") as ssh:
            listener.settimeout(30)
            connection, _ = listener.accept()
            listener.close()  # so that a further attempt is refused at once
            connection.settimeout(30)
            with connection, connection.makefile("rb") as file:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                assert file.readline().startswith(b"SSH-2.0-")
                key_exchange, host_key, *others = kexinit(file)
            ssh.communicate()
    assert set(key_exchange) <= KEY_EXCHANGES
    assert host_key == ["ssh-ed25519"]  # the algorithm of the pinned key
    assert [set(names) for names in others] == [CIPHERS, CIPHERS, MACS, MACS, {"none"}, {"none"}, {""}, {""}]


def kexinit(stream: BinaryIO) -> list[list[str]]:
    """The ten name lists of the packet that follows the version line (RFC 4253 sections 6 and 7.1)."""
    length, padding = int.from_bytes(stream.read(4), "big"), stream.read(1)[0]
    packet = SSHPacket(stream.read(length - 1)[: length - 1 - padding])
    assert packet.get_byte() == MSG_KEXINIT
    packet.get_bytes(16)  # cookie
    return [packet.get_string().decode().split(",") for _ in range(10)]
