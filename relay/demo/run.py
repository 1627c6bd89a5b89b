"""The demo: new keys and a repository in a temporary folder, a git host and a relay; prints a `git clone` line, or with --once does a
clone, push and fetch itself."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path

import asyncssh

from relay.config import LogSettings
from relay.config.load import Loaded
from relay.demo.git_host import GitHost
from relay.events import Observer, Observers, Outcome, SessionRecord
from relay.observe.admin import Admin
from relay.observe.audit import Audit
from relay.observe.log import configure
from relay.observe.metrics import Metrics, render
from relay.preflight import load_all
from relay.process import native_parts
from relay.process.sockets import bind
from relay.server import Server
from relay.upstream.libssh2 import loaded_library
from relay.wiring import build

GIT_SECONDS = 60.0
REPOSITORY = "team/app"

_CONFIG = """\
listen = ["127.0.0.1:{port}"]
host_keys = ["host_ed25519"]
workers = 1

[admin]
listen = "127.0.0.1:0"

[upstreams.demo]
addresses = ["127.0.0.1:{upstream_port}"]
user = "git"
private_key = "upstream_ed25519"
host_keys = ["{host_key}"]
"""
_ACCESS = """\
[[rule]]
repositories = "team/*"
who = ["you"]
allow = "write"
"""
_ROUTES = """\
[[route]]
repositories = "**"
upstream = "demo"
path = "/{repository}.git"
"""


class DemoFailedError(Exception):
    """A step of the demo failed; the text names the step and the error."""


class _Carried(Observer):
    """Counts sessions and bytes, for the last lines of the output."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()
        self.bytes = 0

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        name = session.command.service if session.command else "greeting"
        self.sessions[f"{name} {outcome.result}"] += 1
        self.bytes += session.bytes_in + session.bytes_out


async def run_demo(once: bool, port: int) -> int:
    """Serves until SIGINT or SIGTERM, with `once` does one round trip; removes all files at the end."""
    configure(LogSettings(level="warning", format="text"))
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        return await _Demo(Path(folder), port).run(once)


