"""Starts the relay's command line, or refuses when Python would import another package with the name `relay`, as there is one on PyPI.

The console scripts lead here: a module of this name nobody else has. It lies beside relay/, in a clone and where pip installs it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OURS = Path(__file__).resolve().parent / "relay" / "__init__.py"
MARK = 'DISTRIBUTION = "git-ssh-relay"'  # in OURS; not there when another distribution was installed over it
REMEDY = "install git-ssh-relay into a virtual environment of its own"


def refusal() -> str:
    """Why the relay may not start, in one line; empty when `import relay` gives the relay."""
    spec = find_spec("relay")  # finds the package without running anything of it
    if spec is None:
        return f"relay: {OURS.parent} is not on Python's path {sys.path}; {REMEDY}"
    found = Path(spec.origin) if spec.origin else Path(*(spec.submodule_search_locations or ["?"])[:1])
    if found.resolve() != OURS:
        cure = f"take its folder off PYTHONPATH, or {REMEDY}"
        return f"relay: Python would import {found}, another package with the name relay, instead of {OURS.parent}; {cure}"
    if MARK not in OURS.read_text(encoding="utf-8", errors="replace"):
        return f"relay: another package with the name relay was installed over {OURS.parent}; {REMEDY}"
    return ""


def main() -> int:
    if why := refusal():
        sys.exit(why)
    from relay.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
