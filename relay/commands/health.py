"""`relay health`: asks the running relay, at the admin address of its configuration, whether it is ready; for container probes."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

from relay.address import parse_address
from relay.config.load import load_config
from relay.errors import ConfigError
from relay.text import error_text, printable

ANSWER_SECONDS = 5.0
BODY_BYTES = 200
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a wildcard is asked on loopback


def health(config: Path, live: bool) -> int:
    """Prints the answer in one line; 0 when the relay is ready, or with `live` when it answers at all, else 1."""
    loaded = load_config(config)
    listen = loaded.config.admin.listen
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError([f"{loaded.where('admin.listen')}: {listen} {error}, so that it can be asked"]) from None
    connection = http.client.HTTPConnection(ANYWHERE.get(host, host), port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/live" if live else "/ready")
        answer = connection.getresponse()
        text = printable(answer.read(BODY_BYTES).decode(errors="replace").strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no relay answers on {listen}: {error_text(error)}", file=sys.stderr)  # noqa: T201 - the command's output
        return 1
    finally:
        connection.close()
    healthy = answer.status == http.client.OK
    print(text, file=sys.stdout if healthy else sys.stderr)
    return 0 if healthy else 1