class _Demo:
    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._carried = _Carried()

    async def run(self, once: bool) -> int:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        host = GitHost(self._folder / "repositories", self._key("upstream_ed25519"))
        server: Server | None = None
        admin: Admin | None = None
        audit: Audit | None = None
        try:
            await self._make_repository()
            await host.start()
            loaded = self._configure(host)
            metrics = Metrics(loaded.config, str(loaded_library()), native_parts.used())
            audit = None if once else Audit("-", "text")  # on the terminal, one line for each session
            server = build(loaded, Observers([metrics, self._carried, *([audit] if audit is not None else [])]))
            metrics.pool_states = server.pool_states
            listener = self._bind()
            self._port = listener.getsockname()[1]
            (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {_public(self._folder / 'host_ed25519')}\n")
            await server.start([listener])

            async def scrape() -> bytes:
                return render(metrics.snapshot(), workers=1, restarts=0, reloads=0)

            async def ready() -> tuple[bool, str]:
                return server.ready()

            admin = Admin(scrape, ready)
            await admin.start("127.0.0.1", 0)
            if once:
                return await self._once()
            self._tell(admin.address[1])
            await stop.wait()
            print(f"\nstopping; carried {sum(self._carried.sessions.values())} sessions, {self._carried.bytes} bytes")
            return 0
        except DemoFailedError as error:
            print(f"demo failed: {error}")
            return 1
        finally:
            if server is not None:
                await server.drain(0)
                await server.stop()
            if admin is not None:
                await admin.close()
            if audit is not None:
                audit.close()
            await host.close()

    def _bind(self) -> socket.socket:
        try:
            return bind("127.0.0.1", self._port)
        except OSError as error:
            raise DemoFailedError(f"127.0.0.1:{self._port} cannot be listened on: {error}") from None

    # -- setting up ------------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> asyncssh.SSHKey:
        key = asyncssh.generate_private_key("ssh-ed25519")
        path = self._folder / name
        path.touch(mode=0o600)
        key.write_private_key(str(path))
        key.write_public_key(f"{path}.pub")
        return key

    def _configure(self, host: GitHost) -> Loaded:
        folder = self._folder
        self._key("host_ed25519")
        self._key("you_ed25519")
        (folder / "keys").mkdir()
        (folder / "keys" / "you.pub").write_text(_public(folder / "you_ed25519") + "\n")
        (folder / "access.toml").write_text(_ACCESS)
        (folder / "routes.toml").write_text(_ROUTES)
        public = host.host_key.export_public_key("openssh").decode().strip()
        text = _CONFIG.format(port=self._port, upstream_port=host.port, host_key=" ".join(public.split()[:2]))
        (folder / "relay.toml").write_text(text)
        return load_all(folder / "relay.toml", operators_socket=False)

    async def _make_repository(self) -> None:
        bare = self._folder / "repositories" / f"{REPOSITORY}.git"
        bare.parent.mkdir(parents=True)
        work = self._folder / "seed"
        await self._git("init", "-q", "--bare", "-b", "main", str(bare))
        await self._git("init", "-q", "-b", "main", str(work))
        for number, text in enumerate(("Hello.\n", "Hello.\nThis came through a relay.\n", "Hello.\nThis came fast.\n"), 1):
            (work / "README").write_text(text)
            await self._git("-C", str(work), "add", "README")
            await self._git("-C", str(work), "commit", "-q", "-m", f"Commit {number}")
        await self._git("-C", str(work), "push", "-q", str(bare), "main")

    # -- the two ways to see it ------------------------------------------------------------------------------------------

    @property
    def _ssh(self) -> str:
        folder = self._folder
        return (
            f"ssh -F /dev/null -i {shlex.quote(str(folder / 'you_ed25519'))} -o IdentitiesOnly=yes "
            f"-o UserKnownHostsFile={shlex.quote(str(folder / 'known_hosts'))} -o StrictHostKeyChecking=yes -o BatchMode=yes"
        )

    @property
    def _url(self) -> str:
        return f"ssh://git@127.0.0.1:{self._port}/{REPOSITORY}.git"

    def _tell(self, admin_port: int) -> None:
        print("A git host and a relay in front of it are running. In another terminal:\n")
        # -c stores it in the clone's configuration, so that fetch and push use it too
        print(f"  git clone -c core.sshCommand={shlex.quote(self._ssh)} {self._url}\n")
        print(f"Metrics: http://127.0.0.1:{admin_port}/metrics    libssh2 {loaded_library()}")
        print("Each session is logged below in one line. Ctrl-C stops both and removes all files.\n", flush=True)

    async def _once(self) -> int:
        folder = self._folder
        one, two = folder / "one", folder / "two"
        await self._step("clone", "clone", "-q", self._url, str(one))
        await self._step("clone again", "clone", "-q", self._url, str(two))
        (one / "NEW").write_text("made in the demo\n")
        await self._git("-C", str(one), "add", "NEW")
        await self._step("commit", "-C", str(one), "commit", "-q", "-m", "A commit made in the demo")
        await self._step("push", "-C", str(one), "push", "-q", "origin", "HEAD:refs/heads/main")
        await self._step("fetch", "-C", str(two), "fetch", "-q", "origin")
        pushed = await self._git("-C", str(one), "rev-parse", "HEAD")
        fetched = await self._git("-C", str(two), "rev-parse", "origin/main")
        stored = await self._git("-C", str(folder / "repositories" / f"{REPOSITORY}.git"), "rev-parse", "main")
        if not pushed == fetched == stored:
            raise DemoFailedError(f"pushed {pushed}, the git host has {stored}, the other clone fetched {fetched}")
        for what, count in sorted(self._carried.sessions.items()):
            print(f"the relay carried {count} x {what}")
        print(
            f"commit {pushed[:12]} went in by one clone and came out by the other; "
            f"{self._carried.bytes} bytes through libssh2 {loaded_library()}"
        )
        return 0

    async def _step(self, name: str, *arguments: str) -> None:
        started = time.monotonic()
        await self._git(*arguments)
        print(f"{name}: ok in {(time.monotonic() - started) * 1000:.0f} ms")

    async def _git(self, *arguments: str) -> str:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": self._ssh,
            "GIT_AUTHOR_NAME": "Demo",
            "GIT_AUTHOR_EMAIL": "demo@invalid",
            "GIT_COMMITTER_NAME": "Demo",
            "GIT_COMMITTER_EMAIL": "demo@invalid",
        }
        pipe = asyncio.subprocess.PIPE
        try:
            git = await asyncio.create_subprocess_exec(
                "git", *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except FileNotFoundError:
            raise DemoFailedError("git is missing: install the package git") from None
        try:
            async with asyncio.timeout(GIT_SECONDS):
                out, err = await git.communicate()
        except TimeoutError:
            git.kill()
            await git.wait()
            raise DemoFailedError(f"git {' '.join(arguments)} took longer than {GIT_SECONDS:g} s") from None
        if git.returncode != 0:
            raise DemoFailedError(f"git {' '.join(arguments)} exited with {git.returncode}: {err.decode(errors='replace').strip()}")
        return out.decode().strip()


def _public(private: Path) -> str:
    return " ".join(Path(f"{private}.pub").read_text().split()[:2])
