"""Git clients beyond git with OpenSSH: how each is set up, and which of the relay's algorithm profiles it supports.

for client in CLIENTS:
    with_it = client.at(relay, home)          # raises Missing with the name of what is not installed
    with_it.clone(url, work)
    with_it.push(work, "main")
"""

from __future__ import annotations

import fcntl
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.gitrepo import GIT_TIMEOUT, git_env
from tests.support.relay_process import RelayProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD_TIMEOUT = 600.0  # seconds; Go downloads and compiles its modules the first time

Profiles = tuple[str, ...]

BOTH: Profiles = ("modern", "compatible")
COMPATIBLE: Profiles = ("compatible",)


class Missing(RuntimeError):
    """A client that is not installed; the text names its package."""


@dataclass(frozen=True)
class Ready:
    """A client with a home, a key and the relay's host key."""

    env: dict[str, str]
    program: tuple[str, ...]  # that takes `clone URL FOLDER` and `push BRANCH`

    def clone(self, url: str, to: Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return self._run("clone", url, str(to), cwd=to.parent, check=check)

    def push(self, work: Path, branch: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Pushes the branch to the repository that the working copy was cloned from."""
        return self._run("push", "origin", branch, cwd=work, check=check)

    def list(self, url: str, times: int) -> None:
        """Lists the refs so many times, each on a connection of its own; only go-git's program supports it."""
        self._run("list", url, str(times), cwd=Path(self.env["HOME"]), check=True)

    def _run(self, *arguments: str, cwd: Path, check: bool) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*self.program, *arguments], env=self.env, cwd=cwd, capture_output=True, timeout=GIT_TIMEOUT, check=False)
        said = (done.stdout + done.stderr)[-4000:].decode(errors="replace")
        assert not check or done.returncode == 0, f"{self.program} {arguments} ended with {done.returncode}:\n{said}"
        return done


@dataclass(frozen=True)
class Client:
    """A client; `set_up` prepares it for a relay, in a home that has only known_hosts."""

    name: str
    profiles: Profiles
    set_up: Callable[[RelayProcess, Path], Ready]
    waits: bool = True  # for the exit status; a client that disconnects once it has the data sometimes gets none

    def __str__(self) -> str:
        return self.name

    def at(self, relay: RelayProcess, home: Path) -> Ready:
        """Raises Missing."""
        known_hosts = home / ".ssh" / "known_hosts"
        known_hosts.parent.mkdir(parents=True, exist_ok=True)
        # Dropbear looks a host up without its port
        known_hosts.write_text(f"[127.0.0.1]:{relay.port} {relay.host_key_line}\n127.0.0.1 {relay.host_key_line}\n")
        return self.set_up(relay, home)


def _with_ssh(home: Path, variant: str, *command: str | Path) -> Ready:
    """The real git with another SSH program (git-config(1), ssh.variant)."""
    env = git_env(home) | {"GIT_SSH_COMMAND": shlex.join(map(str, command)), "GIT_SSH_VARIANT": variant}
    return Ready(env, ("git",))


def _python(home: Path, module: str, *arguments: str | Path) -> Ready:
    return Ready(git_env(home) | {"PYTHONPATH": str(ROOT)}, (sys.executable, "-m", f"tests.support.clients.{module}", *map(str, arguments)))


