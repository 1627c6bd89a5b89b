"""What the tests of packs share: a git host that counts its runs of pack-objects and may hold them, and what the relay says of its entries.

runs = Runs(sshd, tmp_path / "runs")
with RelayProcess(sshd, config=packs(tmp_path / "packs")) as relay: ...
assert runs.count == 2 and results(relay) == {"passed": 1, "filled": 1, "hit": 3}
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from relay.git.conversation import Conversation, Kind, Payloads
from relay.git.pktline import FLUSH_PKT, pkt_line
from relay.packs.entry import HEADER_BYTES, Damaged, inspect
from tests.e2e.helpers import alice, audited
from tests.support.gitrepo import fsck, rev_list
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd


class Runs:
    """The runs of `git pack-objects` at an sshd; each waits as long as it is held (`uploadpack.packObjectsHook`)."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        folder.mkdir()
        self._runs, self._hold, hook = folder / "runs", folder / "hold", folder / "hook"
        self._runs.touch()
        progress = "case \" $* \" in *' --progress '*) echo 'Counting objects: 1' >&2;; esac"
        refuse = f"[ -e {folder}/refuse ] && exit 1"
        words = f"{refuse}\nprintf x >>{self._runs}\n{progress}\nwhile [ -e {self._hold} ]; do sleep 0.02; done"
        hook.write_text(f'#!/bin/sh\n{words}\nexec "$@"\n')
        hook.chmod(0o755)
        with (sshd.folder / "home" / ".gitconfig").open("a") as file:  # git reads the hook from no repository
            file.write(f"[uploadpack]\n\tpackObjectsHook = {hook}\n\tallowFilter = true\n")

    def refuse(self) -> None:
        """From now on no pack is made: git-upload-pack ends with an error."""
        (self._runs.parent / "refuse").touch()

    @property
    def count(self) -> int:
        return len(self._runs.read_text())

    def hold(self) -> None:
        self._hold.touch()

    def let_go(self) -> None:
        self._hold.unlink()


def packs(folder: Path, **settings: Any) -> dict[str, Any]:
    """The `[packs]` table with this folder, which is made; an entry is used for an hour, so that none is too old on a slow machine."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return {"packs": {"folder": str(folder), "ttl_seconds": 3600, "free_bytes": 1 << 20, **settings}}


def results(relay: RelayProcess) -> dict[str, int]:
    """How often each result of relay_packs_total came, but for those that did not."""
    counts: dict[str, int] = {}
    for sample in relay.metrics()["relay_packs_total"]:
        if sample.value:
            counts[sample.labels["result"]] = counts.get(sample.labels["result"], 0) + int(sample.value)
    return counts


def entries(folder: Path) -> list[Path]:
    """The files of entries, whole or being filled."""
    return [path for path in folder.iterdir() if len(path.name) == 64]


def served(relay: RelayProcess, since: int, count: int) -> list[str]:
    """Who served each upload-pack session after the `since`th audit line, all of which ended well."""
    lines = audited(relay, since, count, service="git-upload-pack")
    assert all((line["result"], line["reason"]) == ("ok", "ok") for line in lines), lines
    return [line["served_by"] for line in lines]


def is_whole(work: Path, bare: Path, env: dict[str, str], *refs: str) -> None:
    """The clone is intact and has all objects."""
    fsck(work, env)
    assert rev_list(work, env, *refs) == rev_list(bare, env, *refs)


def filler(entry: Path) -> int:
    """The pid of the worker that fills the entry: it holds the file's lock (proc_locks(5))."""
    inode = entry.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    raise AssertionError(f"nobody fills {entry}")


def kept_whole(folder: Path) -> int:
    """How many entries are published; each is a whole answer, and its pack has the checksum at its end."""
    count = 0
    for path in entries(folder):
        with path.open("rb") as file:
            try:
                header, _ = inspect(file.fileno(), bytes.fromhex(path.name))
            except Damaged:
                continue
            if header.state != "whole":
                continue
            file.seek(HEADER_BYTES)
            body = file.read()
        talk, payloads, pack, last = Conversation(opened=True), Payloads(), bytearray(), False
        talk.client_data(pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + b"a" * 40) + pkt_line(b"done") + FLUSH_PKT)
        talk.spooling = True
        for piece in talk.host_data(body):
            assert piece.kind in (Kind.ANSWER, Kind.PACK), f"{path} has {piece.kind}"
            last = piece.last
            for part in payloads.feed(piece.data) if piece.kind is Kind.PACK else ():
                pack += part
        assert last and hashlib.sha1(pack[:-20]).digest() == pack[-20:], f"{path} is not whole"
        count += 1
    return count


class Fetcher:
    """A session of git-upload-pack by protocol version 2, spoken by hand, that reads the answer when the test wants it to."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self.process = process
        self.refs: dict[bytes, bytes] = {}

    @classmethod
    @asynccontextmanager
    async def at(cls, relay: RelayProcess, repository: str, **options: Any) -> AsyncIterator[Fetcher]:
        """`options` go to create_process."""
        async with alice(relay) as connection:
            command, env = f"git-upload-pack '{repository}'", {"GIT_PROTOCOL": "version=2"}
            process = await connection.create_process(command, encoding=None, env=env, **options)
            fetcher = cls(process)
            await fetcher.lines()
            yield fetcher

    async def lines(self) -> list[bytes]:
        """The lines up to the next flush-pkt."""
        found = []
        while length := int(await self.process.stdout.readexactly(4), 16):
            found.append((await self.process.stdout.readexactly(length - 4)).rstrip(b"\n") if length > 4 else b"")
        return found

    async def list(self) -> None:
        self.process.stdin.write(pkt_line(b"command=ls-refs\n") + b"0001" + FLUSH_PKT)
        for line in await self.lines():
            oid, name = line.split(b" ")[:2]
            self.refs[name] = oid

    def ask(self, *wants: bytes) -> None:
        lines = [b"ofs-delta\n", *(b"want " + want + b"\n" for want in wants), b"done\n"]
        self.process.stdin.write(pkt_line(b"command=fetch") + b"0001" + b"".join(map(pkt_line, lines)) + FLUSH_PKT)

    async def answer(self) -> bytes:
        """The rest of the answer, to its flush-pkt, without progress and keepalives."""
        parts = []
        while True:
            head = await self.process.stdout.readexactly(4)
            data = await self.process.stdout.readexactly(max(int(head, 16) - 4, 0))
            if data[:1] != b"\2" and data != b"\1":
                parts += [head, data]
            if head == FLUSH_PKT:
                return b"".join(parts)

    async def end(self) -> int | None:
        """Asks for nothing more; returns the exit status."""
        self.process.stdin.write(FLUSH_PKT)
        await self.process.wait_closed()
        return self.process.exit_status
