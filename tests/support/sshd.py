"""A real OpenSSH sshd on loopback that serves bare repositories by the real git, and stub services.

    with Sshd() as sshd:                        # sshd.port, sshd.key, sshd.user, sshd.root, sshd.host_key_line
        make_repo(sshd.root / "team/app.git")   # sshd.url("team/app.git")

The command asked for chooses what runs. Any of git-upload-pack, git-receive-pack and git-upload-archive (also as
`git upload-pack`) on a path `<root>/stub/<...>`, with or without quotes and `.git`, runs a stub instead of git:

| path under `<root>/stub/`      | the session                                                                       |
|--------------------------------|-----------------------------------------------------------------------------------|
| `emit/<N>[/<status>]`          | N bytes on stdout (`pattern.stub_bytes(N)`), exit status (0)                       |
| `stderr/<N>[/<status>]`        | the same on stderr                                                                 |
| `mixed/<N>[/<status>]`         | N bytes on stdout, 1 KiB of stderr after each 64 KiB (`pattern.stub_stderr(N)`)    |
| `exit/<status>`                | exits at once                                                                      |
| `signal/<NAME>[/<N>]`          | N bytes on stdout (0), then dies by the signal: KILL, TERM, SEGV, ...              |
| `checksum[/<rate>]`            | reads stdin to EOF, no faster than `rate` bytes/s; prints `<sha256> <length>`      |
| `cat`                          | echoes stdin until its EOF                                                         |
| `env`                          | prints GIT_PROTOCOL, RELAY_IDENTITY and RELAY_KEY, or `(unset)`                    |
| `env/all`                      | prints all variables whose names begin with RELAY_, in order                       |
| `sleep/<s>`                    | silent for s seconds, then exit 0                                                  |
| `hang`                         | silent for ever; does not read stdin                                               |
| `slowstart/<s>/<N>`            | silent for s seconds, then N bytes                                                 |
| `half/<N>`                     | N bytes on stdout, then reads stdin to EOF                                         |
| `eof/<s>[/<status>]`           | prints `eof`, closes stdout and stderr, exits s seconds later                      |

`git-lfs-authenticate` and `git-lfs-transfer` run `sshd.lfs_script(...)` as `<script> <path> <operation>`; everything
else goes to the real git-shell. Each exec is recorded, see `commands()`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.keys import Key, make_key
from tests.support.machine import current_user, python_for, sshd_program
from tests.support.pattern import PATTERN_BYTES, write_pattern
from tests.support.processes import alive, is_stopped, pids_with_environment, send_signal
from tests.support.server_process import ServerProcess
from tests.support.wait import wait_until

STOP_TIMEOUT = 60.0  # seconds until every process is gone after SIGKILL

_HERE = Path(__file__).parent
_LFS_AUTHENTICATE = """#!/bin/sh
printf '{"href":"https://lfs.example/%s","header":{"Authorization":"RemoteAuth %s"},"expires_in":3600}\\n' "${1##*/}" "$2"
"""
_LFS_TRANSFER = """#!/bin/sh
printf '000eversion=1\\n000clocking\\n0000'
exec cat >/dev/null
"""


@dataclass(frozen=True)
class Exec:
    """One exec that sshd ran, with the environment it was given ("" when unset)."""

    git_protocol: str
    identity: str
    key: str
    command: str


class Sshd(ServerProcess):
    """One sshd with its own folder, host key, authorized keys and repositories; a context manager.

    `authorized` are public key lines let in besides `self.key`; `config` are sshd_config lines that go before the own
    ones (sshd takes the first value of a keyword). Log in as `user`, by default the one who runs the tests: another one needs
    root, an account that is not locked, a `folder` that it may traverse, and `give` for each repository that it may write.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        authorized: Iterable[str] = (),
        config: Iterable[str] = (),
        user: str | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.program = sshd_program()
        super().__init__("sshd", folder)
        if self._own_folder:
            self.folder.chmod(0o755)  # for `user`; the private keys in it are 0600
        self.user = user or current_user()
        self.address = address
        self.port = port
        self.root = self.folder / "repos"
        _make_open(self.root)
        self._state = self.folder / "state"
        self._home = self.folder / "home"
        self._config_file = self.folder / "sshd_config"
        self._authorized_keys = self.folder / "authorized_keys"
        self.known_hosts = self.folder / "known_hosts"
        self.key: Key = make_key(self.folder, "client")
        self.host_key: Key = make_key(self.folder, "host_key")
        self._fixed_port = port != 0
        self._config = list(config)
        self._left: list[psutil.Process] = []
        self._log.touch()
        self._prepare_state()
        self._authorized_keys.write_text("")
        self.authorize(self.key.line, *authorized)

    def __repr__(self) -> str:
        return f"<Sshd {self.address}:{self.port} {'running' if self.running else 'stopped'}>"

    # -- for clients

    @property
    def host_key_line(self) -> str:
        return self.host_key.host_line

    def url(self, repository: str) -> str:
        return f"ssh://{self.user}@{self.address}:{self.port}{self.root}/{repository}"

    def stub(self, path: str, service: str = "git-upload-pack") -> str:
        """The exec line that runs a stub service directly on this sshd, such as `stub("emit/1000/37")`."""
        return f"{service} '{self.root}/stub/{path}.git'"

    # -- settings

    def configure(self, *config: str) -> None:
        """Replace the additional sshd_config lines; they apply from the next start or `restart`."""
        self._config = list(config)

    def authorize(self, *lines: str) -> None:
        """Accept more public keys, from the next login on."""
        with self._authorized_keys.open("a") as file:
            file.writelines(line.rstrip("\n") + "\n" for line in lines)

    def forbid(self, line: str) -> None:
        """Remove a public key, from the next login on."""
        kept = [kept for kept in self._authorized_keys.read_text().splitlines() if kept.split()[:2] != line.split()[:2]]
        self._authorized_keys.write_text("".join(f"{line}\n" for line in kept))

    def give(self, repository: Path) -> None:
        """Make `user` the owner of a repository; needed for pushes when `user` does not run the tests."""
        for path in (repository, *repository.rglob("*")):
            shutil.chown(path, self.user)
        for above in repository.relative_to(self.root).parents:
            (self.root / above).chmod(0o755)

    def lfs_script(self, service: str, text: str) -> None:
        """Replace what `git-lfs-authenticate` or `git-lfs-transfer` runs by an executable script."""
        path = self._state / service
        path.write_text(text)
        path.chmod(0o755)

    def new_host_key(self) -> Key:
        """Make and use another host key from the next start on; `known_hosts` then follows."""
        self.host_key = make_key(self.folder, "host_key")
        return self.host_key

    # -- life

    def start(self) -> None:
        """Start on `port`, or on a free one the first time; raises RuntimeError with sshd's log if it does not listen."""
        assert not self.running, "sshd already runs"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.port = self._launch_on_port(self._start_on, self.port if self._fixed_port else 0, self.address)
        self._fixed_port = True
        host = f"[{self.address}]:{self.port}" if self.port != 22 else self.address
        self.known_hosts.write_text(f"{host} {self.host_key_line}\n")

    def stop(self) -> None:
        """End the listener, all sessions and all their commands, at once; a stopped sshd may be started again."""
        if self.running:
            self.signal_listener(signal.SIGSTOP)  # so that no session starts between the listing and the killing
        doomed = self._descendants()
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
            self._process = None
        for process in doomed:
            send_signal(process, signal.SIGKILL)
        for pid in self._command_pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # the process ended by itself meanwhile
        wait_until(lambda: not any(map(alive, doomed)) and not self._command_pids(), STOP_TIMEOUT, "the session processes of sshd are gone")
        self._left = []

    def restart(self) -> None:
        """Stop everything and start again on the same port, with the settings as they are now."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove the folder if this object made it."""
        self.stop()
        super().close()

    # -- faults

    def signal_listener(self, number: int) -> None:
        """SIGSTOP leaves connections waiting in the backlog; SIGKILL ends the listener but none of its sessions."""
        assert self._process is not None, "sshd was not started"
        self._left = self._descendants()
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(STOP_TIMEOUT)

    def sessions(self) -> list[psutil.Process]:
        """The sshd processes of all connections, not their commands."""
        return [process for process in self._descendants() if _is_sshd(process)]

    def signal_sessions(self, number: int) -> int:
        """Signal the sshd processes of all connections (not their commands); returns how many there were."""
        return sum(send_signal(process, number) for process in self.sessions())

    def signal_commands(self, number: int) -> int:
        """Signal the commands that run in the sessions (git, a stub); returns how many processes there were.

        After SIGSTOP all of them are stopped: a command that forked while it was looked for is stopped too.
        """
        found = sum(send_signal(process, number) for process in self._commands())
        if found and number == signal.SIGSTOP:
            wait_until(self._stop_commands, STOP_TIMEOUT, "the commands are stopped")
        return found

    def _commands(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if not _is_sshd(process)]

    def _stop_commands(self) -> bool:
        running = [process for process in self._commands() if not is_stopped(process)]
        for process in running:
            send_signal(process, signal.SIGSTOP)
        return not running

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP the listener and the connections: TCP stays up, nothing is answered."""
        if frozen:
            self.signal_listener(signal.SIGSTOP)
            self.signal_sessions(signal.SIGSTOP)
            stopped = [psutil.Process(self.pid), *self.sessions()]
            wait_until(lambda: all(map(is_stopped, stopped)), STOP_TIMEOUT, "the processes of sshd are stopped")
        else:
            self.signal_sessions(signal.SIGCONT)
            self.signal_listener(signal.SIGCONT)

    def thaw(self) -> None:
        self.freeze(False)

    def session_count(self) -> int:
        """How many sshd processes serve connections now; 0 when all clients are gone."""
        return sum(_is_sshd(process) for process in self._descendants())

    # -- log and records

    def logins(self, since: int = 0) -> int:
        """How many authentications succeeded."""
        return len(re.findall(r"^Accepted publickey", self.log_text(since), re.MULTILINE))

    def connections(self, since: int = 0) -> int:
        """How many TCP connections were accepted."""
        return len(re.findall(r"^Connection from ", self.log_text(since), re.MULTILINE))

    def commands(self) -> list[Exec]:
        """Every exec so far, in order."""
        path = self._state / "commands"
        return [Exec(*line.split("\t", 3)) for line in path.read_text().splitlines()]

    # -- inside

    def _prepare_state(self) -> None:
        for folder in (self._state, self._home):
            _make_open(folder)
        (self._home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        for name in ("services.sh", "service.py"):
            shutil.copy(_HERE / name, self._state)
            (self._state / name).chmod(0o755)
        commands = self._state / "commands"
        commands.touch()
        commands.chmod(0o666)  # written by the user who logs in
        write_pattern(self._state / "pattern")
        for readable in (self._home / ".gitconfig", self._state / "pattern"):
            readable.chmod(0o644)
        self.lfs_script("git-lfs-authenticate", _LFS_AUTHENTICATE)
        self.lfs_script("git-lfs-transfer", _LFS_TRANSFER)

    def _environment(self) -> dict[str, str]:
        git_shell = shutil.which("git-shell")
        if git_shell is None:
            raise RuntimeError("git-shell is missing: install the package git")
        return {
            "HOME": str(self._home),  # bash would read ~/.bashrc before the command, git ~/.gitconfig
            "GIT_CONFIG_NOSYSTEM": "1",
            "STUB_ROOT": str(self.root),
            "STUB_STATE": str(self._state),
            "STUB_PATTERN": str(self._state / "pattern"),
            "STUB_PATTERN_BYTES": str(PATTERN_BYTES),
            "STUB_PYTHON": python_for(self.user),
            "STUB_GIT_SHELL": git_shell,
        }

    def _write_config(self) -> None:
        environment = " ".join(f'{name}="{value}"' for name, value in self._environment().items())
        lines = [
            *self._config,
            f"ListenAddress {self.address}",
            f"Port {self.port}",
            f"HostKey {self.host_key.private}",
            f"AuthorizedKeysFile {self._authorized_keys}",
            f"PidFile {self.folder / 'pid'}",
            f"ForceCommand exec /bin/sh {shlex.quote(str(self._state / 'services.sh'))}",
            f"SetEnv {environment}",
            "AcceptEnv GIT_PROTOCOL RELAY_*",
            "AuthenticationMethods publickey",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "PermitUserRC no",
            "UsePAM no",
            "UseDNS no",
            "StrictModes no",
            "PrintMotd no",
            "LoginGraceTime 60",
            "MaxStartups 1000",
            "MaxSessions 1000",
            "LogLevel VERBOSE",
        ]
        self._config_file.write_text("".join(f"{line}\n" for line in lines))

    def _start_on(self, port: int) -> None:
        self.port = port
        self._write_config()
        mark, listening = self.log_mark(), re.compile(self.listening(), re.MULTILINE)
        self._launch(
            self.arguments(),
            lambda: listening.search(self.log_text(mark)),
            env=self.environment(),
            start_new_session=True,
        )

    # overridden by subclasses for other git hosts

    def listening(self) -> str:
        """A pattern of the log line that the server writes once it listens."""
        return rf"^Server listening on \S+ port {self.port}\."

    def arguments(self) -> list[str]:
        return [self.program, "-D", "-e", "-f", str(self._config_file)]

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath)}

    def _command_pids(self) -> list[int]:
        """The commands of all sessions, also those that outlived their session and so have another parent."""
        return pids_with_environment(f"STUB_STATE={self._state}")

    def _descendants(self) -> list[psutil.Process]:
        found = list(self._left)
        if self._process is not None and self._process.poll() is None:
            try:
                found += psutil.Process(self._process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                pass  # killed from outside between poll and here
        return [process for process in dict.fromkeys(found) if alive(process)]


def _make_open(folder: Path) -> None:
    """For another user who logs in, whatever the umask of who runs the tests."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)


def _is_sshd(process: psutil.Process) -> bool:
    try:
        return alive(process) and process.name().startswith("sshd")
    except psutil.NoSuchProcess:
        return False
