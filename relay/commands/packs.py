"""`relay packs`: lists the answers that are kept for equal fetches, or removes them. Needs the folder, and no running relay."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from relay.commands.asking import connected
from relay.config import PacksSettings
from relay.config.load import Loaded, load_config
from relay.errors import ConfigError
from relay.packs.folder import FolderFault
from relay.packs.inventory import Inventory, Listed, Removed, clear, inventory
from relay.process import messages
from relay.text import age, counted, escaped, plain, rfc3339, size

CELL_BYTES = 1100  # fits any repository name

HEAD = ("REPOSITORY", "UPSTREAM", "FOR", "ASKED", "STATE", "SIZE", "AGE", "USED", "TIMES")
RIGHT = frozenset({"SIZE", "AGE", "USED", "TIMES"})


def show(config: Path, as_json: bool) -> int:
    """Prints what is kept, the last used first."""
    loaded, settings = _configured(config)
    folder = loaded.resolve(settings.folder)
    try:
        found = inventory(folder) or Inventory([], 0, 0)
    except (FolderFault, OSError) as error:
        raise _problem(loaded, folder, error) from None
    entries = sorted(found.entries, key=lambda one: -one.used)
    if as_json:
        for one in entries:
            print(json.dumps(as_object(one)))  # noqa: T201 - the command's output
        return 0
    print_lines(entries, time.time())
    total = sum(one.bytes for one in entries)
    kept = f"{counted(len(entries), 'answer')}, {size(total)} of {size(settings.max_bytes)} (max_bytes)"
    print(f"{kept}; {folder} has {size(found.free_bytes)} free" if found.free_bytes else f"{kept}; {folder} is not there yet")  # noqa: T201
    if found.damaged:
        print(f"{counted(found.damaged, 'file')} of {folder} cannot be used; a relay removes such files", file=sys.stderr)  # noqa: T201
    return 0


def print_lines(entries: list[Listed], now: float) -> None:
    """The table. Whose answers they are is left out when no git host sees a login for each identity."""
    shown = [head for head in HEAD if head != "FOR" or any(one.about.identity for one in entries)]
    rows = [dict(zip(HEAD, HEAD, strict=True)), *(dict(zip(HEAD, _cells(one, now), strict=True)) for one in entries)]
    widths = {head: max(len(row[head]) for row in rows) for head in shown}
    for row in rows if entries else ():
        cells = (row[head].rjust(widths[head]) if head in RIGHT else row[head].ljust(widths[head]) for head in shown)
        print("  ".join(cells).rstrip())  # noqa: T201


def _cells(one: Listed, now: float) -> tuple[str, ...]:
    about = one.about
    return (
        *(escaped(text, CELL_BYTES) or "-" for text in (about.repository, about.upstream, about.identity, about.asked)),
        "kept" if one.whole else "filling",
        size(one.bytes),
        age(max(0.0, now - one.made)),
        age(max(0.0, now - one.used)),
        str(one.uses),
    )


def as_object(one: Listed) -> dict[str, str | float | None]:
    """An entry as a JSON object."""
    return {
        "repository": one.about.repository,
        "upstream": one.about.upstream,
        "identity": one.about.identity or None,
        "asked": one.about.asked,
        "state": "kept" if one.whole else "filling",
        "bytes": one.bytes,
        "made": rfc3339(one.made),
        "used": rfc3339(one.used),
        "uses": one.uses,
        "file": one.name,
    }


async def remove(config: Path, repository: str | None) -> int:
    """Removes all answers, or those of a repository; a relay that runs logs who did it."""
    loaded, settings = _configured(config)
    folder = loaded.resolve(settings.folder)
    try:
        removed = clear(folder, repository)
    except (FolderFault, OSError) as error:
        raise _problem(loaded, folder, error) from None
    print(sentence(removed, repository))  # noqa: T201 - the command's output
    if removed.entries:
        await _tell(loaded, config, removed, repository)
    return 0


def sentence(removed: Removed, repository: str | None) -> str:
    """What was removed, for the operator."""
    of = "" if repository is None else f" of {plain(repository)}"
    if not removed.entries:
        return f"no answer{of} is kept"
    damaged = f", {removed.damaged} of them damaged" if removed.damaged else ""
    were = "was" if removed.entries == 1 else "were"
    return f"{counted(removed.entries, 'answer')}{of} {were} removed: {size(removed.bytes)}{damaged}; who reads one reads on"


async def _tell(loaded: Loaded, config: Path, removed: Removed, repository: str | None) -> None:
    """Tells the relay, if one runs: its log names the operator."""
    try:
        async with connected(loaded.resolve(loaded.config.admin.sessions_socket), config) as ask:
            await ask(messages.PacksRemoved(1, removed.entries, removed.bytes, repository or ""), bool)
    except ConfigError:
        print("no relay runs with this configuration, so no log names who did it", file=sys.stderr)  # noqa: T201


def _configured(config: Path) -> tuple[Loaded, PacksSettings]:
    loaded = load_config(config)
    if loaded.config.packs is None:
        raise ConfigError([f"{config}: has no table [packs], so nothing is kept"])
    return loaded, loaded.config.packs


def _problem(loaded: Loaded, folder: Path, error: FolderFault | OSError) -> ConfigError:
    text = str(error) if isinstance(error, FolderFault) else f"{folder}: {error.strerror}"
    return ConfigError([f"{loaded.where('packs.folder')}: {text}"])
