"""Records conversations of real clients with the real git-upload-pack: `python -m tests.git.record [--only NAME ...]`.

Between each client and git-upload-pack stands a pipe of this script that writes down the bytes of both directions in the order in which
they pass. It speaks git:// (gitprotocol-pack, "Git Transport"): every client does, and all that follows the client's first packet is
what an SSH session carries.

Needed: git; dulwich and pygit2 (the `dev` extra); for JGit a JDK and Maven, for go-git Go, both with access to their registries. A peer
whose tools are missing is left out with a line, and its transcripts stay as they are. Peers: tests/git/peers/. The repositories are made
anew with fixed contents and dates, so two runs differ only where clients and git-upload-pack differ.

A transcript is a line with GIT_PROTOCOL and then records: `>` (the client) or `<` (git-upload-pack), the number of bytes, a newline, the
bytes, a newline. tests/git/transcripts.py reads them.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dulwich.client
import dulwich.repo
import pygit2

from relay.git.pktline import pkt_line
from relay.git.v2_request import fetch_of, probe, read_request
from tests.git.transcripts import FOLDER, Transcript
from tests.support.gitrepo import git, git_env, rev_parse

PEERS = Path(__file__).with_name("peers")
COMMITS = 56  # more than the depth of 50
READ_BYTES = 65_536
CLIENT_SECONDS = 300.0  # Maven and Go download dependencies


@dataclass
class Recorder:
    """A git:// server on a free port: each connection becomes a Transcript in `taken`."""

    root: Path
    taken: list[Transcript] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self._listener.getsockname()[1]}/{name}"

    def take(self) -> list[Transcript]:
        """The transcripts of the connections since the last call, when all of them have ended."""
        for thread in self._threads:
            thread.join(CLIENT_SECONDS)
            assert not thread.is_alive(), "a session does not end"
        self._threads.clear()
        taken, self.taken = self.taken, []
        return taken

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            transcript = Transcript("", [])
            self.taken.append(transcript)
            thread = threading.Thread(target=self._serve, args=(connection, transcript), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, transcript: Transcript) -> None:
        with connection:
            line = _exactly(connection, int(_exactly(connection, 4), 16) - 4)
            command, _, parameters = line.partition(b"\0")
            service, _, path = command.decode().partition(" ")
            assert service == "git-upload-pack", service
            transcript.protocol = ":".join(one.decode() for one in parameters.split(b"\0") if one.startswith(b"version="))
            environment = {**git_env(self.root / "host-home"), "GIT_PROTOCOL": transcript.protocol}
            host = subprocess.Popen(
                ["git-upload-pack", str(self.root / path.lstrip("/"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            _copy(connection, host, transcript)
            host.wait(CLIENT_SECONDS)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        assert more, "the client left"
        data += more
    return data


def _copy(connection: socket.socket, host: subprocess.Popen[bytes], transcript: Transcript) -> None:
    """Copies and records both directions until git-upload-pack ends its output."""
    assert host.stdin is not None and host.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(host.stdout, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                try:
                    if key.fileobj is connection:
                        data = connection.recv(READ_BYTES)
                        transcript.add(True, data)
                        host.stdin.write(data)
                        host.stdin.flush()
                        if not data:
                            selector.unregister(connection)
                            host.stdin.close()
                    else:
                        data = os.read(host.stdout.fileno(), READ_BYTES)
                        transcript.add(False, data)
                        connection.sendall(data)
                        if not data:
                            return
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client left after an ERR, or the host has ended its output


# -- repositories ------------------------------------------------------------------------------------------------------------


def _stream(commits: int) -> bytes:
    """A history for fast-import: main, where each commit changes README and adds a file; a side branch; three tags, two annotated."""
    parts = []
    for number in range(commits):
        who, readme, data = f"committer Test <test@example.com> {1_700_000_000 + number} +0000", f"{number}\n", f"line {number}\n"
        mark = f"commit refs/heads/main\nmark :{number + 1}\n{who}\ndata 2\nc\n\n"
        parts.append(f"{mark}M 100644 inline README\ndata {len(readme)}\n{readme}\nM 100644 inline f{number}\ndata {len(data)}\n{data}\n")
    tagger = "tagger Test <test@example.com> 1700000000 +0000\ndata 2\nt\n\n"
    parts.append(f"reset refs/heads/side\nfrom :{commits // 2}\n\nreset refs/tags/light\nfrom :1\n\n")
    parts.append("".join(f"tag {name}\nfrom :{mark}\n{tagger}" for name, mark in (("v1", commits // 2), ("v2", commits))))
    return "".join(parts).encode()


class Town:
    """The repositories and helpers of the cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = git_env(folder / "home")
        self.recorder = Recorder(folder / "hosts")
        (folder / "hosts").mkdir()
        for name, options in (("app.git", ()), ("sha256.git", ("--object-format=sha256",)), ("empty.git", ())):
            path = folder / "hosts" / name
            git("init", "-q", "--bare", "--initial-branch=main", *options, path, env=self.env)
            if name != "empty.git":
                git("fast-import", "--quiet", cwd=path, env=self.env, stdin=_stream(COMMITS if name == "app.git" else 3))
            for setting in ("uploadpack.allowFilter=true", "core.compression=9", "pack.compression=9"):
                git("config", *setting.split("="), cwd=path, env=self.env)
        self.tip = rev_parse(folder / "hosts/app.git", self.env, "main")
        self.middle = rev_parse(folder / "hosts/app.git", self.env, "side")
        for name, setting in (
            ("want-ref.git", "uploadpack.allowRefInWant"),
            ("sideband-all.git", "uploadpack.allowSidebandAll"),
            ("session-id.git", "transfer.advertiseSID"),
        ):
            shutil.copytree(folder / "hosts/app.git", folder / "hosts" / name)
            git("config", setting, "true", cwd=folder / "hosts" / name, env=self.env)

    def git(self, *arguments: str, cwd: str = ".", check: bool = True) -> None:
        git(*arguments, cwd=self.folder / cwd, env=self.env, check=check)

    def url(self, name: str = "app.git") -> str:
        return self.recorder.url(name)

    def work(self, name: str) -> str:
        """The path of a folder that does not exist yet."""
        return tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder) + "/work"

    def clone_at(self, revision: str) -> str:
        """A clone of the history up to `revision`, made without the recorder."""
        work = self.work("at")
        path = self.folder / "hosts/app.git"
        self.git("init", "-q", work)
        self.git("fetch", "-q", str(path), f"{revision}:refs/heads/mine", "--no-tags", cwd=work)
        self.git("checkout", "-q", "mine", cwd=work)
        self.git("remote", "add", "origin", self.url(), cwd=work)
        return work


# -- cases: each makes one session or more, which become NAME, NAME_2, ... ---------------------------------------------------------


def _lazy(town: Town) -> None:
    town.git("clone", "-q", "--filter=blob:none", town.url(), town.work("lazy"))


def _with_haves(town: Town) -> None:
    town.git("fetch", "-q", "origin", cwd=town.clone_at("side"))


def _with_own_commits(town: Town) -> None:
    """The client has commits that the host does not know: more than one round of haves."""
    work = town.clone_at("side")
    for number in range(40):
        town.git("commit", "-q", "--allow-empty", "-m", str(number), cwd=work)
    town.git("fetch", "-q", "origin", cwd=work)


def _by_sha(town: Town) -> None:
    work = town.work("sha")
    town.git("init", "-q", work)
    town.git("fetch", "-q", "--no-tags", "--depth=1", town.url(), town.middle, cwd=work)


def _not_our_ref(town: Town) -> None:
    work = town.work("none")
    town.git("init", "-q", work)
    town.git("fetch", "-q", town.url(), "1234567890" * 4, cwd=work, check=False)


def _deepen(town: Town) -> None:
    work = town.work("deepen")
    town.git("clone", "-q", "--depth=1", town.url(), work)
    town.git("fetch", "-q", "--depth=3", cwd=work)


def _negotiate_only(town: Town) -> None:
    town.git("fetch", "--negotiate-only", "--negotiation-tip=mine", "origin", cwd=town.clone_at("side"))


def _probe(town: Town, name: str, wants: tuple[str, ...]) -> None:
    """The relay's own probe request."""
    host, _, port = town.url().removeprefix("git://").partition("/")[0].partition(":")
    lines = b"".join(pkt_line(b"want " + want.encode()) for want in wants)
    asked = pkt_line(b"command=fetch") + (pkt_line(b"object-format=sha256") if name == "sha256.git" else b"")
    fetch = fetch_of(read_request(asked + b"0001" + lines + pkt_line(b"done") + b"0000"))
    assert fetch is not None
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(pkt_line(b"git-upload-pack /%s\0host=x\0\0version=2\0" % name.encode()))
        connection.sendall(probe(fetch))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(READ_BYTES):
            pass


def _jgit(town: Town, *arguments: str) -> None:
    libraries = town.folder / "jgit"
    if not libraries.exists():
        pom = ("-q", "-B", "-f", str(PEERS / "jgit/pom.xml"), "dependency:copy-dependencies", f"-DoutputDirectory={libraries}")
        subprocess.run(["mvn", *pom], check=True, timeout=CLIENT_SECONDS)
    _run("java", "-cp", f"{libraries}/*", str(PEERS / "jgit/Clone.java"), *arguments)


def _gogit(town: Town, *arguments: str) -> None:
    binary = town.folder / "gogit"
    if not binary.exists():
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=PEERS / "gogit", check=True, timeout=CLIENT_SECONDS)
    _run(str(binary), *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=CLIENT_SECONDS)


def _dulwich(town: Town, depth: int | None = None) -> None:
    client, path = dulwich.client.get_transport_and_path(town.url())
    work = Path(town.work("dulwich"))
    work.mkdir()
    client.fetch(path, dulwich.repo.Repo.init(str(work)), depth=depth)


def _pygit2(town: Town) -> None:
    pygit2.clone_repository(town.url(), town.work("pygit2"))


def _git_clone(*options: str, name: str = "app.git") -> Callable[[Town], None]:
    return lambda town: town.git("clone", "-q", *options, town.url(name), town.work("clone"))


CASES: dict[str, Callable[[Town], None]] = {
    "git-ls-remote": lambda town: town.git("ls-remote", town.url()),
    "git-server-option": lambda town: town.git("ls-remote", "--server-option=x", town.url()),
    "git-clone": _git_clone(),
    "git-clone-progress": lambda town: town.git("clone", "--progress", town.url(), town.work("clone")),
    "git-clone-depth-1": _git_clone("--depth=1"),
    "git-clone-depth-50": _git_clone("--depth=50"),
    "git-clone-since": _git_clone("--shallow-since=1700000050"),
    "git-clone-exclude": _git_clone("--shallow-exclude=v1"),
    "git-clone-blob-none": _lazy,  # the second and third session fetch the blobs for the checkout
    "git-clone-tree-0": _git_clone("--filter=tree:0", "--no-checkout"),
    "git-clone-single-branch": _git_clone("--single-branch", "--branch=side"),
    "git-clone-sha256": _git_clone(name="sha256.git"),
    "git-clone-empty": _git_clone(name="empty.git"),
    "git-clone-want-ref": _git_clone(name="want-ref.git"),
    "git-clone-sideband-all": lambda town: town.git("clone", "--progress", town.url("sideband-all.git"), town.work("clone")),
    "git-clone-session-id": lambda town: town.git(
        "-c", "transfer.advertiseSID=true", "clone", "-q", town.url("session-id.git"), town.work("clone")
    ),
    "git-fetch-haves": _with_haves,
    "git-fetch-own-commits": _with_own_commits,
    "git-fetch-sha": _by_sha,
    "git-fetch-not-our-ref": _not_our_ref,
    "git-fetch-deepen": _deepen,
    "git-fetch-negotiate-only": _negotiate_only,
    "git-clone-v0": lambda town: town.git("-c", "protocol.version=0", "clone", "-q", "--depth=1", town.url(), town.work("clone")),
    "git-clone-v1": lambda town: town.git("-c", "protocol.version=1", "clone", "-q", "--depth=1", town.url(), town.work("clone")),
    "probe": lambda town: _probe(town, "app.git", (town.tip, town.middle)),
    "probe-sha256": lambda town: _probe(town, "sha256.git", (rev_parse(town.folder / "hosts/sha256.git", town.env, "main"),)),
    "probe-not-our-ref": lambda town: _probe(town, "app.git", (town.tip, "1234567890" * 4)),
    "jgit-clone": lambda town: _jgit(town, "clone", town.url(), town.work("jgit")),
    "jgit-clone-depth-1": lambda town: _jgit(town, "clone", town.url(), town.work("jgit"), "1"),
    "jgit-fetch-haves": lambda town: _jgit(town, "fetch", town.url(), town.clone_at("side")),
    "gogit-clone": lambda town: _gogit(town, town.url(), town.work("gogit"), "0"),
    "gogit-clone-depth-1": lambda town: _gogit(town, town.url(), town.work("gogit"), "1"),
    "dulwich-clone": _dulwich,
    "dulwich-clone-depth-1": lambda town: _dulwich(town, 1),
    "pygit2-clone": _pygit2,  # libgit2 supports version 0 only
}


def _missing(name: str) -> str:
    """A tool that a case needs and this machine lacks."""
    tools = {"jgit": ("mvn", "java"), "gogit": ("go",)}.get(name.partition("-")[0], ("git-upload-pack",))
    return next((tool for tool in tools if shutil.which(tool) is None), "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.git.record", description=__doc__)
    parser.add_argument("--only", choices=CASES, action="append", help="only this case; may be repeated")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="relay-record-") as folder:
        town = Town(Path(folder))
        for name in arguments.only or CASES:
            if tool := _missing(name):
                print(f"{name}: left out, {tool} is not installed")
                continue
            try:
                CASES[name](town)
            except Exception as error:  # noqa: BLE001 - a failing peer must not prevent the recording of the others
                print(f"{name}: failed: {error}")
                failed = True
                continue
            finally:
                taken = town.recorder.take()
            for old in (FOLDER / f"{name}.transcript", *FOLDER.glob(f"{name}_*.transcript")):
                old.unlink(missing_ok=True)
            for number, transcript in enumerate(taken, 1):
                stem = name if number == 1 else f"{name}_{number}"
                (FOLDER / f"{stem}.transcript").write_bytes(transcript.written())
                print(f"{stem}: {len(transcript.records)} records, {transcript.size} bytes")
        town.recorder.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
