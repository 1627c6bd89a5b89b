"""The listening sockets over reloads: which stay, which are bound and closed, which worker gets them, and connections in their backlogs."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from threading import Barrier

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.process import systemd
from relay.process.sockets import Sockets, why_not

NONE = Sockets({})
ANY = "127.0.0.1:0"


@pytest.fixture
def opened() -> Iterator[list[Sockets]]:
    """The sockets that a test puts here are closed after it."""
    made: list[Sockets] = []
    yield made
    for sockets in made:
        sockets.close()


def test_a_socket_a_worker_on_one_port(opened: list[Sockets]) -> None:
    sockets = NONE.opened([ANY], 3)
    opened.append(sockets)
    assert len(list(sockets)) == 3
    assert len(sockets.addresses()) == 1
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in sockets)
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in sockets)


@given(first=st.integers(1, 6), second=st.integers(1, 6), addresses=st.integers(1, 3))
def test_over_a_reload_every_worker_has_each_address_and_every_socket_a_worker(first: int, second: int, addresses: int) -> None:
    listen = [f"127.0.0.{number + 1}:0" for number in range(addresses)]
    old = NONE.opened(listen, first)
    new = old.opened(listen, second)
    try:
        assert new.addresses() == old.addresses()
        assert set(old) <= set(new)
        hands = new.dealt(second)
        assert len(hands) == second
        assert all({sock.getsockname() for sock in hand} == {sock.getsockname() for sock in new} for hand in hands)
        assert sorted(sock.fileno() for hand in hands for sock in hand) == sorted(sock.fileno() for sock in new)
    finally:
        new.close()


def test_connections_in_the_backlogs_are_served_after_a_reload_to_fewer_workers(opened: list[Sockets]) -> None:
    sockets = NONE.opened([ANY], 4)
    opened.append(sockets)
    address = next(iter(sockets)).getsockname()
    clients = [socket.create_connection(address) for _ in range(40)]
    fewer = sockets.opened([ANY], 1)
    sockets.close(but=fewer)
    (hand,) = fewer.dealt(1)
    accepted = 0
    for sock in hand:
        sock.setblocking(False)
        try:
            while True:
                sock.accept()[0].close()
                accepted += 1
        except BlockingIOError:
            pass
    for client in clients:
        client.close()
    assert accepted == 40


def test_an_address_that_is_listened_on_no_more_is_closed_and_the_others_are_not(opened: list[Sockets]) -> None:
    old = NONE.opened([ANY, "127.0.0.2:0"], 2)
    new = old.opened(["127.0.0.2:0", "127.0.0.3:0"], 2)
    opened.append(new)
    gone = [sock for sock in old if sock not in set(new)]
    old.close(but=new)
    assert [sock.fileno() for sock in gone] == [-1, -1]
    assert len([sock for sock in new if sock.fileno() >= 0]) == 4
    assert {address.partition(":")[0] for address in new.addresses()} == {"127.0.0.2", "127.0.0.3"}


def test_an_address_that_cannot_be_bound_leaves_everything_as_it_was(opened: list[Sockets]) -> None:
    old = NONE.opened([ANY], 1)
    opened.append(old)
    with closing(socket.create_server(("127.0.0.1", 0))) as other:  # without SO_REUSEPORT
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        before = psutil.Process().num_fds()
        with pytest.raises(OSError, match=f"{taken}: Address already in use"):
            old.opened([ANY, "127.0.0.2:0", taken], 2)
        assert psutil.Process().num_fds() == before
    assert all(sock.fileno() >= 0 for sock in old)


def test_ipv6_beside_ipv4_on_one_port(opened: list[Sockets]) -> None:
    sockets = NONE.opened([ANY], 1)
    opened.append(sockets)
    port = next(iter(sockets)).getsockname()[1]
    both = sockets.opened([ANY, f"[::1]:{port}"], 1)
    opened.append(both)
    assert both.addresses() == [f"127.0.0.1:{port}", f"[::1]:{port}"]


def test_systemds_sockets_belong_to_all_workers_and_are_asked_for_once(opened: list[Sockets], monkeypatch: pytest.MonkeyPatch) -> None:
    handed = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.2", 0))]
    asked = iter([handed])
    monkeypatch.setattr(systemd, "listen_sockets", lambda: next(asked))
    sockets = NONE.opened(["systemd", "127.0.0.3:0"], 2)
    opened.append(sockets)
    hands = sockets.dealt(2)
    assert [hand[:2] for hand in hands] == [handed, handed]
    assert [len(hand) for hand in hands] == [3, 3]
    again = sockets.opened(["systemd", "127.0.0.3:0"], 1)
    assert set(again) == set(sockets)


# -- other processes on the port: each `NONE.opened` stands for one, which knows only its own sockets

OVERLAPS = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("127.0.0.1", "0.0.0.0"),
    ("0.0.0.0", "0.0.0.0"),
    ("localhost", "127.0.0.1"),
    ("[::1]", "[::1]"),
    ("[::]", "[::1]"),
    ("[::1]", "[::]"),
]


def port_of(sockets: Sockets) -> int:
    return int(next(iter(sockets)).getsockname()[1])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("first", "second"), OVERLAPS)
def test_an_address_that_another_relay_listens_on_is_refused(opened: list[Sockets], first: str, second: str, workers: int) -> None:
    one = NONE.opened([f"{first}:0"], workers)
    opened.append(one)
    taken = f"{second}:{port_of(one)}"
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match=re.escape(f"{taken}: Address already in use")):
        NONE.opened([ANY, taken], workers)
    assert psutil.Process().num_fds() == before


def test_other_addresses_of_a_port_and_the_other_ip_version_are_free(opened: list[Sockets]) -> None:
    one = NONE.opened([ANY], 2)
    opened.append(one)
    opened.extend(NONE.opened([f"{address}:{port_of(one)}"], 2) for address in ("127.0.0.2", "[::1]"))
    one.close()
    opened.append(NONE.opened([f"127.0.0.1:{port_of(opened[-1])}"], 2))


@pytest.mark.parametrize(("first", "second"), OVERLAPS)
def test_a_reload_may_overlap_with_the_relays_own_addresses(opened: list[Sockets], first: str, second: str) -> None:
    one = NONE.opened([f"{first}:0"], 2)
    opened.append(one)
    two = one.opened([f"{second}:{port_of(one)}"], 2)
    opened.append(two)
    assert {port_of(one)} == {sock.getsockname()[1] for sock in two}


@pytest.mark.parametrize(("first", "second"), OVERLAPS)
def test_a_reload_back_to_an_address_whose_last_worker_still_holds_its_socket(opened: list[Sockets], first: str, second: str) -> None:
    one = NONE.opened([f"{first}:0"], 1)
    opened.append(one)
    (sock,) = one
    with sock.dup() as held:
        without = one.opened([ANY], 1)
        opened.append(without)
        one.close(but=without)
        opened.append(without.opened([f"{second}:{held.getsockname()[1]}"], 1))


def test_a_reload_to_an_address_that_overlaps_with_a_foreign_socket_is_refused(opened: list[Sockets]) -> None:
    one = NONE.opened([ANY], 2)
    stranger = NONE.opened([f"127.0.0.2:{port_of(one)}"], 2)
    opened += [one, stranger]
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match=r"0\.0\.0\.0:\d+: Address already in use"):
        one.opened([f"0.0.0.0:{port_of(one)}"], 2)
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_of_several_that_start_at_the_same_moment_one_gets_the_port(opened: list[Sockets], host: str) -> None:
    """If two call listen() at the same moment, the kernel may refuse both."""
    with ThreadPoolExecutor(4) as pool:
        for _ in range(100):
            with closing(socket.create_server((host.strip("[]"), 0), family=socket.AF_INET6 if "[" in host else socket.AF_INET)) as free:
                address = f"{host}:{free.getsockname()[1]}"
            start = Barrier(4)

            def want(address: str = address, start: Barrier = start) -> Sockets | str:
                start.wait()
                try:
                    return NONE.opened([address], 2)
                except OSError as error:
                    return str(error)

            got = [future.result() for future in [pool.submit(want) for _ in range(4)]]
            winners = [one for one in got if isinstance(one, Sockets)]
            for winner in winners:
                winner.close()
            assert len(winners) == 1, got
            assert got.count(f"{address}: Address already in use") == 3


def test_each_socket_gets_its_share_of_the_connections(opened: list[Sockets]) -> None:
    """The first socket gets SO_REUSEPORT only once it listens."""
    sockets = NONE.opened([ANY], 2)
    opened.append(sockets)
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(sockets))))
        accepted = []
        for sock in sockets:
            sock.setblocking(False)
            accepted.append(0)
            with suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
                    accepted[-1] += 1
    assert sum(accepted) == 60
    assert min(accepted) >= 10, accepted


def test_the_error_for_a_privileged_port_names_the_capability() -> None:
    said = why_not(PermissionError(errno.EACCES, "Permission denied"), "127.0.0.1:22")
    assert said.startswith("Permission denied: a port below net.ipv4.ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE")
    assert "net.ipv4.ip_unprivileged_port_start = 22 (sysctl)" in said
    assert why_not(OSError(errno.EADDRINUSE, "x"), "127.0.0.1:22") == "Address already in use"
    assert why_not(PermissionError(errno.EACCES, "x")) == "Permission denied"
