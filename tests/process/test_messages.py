"""The messages between supervisor, workers and `relay sessions`: each arrives unchanged, and no other bytes are decoded as one."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.config import Config
from relay.observe.metrics import Metrics
from relay.process import messages as control
from relay.process.switches import Action
from relay.upstream.switches import UpstreamSwitches

CONFIG = Config(
    listen=["127.0.0.1:2222", "systemd"],
    workers=3,
    admin=config.AdminSettings(listen="127.0.0.1:0"),
    limits=config.LimitsSettings(drain_seconds=1.5, penalty_seconds=0),
    proxy_protocol=config.ProxyProtocolSettings(mode="require", trusted=["10.0.0.0/8"]),
    upstreams={
        "main": config.UpstreamSettings(addresses=["10.0.0.5:22", "[2001:db8::1]:22"], host_keys=["ssh-ed25519 AAAA"], known_hosts=None)
    },
)

texts = st.text(max_size=50)
counts = st.integers(0, 1 << 60)
sessions = st.builds(control.LiveSession, seconds=st.floats(0, 1e9), bytes_in=counts, bytes_out=counts, worker=st.integers(1, 1 << 22))
switches = st.dictionaries(texts, st.builds(UpstreamSwitches, st.booleans(), st.lists(texts), texts))
messages = st.one_of(
    st.just(control.Start(CONFIG)),
    st.builds(control.Start, st.just(CONFIG), st.booleans(), switches),
    st.builds(control.SetSwitches, st.integers(0, 1 << 60), switches),
    st.builds(control.Switch, st.integers(0, 1 << 60), st.sampled_from(get_args(Action)), texts, texts),
    st.just(control.Ready()),
    st.just(control.Reopen()),
    st.builds(control.Failed, st.lists(texts)),
    st.builds(control.Drain, st.floats(0, 86_400)),
    st.builds(control.AskWorker, st.integers(0, 1 << 60), st.sampled_from(get_args(control.WorkerQuestion)), texts, texts),
    st.builds(control.Answer, st.integers(0, 1 << 60), sessions.map(lambda line: control.raw(control.Sessions([line], 1)))),
)


def fed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class Writer:
    """The part of StreamWriter that `control.write` needs; keeps the written bytes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def written(*sent: control.Message) -> bytes:
    writer: Any = Writer()
    for message in sent:
        control.write(writer, message)
    return bytes(writer.data)


@given(st.lists(messages, max_size=5))
def test_what_was_written_is_read(sent: list[control.Message]) -> None:
    async def read_all() -> list[control.Message]:
        reader = fed(written(*sent))
        return [message async for message in _until_end(reader)]

    assert asyncio.run(read_all()) == sent


async def _until_end(reader: asyncio.StreamReader) -> Any:
    while (message := await control.read(reader)) is not None:
        yield message


async def test_an_answer_carries_what_was_asked_for() -> None:
    snapshot = Metrics(CONFIG, "1.11.1").snapshot()
    message = await control.read(fed(written(control.Drained(2, control.raw(snapshot)))))
    assert isinstance(message, control.Drained)
    assert msgspec.msgpack.decode(message.metrics, type=type(snapshot)) == snapshot


@pytest.mark.parametrize("cut", range(1, 8))
async def test_eof_within_a_message_is_read_as_eof(cut: int) -> None:
    data = written(control.Drain(1.0))
    assert await control.read(fed(data[:-cut])) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Drain", 1]),
        msgspec.msgpack.encode({"type": "Unheard"}),
        msgspec.msgpack.encode({"type": "Drain", "seconds": "soon"}),
        msgspec.msgpack.encode({"type": "Ask", "number": 1, "what": "secrets", "argument": ""}),
    ],
)
async def test_an_invalid_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a control message"):
        await control.read(fed(frame(body)))


async def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="at most 33554432 are allowed"):
        await control.read(fed((control.FRAME_MAX_BYTES + 1).to_bytes(4, "big")))