def _need(package: str, *programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed (Debian's package {package})")


def _need_module(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise Missing(f"{module} is not installed (pip install {module})")


def _plink(relay: RelayProcess, home: Path) -> Ready:
    _need("putty-tools", "plink", "puttygen")
    key = home / "key.ppk"
    subprocess.run(["puttygen", relay.key.private, "-O", "private", "-o", key], check=True, capture_output=True)
    return _with_ssh(home, "plink", "plink", "-batch", "-noagent", "-i", key, "-hostkey", relay.host_key.fingerprint)


def _dbclient(relay: RelayProcess, home: Path) -> Ready:
    _need("dropbear-bin", "dbclient", "dropbearconvert")
    key = home / "key.dropbear"
    subprocess.run(["dropbearconvert", "openssh", "dropbear", relay.key.private, key], check=True, capture_output=True)
    return _with_ssh(home, "ssh", "dbclient", "-i", key)


def _asyncssh(relay: RelayProcess, home: Path) -> Ready:
    ready = _with_ssh(home, "ssh", sys.executable, "-m", "tests.support.clients.by_asyncssh", relay.key.private, relay.known_hosts)
    return Ready(ready.env | {"PYTHONPATH": str(ROOT)}, ready.program)


def _pygit2(relay: RelayProcess, home: Path) -> Ready:
    _need_module("pygit2")
    return _python(home, "by_pygit2", relay.key.private)


def _dulwich(relay: RelayProcess, home: Path) -> Ready:
    _need_module("dulwich", "paramiko")
    return _python(home, "by_dulwich", relay.key.private)


def go_program(folder: str) -> Path:
    """The program built from a folder of Go sources; raises Missing."""
    return _built(HERE / folder, _compile_go)


def java(folder: str, main: str, *options: str) -> tuple[str, ...]:
    """The command that runs a class of the folder `jgit` or `mina`; raises Missing."""
    classes = _built(HERE / folder, _compile_java)
    # short-lived: less compiling, fewer threads
    return ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *options, "-cp", f"{classes}:{classes}/*", main)


def _jgit(relay: RelayProcess, home: Path) -> Ready:
    key = home / ".ssh" / "id_ed25519"
    shutil.copy(relay.key.private, key)
    return Ready(git_env(home), java("jgit", "JGit", f"-Duser.home={home}"))


def _compile_java(sources: Path, target: Path) -> None:
    _need("maven", "mvn")
    _need("default-jdk-headless", "java", "javac")
    shutil.rmtree(target, ignore_errors=True)
    maven = ("mvn", "-q", "-B", "-f", str(sources / "pom.xml"))
    _build(sources, *maven, "dependency:copy-dependencies", f"-DoutputDirectory={target}.part")
    _build(sources, "javac", "-cp", f"{target}.part/*", "-d", f"{target}.part", *sorted(path.name for path in sources.glob("*.java")))
    Path(f"{target}.part").rename(target)


def go_git(relay: RelayProcess, home: Path) -> Ready:
    program = go_program("go_git")
    known_hosts = home / ".ssh" / "known_hosts"
    known_hosts.parent.mkdir(parents=True, exist_ok=True)
    known_hosts.write_text(f"[127.0.0.1]:{relay.port} {relay.host_key_line}\n")
    return Ready(git_env(home) | {"SSH_KNOWN_HOSTS": str(known_hosts)}, (str(program), str(relay.key.private)))


def _compile_go(sources: Path, target: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise Missing("go is not installed (Debian's package golang)")
    _build(sources, go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(target), ".")


def _build(sources: Path, *command: str) -> None:
    """Runs a build; raises Missing with the last line of its output."""
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["?"]
        raise Missing(f"{sources.name} could not be built: {said[-1]}")


def _built(sources: Path, compile_: Callable[[Path, Path], None]) -> Path:
    """The output of `compile_`, which runs again when the sources are newer; raises Missing if it cannot."""
    target = ROOT / "build" / "clients" / sources.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{sources.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in sources.iterdir()):
            compile_(sources, target)
    return target


CLIENTS = (
    Client("plink", BOTH, _plink),
    Client("dbclient", COMPATIBLE, _dbclient),
    Client("pygit2", BOTH, _pygit2, waits=False),
    Client("dulwich over paramiko", BOTH, _dulwich, waits=False),
    Client("go-git", BOTH, go_git, waits=False),
    Client("JGit", BOTH, _jgit, waits=False),
    Client("asyncssh", BOTH, _asyncssh),
)
