"""A client of protocol version 2 that fetches main over asyncssh and throws the pack away: the storm's client where there is no Go."""

from __future__ import annotations

import time
from typing import NamedTuple

import asyncssh

from relay.git.pktline import DATA_MOST_BYTES, FLUSH_PKT, LENGTH_DIGITS, Packet, Special, pkt_line

WANTED_REF = b"refs/heads/main"
READ_BYTES = 256 * 1024
DELIM_PKT = b"0001"
LS_REFS = b"".join(
    [
        pkt_line(b"command=ls-refs\n"),
        DELIM_PKT,
        *[pkt_line(line) for line in (b"peel\n", b"symrefs\n")],
        *[pkt_line(b"ref-prefix %s\n" % prefix) for prefix in (b"HEAD", b"refs/heads/", b"refs/tags/")],
        FLUSH_PKT,
    ]
)


class Fetched(NamedTuple):
    """`first`: when the first byte of the pack came, on time.perf_counter's clock. `size`: of the pack."""

    first: float
    size: int


def fetch_request(want: bytes, depth: int = 0) -> bytes:
    """As `git clone -q` asks; `depth` 0 is all of the history."""
    deepen = [b"deepen %d" % depth] if depth else []
    lines = [b"thin-pack", b"no-progress", b"include-tag", b"ofs-delta", *deepen, b"want %s\n" % want, b"done\n"]
    return pkt_line(b"command=fetch") + DELIM_PKT + b"".join(map(pkt_line, lines)) + FLUSH_PKT


async def fetch(connection: asyncssh.SSHClientConnection, command: str, depth: int = 0) -> Fetched:
    """Runs git-upload-pack (`command`) and fetches. Raises ValueError when what comes is no pack or the exit status is not 0."""
    async with connection.create_process(command, env={"GIT_PROTOCOL": "version=2"}, encoding=None) as process:
        try:
            fetched = await _converse(process, depth)
            process.stdin.write(FLUSH_PKT)
            process.stdin.write_eof()
            said = await process.stderr.read()
            await process.wait_closed()
        except (ValueError, asyncssh.Error, EOFError, BrokenPipeError) as error:
            process.stdin.write_eof()
            said = await process.stderr.read()
            raise ValueError(f"{type(error).__name__}: {error}: {said.decode(errors='replace').strip()}") from None
        if process.exit_status != 0:
            raise ValueError(f"exit status {process.exit_status}: {said.decode(errors='replace').strip()}")
        return fetched


async def _converse(process: asyncssh.SSHClientProcess[bytes], depth: int) -> Fetched:
    advertisement = await _lines(process)
    if advertisement[:1] != [b"version 2"]:
        raise ValueError(f"the git host does not speak version 2: {advertisement[:1]!r}")
    process.stdin.write(LS_REFS)
    wants = [oid for oid, _, name in (line.partition(b" ") for line in await _lines(process)) if name.split(b" ")[0] == WANTED_REF]
    if not wants:
        raise ValueError(f"there is no {WANTED_REF.decode()}")
    process.stdin.write(fetch_request(wants[0], depth))
    while (line := await _packet(process)) != b"packfile\n":  # the section shallow-info may come before
        if line is Special.FLUSH:
            raise ValueError("the answer has no packfile")
        _raise_err(line)
    return await _pack(process)


async def _pack(process: asyncssh.SSHClientProcess[bytes]) -> Fetched:
    first, size, head = 0.0, 0, b""
    while (packet := await _packet(process)) is not Special.FLUSH:
        if isinstance(packet, Special) or packet[:1] not in (b"\1", b"\2"):
            raise ValueError(f"a packet that is neither pack nor progress: {packet!r:.100}")
        if packet[0] == 1 and len(packet) > 1:
            first = first or time.perf_counter()
            head = head or packet[1:5]
            size += len(packet) - 1
    if head != b"PACK":
        raise ValueError(f"the pack begins with {head!r}")
    return Fetched(first, size)


def _raise_err(packet: Packet) -> None:
    if isinstance(packet, bytes) and packet.startswith(b"ERR "):
        raise ValueError(packet.decode(errors="replace"))


async def _lines(process: asyncssh.SSHClientProcess[bytes]) -> list[bytes]:
    """The lines up to a flush-pkt."""
    lines = []
    while (line := await _packet(process)) is not Special.FLUSH:
        _raise_err(line)
        if isinstance(line, bytes):
            lines.append(line.removesuffix(b"\n"))
    return lines


async def _packet(process: asyncssh.SSHClientProcess[bytes]) -> Packet:
    """The next packet's data. Raises asyncio.IncompleteReadError, an EOFError, when the git host's output ends."""
    length = int(await process.stdout.readexactly(LENGTH_DIGITS), 16)
    if length < LENGTH_DIGITS:
        return Special(length)
    if length - LENGTH_DIGITS > DATA_MOST_BYTES:
        raise ValueError(f"a packet of {length} bytes")
    return await process.stdout.readexactly(length - LENGTH_DIGITS)
