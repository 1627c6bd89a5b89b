"""Reports once which libssh2 these tests use; an sshd and a client for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.native.client import Client, relay_build
from tests.native.inetd import USER, Sshd


def pytest_report_header() -> str:
    """Name the library under test."""
    return f"libssh2: {relay_build() or 'stock'}"


@pytest.fixture
def hardened() -> str:
    """The name of the hardened build; a test that asks for it is skipped on a stock library, which fails or crashes in it."""
    build = relay_build()
    if build is None:
        pytest.skip("stock libssh2: this is what native/ mends")
    return build


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """connect(*sshd options, send_buffer, cipher, mac, ...): a client, logged in to an sshd with that configuration."""
    with ExitStack() as stack:
        servers: dict[tuple[str, ...], Sshd] = {}

        def start(*options: str, send_buffer: int | None = None, server_buffer: int | None = None, **algorithms: str) -> Client:
            if options not in servers:
                folder = tmp_path / f"sshd{len(servers)}"
                folder.mkdir()
                servers[options] = stack.enter_context(Sshd(folder, *options))
            sshd = servers[options]
            client = stack.enter_context(Client(sshd.connect(send_buffer, server_buffer)))
            client.peer_log = lambda: sshd.log
            client.handshake(**algorithms)
            client.login(USER, sshd.private_key)
            return client

        yield start
