"""The files of a run: keys, a client's git configuration, streams of known content and repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import MeasureError
from benchmarks.sizes import MIB, Sizes
from benchmarks.user import Account

BLOCK_BYTES = 4 * MIB  # incompressible, repeated: SSH does not compress, so the repetition does not matter
FILE_BYTES = 16 * MIB  # of one file in the big repository
ROOM = 8  # a workspace needs this many times the size of its largest object
SMALL_REFS = 20

# At both ends: no deltas, no compression and no fsync, so that the run measures the transfer, not zlib or the disk.
GIT_CONFIG = {
    "core.bigFileThreshold": "1m",
    "core.compression": "0",
    "core.fsync": "none",
    "fastimport.unpackLimit": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.window": "0",
    "receive.autogc": "false",
    "receive.unpackLimit": "1",
}


class Key(NamedTuple):
    """An ed25519 key: file of the private half, and the public half as one line."""

    private: Path
    public: str


class Blob(NamedTuple):
    """A file of pseudo-random bytes: zlib's CRC-32 checks it at the client, cksum(1)'s line at the git host."""

    path: Path
    size: int
    crc32: int
    cksum: str


class Workspace:
    """Everything below one temporary folder. `git` is the git host's root, served as `account`, whose sessions have `home` as HOME."""

    def __init__(self, root: Path, account: Account) -> None:
        self.root, self.account = root, account
        self.git, self.keys, self.logs, self.clones, self.home = (root / name for name in ("git", "keys", "logs", "clones", "home"))
        for folder in (self.git, self.keys, self.logs, self.clones, self.home):
            folder.mkdir()
        self.git_config = root / "gitconfig"
        lines = [f"[{key.split('.')[0]}]\n\t{key.split('.')[1]} = {value}" for key, value in GIT_CONFIG.items()]
        self.git_config.write_text("\n".join([*lines, "[safe]\n\tdirectory = *", "[init]\n\tdefaultBranch = main", ""]))
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.git_config),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "bench",
            "GIT_AUTHOR_EMAIL": "bench@example.org",
            "GIT_COMMITTER_NAME": "bench",
            "GIT_COMMITTER_EMAIL": "bench@example.org",
        }
        self._blobs: dict[int, Blob] = {}
        self._sizes: dict[str, int] = {}
        self._block = os.urandom(BLOCK_BYTES)

    def key(self, name: str, *, owner: Account | None = None) -> Key:
        """A new key pair; `owner` is the account that must be able to read it, if it is not this process's."""
        path = self.keys / name
        self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path))
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)
        return Key(path, path.with_suffix(".pub").read_text().strip())

    def blob(self, size: int) -> Blob:
        """A file of `size` bytes; made once."""
        if size not in self._blobs:
            path = self.git / f"blob-{size}"
            crc = left = 0
            with path.open("wb") as file:
                left = size
                while left:
                    block = self._block[:left]
                    file.write(block)
                    crc, left = zlib.crc32(block, crc), left - len(block)
            with path.open("rb") as file:
                said = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
            self._blobs[size] = Blob(path, size, crc, said)
        return self._blobs[size]

    def empty_repository(self, name: str) -> Path:
        """A bare repository that the git host's account owns."""
        path = self.git / f"{name}.git"
        self._run("git", "init", "-q", "--bare", str(path))
        for key, value in GIT_CONFIG.items():
            self._run("git", "-C", str(path), "config", key, value)
        self._give(path)
        return path

    def repository(self, name: str, size: int) -> Path:
        """A repository with `size` incompressible bytes in files of up to 16 MiB and 20 branches, made by fast-import."""
        path = self.empty_repository(name)
        importer = subprocess.Popen(["git", "-C", str(path), "fast-import", "--quiet"], stdin=subprocess.PIPE, env=self.env)
        assert importer.stdin is not None
        with importer.stdin as stream:
            stream.write(b"commit refs/heads/main\ncommitter bench <bench@example.org> 1700000000 +0000\ndata 5\nbench\n")
            left, number = size, 0
            while left:
                content = os.urandom(min(left, FILE_BYTES))
                stream.write(b"M 100644 inline file-%d\ndata %d\n" % (number, len(content)))
                stream.write(content)
                stream.write(b"\n")
                left, number = left - len(content), number + 1
            for branch in range(SMALL_REFS - 1):
                stream.write(b"reset refs/heads/branch-%d\nfrom refs/heads/main\n\n" % branch)
        if importer.wait(600) != 0:
            raise MeasureError(f"git fast-import ended with {importer.returncode}")
        self._sizes[name] = size
        self._run("git", "-C", str(path), "symbolic-ref", "HEAD", "refs/heads/main")
        self._give(path)
        return path

    def size(self, name: str) -> int:
        """Incompressible bytes in a repository made here."""
        return self._sizes[name]

    def head(self, repository: Path) -> str:
        return self._run("git", "-C", str(repository), "rev-parse", "refs/heads/main").strip()

    def _give(self, path: Path) -> None:
        if self.account.uid != os.getuid():
            for one in [path, *path.rglob("*")]:
                os.chown(one, self.account.uid, self.account.gid)

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, env=self.env, timeout=120, check=False)
        if done.returncode != 0:
            raise MeasureError(f"{' '.join(argv[:3])} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout


def place(sizes: Sizes) -> Path:
    """A folder in memory (tmpfs) if it has room for the run, so that no disk is measured; else the temporary folder."""
    memory = Path("/dev/shm")
    need = ROOM * max(sizes.repository_bytes, sizes.stream_bytes)
    # tmpfs uses memory that the run needs as well: use no more than half of the available memory
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if memory.is_dir() and os.access(memory, os.W_OK) and min(shutil.disk_usage(memory).free, available) >= need:
        return memory
    return Path(tempfile.gettempdir())


@contextmanager
def workspace(parent: Path, account: Account) -> Iterator[Workspace]:
    """A folder that exists until the block ends. Other users may traverse it (the git host is another user); keys stay private."""
    if any(letter.isspace() for letter in str(parent)):
        raise MeasureError(f"{parent}: ssh's options cannot hold a path with blanks")
    root = Path(tempfile.mkdtemp(prefix="relaybench-", dir=parent))
    try:
        root.chmod(0o755)
        yield Workspace(root, account)
    finally:
        shutil.rmtree(root)
