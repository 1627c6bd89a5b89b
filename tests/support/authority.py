"""The example authority of docs/, in a process of its own, that tests fill, take away and bring back.

with Authority(folder) as authority:
    authority.write(keys={key.fingerprint: "alice"})
    authority.kill()
    authority.start()                       # on the same port
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.wait import wait_until

PROGRAM = Path(__file__).parents[2] / "docs" / "example_authority.py"
END_SECONDS = 60.0


class Authority:
    """Running from its making on; every answer comes from the file as it is at that moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "authority.json"
        self._log = folder / "authority.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.data: dict[str, Any] = {"keys": {}, "access": {}, "routes": {}}
        self.write()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def asked(self, path: str) -> int:
        """How many requests for this path were answered, since the first start."""
        return len(re.findall(rf'"(?:GET|POST) {re.escape(path)}[? ]', self.log))

    def write(self, **data: Any) -> None:
        """Replaces these parts of the data, at once for the next question."""
        self.data |= data
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.data))
        new.replace(self._file)

    def start(self) -> None:
        mark = len(self._log.read_bytes()) if self._log.exists() else 0
        with self._log.open("ab") as log:
            arguments = [sys.executable, "-u", str(PROGRAM), str(self._file), str(self.port)]
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process = self._process

        def listens() -> re.Match[str] | None:
            assert process.poll() is None, self.log
            return re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log[mark:])

        self.port = int(wait_until(listens, message="the authority listens")[1])

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP: connections stay, new ones are taken by the kernel, and nothing is answered any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: connections are reset, and then refused."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)
            self._process = None
