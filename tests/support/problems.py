"""Problems of TOML files as tests compare them."""

from __future__ import annotations

import re


def unplaced(text: str) -> str:
    """Without the number of the line: `relay.toml:12: listen: ...` becomes `relay.toml: listen: ...`."""
    return re.sub(r"(\.toml):\d+(?=: )", r"\1", text)
