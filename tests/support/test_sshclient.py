"""The two clients report exactly what a session did, and nothing of the machine's ssh settings is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest

from tests.support.keys import Key
from tests.support.pattern import stub_bytes, stub_stderr
from tests.support.sshclient import Result, SshClient, connect, run
from tests.support.sshd import Sshd


def test_sessions_on_a_control_master_share_its_connection(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    with SshClient.to(sshd).control_master() as master:
        clients = [master.popen(sshd.stub("half/1000")) for _ in range(10)]
        for client in clients:  # all ten run at once: read the bytes of each before any ends
            assert client.stdout is not None and client.stdout.read(1000) == stub_bytes(1000)
        for client in clients:
            with client:
                client.communicate()
            assert client.returncode == 0
    assert (sshd.logins(), sshd.connections(), len(sshd.commands())) == (1, 1, 10)


def test_a_control_master_that_can_t_log_in_is_told(sshd: Sshd, key: Key) -> None:
    client = SshClient(sshd.port, key.private, sshd.known_hosts)
    with pytest.raises(AssertionError, match=r"(?s)the control master ended with 255.*Permission denied"), client.control_master():
        pass


def test_options_come_before_the_hermetic_ones(sshd: Sshd, tmp_path: Path) -> None:
    empty = tmp_path / "none"
    empty.touch()
    refused = SshClient.to(sshd, f"UserKnownHostsFile={empty}").run(sshd.stub("exit/3"))
    assert refused.returncode == 255
    assert b"Host key verification failed" in refused.stderr


async def test_run_reports_bytes_and_status(sshd: Sshd) -> None:
    async with connect(sshd.port, [sshd.key], sshd.host_key_line) as connection:
        assert await run(connection, sshd.stub("mixed/200000/37")) == Result(stub_bytes(200_000), stub_stderr(200_000), 37, None)
        assert await run(connection, sshd.stub("cat"), b"echo") == Result(b"echo", b"", 0, None)
        assert await run(connection, sshd.stub("signal/TERM")) == Result(b"", b"", None, "TERM")


async def test_run_gives_up_in_time(sshd: Sshd) -> None:
    async with connect(sshd.port, [sshd.key], sshd.host_key_line) as connection:
        with pytest.raises(TimeoutError):
            await run(connection, sshd.stub("hang"), timeout=0.2)


async def test_another_host_key_is_refused(sshd: Sshd) -> None:
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        async with connect(sshd.port, [sshd.key], sshd.key.host_line):
            pass


async def test_only_the_given_keys_are_offered(make_sshd: Callable[..., Sshd], key: Key) -> None:
    sshd = make_sshd()
    with pytest.raises(asyncssh.PermissionDenied):
        async with connect(sshd.port, [key], sshd.host_key_line):
            pass
    assert sshd.log_text().count("Failed publickey") == 1
