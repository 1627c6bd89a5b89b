"""The places in a session's conversation where a test injects a fault, and checks of the relay after it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

NEWKEYS = 21  # RFC 4253 section 7.3
GCM_TAG_BYTES = 16
UNAVAILABLE = b"relay: the git host is unavailable, try again in a moment\n"
LOST = b"relay: the connection to the git host was lost, try again\n"
UP: Final = "up"
DOWN: Final = "down"
SHORT = "git-upload-pack 'stub/emit/1000/37'"
MIB = 1 << 20
BUFFER_BYTES = 16_384  # of a socket; the kernel doubles it, and counts its own part
ROOT = Path(__file__).parents[2]

Fault = Callable[[Sshd, ThreadedFaultProxy], None]  # what is done to a git host, or to the link that leads to it


@dataclass
class Recorder:
    """A plain TCP forwarder that keeps the bytes each side sent, by connection: [(up, down), ...]."""

    target: int
    said: list[tuple[bytearray, bytearray]] = field(default_factory=list)

    async def __aenter__(self) -> int:
        """The port to connect to."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = bytearray(), bytearray()
        self.said.append((up, down))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(_tee(reader, far_writer, up), _tee(far_reader, writer, down))
        except ConnectionError:
            pass  # a side that reset the connection sends no more
        finally:
            far_writer.close()
            writer.close()


async def _tee(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray) -> None:
    while data := await reader.read(1 << 16):
        into += data
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def packet_ends(stream: bytes | bytearray) -> list[int]:
    """Byte counts after the version line and after each packet of one direction, whose cipher after NEWKEYS is AES-GCM (RFC 5647)."""
    ends = [stream.index(b"\n") + 1]
    tag = 0
    while ends[-1] + 6 <= len(stream):
        at = ends[-1]
        end = at + 4 + int.from_bytes(stream[at : at + 4], "big") + tag
        if end > len(stream):
            break
        ends.append(end)
        if not tag and stream[at + 5] == NEWKEYS:
            tag = GCM_TAG_BYTES
    assert tag, "no NEWKEYS in the stream"
    return ends


def pool_states(relay: RelayProcess) -> dict[str, int]:
    return {sample.labels["state"]: int(sample.value) for sample in relay.metrics()["relay_upstream_connections"]}


def settled(relay: RelayProcess, timeout: float = 10.0) -> None:
    """Waits until the relay has no session, no lease and no dial. Blocks."""

    def still() -> bool:
        states = pool_states(relay)
        states.pop("idle")
        assert not any(states.values()), states
        assert relay.metric("relay_sessions_open") == 0
        return True

    wait_until(still, timeout, "no session, no lease and no dial is left")


async def settled_async(relay: RelayProcess, timeout: float = 10.0) -> None:
    await asyncio.to_thread(settled, relay, timeout)


def outcomes(relay: RelayProcess, since: int, count: int) -> list[dict[str, Any]]:
    """The audit lines of the `count` sessions after line `since`, each session exactly once. Blocks."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in relay.audit_lines()[since:] if line["event"] == "session"]

    wait_until(lambda: len(lines()) >= count, message=f"{count} sessions have their audit line")
    settled(relay)
    found = lines()
    assert len(found) == count, f"{len(found)} audit lines for {count} sessions"
    assert len({line["session"] for line in found}) == count, "a session has two audit lines"
    return found


async def outcomes_async(relay: RelayProcess, since: int, count: int) -> list[dict[str, Any]]:
    return await asyncio.to_thread(outcomes, relay, since, count)


async def same_descriptors(relay: RelayProcess, before: int) -> None:
    """Waits until the relay has as many descriptors as it had, idle upstream connections apart."""
    await wait_until_async(
        lambda: asyncio.to_thread(lambda: descriptors(relay) == before), message=f"back to {before} descriptors ({descriptors(relay)} now)"
    )


def descriptors(relay: RelayProcess) -> int:
    """Open descriptors without those of idle upstream connections."""
    return relay.fds() - pool_states(relay)["idle"]


def in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of one connection's sessions: in the order in which they were opened."""
    return sorted(lines, key=lambda line: int(line["session"].rsplit("-", 1)[1]))


def small_buffers(folder: Path) -> dict[str, str]:
    """The environment of a relay whose upstream sockets hold less than a packet, as where the kernel allows no more: packets are partly
    sent. `folder` is for a file that Python runs at its start."""
    return _at_start(
        folder,
        f"import relay.upstream.libssh2.tcp\nassert relay.upstream.libssh2.tcp.SEND_BUFFER_BYTES > {BUFFER_BYTES}\n"
        f"relay.upstream.libssh2.tcp.SEND_BUFFER_BYTES = {BUFFER_BYTES}\n",
    )


def small_client_buffers(folder: Path) -> dict[str, str]:
    """The same for clients' sockets, both ways: the kernel's own buffers would hold the data that should wait in the relay."""
    return _at_start(
        folder,
        f"""
import socket
import relay.ssh.packets

known = relay.ssh.packets.inherited

def inherited(listener):
    known(listener)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, {BUFFER_BYTES})

relay.ssh.packets.inherited = inherited
""",
    )


def _at_start(folder: Path, source: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


# -- faults of a git host, and of the link to it -----------------------------------------------------------------------------


def cut(sshd: Sshd, link: ThreadedFaultProxy) -> None:
    link.do(FaultProxy.cut)


def reset(sshd: Sshd, link: ThreadedFaultProxy) -> None:
    link.do(FaultProxy.reset)


def hang(sshd: Sshd, link: ThreadedFaultProxy) -> None:
    """Leaves the link stalled."""


def stop(sshd: Sshd, link: ThreadedFaultProxy) -> None:
    sshd.freeze()
    link.do(FaultProxy.resume)


def kill(sshd: Sshd, link: ThreadedFaultProxy) -> None:
    assert sshd.signal_sessions(signal.SIGKILL)
    link.do(FaultProxy.resume)
