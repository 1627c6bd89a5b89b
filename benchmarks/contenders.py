"""The contenders: the git host itself, an OpenSSH relay, a Go relay, this relay, and peers that already run."""

from __future__ import annotations

import enum
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import golang, sshd
from benchmarks.processes import MeasureError, Server
from benchmarks.workspace import Key, Workspace

REPOSITORY_ROOT = Path(__file__).parent.parent
READY_SECONDS = 60.0
PINNED_KEX = "curve25519-sha256"
GCM = "aes128-gcm@openssh.com"


class Profile(enum.Enum):
    """The algorithms that the ssh client offers; the value is the name in the report."""

    STOCK = "stock"
    PINNED = "same kex"
    GCM = "GCM"

    @property
    def options(self) -> list[str]:
        """The options of ssh(1). `-F none` alone is stock: OpenSSH's own order, without the machine's ssh_config."""
        kex = ["-o", f"KexAlgorithms={PINNED_KEX}"] if self is not Profile.STOCK else []
        return kex + (["-o", f"Ciphers={GCM}"] if self is Profile.GCM else [])


class Contender(NamedTuple):
    """A way to the git host. Ports are loopback's unless it is a peer; `prefix` precedes a repository's name."""

    name: str
    about: str
    host: str
    ports: dict[Profile, int]
    user: str
    prefix: str
    key: Path
    host_key: Path | None  # public half; None: any key of a peer
    pids: tuple[int, ...]  # roots of its process trees, for CPU and memory; empty: no relay, or a peer's
    forks: bool  # a process or more for each connection
    packs: Path | None = None  # configuration of a relay that keeps packs

    def command(self, service: str, repository: str) -> str:
        """The exec request that git would send."""
        return f"{service} {shlex.quote(f'{self.prefix}{repository}.git')}"

    def url(self, repository: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user}@{host}/{self.prefix.lstrip('/')}{repository}.git"


