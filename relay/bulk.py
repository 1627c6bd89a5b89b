"""What a client sends in bulk, read to where it is taken apart, behind what was left: without two copies of each segment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.packets import PacketConnection

BULK_BYTES = 128 * 1024  # came at once: more is to come
_READ_BYTES = 256 * 1024
REST_BYTES = 64 * 1024  # the start of a packet that has not arrived whole is put before the next read; a longer one is joined

_buffer = memoryview(bytearray(REST_BYTES + _READ_BYTES))  # of all connections: what was read is used up before anything else is read


class Bulk(asyncio.BufferedProtocol):
    """Stands between a transport and its connection, which had `data_received` before."""

    def __init__(self, connection: PacketConnection) -> None:
        self._connection = connection
        self._begin = 0

    @classmethod
    def begin(cls, connection: PacketConnection, transport: Any) -> None:
        """From the next read on; within `data_received`."""
        transport.pause_reading()  # uvloop asks for the way to read when it begins to
        transport.set_protocol(cls(connection))
        transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._connection.rest
        self._begin = len(rest)
        _buffer[: self._begin] = rest
        return _buffer[self._begin : self._begin + _READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._begin:
            self._connection.rest = b""
        self._connection.data_received(_buffer[: self._begin + nbytes])

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()  # type: ignore[func-returns-value]

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
