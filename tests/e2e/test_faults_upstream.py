"""A git host that is reset, cut off, hung, stopped or killed at each step of a session's conversation with it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import asyncssh
import pytest

from relay.ssh.channel import SEND_HIGH_BYTES
from relay.upstream.libssh2 import loaded_library
from tests.e2e.faults import (
    DOWN,
    LOST,
    MIB,
    SHORT,
    UNAVAILABLE,
    UP,
    Fault,
    Recorder,
    cut,
    descriptors,
    hang,
    in_order,
    kill,
    outcomes_async,
    packet_ends,
    pool_states,
    reset,
    settled,
    stop,
)
from tests.e2e.helpers import alice, stands_still
from tests.support.faultlink import Action, Direction, Link
from tests.support.faultproxy import FaultProxy, Mode, ThreadedFaultProxy
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

STAGES = ["dial", "handshake", "channel", "exec", "lost", "exit"]  # in the order of the conversation
PACKET_SLACK = 64 * 1024  # the packets' overhead, and the incomplete packet

pytestmark = pytest.mark.xdist_group("faults_upstream")


@pytest.fixture(scope="module")
def link(sshd: Sshd) -> Iterator[ThreadedFaultProxy]:
    """The link between the relay and the git host."""
    with ThreadedFaultProxy("127.0.0.1", sshd.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def far(sshd: Sshd, link: ThreadedFaultProxy) -> Iterator[RelayProcess]:
    """A relay that reaches the git host by `link`, dials for each session, and gives up soon."""
    main = {**upstream(sshd, port=link.port), "idle_connections": 0, "connect_seconds": 6, "keepalive_seconds": 4, "connections_max": 200}
    main["health_seconds"] = main["replay_budget"] = 0  # each connection through the link is a session's, and the only one of it
    with RelayProcess(sshd, config={"upstreams": {"main": main}, "limits": {"sessions_per_connection": 200}}) as process:
        assert process.ssh().run(SHORT).returncode == 37  # a first session allocates what stays open
        yield process


@pytest.fixture
def fresh(far: RelayProcess, link: ThreadedFaultProxy, sshd: Sshd) -> Iterator[RelayProcess]:
    """`far` with a healthy git host and no idle connection; afterwards a session works, and nothing is left."""
    forget_idle(far, link)
    before = descriptors(far)
    yield far
    forget_idle(far, link)
    done = far.ssh().run(SHORT)
    assert (done.returncode, done.stdout, done.stderr) == (37, stub_bytes(1000), b"")
    settled(far)
    wait_until(lambda: descriptors(far) == before, message=f"back to {before} descriptors")


def forget_idle(relay: RelayProcess, link: ThreadedFaultProxy) -> None:
    link.do(lambda proxy: proxy.accept("forward"))
    link.do(FaultProxy.heal)
    settled(relay)
    link.do(FaultProxy.cut)
    wait_until(lambda: none_left(relay, link), message="no idle connection is left")


def none_left(relay: RelayProcess, link: ThreadedFaultProxy) -> bool:
    idle, links = pool_states(relay)["idle"], link.do(lambda proxy: [(one.bytes_up, one.bytes_down) for one in proxy.links])
    assert not idle and not links, (idle, links)
    return True


@pytest.fixture(scope="module")
def conversation(sshd: Sshd) -> list[int]:
    """Byte counts at which the git host's packets of SHORT end, from the version line to the channel's close."""

    async def record() -> list[int]:
        recorder = Recorder(sshd.port)
        async with recorder as port:
            main = {**upstream(sshd, port=port), "idle_connections": 0}

            def session() -> None:
                with RelayProcess(sshd, config={"upstreams": {"main": main}}) as relay:
                    assert relay.ssh().run(SHORT).returncode == 37
                    settled(relay)

            await asyncio.to_thread(session)
        assert len(recorder.said) == 1
        return packet_ends(recorder.said[0][1])

    ends = asyncio.run(record())
    assert len(ends) > 12, ends
    return ends


def everywhere(ends: list[int]) -> list[int]:
    """Before the first byte, after each packet, and in the middle of each."""
    starts = [0, *ends]
    return sorted({*starts, *((start + end) // 2 for start, end in zip(starts, ends, strict=False))})


def accepted(ends: list[int]) -> int:
    """The position in `ends` of the packet that says the command has started; what follows is its data, in one packet, and EOF."""
    return next(number for number in range(4, len(ends)) if ends[number] - ends[number - 1] > 1000) - 1


def stage_of(result: Result, line: dict[str, object], after_eof: bool) -> str:
    """The audit line's reason, after the client's view was compared with it.

    The message may be missing when the git host's EOF was passed on before: no data may follow an EOF (RFC 4254 section 5.3).
    """
    reason = str(line["reason"])
    if reason == "exit":
        expected: tuple[object, ...] = ("exit", 37, b"", stub_bytes(1000))
    elif reason == "lost":
        expected = ("upstream", 255, b"" if after_eof and not result.stderr else LOST, result.stdout)
        assert stub_bytes(1000).startswith(result.stdout)
    else:
        expected = ("upstream", 255, UNAVAILABLE, b"")
    assert (line["result"], result.exit_status, result.stderr, result.stdout) == expected, line
    assert result.exit_signal is None
    assert (line["exit_status"], line["bytes_out"]) == (result.exit_status, len(result.stdout)), line
    return reason


# -- every packet of the conversation ----------------------------------------------------------------------------------------


async def stages_of_faults(relay: RelayProcess, link: ThreadedFaultProxy, ends: list[int], action: Action) -> list[str]:
    """How sessions end, all at once, of whose links each suffers `action` a little later in the conversation than the one before."""
    points, since = everywhere(ends), len(relay.audit_lines())
    async with alice(relay) as connection:
        sessions = []
        for at in points:
            link.do(lambda proxy, at=at: proxy.at(at, action, DOWN, scope="new"))  # type: ignore[misc]
            dials = link.do(lambda proxy: proxy.accepted)
            sessions.append(asyncio.create_task(run(connection, SHORT)))
            await wait_until_async(lambda: link.do(lambda proxy: proxy.accepted) > dials, message="the relay dials")  # noqa: B023
        results = await asyncio.gather(*sessions)
    lines = in_order(await outcomes_async(relay, since, len(points)))
    eof = ends[accepted(ends) + 2]
    return [stage_of(result, line, at >= eof) for at, result, line in zip(points, results, lines, strict=True)]


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_the_link_breaks_at_every_packet(
    fresh: RelayProcess, link: ThreadedFaultProxy, conversation: list[int], action: Action
) -> None:
    stages = await stages_of_faults(fresh, link, conversation, action)
    told = list(zip(everywhere(conversation), stages, strict=True))
    version = conversation[0]  # sent unasked: a busy relay may see a reset before its end while it still connects, or after
    assert {stage for at, stage in told if at <= version} <= {"dial", "handshake"}, told
    order = [STAGES.index(stage) for at, stage in told if at > version]
    assert order == sorted(order), told
    assert {stage for at, stage in told if at > version} == {*STAGES} - {"dial"}, told


async def test_the_link_hangs_at_every_packet(fresh: RelayProcess, link: ThreadedFaultProxy, conversation: list[int]) -> None:
    """Before the command is accepted, the timeout of that stage ends the session; afterwards stall_seconds does."""
    stages = await stages_of_faults(fresh, link, conversation, "stall")
    order = [["timeout", "lost", "exit"].index(stage) for stage in stages]
    assert order == sorted(order), list(zip(everywhere(conversation), stages, strict=True))
    assert set(order) == {0, 1, 2}


# -- the steps of a session, all at once -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A session that is held when `at` bytes went in `direction`, and the reasons for which it is to end."""

    name: str
    command: str
    direction: Direction
    at: int
    broken: str  # if the git host breaks the connection
    silent: str  # if the git host sends nothing more
    stdin: bytes = b""
    least: int = 0  # bytes that reached the relay before the fault: the client must receive them


