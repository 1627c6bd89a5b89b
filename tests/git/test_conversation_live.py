"""The real git clones through a Conversation while the test kills git-upload-pack before pack data begins: git notices nothing."""

from __future__ import annotations

import os
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.git.conversation import Conversation, HostState
from tests.support.gitrepo import fsck, git, git_env, make_repo, refs, rev_list

SECONDS = 60.0
HOSTS = 5  # that are killed in one session
READ_MOST_BYTES = 300  # so that hosts die within packets too


class Relay:
    """A git:// server with one git-upload-pack after the other behind it, each killed at a place that `draw` chooses."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root = root
        self.killed = 0
        self.faults: list[str] = []
        self._draw = draw
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"git://127.0.0.1:{self._listener.getsockname()[1]}/app.git"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                try:
                    self._serve(connection)
                except Exception as error:  # noqa: BLE001 - the test reads the error; git only sees a closed connection
                    self.faults.append(repr(error))

    def _spawn(self) -> subprocess.Popen[bytes]:
        env = {**git_env(self.root / "home"), "GIT_PROTOCOL": "version=2"}
        command = ["git-upload-pack", str(self.root / "app.git")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)

    def _serve(self, connection: socket.socket) -> None:
        length = int(connection.recv(4, socket.MSG_WAITALL), 16)
        connection.recv(length - 4, socket.MSG_WAITALL)
        conversation, hosts = Conversation(), HOSTS
        host = self._spawn()
        try:
            while True:
                # the first host dies within its advertisement, so at least one dies, however the pipe divides the output
                fatal_after = self._draw.randrange(1, 600 if self.killed else 150) if hosts else -1
                if not self._one_host(connection, conversation, host, fatal_after):
                    return
                host.kill()
                host.communicate()
                hosts -= 1
                self.killed += 1
                host = self._spawn()
                assert host.stdin is not None
                host.stdin.write(conversation.reopen() + conversation.partial)
                host.stdin.flush()
        finally:
            host.kill()
            host.communicate()

    def _one_host(self, connection: socket.socket, conversation: Conversation, host: subprocess.Popen[bytes], fatal_after: int) -> bool:
        """Carries both ways; True when the caller must kill this host, which is never after it became irreplaceable."""
        assert host.stdin is not None and host.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(host.stdout, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(SECONDS):
                    if key.fileobj is connection:
                        data = connection.recv(READ_MOST_BYTES)
                        if not data:
                            return False
                        conversation.client_data(data)
                        host.stdin.write(data)
                        host.stdin.flush()
                        continue
                    data = os.read(host.stdout.fileno(), self._draw.randrange(1, READ_MOST_BYTES))
                    if not data:
                        return False
                    for piece in conversation.host_data(data):
                        connection.sendall(piece.data)
                    assert conversation.host is not HostState.DIFFERENT
                    fatal_after -= len(data)
                    if -len(data) < fatal_after <= 0 and conversation.replayable:
                        return True


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "hosts"
    make_repo(root / "app.git", commits=30)
    git("config", "uploadpack.allowFilter", "true", cwd=root / "app.git", env=git_env(root / "home"))
    yield root


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [(), ("--progress",), ("--depth=5",), ("--filter=blob:none",)], ids=lambda options: "".join(options) or "plain"
)
def test_hosts_that_are_killed_before_pack_data_are_not_noticed(
    repository: Path, tmp_path: Path, options: tuple[str, ...], seed: int
) -> None:
    relay = Relay(repository, random.Random(seed))
    env = git_env(tmp_path / "home")
    try:
        git("clone", "-q", *options, relay.url, tmp_path / "work", env=env)
        assert relay.faults == [] and relay.killed >= 1
        if "--filter=blob:none" not in options:
            fsck(tmp_path / "work", env)
        work, bare = refs(tmp_path / "work", env), refs(repository / "app.git", env)
        assert work["refs/heads/main"] == bare["refs/heads/main"]
        if not options:
            assert rev_list(tmp_path / "work", env) == rev_list(repository / "app.git", env)
    finally:
        relay.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_negotiation_goes_on_with_other_hosts(repository: Path, tmp_path: Path, seed: int) -> None:
    env = git_env(tmp_path / "home")
    work = tmp_path / "work"
    git("clone", "-q", repository / "app.git", work, env=env)
    git("reset", "-q", "--hard", "HEAD~10", cwd=work, env=env)
    git("update-ref", "-d", "refs/remotes/origin/main", cwd=work, env=env)
    git("reflog", "expire", "--expire=now", "--all", cwd=work, env=env)
    git("gc", "-q", "--prune=now", cwd=work, env=env)
    for number in range(40):
        git("commit", "-q", "--allow-empty", "-m", str(number), cwd=work, env=env)
    relay = Relay(repository, random.Random(seed))
    try:
        git("fetch", "-q", relay.url, "main:refs/remotes/origin/main", cwd=work, env=env)
        assert relay.faults == [] and relay.killed >= 1
        fsck(work, env)
        assert refs(work, env)["refs/remotes/origin/main"] == refs(repository / "app.git", env)["refs/heads/main"]
    finally:
        relay.close()
