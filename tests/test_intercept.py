"""Interceptors between a client and a git host in memory: a push is passed on whole, or not a byte of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import intercept as module
from relay.errors import ClientGone, Denied, Ended, Frozen, Lost, ReadOnly, RefDenied, Refused
from relay.events import SessionRecord
from relay.git import refs
from relay.git.push_commands import LIST_MOST_BYTES
from relay.intercept import PushGate, RequestReader, intercept
from relay.model import Command, Exit, Grant, RefRule, Service
from relay.splice import CLIENT_TO_UPSTREAM_HIGH_BYTES, Splice
from tests.git.test_fetch_request import DONE, FETCH, LS
from tests.git.test_push_commands import BAD, GOOD, PACK, TOLD, ZERO, A, B, command, lines
from tests.support.pieces import cuts, pieces
from tests.support.wait import wait_until_async
from tests.test_splice import OK, Client, Pair, Upstream

RULES = (RefRule(refs=("refs/heads/main",), write=False),)
CAPABILITIES = b"report-status side-band-64k"
TOPIC = command(A, B, "refs/heads/topic", CAPABILITIES)
MAIN = command(A, B, "refs/heads/main", CAPABILITIES)
GONE = command(A, ZERO, "refs/heads/main", CAPABILITIES)


class Gated:
    """A splice with a watch, and its two peers."""

    def __init__(
        self,
        rules: tuple[RefRule, ...] = RULES,
        service: Service = "git-receive-pack",
        stall_seconds: float = 60,
        closed: ReadOnly | None = None,
    ) -> None:
        record: SessionRecord = Pair().record
        record.command = Command(service=service, repository="team/app")
        self.record, self.client, self.upstream = record, Client(), Upstream()
        self.watch = intercept(record.command, Grant(access="write", refs=rules), record, stall_seconds, closed)
        self.splice = Splice(self.client, self.upstream, record, 60, self.watch)

    @property
    def sent(self) -> bytes:
        return self.upstream.taken + self.upstream.waiting

    @property
    def refusal(self) -> Refused:
        assert isinstance(self.watch, PushGate) and self.watch.refusal is not None
        return self.watch.refusal

    def client_says(self, *parts: bytes) -> None:
        for part in parts:
            self.splice.client_data(part)

    async def over(self) -> bool:
        """Whether the session has ended."""
        await asyncio.sleep(0)
        return self.splice._done.done()

    def report(self) -> list[bytes]:
        [band] = lines(self.client.stdout)
        assert band[:1] == b"\1"
        return lines(band[1:])


async def test_each_service_has_its_interceptor() -> None:
    assert isinstance(Gated().watch, PushGate)
    assert isinstance(Gated(()).watch, RequestReader)
    assert isinstance(Gated((), "git-upload-pack").watch, RequestReader)
    assert isinstance(Gated(RULES, "git-upload-pack").watch, RequestReader)
    assert Gated((), "git-upload-archive").watch is None


# -- reading requests --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted({**BAD, **{name: data for name, (data, _) in GOOD.items()}})), cuts)
def test_without_rules_every_byte_passes_at_once(name: str, places: list[int]) -> None:
    async def play() -> None:
        gated, sent = Gated(()), b""
        for piece in pieces((BAD[name] if name in BAD else GOOD[name][0]) + PACK, places):
            gated.client_says(piece)
            sent += piece
            assert gated.sent == sent
        gated.splice.client_eof()
        assert gated.upstream.eof
        gated.splice.upstream_ended(OK)
        assert await gated.splice.run() == OK

    asyncio.run(play())


@pytest.mark.parametrize(("service", "first"), [("git-receive-pack", TOPIC + b"0000"), ("git-upload-pack", LS + FETCH + DONE + b"0000")])
async def test_the_reader_leaves_the_splice_when_it_knows_enough(service: Service, first: bytes) -> None:
    gated = Gated((), service)
    gated.client_says(first[:-1])
    assert isinstance(gated.splice._intake, RequestReader)
    gated.client_says(first[-1:])
    assert isinstance(gated.splice._intake, Upstream)
    assert gated.record.asked is not None and gated.record.asked.kind == {"git-receive-pack": "push"}.get(service, "clone")
    gated.splice.client_gone("away")
    with pytest.raises(ClientGone):
        await gated.splice.run()


async def test_without_rules_a_list_of_any_length_passes_and_is_marked_as_truncated() -> None:
    gated, line = Gated(()), command(A, B, "refs/heads/topic")
    count = LIST_MOST_BYTES // len(line) + 10
    for _ in range(count):
        gated.client_says(line)
    gated.client_says(b"0000" + PACK)
    assert len(gated.sent) == count * len(line) + 4 + len(PACK)
    assert isinstance(gated.splice._intake, Upstream)
    asked = gated.record.asked
    assert asked is not None and asked.truncated and asked.count == LIST_MOST_BYTES // len(line)
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK


async def test_backpressure_of_the_git_host_applies_through_a_reader() -> None:
    gated = Gated(())
    gated.client_says(b"0fff" + bytes(CLIENT_TO_UPSTREAM_HIGH_BYTES))
    assert gated.client.paused


# -- an allowed push ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from([name for name in GOOD if name not in ("update", "no capabilities", "sha256")]), cuts)
def test_an_allowed_push_is_held_until_its_whole_list_is_parsed(name: str, places: list[int]) -> None:
    async def play() -> None:
        gated = Gated((RefRule(refs=("refs/heads/other",), write=False),))
        listed = GOOD[name][0]
        if b"\xff" in listed:
            return  # not a valid ref name for git, see tests/git/test_refs.py
        given_so_far = b""
        for piece in pieces(listed + PACK, places):
            gated.client_says(piece)
            given_so_far += piece
            assert gated.sent == (given_so_far if len(given_so_far) >= len(listed) else b"")
        assert isinstance(gated.splice._intake, Upstream)
        gated.splice.upstream_ended(OK)
        assert await gated.splice.run() == OK

    asyncio.run(play())


@pytest.mark.parametrize("rules", [(), RULES])
async def test_only_the_first_refs_are_stored(rules: tuple[RefRule, ...]) -> None:
    gated = Gated(rules)
    gated.client_says(*(command(A, B, f"refs/heads/{number}", b"" if not number else None) for number in range(200)), b"0000")
    assert gated.sent.count(b"refs/heads/") == 200
    asked = gated.record.asked
    assert asked is not None and (asked.count, len(asked.updates), asked.truncated) == (200, module.UPDATES_READ, False)
    gated.splice.upstream_ended(OK)
    await gated.splice.run()


async def test_a_client_with_an_empty_command_list() -> None:
    gated = Gated()
    gated.splice.client_eof()
    assert gated.upstream.eof and gated.sent == b""
    gated.splice.upstream_ended(Exit(status=128))
    assert await gated.splice.run() == Exit(status=128)
    assert gated.watch is not None and gated.watch.refusal is None


async def test_the_git_host_ends_before_the_list_is_parsed() -> None:
    gated = Gated()
    gated.client_says(MAIN)
    gated.splice.upstream_eof()
    assert not gated.client.eofs  # because the gate could still have had a report to send
    gated.splice.upstream_ended(Lost("broken"))
    with pytest.raises(Lost):
        await gated.splice.run()
    assert gated.sent == b""


# -- a refused push ----------------------------------------------------------------------------------------------------------


@given(cuts)
def test_the_git_host_gets_an_empty_command_list_for_a_refused_push(places: list[int]) -> None:
    async def play() -> None:
        gated = Gated()
        stream = TOPIC + command(ZERO, B) + b"0000" + PACK * 1000
        for piece in pieces(stream, places):
            assert gated.sent in (b"", b"0000")
            gated.client_says(piece)
        assert gated.sent == b"0000" and not gated.upstream.eof
        gated.splice.upstream_data(memoryview(b"last of the refs"))
        gated.splice.upstream_eof()
        assert not gated.client.eofs
        gated.splice.upstream_ended(OK)
        assert gated.client.stdout.startswith(b"last of the refs"), "the report comes after it"
        gated.client.stdout = gated.client.stdout.removeprefix(b"last of the refs")
        assert gated.report() == [
            TOLD[0],
            b"ng refs/heads/topic not pushed: another ref of this push was refused\n",
            b"ng refs/heads/main not allowed by access rules\n",
        ]
        assert not await gated.over(), "git sends its pack before it reads"
        gated.client_says(bytes(1_000_000))
        assert not gated.client.paused
        gated.splice.client_eof()
        assert await gated.splice.run() == OK
        assert not gated.upstream.aborted, "the connection is of further use"
        assert gated.sent == b"0000"
        error = gated.refusal
        assert (error.reason, error.fault, error.message, error.exit_status) == ("ref_denied", "policy", "", 0)
        assert str(error) == "create refs/heads/main: not allowed by access rules"

    asyncio.run(play())


async def test_a_push_that_only_deletes_has_no_pack_to_wait_for() -> None:
    gated = Gated()
    gated.client_says(GONE + b"0000")
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK
    assert gated.report()[1:] == [b"ng refs/heads/main not allowed by access rules\n"]


async def test_a_client_without_report_status_reads_the_refusal_and_need_not_send_its_pack() -> None:
    gated = Gated()
    gated.client_says(command(A, B, capabilities=b"side-band-64k") + b"0000")
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK
    assert gated.client.stdout == b""
    assert (gated.refusal.message, gated.refusal.exit_status) == (RefDenied.message, 128)


@pytest.mark.parametrize("name", BAD)
async def test_an_invalid_list_is_refused(name: str) -> None:
    gated = Gated((RefRule(refs=("refs/never",), write=False),))
    gated.client_says(BAD[name] + bytes(4))
    assert gated.sent == b"0000"
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK
    error = gated.refusal
    assert (error.reason, error.fault, error.exit_status) == ("ref_malformed", "client", 128)
    assert error.message == "relay: the push was refused by access rules: it cannot be read"


async def test_a_truncated_list_is_refused() -> None:
    gated = Gated()
    gated.client_says(TOPIC)
    gated.splice.client_eof()
    assert gated.sent == b"0000" and not gated.upstream.eof
    gated.splice.upstream_ended(OK)
    await gated.splice.run()
    assert gated.refusal.reason == "ref_malformed"


async def test_a_list_too_long_to_hold_is_refused() -> None:
    gated = Gated()
    line = command(A, B, "refs/heads/topic")
    for _ in range(LIST_MOST_BYTES // len(line) + 1):
        gated.client_says(line)
    assert gated.sent == b"0000"
    gated.splice.upstream_ended(OK)
    await gated.splice.run()
    assert (gated.refusal.reason, gated.refusal.fault) == ("ref_too_many", "policy")
    assert gated.refusal.message == "relay: the push was refused by access rules: too many refs"


async def test_a_list_that_is_too_costly_to_judge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "MATCH_STEPS", 20)
    gated = Gated()
    first = command(A, B, "refs/heads/0", CAPABILITIES)
    gated.client_says(first, *(command(A, B, f"refs/heads/{number}") for number in range(1, 8)), b"0000")
    assert gated.sent == b"0000"
    gated.splice.upstream_ended(OK)
    assert gated.report()[1:7] == [b"ng refs/heads/%d %s\n" % (number, refs.WITH_ANOTHER.encode()) for number in range(6)]
    assert gated.report()[7:] == [b"ng refs/heads/%d %s\n" % (number, refs.TOO_COSTLY.encode()) for number in (6, 7)]
    gated.splice.client_eof()
    assert await gated.splice.run() == OK
    assert (gated.refusal.reason, gated.refusal.fault) == ("ref_too_many", "policy")


async def test_the_log_names_the_first_refs_only() -> None:
    gated = Gated((RefRule(refs=("refs/x/**",), write=False),))
    gated.client_says(*(command(A, B, f"refs/x/\x1b{number}", b"" if not number else None) for number in range(5)), b"0000")
    said = str(gated.refusal)
    assert said.count("refs/x/?") == 3 and said.endswith("and 2 more")


# -- the end of a refused push -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_first", [True, False])
async def test_the_client_disconnects_after_the_refusal(host_first: bool) -> None:
    """A client may disconnect after it has read the report, as clients do that never send EOF."""
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    if host_first:
        gated.splice.upstream_ended(OK)
    gated.splice.client_gone("read it")
    assert await gated.splice.run() == OK
    assert gated.upstream.aborted is not host_first
    assert gated.refusal.reason == "ref_denied"


async def test_the_client_disconnects_before_the_refusal() -> None:
    gated = Gated()
    gated.client_says(MAIN)
    gated.splice.client_gone("away")
    with pytest.raises(ClientGone):
        await gated.splice.run()
    assert gated.upstream.aborted and gated.sent == b""


async def test_a_git_host_that_does_not_end_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOST_SECONDS", 0.01)
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    await wait_until_async(lambda: gated.client.stdout)
    assert gated.upstream.aborted
    assert gated.report()[1:] == [b"ng refs/heads/main not allowed by access rules\n"]
    gated.splice.client_eof()
    assert await gated.splice.run() == OK


async def test_a_git_host_that_fails_after_the_refusal_changes_nothing() -> None:
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    gated.splice.upstream_ended(Lost("broken"))
    gated.splice.client_eof()
    assert await gated.splice.run() == OK


async def test_a_missing_repository_is_denied_behind_a_gate_too() -> None:
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    gated.splice.upstream_stderr(memoryview(b"fatal: '/x' does not appear to be a git repository\n"))
    gated.splice.upstream_ended(Exit(status=128))
    with pytest.raises(Denied):
        await gated.splice.run()
    assert gated.client.stdout == b""


async def test_an_idle_client_is_taken_to_have_read_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOST_SECONDS", 0.01)
    gated = Gated(stall_seconds=0.02)
    gated.client_says(MAIN + b"0000")
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK


async def test_an_endless_pack_is_cut_off_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_MOST_BYTES", 1000)
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    gated.splice.upstream_ended(OK)
    gated.client_says(bytes(1000))
    assert not await gated.over()
    gated.client_says(bytes(1))
    assert await gated.splice.run() == OK


async def test_close_cancels_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Any] = []
    gated = Gated()
    gated.client_says(MAIN + b"0000")
    assert isinstance(gated.watch, PushGate)
    handles.append(gated.watch._timer)
    gated.splice.stop(Ended("drained"))
    with pytest.raises(Ended):
        await gated.splice.run()
    assert all(handle.cancelled() for handle in handles)


# -- hosts that accept no push -----------------------------------------------------------------------------------------------


def closed(kind: type[ReadOnly] = Frozen, text: str = "moving, back at 14:00") -> ReadOnly:
    return kind("upstream main is frozen", message=f"{kind.message}: {text}", text=text)


@pytest.mark.parametrize("kind", [ReadOnly, Frozen])
@pytest.mark.parametrize("rules", [(), RULES])
@pytest.mark.parametrize(
    "capabilities", [b"report-status side-band-64k", b"report-status-v2 side-band-64k atomic", b"report-status atomic"]
)
async def test_every_ref_is_refused_with_the_text(kind: type[ReadOnly], rules: tuple[RefRule, ...], capabilities: bytes) -> None:
    gated = Gated(rules, closed=closed(kind))
    gated.client_says(command(A, B, "refs/heads/main", capabilities), command(ZERO, B, "refs/x/\x1b"), b"0000", PACK)
    assert gated.sent == b"0000", "nothing of it reaches the git host"
    gated.splice.upstream_ended(OK)
    gated.splice.client_eof()
    assert await gated.splice.run() == OK
    told = gated.report() if b"side-band" in capabilities else lines(gated.client.stdout)
    assert [line for line in told if line.startswith(b"ng ")] == [
        b"ng refs/heads/main moving, back at 14:00\n",
        b"ng refs/x/\x1b moving, back at 14:00\n",
    ]
    error = gated.refusal
    assert (error.reason, error.fault, error.message, error.exit_status) == (kind.reason, "policy", "", 0)
    assert str(error) == "upstream main is frozen"


async def test_a_text_in_any_language_is_in_the_report() -> None:
    gated = Gated(closed=closed(text="Umzug läuft; 移動中"))
    gated.client_says(MAIN + b"0000")
    gated.splice.upstream_ended(OK)
    assert gated.report()[1] == "ng refs/heads/main Umzug läuft; 移動中\n".encode()
    gated.splice.client_eof()
    await gated.splice.run()


async def test_without_report_status_the_client_reads_the_text_as_a_message() -> None:
    gated = Gated((), closed=closed())
    gated.client_says(command(A, B, capabilities=b"side-band-64k") + b"0000")
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK
    assert gated.client.stdout == b""
    assert (gated.refusal.message, gated.refusal.exit_status) == (f"{Frozen.message}: moving, back at 14:00", 1)


@pytest.mark.parametrize("stream", [*BAD.values(), TOPIC, b"".join([command(A, B, "refs/heads/topic")] * (LIST_MOST_BYTES // 100))])
async def test_a_push_that_cannot_be_reported_on_is_refused_with_the_text_too(stream: bytes) -> None:
    gated = Gated((), closed=closed())
    gated.client_says(stream)
    gated.splice.client_eof()
    assert gated.sent == b"0000"
    gated.splice.upstream_ended(OK)
    await gated.splice.run()
    assert (gated.refusal.reason, gated.refusal.exit_status) == ("frozen", 1)


async def test_a_client_that_pushes_nothing_is_served() -> None:
    """`git push` with everything up to date, and `--dry-run`."""
    gated = Gated((), closed=closed())
    gated.client_says(b"0000")
    assert gated.sent == b"0000"
    gated.splice.upstream_ended(OK)
    assert await gated.splice.run() == OK
    assert isinstance(gated.watch, PushGate) and gated.watch.refusal is None


async def test_fetches_have_no_gate() -> None:
    assert isinstance(Gated((), "git-upload-pack", closed=closed()).watch, RequestReader)