class Peer(NamedTuple):
    """A contender that runs already, from `--peer NAME=[USER@]HOST:PORT`."""

    name: str
    user: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Raises ValueError with the allowed form."""
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)=(?:([A-Za-z0-9_.-]+)@)?(\[[0-9a-fA-F:]+\]|[^:@\[\]]+):(\d{1,5})", text)
        if not found or not 0 < int(found[4]) < 65536:
            raise ValueError(f"a peer is NAME=[USER@]HOST:PORT, not {text!r}")
        return cls(found[1], found[2] or "git", found[3].strip("[]"), int(found[4]))


class Keys(NamedTuple):
    """The keys: clients log in to every front with `client`, the fronts to the git host with `upstream`."""

    client: Key
    upstream: Key
    host_upstream: Key
    host_front: Key


class Fleet:
    """Starts contenders in front of one git host and stops them all; `missing` has the contenders that could not start, and the reason."""

    def __init__(self, space: Workspace, keys: Keys, upstream: sshd.Sshd, pool_idle: int) -> None:
        self.space, self.keys, self.upstream, self.pool_idle = space, keys, upstream, pool_idle
        self.missing: dict[str, str] = {}
        self._sockets = 0
        self._go: golang.Built | None = None
        self._numbers: dict[str, int] = {}

    def direct(self, host: sshd.Sshd | None = None) -> Contender:
        """The git host without a relay; `host` is another sshd than the fleet's, which no other contender uses."""
        ports = dict.fromkeys(Profile, (host or self.upstream).port)
        pids = () if host is None else (host.pid,)
        return self._contender("direct", "git straight to the upstream sshd", ports, self._login, pids, forks=True)

    def starting(self, name: str) -> AbstractContextManager[Contender | None]:
        """Starts a new relay contender by name."""
        if name == "go":
            return self.go()
        return self.forced() if name == "forced" else self.relay()

    @property
    def _login(self) -> str:
        return self.space.account.name

    @contextmanager
    def forced(self) -> Iterator[Contender]:
        """sshd with a ForceCommand that runs ssh; one for each profile, as the inner ssh uses the same algorithms as the client."""
        account = self.space.account
        inner = self.space.key(self._named("forced_client"), owner=account if os.getuid() == 0 else None)
        known = self._known_hosts("forced", f"[127.0.0.1]:{self.upstream.port}", self.keys.host_upstream)
        inner_keys = self.space.keys / "git_host.authorized_keys"
        with inner_keys.open("a") as file:  # sshd reads it at each login
            file.write(inner.public + "\n")
        with ExitStack() as stack:
            fronts: dict[Profile, sshd.Sshd] = {}
            for profile in Profile:
                ssh = ["ssh", "-F", "none", "-T", "-p", str(self.upstream.port), "-i", str(inner.private), *profile.options]
                ssh += ["-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]
                ssh += ["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "SendEnv=GIT_PROTOCOL"]
                name = self._named(f"forced_{profile.name.lower()}")
                front = sshd.forwarding(self.space, name, self.keys.host_front, [self.keys.client.public], ssh, account)
                stack.callback(front.stop)
                fronts[profile] = front
            ports = {profile: front.port for profile, front in fronts.items()}
            pids = tuple(front.pid for front in fronts.values())
            about = "sshd with a ForceCommand that runs ssh"
            yield self._contender("forced", about, ports, self._login, pids, forks=True)

    @contextmanager
    def go(self, processors: int | None = None) -> Iterator[Contender | None]:
        """The relay on golang.org/x/crypto/ssh, on `processors` threads (None: all); None if it cannot be built."""
        self._go = self._go or golang.build("go_relay")
        if self._go.path is None:
            self.missing["go"] = self._go.note
            yield None
            return
        name = self._named("go")
        authorized, host = self.space.keys / f"{name}.authorized_keys", self.space.keys / f"{name}.upstream_host"
        authorized.write_text(self.keys.client.public + "\n")
        host.write_text(self.keys.host_upstream.public + "\n")
        argv = [str(self._go.path), "-host-key", str(self.keys.host_front.private), "-authorized-keys", str(authorized)]
        argv += ["-upstream", f"127.0.0.1:{self.upstream.port}", "-user", self.space.account.name]
        argv += ["-key", str(self.keys.upstream.private), "-upstream-host-key", str(host)]
        env = {"PATH": os.environ["PATH"], **({} if processors is None else {"GOMAXPROCS": str(processors)})}
        server = Server(argv, self.space.logs / f"{name}.log", env=env)
        try:
            port = int(server.wait_for(r"listening on 127\.0\.0\.1:(\d+)", READY_SECONDS)[1])
            about = f"relay on golang.org/x/crypto/ssh, one upstream dial a session ({self._go.note})"
            ports = dict.fromkeys(Profile, port)
            yield self._contender("go", about, ports, self._login, (server.pid,), forks=False)
        finally:
            server.stop()

    @contextmanager
    def relay(
        self, workers: int = 0, pool_idle: int | None = None, tree: Path = REPOSITORY_ROOT, *, packs: bool = False, traces: str = ""
    ) -> Iterator[Contender]:
        """The relay of `tree` as `relay serve` with its audit log and its metrics on; `workers` 0 is one for each core.

        `packs`: with [packs], in the workspace's folder; `traces`: the URL of a collector that it sends its traces to.
        """
        folder = self.space.root / self._named("relay")
        (folder / "keys").mkdir(parents=True)
        idle = self.pool_idle if pool_idle is None else pool_idle
        (folder / "keys" / "bench.pub").write_text(self.keys.client.public + "\n")
        for target, key in (("host_ed25519", self.keys.host_front), ("upstream_ed25519", self.keys.upstream)):
            shutil.copy(key.private, folder / target)
        (folder / "access.toml").write_text('[[rule]]\nrepositories = "**"\nwho = ["bench"]\nallow = "write"\n')
        path = f"{self.space.git}/{{repository}}.git"
        (folder / "routes.toml").write_text(f'[[route]]\nrepositories = "**"\nupstream = "main"\npath = "{path}"\n')
        config = folder / "relay.toml"
        config.write_text(self._relay_config(workers, idle) + (f'\n[tracing]\nurl = "{traces}"\n' if traces else ""))
        if packs:
            (folder / "packs").mkdir(mode=0o700)
            with config.open("a") as file:
                file.write('\n[packs]\nfolder = "packs"\nfree_bytes = 0\n')
        server = Server(
            [sys.executable, "-m", "relay", "serve", "-c", str(config)],
            self.space.logs / f"{folder.name}.log",
            env={"PATH": os.environ["PATH"], "HOME": str(self.space.root), "PYTHONPATH": str(tree)},
            cwd=folder,
        )
        try:
            port = int(server.wait_for(r"\blistening on 127\.0\.0\.1:(\d+)", READY_SECONDS)[1])
            about = f"this relay, {workers or 'one worker a core'}{' worker(s)' if workers else ''}, {idle} warm connections a worker"
            ports = dict.fromkeys(Profile, port)
            contender = self._contender("relay", about, ports, "git", (server.pid,), forks=False)
            if packs:
                contender = contender._replace(name="relay, packs", about=f"{about}, with [packs]", packs=config)
            yield contender
        finally:
            server.stop()

    def peer(self, peer: Peer, key: Path) -> Contender:
        """A server that runs already; its CPU and memory are not measured, as its processes are not the suite's."""
        about = f"{peer.user}@{peer.host}:{peer.port}, started by others"
        ports = dict.fromkeys(Profile, peer.port)
        return Contender(peer.name, about, peer.host, ports, peer.user, f"{self.space.git}/", key, None, (), forks=False)

    def _contender(self, name: str, about: str, ports: dict[Profile, int], user: str, pids: tuple[int, ...], *, forks: bool) -> Contender:
        host_key = self.keys.host_upstream if name == "direct" else self.keys.host_front
        prefix = "" if name == "relay" else f"{self.space.git}/"  # the relay has routes; the others pass the path on
        public = host_key.private.with_suffix(".pub")
        return Contender(name, about, "127.0.0.1", ports, user, prefix, self.keys.client.private, public, pids, forks)

    def _named(self, name: str) -> str:
        """`name`, with a number from the second use on: a scenario may start further contenders."""
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return name if self._numbers[name] == 1 else f"{name}_{self._numbers[name]}"

    def _known_hosts(self, name: str, address: str, key: Key) -> Path:
        path = self.space.keys / f"{name}.known_hosts"
        path.write_text(f"{address} {key.public}\n")
        return path

    @property
    def _socket(self) -> Path:
        """The path of a relay's sessions socket: it has at most 107 bytes, which the workspace's path may exceed."""
        self._sockets += 1
        return Path(tempfile.gettempdir()) / f"relaybench-{os.getpid()}-{self._sockets}.sock"

    def _relay_config(self, workers: int, idle: int) -> str:
        return f"""\
listen = ["127.0.0.1:0"]
host_keys = ["host_ed25519"]
workers = {workers}

[admin]
listen = "127.0.0.1:0"
sessions_socket = "{self._socket}"

[log]
level = "info"
audit = "audit.jsonl"

[limits]
unauthenticated_connections = 2000  # the load is one source, and all of it is wanted
connections_per_source = 20000
drain_seconds = 1

[upstreams.main]
addresses = ["127.0.0.1:{self.upstream.port}"]
user = "{self.space.account.name}"
private_key = "upstream_ed25519"
host_keys = ["{" ".join(self.keys.host_upstream.public.split()[:2])}"]
connections_max = {max(64, idle)}
idle_connections = {idle}
"""


def make_keys(space: Workspace, client_key: Path | None = None) -> Keys:
    """New keys; `client_key` is one that peers already accept. Raises MeasureError without its public half."""
    if client_key is None:
        client = space.key("client")
    else:
        public = client_key.with_name(client_key.name + ".pub")
        if not public.is_file():
            raise MeasureError(f"{public}: the public half of --client-key is not there")
        client = Key(client_key, public.read_text().strip())
    return Keys(client, space.key("upstream"), space.key("host_upstream"), space.key("host_front"))
