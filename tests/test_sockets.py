"""The listening sockets over reloads: which stay, which are bound and closed, who gets them, and what waits in their backlogs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import sd
from relay.sockets import Sockets

NONE = Sockets({})
ANY = "127.0.0.1:0"


@pytest.fixture
def opened() -> Iterator[list[Sockets]]:
    """What a test puts in here is closed after it."""
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


def test_what_waits_in_the_backlogs_is_dealt_on_to_fewer_workers(opened: list[Sockets]) -> None:
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
    monkeypatch.setattr(sd, "listen_sockets", lambda: next(asked))
    sockets = NONE.opened(["systemd", "127.0.0.3:0"], 2)
    opened.append(sockets)
    hands = sockets.dealt(2)
    assert [hand[:2] for hand in hands] == [handed, handed]
    assert [len(hand) for hand in hands] == [3, 3]
    again = sockets.opened(["systemd", "127.0.0.3:0"], 1)
    assert set(again) == set(sockets)
