"""Keys in a folder: alice.pub and alice@laptop.pub belong to alice, as in gitolite's keydir; read again when changed.

A name ends at an @ whose rest has no dot, so that alice@example.com.pub is alice@example.com and not alice. Folders within are
read too; what begins with a dot or does not end in .pub is passed over. A change re-reads the files that changed, no others.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from relay.errors import ConfigError
from relay.keys import identity_fault
from relay.model import printable
from relay.public_key import fingerprint, parse_line
from relay.tables import quoted
from relay.watch import LOOK_SECONDS, Watched, stamp_of

FILE_BYTES = 1 << 20  # of one .pub file
DEPTH = 8  # of folders within folders

Stamp = tuple[object, ...]
Listing = dict[str, Stamp] | str  # each .pub file below the folder; or why it cannot be listed

_DEVICE = re.compile(r"@[^.@]+$")


class _File(NamedTuple):
    stamp: Stamp
    fingerprints: tuple[str, ...]
    problems: tuple[str, ...]


class FileKeys:
    """One dictionary from fingerprint to identity, replaced as a whole."""

    source = "file"

    def __init__(self, folder: Path, *, look_seconds: float = LOOK_SECONDS) -> None:
        reader = KeyFolder(folder)
        self._owners = Watched(f"keys in {folder}", reader.listing, reader.read, look_seconds=look_seconds)
        if self._owners.problems:
            raise ConfigError(self._owners.problems)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        return (await self._owners.current()).get(fingerprint)

    async def close(self) -> None:
        await self._owners.close()


def load(folder: Path) -> tuple[Mapping[str, str], list[str]]:
    """Fingerprint to identity, and one line for each problem."""
    reader = KeyFolder(folder)
    return reader.read(reader.listing())


class KeyFolder:
    """Remembers what each file held, so that one change among 100,000 files costs one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _File] = {}

    def listing(self) -> Listing:
        found: dict[str, Stamp] = {}
        try:
            if self._folder.stat().st_mode & stat.S_IWOTH:
                return f"{self._folder}: may be written by everyone, must not: chmod o-w {self._folder}"
            _list(str(self._folder), "", found, 0)
        except OSError as error:
            return f"{self._folder}: cannot be read ({error.strerror}), must be a folder of .pub files"
        return found

    def read(self, listing: Listing) -> tuple[Mapping[str, str], list[str]]:
        if isinstance(listing, str):
            return {}, [listing]
        files: dict[str, _File] = {}
        owners: dict[str, str] = {}
        origin: dict[str, str] = {}  # the file that a fingerprint was seen in first
        problems: list[str] = []
        for name, stamp in sorted(listing.items()):
            known = self._files.get(name)
            file = files[name] = known if known is not None and known.stamp == stamp else _read(self._folder / name, stamp)
            problems += file.problems
            identity = _identity(name)
            if (fault := identity_fault(identity)) is not None:
                problems.append(f"{printable(str(self._folder / name))}: the identity {quoted(identity)} {fault}")
                continue
            for print_ in file.fingerprints:
                if owners.setdefault(print_, identity) != identity:
                    other = self._folder / origin[print_]
                    owner = owners[print_]
                    problems.append(
                        f"{self._folder / name}: {identity} has the key {print_} of {owner} ({other}), must have a key of their own"
                    )
                origin.setdefault(print_, name)
        self._files = files
        return owners, problems


def _list(folder: str, prefix: str, found: dict[str, Stamp], depth: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".pub"):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # renamed or removed since it was listed; a dangling link holds no key either
                if stat.S_ISREG(status.st_mode):
                    found[prefix + entry.name] = stamp_of(status)
            elif depth < DEPTH and entry.is_dir(follow_symlinks=False):
                _list(entry.path, f"{prefix}{entry.name}/", found, depth + 1)


def _identity(name: str) -> str:
    return _DEVICE.sub("", name.rpartition("/")[2].removesuffix(".pub"))


def _read(path: Path, stamp: Stamp) -> _File:
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        return _File(stamp, (), (f"{shown}: cannot be read ({error.strerror}), must be a file of public keys",))
    if mode & stat.S_IWOTH:
        return _File(stamp, (), (f"{shown}: may be written by everyone (mode {stat.S_IMODE(mode):04o}), must not: chmod o-w {shown}",))
    if len(data) > FILE_BYTES:
        return _File(stamp, (), (f"{shown}: is larger than the {FILE_BYTES} bytes that are allowed",))
    if b"\n-----BEGIN" in b"\n" + data or b"---- BEGIN SSH2" in data:  # another format: one line about it says all
        try:
            parse_line(data.decode("ascii", "replace")[:1000])
        except ValueError as error:
            return _File(stamp, (), (f"{shown}: {error}",))
    fingerprints: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        try:
            fingerprints.append(fingerprint(parse_line(text).blob))
        except ValueError as error:
            problems.append(f"{shown}:{number}: {error}")
    return _File(stamp, tuple(fingerprints), tuple(problems))
