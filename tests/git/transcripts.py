"""Transcripts of real sessions (tests/git/transcripts/, made by tests/git/record.py): read and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("transcripts")


@dataclass
class Transcript:
    """One session: its records in order; True marks those that the client sent."""

    protocol: str  # GIT_PROTOCOL
    records: list[tuple[bool, bytes]]

    def add(self, by_client: bool, data: bytes) -> None:
        """Adds data; neighbours of one direction become one record, as the pipe's division does not matter."""
        if not data:
            return
        if self.records and self.records[-1][0] == by_client:
            data = self.records.pop()[1] + data
        self.records.append((by_client, data))

    def said(self, by_client: bool) -> bytes:
        return b"".join(data for client, data in self.records if client == by_client)

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self.records)

    def written(self) -> bytes:
        head = f"GIT_PROTOCOL={self.protocol}\n".encode()
        return head + b"".join(b"%s%d\n%s\n" % (b">" if client else b"<", len(data), data) for client, data in self.records)


def names(prefix: str = "") -> list[str]:
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.transcript"))


def load(name: str) -> Transcript:
    head, _, rest = (FOLDER / f"{name}.transcript").read_bytes().partition(b"\n")
    transcript = Transcript(head.decode().removeprefix("GIT_PROTOCOL="), [])
    while rest:
        line, _, rest = rest.partition(b"\n")
        length = int(line[1:])
        assert line[:1] in (b"<", b">") and rest[length : length + 1] == b"\n", f"{name} is damaged"
        transcript.records.append((line[:1] == b">", rest[:length]))
        rest = rest[length + 1 :]
    return transcript
