"""What a git host says before git's protocol begins, held back until it does: it may be a refusal, and a client could not parse it.

Such lines come from a login shell, from a message of the day, or from git when it refuses the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.errors import Denied, HostLacks, HostRefused, RelayError
from relay.git.host_words import HELD_MOST_BYTES, HostWords, archive_start, json_start, protocol_start, verdict
from relay.text import printable

STARTS: Final[dict[str, Callable[[bytes], int | None]]] = {"git-upload-archive": archive_start, "git-lfs-authenticate": json_start}


class Withheld:
    """Of one connection to a git host, until `release` or `refusal` tells what becomes of it."""

    def __init__(self, service: str, words: HostWords) -> None:
        self._start = STARTS.get(service, protocol_start)
        self._words = words
        self._stdout = self._stderr = b""

    def __bool__(self) -> bool:
        """Whether anything is held back."""
        return bool(self._stdout or self._stderr)

    def add_stdout(self, data: bytes) -> bool:
        """Whether the protocol has begun, or more came than is held back: `release` must follow."""
        self._stdout += data
        return self._start(self._stdout) is not None or len(self._stdout) > HELD_MOST_BYTES

    def add_stderr(self, data: bytes | memoryview) -> bool:
        """Whether more came than is held back: `release` must follow."""
        self._stderr += data
        return len(self._stderr) > HELD_MOST_BYTES

    def refusal(self) -> RelayError | None:
        """The known refusal in it, for a command that failed."""
        said = self._stdout + self._stderr
        known = verdict(said)
        if known is None:
            return None
        detail = f"the git host says: {printable(said.decode('utf-8', 'replace').strip())}"
        if known.verdict == "not_found":
            return Denied(detail)
        if known.verdict == "unsupported":
            return HostLacks(detail)
        return HostRefused(detail)

    def release(self) -> tuple[bytes, bytes]:
        """What the client may have of stdout and stderr: a shell's lines without the host's paths, and the protocol as it is."""
        start = self._start(self._stdout)
        start = len(self._stdout) if start is None else start
        return self._words.clean(self._stdout[:start]) + self._stdout[start:], self._words.stderr(self._stderr)
