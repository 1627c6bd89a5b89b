"""`relay health`: asks the relay that runs with this configuration, at its admin address, whether it is ready; what probes run."""

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
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens is where it is asked


def health(config: Path, live: bool) -> int:
    """0 when it is ready (or with `live`: when it answers at all), 1 when not; says why in one line."""
    loaded = load_config(config)
    listen = loaded.config.admin.listen
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError([f"{loaded.where('admin.listen')}: {listen} {error}, to be asked"]) from None
    connection = http.client.HTTPConnection(ANYWHERE.get(host, host), port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/live" if live else "/ready")
        answer = connection.getresponse()
        said = printable(answer.read(BODY_BYTES).decode(errors="replace").strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no relay answers on {listen}: {error_text(error)}", file=sys.stderr)  # noqa: T201 - the command's output
        return 1
    finally:
        connection.close()
    healthy = answer.status == http.client.OK
    print(said, file=sys.stdout if healthy else sys.stderr)
    return 0 if healthy else 1
