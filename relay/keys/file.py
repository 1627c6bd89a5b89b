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

from relay.errors import ConfigError
from relay.keys import identity_fault
from relay.public_key import fingerprint, parse_line
from relay.tables import plain, quoted
from relay.watch import LOOK_SECONDS, Watched, stamp_of

FILE_BYTES = 1 << 20  # of one .pub file
DEPTH = 8  # of folders within folders

Stamp = tuple[object, ...]
File = tuple[Stamp, tuple[str, ...], tuple[str, ...]]  # stamp, fingerprints, problems; plain tuples of text are no work for the collector

_DEVICE = re.compile(r"@[^.@]+$")


class Listing(dict[str, Stamp]):
    """Each .pub file below the folder. Compared in Python, which lets the loop's thread in between; dict's own comparison would not."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listing) and len(self) == len(other) and all(other.get(name) == stamp for name, stamp in self.items())


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
    """Remembers what each file held, so that one change among 100,000 files costs one file, and no step holds up the loop for long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listing = Listing()
        self._files: dict[str, File] = {}
        self._owners: dict[str, str] = {}

    def listing(self) -> Listing | str:
        """What there is; or why it cannot be listed."""
        found = Listing()
        try:
            if self._folder.stat().st_mode & stat.S_IWOTH:
                return f"{self._folder}: may be written by everyone, must not: chmod o-w {self._folder}"
            _list(str(self._folder), "", self._listing, found, 0)
        except OSError as error:
            return f"{self._folder}: cannot be read ({error.strerror}), must be a folder of .pub files"
        self._listing = found
        return found

    def read(self, listing: Listing | str) -> tuple[Mapping[str, str], list[str]]:
        if isinstance(listing, str):
            return {}, [plain(listing)]
        files: dict[str, File] = {}
        owners: dict[str, str] = {}
        origin: dict[str, str] = {}  # the file that a fingerprint was seen in first
        problems: list[tuple[str, str]] = []  # by file
        for name, stamp in listing.items():
            known = self._files.get(name)
            file = files[name] = known if known is not None and known[0] == stamp else _read(f"{self._folder}/{name}", stamp)
            problems += ((name, problem) for problem in file[2])
            identity = _identity(name)
            if (fault := identity_fault(identity)) is not None:
                problems.append((name, f"{self._folder}/{name}: the identity {quoted(identity)} {fault}"))
                continue
            for print_ in file[1]:
                if owners.setdefault(print_, identity) != identity:
                    first, second = sorted([name, origin[print_]])
                    theirs = f"{_identity(first)} ({self._folder}/{first})"
                    text = f"{_identity(second)} has the key {print_} of {theirs}, must have a key of their own"
                    problems.append((second, f"{self._folder}/{second}: {text}"))
                origin.setdefault(print_, name)
        self._files = files
        if owners != self._owners:
            self._owners = owners
        return self._owners, [plain(text) for _, text in sorted(problems, key=lambda problem: problem[0])]


def _list(folder: str, prefix: str, known: Listing, found: Listing, depth: int) -> None:
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
                    name, stamp = prefix + entry.name, stamp_of(status)
                    before = known.get(name)
                    found[name] = before if before is not None and before == stamp else stamp
            elif depth < DEPTH and entry.is_dir(follow_symlinks=False):
                _list(entry.path, f"{prefix}{entry.name}/", known, found, depth + 1)


def _identity(name: str) -> str:
    return _DEVICE.sub("", name.rpartition("/")[2].removesuffix(".pub"))


def _read(path: str, stamp: Stamp) -> File:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            data = _whole(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return stamp, (), (f"{path}: cannot be read ({error.strerror}), must be a file of public keys",)
    if mode & stat.S_IWOTH:
        return stamp, (), (f"{path}: may be written by everyone (mode {stat.S_IMODE(mode):04o}), must not: chmod o-w {path}",)
    if len(data) > FILE_BYTES:
        return stamp, (), (f"{path}: is larger than the {FILE_BYTES} bytes that are allowed",)
    if b"-----BEGIN" in data or b"---- BEGIN SSH2" in data:  # another format: one line about it says all
        try:
            parse_line(data.decode("ascii", "replace")[:1000])
        except ValueError as error:
            return stamp, (), (f"{path}: {error}",)
    fingerprints: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        try:
            fingerprints.append(fingerprint(parse_line(text).blob))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    return stamp, tuple(fingerprints), tuple(problems)


def _whole(descriptor: int) -> bytes:
    """All of a file, up to one byte more than is allowed."""
    data = os.read(descriptor, FILE_BYTES + 1)
    while 0 < len(data) <= FILE_BYTES and (more := os.read(descriptor, FILE_BYTES + 1 - len(data))):
        data += more
    return data
