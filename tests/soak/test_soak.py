"""A soak of seconds, with the same load, faults and checks as the long one, which `make soak` runs."""

from __future__ import annotations

import asyncio
import gc
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.helpers import stands_still
from tests.soak.client import Ended, run_client
from tests.soak.load import BROKEN_OFF, Load, Verdict, _verdict, _verdict_of_ssh
from tests.soak.site import Faults, open_site
from tests.soak.soak import soak
from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

SECONDS = 8.0
STALL_SECONDS = 2.0


@pytest.mark.slow
async def test_nothing_is_lost_that_was_said_to_be_there(tmp_path: Path, sshd_installed: None) -> None:
    report = await soak(SECONDS, tmp_path, seed=1, reports=tmp_path)
    print(report)
    hung = [path.read_text() for path in tmp_path.glob("hung-*.txt")]
    assert not report.problems, "\n".join([str(report), *hung])
    assert report.tally.untouched and report.tally.right.total() and report.faults.total()


def ended(status: int, hung: bool = False) -> Ended:
    return Ended(status, 0, "", b"", b"", hung)


@pytest.mark.parametrize(
    ("verdict", "touched", "wrong"),
    [
        (Verdict(ended(0), right=True, claims=True), False, ""),
        (Verdict(ended(0), right=True, claims=True), True, ""),
        (Verdict(ended(0), right=False, claims=True), True, "a success that is none"),
        (Verdict(ended(37), right=False, claims=True), True, "a success that is none"),
        (Verdict(ended(255), right=False, claims=False), True, ""),
        (Verdict(ended(255), right=False, claims=False), False, "failed without a fault"),
        (Verdict(ended(-9, hung=True), right=False, claims=False), True, "hung"),
        (Verdict(ended(1), right=False, claims=False, untrue="a ref nobody pushed"), True, "a ref nobody pushed"),
    ],
)
def test_what_a_fault_excuses(verdict: Verdict, touched: bool, wrong: str) -> None:
    load = Load(None, 1, print, Path())  # type: ignore[arg-type]  # judging needs no site
    load._judge("operation", verdict, touched)
    assert [found.split(":")[0] for found in load.tally.wrong] == ([wrong] if wrong else [])
    assert load.tally.operations == 1


def test_a_zero_claims_a_success_whatever_was_asked_for() -> None:
    assert _verdict(ended(0), 37, whole=False).claims
    assert _verdict(ended(37), 37, whole=False).claims
    assert not _verdict(ended(255), 37, whole=False).claims
    assert _verdict_of_ssh(ended(0), 0, whole=False).claims


def test_ssh_itself_drops_the_end_of_its_output_and_exits_with_the_status(sshd: Sshd) -> None:
    """Without a relay: the only case in which the soak accepts a status of 0 with missing data."""
    with ThreadedFaultProxy("127.0.0.1", sshd.port) as link:
        sshd.known_hosts.write_text(f"[127.0.0.1]:{link.port} {sshd.host_key_line}\n")
        client = SshClient(link.port, sshd.key.private, sshd.known_hosts, sshd.user)
        with client.popen(sshd.stub("emit/1000000")) as ssh:
            assert ssh.stdout is not None and ssh.stderr is not None
            ssh.stdout.read(1)
            wait_until(lambda: sshd.signal_commands(0) == 0, message="the command has ended")
            wait_until(stands_still(lambda: link.do(lambda proxy: proxy.bytes_down)), message="ssh has all of it, and the status")
            link.do(FaultProxy.cut)
            length, stderr = 1 + len(ssh.stdout.read()), ssh.stderr.read()
        assert (ssh.returncode, length < 1_000_000) == (0, True)
        assert stderr.endswith(BROKEN_OFF)
        gone = Ended(ssh.returncode, length, "", b"", stderr)
        assert not _verdict_of_ssh(gone, 0, whole=False).claims


def test_ssh_whose_reader_died_with_its_window_used_up_stays_until_the_session_is_stalled(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    """ssh drops the output that it has not written yet without a WINDOW_ADJUST for it, so no more may be sent to it. It sends
    eow@openssh.com to OpenSSH's sshd only. A clone whose git was killed alone leaves such an ssh behind."""
    relay = make_relay(sshd, config={"limits": {"stall_seconds": STALL_SECONDS}})
    with relay.ssh().popen("git-upload-pack 'stub/emit/10000000'") as ssh:
        assert ssh.stdin is not None and ssh.stdout is not None
        ssh.stdout.read(1)
        wait_until(stands_still(lambda: relay.metric("relay_bytes_total", direction="out")), message="its window is used up")
        ssh.stdin.close()
        ssh.stdout.close()
        assert ssh.wait(60) == 255
    (line,) = [line for line in relay.audit_lines() if line["event"] == "session"]
    assert (line["result"], line["reason"]) == ("client", "stalled")
    assert line["bytes_out"] < 10_000_000


async def test_an_operation_that_hangs_is_ended_whole_and_leaves_what_there_is_to_see(
    tmp_path: Path, sshd_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.soak.client.OPERATION_SECONDS", 0.0)
    said: list[str] = []
    async with open_site(tmp_path) as site:
        load = Load(site, 1, said.append, tmp_path / "reports")

        async def once_it_runs(client: int) -> None:
            await wait_until_async(lambda: asyncio.to_thread(site.relay.metric, "relay_sessions_open"))
            await load._on_hang(client)

        # a shell in between, in the place of git
        command = shlex.join(site.client.arguments("git-upload-pack 'stub/checksum'"))
        ended = await run_client(["/bin/sh", "-c", f"sleep 1000 | {command}; true"], on_hang=once_it_runs)
        assert ended.hung and ended.returncode == -signal.SIGKILL
        (path,) = (tmp_path / "reports").iterdir()
        text = path.read_text()
        assert said[0].endswith(str(path))
    sessions, sockets, client, relay, host, log = text.split("\n== ")
    assert "git-upload-pack" in sessions
    assert sockets.count(f":{site.relay.port}") >= 2 and sockets.count(f":{site.back.port}") >= 2
    assert "/bin/sh -c sleep" in client and "git-upload-pack 'stub/checksum'" in client and "0 -> pipe:" in client
    assert "relay serve" in relay and "socket:" in relay
    assert "sshd" in host
    assert "listening on" in log


async def test_a_program_that_ends_before_it_has_read_all(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        ended = await run_client(["true"], stdin=bytes(5_000_000))
        assert (ended.returncode, ended.hung) == (0, False)
    gc.collect()
    assert not caplog.records, "asyncio complains about nothing"


def test_a_fault_excuses_whoever_ran_during_it_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tests.soak.site.time.monotonic", lambda: now)
    faults = Faults()
    with faults.during("a fault"):
        assert faults.touched(99.0, 101.0)
        assert not faults.touched(98.0, 99.0)
        now = 102.0
    assert faults.touched(102.3, 110.0), "its aftermath"
    assert not faults.touched(103.0, 110.0)
    faults.count("a stall")
    assert faults.counts == {"a fault": 1, "a stall": 1}
