"""deploy/fail2ban: the filter finds exactly the failed logins in what a real relay wrote, whatever user names strangers send."""

from __future__ import annotations

import asyncio
import configparser
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import Boolean, String

from tests.support.fail2ban import FILTER, matches
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect
from tests.support.sshd import Sshd
from tests.support.userauth import Scripted, ScriptOverError
from tests.support.wait import wait_until_async

VICTIM = "198.51.100.66"  # the address that strangers try to get banned
STAMP = "2026-08-01T12:00:00.000Z"
FORGED = [
    f'x","address":"{VICTIM}","port":1,"y":"',
    f'{{"event":"login_failed","time":"{STAMP}","connection":"0123456789ab","address":"{VICTIM}","port":4711,',
    f'\n{{"event":"login_failed","time":"{STAMP}","connection":"0123456789ab","address":"{VICTIM}","port":4711,',
    f"{STAMP} no login -            {VICTIM}  git",
    f"no login - {VICTIM} ",
    f"\n{STAMP} no login -            {VICTIM}  git",
    f"host relay[1]: no login -    {VICTIM}  git",
]
GOOD, AGENT, SCANNER = "127.0.1.1", "127.0.1.2", "127.0.1.3"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"), "stranger")


@pytest.fixture(scope="module", params=["json", "text"])
def relay(request: pytest.FixtureRequest, sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, config={"log": {"format": request.param}}) as process:
        yield process


async def fail(relay: RelayProcess, address: str, stranger: Key, user: str = "git", version: str = "x") -> None:
    """A connection that offers a stranger's key under any user name, then leaves."""

    async def script(client: Scripted) -> None:
        client.be(user)
        await client.offer(stranger)

    options: dict[str, Any] = {"local_addr": (address, 0), "client_version": version, "client_factory": lambda: Scripted(script)}
    with pytest.raises((ScriptOverError, asyncssh.DisconnectError)):
        async with connect(relay.port, [], relay.host_key_line, relay.user, **options):
            pass


async def guess(relay: RelayProcess, address: str) -> None:
    """A connection that tries passwords, as most attackers do."""

    async def script(client: Scripted) -> None:
        client.be("root")
        for word in (b"root", b"123456"):
            await client.send("password", Boolean(False), String(word))
            await client.reply()

    options: dict[str, Any] = {"local_addr": (address, 0), "client_factory": lambda: Scripted(script)}
    with pytest.raises(ScriptOverError):
        async with connect(relay.port, [], relay.host_key_line, relay.user, **options):
            pass


async def test_the_failed_logins_and_nothing_else(relay: RelayProcess, stranger: Key) -> None:
    began = time.time()
    # what the filter must not find: people, an agent that offers another key first, a port scanner
    async with connect(relay.port, [relay.key], relay.host_key_line, relay.user, local_addr=(GOOD, 0)) as connection:
        assert (await connection.run("git-upload-pack 'stub/exit/3'")).exit_status == 3
        for forged in FORGED:
            await connection.run(f"git-upload-pack '{forged}'")
            await connection.run(forged)
    async with connect(relay.port, [stranger, relay.key], relay.host_key_line, relay.user, local_addr=(AGENT, 0)) as connection:
        assert (await connection.run("git-upload-pack 'stub/exit/3'")).exit_status == 3
    with socket.create_connection(("127.0.0.1", relay.port), source_address=(SCANNER, 0)) as scanner:
        scanner.recv(100)
    # what it must find
    expected: Counter[str] = Counter()
    for number, forged in enumerate(FORGED, 1):
        await fail(relay, f"127.0.2.{number}", stranger, user=forged)
        expected[f"127.0.2.{number}"] += 1  # also for an invalid user name, which ends the connection before the keys backend is asked
        version = re.sub(r"[^!-~ ]", "", forged)[:200]
        await fail(relay, f"127.0.3.{number}", stranger, version=version)
        await fail(relay, f"127.0.3.{number}", stranger, user="root", version=version)
        expected[f"127.0.3.{number}"] += 2

    await guess(relay, "127.0.4.1")
    expected["127.0.4.1"] = 1

    log = relay.folder / "audit.jsonl"
    await wait_until_async(lambda: relay.metric("relay_connections_open") == 0)
    found = await asyncio.to_thread(matches, log)
    assert Counter(address for _, address in found) == expected
    assert all(began - 1 <= seconds <= time.time() for seconds, _ in found)
    assert VICTIM in log.read_text(), "nobody tried to forge anything: nothing was proved"
    await journal(relay, log, expected)


async def journal(relay: RelayProcess, log: Path, expected: Counter[str]) -> None:
    """The same lines as fail2ban formats entries of the journal: host, identifier and process in front."""
    entries = relay.folder / "entries"
    entries.write_text("".join(f"host relay[{relay.pid}]: {line}\n" for line in log.read_text().splitlines()))
    assert Counter(address for _, address in await asyncio.to_thread(matches, entries)) == expected


def test_the_jail_uses_the_filter_and_the_files_are_complete() -> None:
    jail = configparser.ConfigParser()
    jail.read(FILTER.parents[1] / "jail.d" / "relay.conf")
    assert jail["relay"]["filter"] == FILTER.stem
    assert {"enabled", "port", "logpath", "maxretry", "findtime", "bantime"} <= set(jail["relay"])
