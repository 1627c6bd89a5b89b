"""The example authority of docs/ in a process of its own, which tests fill, kill and start again.

with Authority(folder) as authority:
    authority.write(keys={key.fingerprint: "alice"})
    authority.kill()
    authority.start()                       # on the same port
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.support.server_process import ServerProcess

PROGRAM = Path(__file__).parents[2] / "docs" / "example_authority.py"


class Authority(ServerProcess):
    """The constructor starts the process; it answers each request from the file's current content."""

    def __init__(self, folder: Path) -> None:
        super().__init__("the authority", folder)
        self._file = folder / "authority.json"
        self._log = folder / "authority.log"
        self.port = 0
        self.data: dict[str, Any] = {"keys": {}, "access": {}, "routes": {}}
        self.write()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_text()

    def asked(self, path: str) -> int:
        """How many requests for this path were answered, since the first start."""
        return len(re.findall(rf'"(?:GET|POST) {re.escape(path)}[? ]', self.log))

    def write(self, **data: Any) -> None:
        """Replaces these parts of the data; the next request is answered from the new ones."""
        self.data |= data
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.data))
        new.replace(self._file)

    def start(self) -> None:
        mark = self.log_mark()
        self._launch([sys.executable, "-u", str(PROGRAM), str(self._file), str(self.port)], lambda: self._listens(mark))

    def _listens(self, mark: int) -> bool:
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log_text(mark))
        if found is not None:
            self.port = int(found[1])
        return found is not None
