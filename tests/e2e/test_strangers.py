"""Strangers and clients that cannot log in to a running relay: the log and audit lines, and what the relay penalises their source for."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_USERAUTH_REQUEST
from asyncssh.packet import Boolean, MPInt, String

from relay.admission.limits import PROBES_FREE
from tests.e2e.helpers import alice, audited, comes_in
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.stranger import stranger
from tests.support.wait import wait_until

PENALTIES = {"limits": {"penalty_seconds": 5}}


def turned_away(relay: RelayProcess) -> bool:
    """Whether the relay refuses a connection from this address now."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as client:
        return not comes_in(client)


# -- malformed keys

BLOBS = {
    "a point that is not on the curve": String("ecdsa-sha2-nistp256") + String("nistp256") + String(b"\x04" + bytes(63) + b"\x07"),
    "an exponent of 0": String("ssh-rsa") + MPInt(0) + MPInt((1 << 2_048) + 1),
    "a modulus of 1": String("ssh-rsa") + MPInt(65_537) + MPInt(1),
    "a key of a type that nobody knows": String("ssh-nothing") + String(bytes(32)),
    "an Ed25519 key of 31 bytes": String("ssh-ed25519") + String(bytes(31)),
    "no key at all": b"\0",
}


@pytest.mark.parametrize("name", list(BLOBS))
async def test_a_malformed_key_is_a_failed_login(name: str, relay: RelayProcess) -> None:
    since, blob = len(relay.audit_lines()), BLOBS[name]

    async def offers(connection: asyncssh.SSHClientConnection) -> None:
        fields = [String(relay.user), String("ssh-connection"), String("publickey"), Boolean(False), String("ssh-rsa"), String(blob)]
        connection.send_packet(MSG_USERAUTH_REQUEST, b"".join(fields))
        await asyncio.to_thread(audited, relay, since, event="auth_failed")
        raise asyncssh.DisconnectError(asyncssh.DISC_BY_APPLICATION, "that was it")

    await stranger(relay, offers)
    [failed] = await asyncio.to_thread(audited, relay, since, event="auth_failed")
    [login] = await asyncio.to_thread(audited, relay, since, event="login_failed")
    assert (failed["reason"], login["reason"], login["attempts"]) == ("unusable_key", "unusable_key", 1)
    assert failed["detail"] and failed["address"] == "127.0.0.1"
    assert '"level":"error"' not in relay.log_text() and "Traceback" not in relay.log_text()


# -- probes


def test_probes_penalise_nobody(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=PENALTIES)
    lines = len(relay.log_text().splitlines())
    for _ in range(PROBES_FREE):
        socket.create_connection(("127.0.0.1", relay.port), timeout=30).close()
    wait_until(lambda: relay.metric("relay_connections_total", outcome="probe") == PROBES_FREE, message="all are counted")
    assert relay.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5
    assert len(relay.log_text().splitlines()) == lines
    assert not [line for line in relay.audit_lines() if line["event"] != "session"]


def test_a_connection_that_stays_silent_for_longer_counts(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"penalty_seconds": 100}})
    with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as client:
        client.recv(100)
        time.sleep(1.1)  # not a wait for a condition: the probe must take longer than this
    wait_until(lambda: relay.metric("relay_connections_total", outcome="no_auth") == 1, message="it is counted")
    assert turned_away(relay)


# -- addresses


@pytest.fixture(scope="module")
def behind_a_balancer(sshd: Sshd) -> Any:
    """A relay that believes PROXY headers."""
    with RelayProcess(sshd, config={"proxy_protocol": {"mode": "allow", "trusted": ["127.0.0.1", "::1"]}}) as relay:
        yield relay


@pytest.mark.parametrize(("told", "plain"), [("::ffff:192.0.2.7", "192.0.2.7"), ("2001:DB8:0::7", "2001:db8::7")])
def test_an_address_of_a_header_is_told_in_one_form(told: str, plain: str, behind_a_balancer: RelayProcess) -> None:
    since = len(behind_a_balancer.audit_lines())
    with socket.create_connection(("127.0.0.1", behind_a_balancer.port), timeout=30) as client:
        client.sendall(f"PROXY TCP6 {told} ::1 4711 22\r\nSSH-1.5-old\r\n".encode())
        while client.recv(1_000):
            pass
    [line] = audited(behind_a_balancer, since, event="login_failed")
    assert (line["address"], line["reason"]) == (plain, "protocol")


# -- no common algorithm, with the real ssh


@pytest.mark.parametrize(
    ("option", "says", "kind"),
    [
        ("KexAlgorithms=diffie-hellman-group14-sha1", "no matching key exchange method found", "key exchange"),
        ("Ciphers=aes128-cbc", "no matching cipher found", "cipher"),
        ("HostKeyAlgorithms=rsa-sha2-512", "no matching host key type found", "host key type"),
    ],
)
def test_openssh_without_a_common_algorithm(option: str, says: str, kind: str, relay: RelayProcess, tmp_path: Path) -> None:
    since = len(relay.audit_lines())
    base = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"]
    done = subprocess.run(
        [*base, "-i", relay.key.private, "-o", option, "-p", str(relay.port), f"{relay.user}@127.0.0.1", "x"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 255
    assert says in done.stderr.decode()
    [failed] = audited(relay, since, event="auth_failed")
    [login] = audited(relay, since, event="login_failed")
    assert (failed["reason"], login["reason"]) == ("no_common_algorithm", "no_common_algorithm")
    assert failed["detail"].startswith(f"no common {kind}: the client offers {option.partition('=')[2]}")
    assert failed["client_version"].startswith("SSH-2.0-OpenSSH")
    assert failed["detail"] in relay.log_text()
    assert relay.metric("relay_connections_total", outcome="no_common_algorithm") >= 1


async def test_who_logs_in_is_served_after_all_that(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        assert (await run(connection, "git-upload-pack 'stub/exit/5'")).exit_status == 5


# -- key exchanges that cost CPU time

LEAVE_MOST = 20


def connections_until_turned_away(relay: RelayProcess, method: str) -> int:
    """How many connections that leave after the key exchange `method` without a login the relay serves before it penalises the source."""
    for count in range(LEAVE_MOST):
        said = relay.ssh(f"KexAlgorithms={method}", "UserKnownHostsFile=/dev/null").run(None).stderr
        if b"Too many failed logins" in said:
            return count
        assert b"Host key verification failed" in said
    return LEAVE_MOST


def test_a_dear_key_exchange_without_a_login_is_penalised_sooner(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    """Group 18 takes about ten times the CPU time of curve25519, on a slow machine too. A new relay for each method: penalties add up."""
    needed = {}
    for method in ("curve25519-sha256", "diffie-hellman-group18-sha512"):
        relay = make_relay(sshd, config={**PENALTIES, "algorithms": {"profile": "compatible"}})
        needed[method] = connections_until_turned_away(relay, method)
    assert needed["diffie-hellman-group18-sha512"] < needed["curve25519-sha256"], needed