def steps(ends: list[int]) -> list[Step]:
    """From the packets of SHORT: version line, KEXINIT, ECDH reply, NEWKEYS, EXT_INFO, service accepted, key known, login, ..., channel
    opened, on the stock libssh2 two variables set, window, exec accepted, data, EOF, exit-status, close."""
    version, kexinit, reply, _newkeys, _extensions, service, key_known = ends[:7]
    start = accepted(ends)
    started = ends[start]
    if loaded_library().sets_env_unasked:  # then the relay sends the exec as soon as the channel is open
        opening, opened = ends[start - 3 : start - 1]
        exec_step = Step("channel", SHORT, DOWN, (opening + opened) // 2, "channel|exec", "timeout")  # the held packet may still arrive
    else:
        opened, variable_set = ends[start - 4 : start - 2]
        exec_step = Step("exec", SHORT, DOWN, (opened + variable_set) // 2, "exec", "timeout")
    eof = started + 52 + 36  # CHANNEL_DATA with "eof\n", CHANNEL_EOF
    big, push = "git-upload-pack 'stub/emit/5000000'", "git-receive-pack 'stub/checksum'"
    return [
        Step("connect", SHORT, DOWN, 0, "handshake", "timeout"),
        Step("key exchange", SHORT, DOWN, (version + kexinit) // 2, "handshake", "timeout"),
        Step("key exchange, reply", SHORT, DOWN, (kexinit + reply) // 2, "handshake", "timeout"),
        Step("authentication", SHORT, DOWN, (service + key_known) // 2, "handshake", "timeout"),
        exec_step,
        Step("first byte", "git-upload-pack 'stub/hang'", DOWN, started, "lost", "lost"),
        Step("mid transfer", big, DOWN, started + MIB, "lost", "lost", least=MIB - PACKET_SLACK),
        Step("mid transfer, up", push, UP, MIB, "lost", "lost", stdin=bytes(5_000_000)),
        Step("between EOF and exit", "git-upload-pack 'stub/eof/1000'", DOWN, eof, "lost", "lost", least=4),
    ]


@pytest.mark.parametrize("fault", [cut, reset, hang, stop, kill])
async def test_a_fault_at_each_step(
    fresh: RelayProcess,
    link: ThreadedFaultProxy,
    sshd: Sshd,
    conversation: list[int],
    fault: Fault,
) -> None:
    all_steps, since = steps(conversation), len(fresh.audit_lines())
    out = await asyncio.to_thread(fresh.metric, "relay_bytes_total", direction="out")
    async with alice(fresh) as connection:
        sessions = []
        for step in all_steps:
            sessions.append(asyncio.create_task(run(connection, step.command, step.stdin)))
            await held(link, step, len(sessions))
        await wait_until_async(lambda: sshd.session_count() >= len(all_steps), message="sshd serves all of them")
        here = lambda: fresh.metric("relay_bytes_total", direction="out") - out >= sum(step.least for step in all_steps)  # noqa: E731
        await wait_until_async(lambda: asyncio.to_thread(here), message="the relay has read what it must deliver")
        try:
            fault(sshd, link)
            results = await asyncio.gather(*sessions)
        finally:
            if fault is stop:
                sshd.thaw()
    lines = in_order(await outcomes_async(fresh, since, len(all_steps)))
    for step, result, line in zip(all_steps, results, lines, strict=True):
        reason = step.silent if fault in (hang, stop) else step.broken
        # of the session between EOF and exit the client has the EOF already, after which no message may come
        assert line["reason"] in reason.split("|"), (step.name, line)
        message = UNAVAILABLE if reason != "lost" else b"" if "eof" in step.command else LOST
        assert line["result"] == "upstream", (step.name, line)
        assert (result.exit_status, result.exit_signal, result.stderr) == (255, None, message), (step.name, line)
        assert len(result.stdout) >= step.least, step.name
        assert (b"eof\n" if "eof" in step.command else stub_bytes(5_000_000)).startswith(result.stdout), step.name
        assert line["bytes_out"] == len(result.stdout), (step.name, line)


async def held(link: ThreadedFaultProxy, step: Step, number: int) -> None:
    """Waits until the relay's `number`th connection is held at the step; called right after its session was started."""
    link.do(lambda proxy: proxy.at(step.at, "stall", step.direction, scope="new"))

    def moved() -> int:
        links: list[Link] = link.do(lambda proxy: list(proxy.links))
        if len(links) < number:
            return -1
        return links[-1].bytes_down if step.direction == DOWN else links[-1].bytes_up

    await wait_until_async(lambda: moved() == step.at, message=f"{step.name}: held after {step.at} bytes")
    link.do(lambda proxy: proxy.heal(scope="new"))


# -- faults beyond the steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "reasons"), [("refuse", ["dial"]), ("reset", ["dial", "handshake"]), ("silent", ["timeout"])])
async def test_a_git_host_that_does_not_let_in(fresh: RelayProcess, link: ThreadedFaultProxy, mode: Mode, reasons: list[str]) -> None:
    since = len(fresh.audit_lines())
    link.do(lambda proxy: proxy.accept(mode))
    async with alice(fresh) as connection:
        result = await run(connection, SHORT)
    assert (result.exit_status, result.stdout, result.stderr) == (255, b"", UNAVAILABLE)
    [line] = await outcomes_async(fresh, since, 1)
    assert line["result"] == "upstream" and line["reason"] in reasons, line


async def test_a_git_host_whose_backlog_is_full(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    """Connections to it are neither accepted nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the one connection that a backlog of 0 holds
            relay = make_relay(sshd, config={"upstreams": {"main": {**upstream(sshd, port=port), "connect_seconds": 1}}})
            async with alice(relay) as connection:
                results = await asyncio.gather(*(run(connection, SHORT) for _ in range(5)))
            assert {(result.exit_status, result.stderr) for result in results} == {(255, UNAVAILABLE)}
            lines = await outcomes_async(relay, 0, 5)
            assert {line["reason"] for line in lines} == {"timeout"}


@pytest.mark.parametrize("speaks", [False, True])
@pytest.mark.parametrize("fault", [cut, reset])
async def test_all_that_came_is_delivered_to_a_client_that_reads_late(
    fresh: RelayProcess, link: ThreadedFaultProxy, sshd: Sshd, fault: Fault, speaks: bool
) -> None:
    """The relay holds part of the output and reads no more, the rest is in its socket; also if the client's EOF finds the host dead."""
    size, window, first = 250_000, 64 * 1024, 200_000
    paused = window + SEND_HIGH_BYTES  # the least that the relay reads before it stops; `first` is the most
    assert paused < first - PACKET_SLACK
    since, out = len(fresh.audit_lines()), await asyncio.to_thread(fresh.metric, "relay_bytes_total", direction="out")

    async def carried() -> float:
        return await asyncio.to_thread(fresh.metric, "relay_bytes_total", direction="out") - out

    async def more_than_it_holds() -> bool:
        return await carried() > paused

    link.do(lambda proxy: proxy.at(first, "stall", DOWN))
    async with alice(fresh) as connection:
        got, ended = bytearray(), asyncio.Event()

        class Late(asyncssh.SSHClientSession[bytes]):
            status: int | None = None
            stderr = b""

            def data_received(self, data: bytes, datatype: int | None) -> None:
                if datatype is None:
                    got.extend(data)
                else:
                    self.stderr += data

            def exit_status_received(self, status: int) -> None:
                self.status = status

            def connection_lost(self, exc: Exception | None) -> None:
                ended.set()

        command = f"git-upload-pack 'stub/half/{size}'"
        channel, session = await connection.create_session(Late, command, encoding=None, window=window)
        channel.pause_reading()
        await wait_until_async(more_than_it_holds, message="the relay has stopped reading")
        link.do(FaultProxy.heal)
        [one] = link.do(lambda proxy: list(proxy.links))
        await wait_until_async(lambda: link.do(lambda _: one.bytes_down > size and not one.in_flight), message="all of it is in its socket")
        await wait_until_async(stands_still(lambda: link.do(lambda _: (one.bytes_down, one.in_flight))))
        assert await carried() < size
        fault(sshd, link)
        await wait_until_async(lambda: not link.do(lambda proxy: list(proxy.links)))
        if speaks:
            channel.write_eof()
        channel.resume_reading()
        async with asyncio.timeout(60):
            await ended.wait()
    assert (len(got), bytes(got) == stub_bytes(size)) == (size, True)
    assert isinstance(session, Late) and (session.status, session.stderr) == (255, LOST)
    [line] = await outcomes_async(fresh, since, 1)
    assert (line["result"], line["reason"], line["bytes_out"]) == ("upstream", "lost", size)
