"""Two relays with the same port: the second refuses to start, as any server does, and the first loses no client to it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.test_reload import old_ones_are_gone, reload, workers
from tests.support.problems import unplaced
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

END_SECONDS = 60.0


def free_port() -> int:
    """A port that is not in use; the relays must have the same one, so port 0 does not work."""
    with socket.create_server(("0.0.0.0", 0)) as sock:
        return int(sock.getsockname()[1])


def serve(relay: RelayProcess) -> subprocess.Popen[bytes]:
    """Starts `relay serve` without waiting for it; its log is in the file `said`."""
    with (relay.folder / "said").open("wb") as log:
        arguments = [sys.executable, "-m", "relay", "serve", "-c", str(relay.config_file)]
        return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def refusal(relay: RelayProcess, process: subprocess.Popen[bytes]) -> list[str]:
    """The lines that name the address in use; asserts that the relay ended by itself, without a traceback."""
    assert process.wait(END_SECONDS) == 1
    text = (relay.folder / "said").read_text()
    assert "Traceback" not in text
    assert "listening on" not in text
    return [line for line in text.splitlines() if "Address already in use" in line]


@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "127.0.0.1"), ("[::]", "[::1]")])
def test_the_second_relay_on_a_port_refuses_to_start(sshd: Sshd, make_relay: Callable[..., RelayProcess], first: str, second: str) -> None:
    """tests/process/test_sockets.py has more pairs of addresses."""
    port = free_port()
    one = make_relay(sshd, config={"workers": 2, "listen": ["127.0.0.1:0", f"{first}:{port}"]})
    two = RelayProcess(sshd, config={"workers": 2, "listen": ["127.0.0.1:0", f"{second}:{port}"]})
    try:
        (line,) = refusal(two, serve(two))
        assert f"{two.config_file}: listen: {second}:{port}: Address already in use" in unplaced(line)
        assert one.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    finally:
        two.close()


def test_the_second_relay_on_an_admin_address_refuses_to_start(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    one = make_relay(sshd)
    address = one.admin_url.removeprefix("http://")
    two = RelayProcess(sshd, config={"admin": {"listen": address}})
    try:
        (line,) = refusal(two, serve(two))
        assert f"{two.config_file}: admin.listen: {address}: Address already in use" in unplaced(line)
    finally:
        two.close()


@pytest.mark.parametrize("same", ["listen", "admin"])
def test_of_relays_that_start_at_the_same_moment_one_serves(sshd: Sshd, same: str) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = {"workers": 2, **({"listen": [address]} if same == "listen" else {"admin": {"listen": address}})}
    relays = [RelayProcess(sshd, config=config) for _ in range(3)]
    with ExitStack() as stack:
        for relay in relays:
            stack.callback(relay.close)
        processes = [serve(relay) for relay in relays]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_until(lambda: sum(process.poll() is not None for process in processes) >= 2, END_SECONDS, "all but one ended")
        ((winner, serving),) = [pair for pair in zip(relays, processes, strict=True) if pair[1].poll() is None]
        wait_until(lambda: "admin on" in (winner.folder / "said").read_text(), END_SECONDS, "one serves")
        for relay, process in zip(relays, processes, strict=True):
            if process is not serving:
                (line,) = refusal(relay, process)
                assert f"{address}: Address already in use" in unplaced(line)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(END_SECONDS) == 0


def test_a_relay_starts_again_on_a_port_whose_connections_linger(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """The relay closed them first, so they stay in TIME_WAIT for a minute."""
    port = free_port()
    relay = make_relay(sshd, config={"listen": [f"127.0.0.1:{port}"], "workers": 2})
    for _ in range(2):
        assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while client.recv(1000):
                pass
        relay.stop()
        relay.start()


def test_a_relay_that_was_killed_does_not_keep_the_next_from_the_port(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    port = free_port()
    relay = make_relay(sshd, config={"listen": [f"127.0.0.1:{port}"], "workers": 2})
    before = relay.processes()
    for process in before:
        process.kill()
    relay.wait()
    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in before), END_SECONDS, "all are gone")
    relay.start()
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0


# -- one relay's own addresses


def was_replaced(relay: RelayProcess, times: int) -> None:
    wait_until(lambda: relay.metric("relay_worker_restarts_total") == times, END_SECONDS, f"{times} workers were replaced")


def test_a_reload_to_addresses_that_cover_the_old_one_and_back(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    port = free_port()
    relay = make_relay(sshd, config={"workers": 2, "listen": ["127.0.0.1:0", f"127.0.0.1:{port}"]})
    for addresses in (["0.0.0.0", "127.0.0.1"], ["0.0.0.0"], [], ["127.0.0.1"]):
        relay.write_config({"listen": ["127.0.0.1:0", *(f"{address}:{port}" for address in addresses)]})
        reload(relay)
        for _ in addresses:
            with socket.create_connection(("127.0.0.1", port)) as client:
                assert client.recv(4) == b"SSH-"


def test_a_reload_to_an_address_that_another_relay_has_in_part_is_refused(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    port = free_port()
    one = make_relay(sshd, config={"listen": ["127.0.0.1:0", f"127.0.0.2:{port}"]})
    make_relay(sshd, config={"listen": ["127.0.0.1:0", f"127.0.0.3:{port}"]})
    one.write_config({"listen": ["127.0.0.1:0", f"0.0.0.0:{port}"]})
    one.signal(signal.SIGHUP)
    one.wait_for_log(rf"reload refused: .*: listen: 0\.0\.0\.0:{port}: Address already in use")
    with socket.create_connection(("127.0.0.2", port)) as client:
        assert client.recv(4) == b"SSH-"


def test_reloads_to_more_and_fewer_workers_and_one_that_was_replaced_keep_the_port(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    port = free_port()
    relay = make_relay(sshd, config={"listen": [f"127.0.0.1:{port}"], "workers": 1})
    two = RelayProcess(sshd, config={"listen": [f"127.0.0.1:{port}"]})
    try:
        for restarts, count in enumerate((3, 1)):
            relay.write_config({"workers": count})
            reload(relay)
            old_ones_are_gone(relay, count)
            workers(relay)[0].kill()
            was_replaced(relay, restarts + 1)
            assert refusal(two, serve(two))
            assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    finally:
        two.close()
