"""Placeholders of the examples in deploy/ that a site has left in place: REPLACE-ME, wherever the configuration's files have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

PLACEHOLDER = "REPLACE-ME"
FILE_BYTES = 1 << 20  # of each file; the examples are smaller
FILES = 10_000  # of a folder


def placeholders(paths: Iterable[Path]) -> list[str]:
    """One line for each place, `FILE:LINE: ...`, in the order of `paths`: files, or folders of files. What cannot be read has none."""
    found = []
    for path in dict.fromkeys(each for given in paths for each in _files(given)):
        try:
            with path.open("rb") as file:
                lines = file.read(FILE_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            continue  # whoever needs the file says so
        for number, line in enumerate(lines, start=1):
            if PLACEHOLDER in line and not line.lstrip().startswith("#"):
                found.append(f"{path}:{number}: still has the placeholder {PLACEHOLDER} of an example, must have your own value instead")
    return found


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for number, name in enumerate(sorted(path.iterdir())):
        if number == FILES:
            return
        if name.is_file() and not name.name.startswith("."):
            yield name
