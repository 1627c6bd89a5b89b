"""Keys in files: a folder as gitolite's keydir, or one file as sshd's authorized_keys; read again when changed.

In a folder alice.pub and alice@laptop.pub belong to alice. A name ends at an @ without a dot behind it, so that alice@example.com.pub
is alice@example.com. Folders within are read too; what begins with a dot or does not end in .pub is passed over. In one file each line
says whose the key is. Options may stand in front of any key. A change re-reads the files that changed, no others.

While a changed file has a fault, its new keys are not taken, and every key that it has no more is gone at once. A line that cannot be
read any more and still holds its key leaves that key as it was. A file or folder that cannot be read at all leaves its keys as they were.
"""

from __future__ import annotations

import base64
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from relay.backends.watched import LOOK_SECONDS, Tell, Watched, stamp_of
from relay.config.trust import everyone_may_write
from relay.errors import ConfigError
from relay.keys import NotAccepted, identity_fault
from relay.keys.authorized_keys import AuthorizedKey, read_line
from relay.keys.trusted_file import read_whole
from relay.openssh.public_key import fingerprint, parse_line
from relay.text import plain, quoted

FILE_BYTES = 1 << 20  # of one .pub file
LIST_BYTES = 64 << 20  # of one file for everybody
VOLUME_DATA = "..data"  # a link to the folder that a volume's content is in; a change makes a new folder and renames the link
DEPTH = 8  # of folders within folders

Stamp = tuple[object, ...]
Entry = str | AuthorizedKey  # a fingerprint, unless there is more to say; text is no work for the collector

_BLOB = re.compile(r"(?<![A-Za-z0-9+/])AAAA[A-Za-z0-9+/]{16,}={0,2}")  # in base64, the length of a type's name and what follows
_DEVICE = re.compile(r"@[^.]+$")  # gitolite's rule
_WHAT = "a folder of .pub files, or a file of lines as in authorized_keys"


class File(NamedTuple):
    """A file as it was read last."""

    stamp: Stamp
    keys: tuple[Entry, ...]
    problems: tuple[str, ...] = ()
    readable: bool = True  # False: nothing is known of what is in it now
    believed: bool = True  # False: others may write it, or it holds a private key
    damaged: frozenset[str] = frozenset()  # fingerprints of keys in lines that cannot be read

    def without_new(self, before: tuple[Entry, ...]) -> File:
        """For a file with a fault: of the keys that it gave before those that it still has, or whose line is damaged."""
        if not self.readable:
            return File(self.stamp, before, self.problems)
        known = set(map(_whose, before))
        kept = [key for key in self.keys if _whose(key) in known and (self.believed or key in before)]
        there = {_whose(key)[0] for key in kept}
        kept += (key for key in before if _whose(key)[0] in self.damaged - there)
        return File(self.stamp, tuple(kept), self.problems)


class Book(NamedTuple):
    """What all files say together; the fields are compared by identity first, which is quick."""

    owners: dict[str, str]  # fingerprint to identity
    conditions: dict[str, AuthorizedKey]  # by fingerprint, of keys that have any
    authorities: dict[str, tuple[AuthorizedKey, ...]]  # by the CA's fingerprint; each with its identity


class Listing(dict[str, Stamp]):
    """Each .pub file below the folder. Compared in Python, which lets the loop's thread in between; dict's own comparison would not.

    `faults` has a line for each folder in which others may put keys (`exposed`) and for each that cannot be listed, by its prefix.
    """

    def __init__(self) -> None:
        self.exposed: set[str] = set()
        self.faults: dict[str, str] = {}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Listing)
            and self.faults == other.faults
            and len(self) == len(other)
            and all(other.get(name) == stamp for name, stamp in self.items())
        )


class FileKeys:
    """One dictionary from fingerprint to identity, replaced as a whole."""

    source = "file"

    def __init__(self, path: Path, *, look_seconds: float = LOOK_SECONDS, clock: Callable[[], float] = time.time) -> None:
        reader = KeyFiles(path)
        self._clock = clock
        self._book = Watched(f"keys in {path}", reader.listing, reader.read, look_seconds=look_seconds, in_parts=True)
        if self._book.problems:
            raise ConfigError(self._book.problems)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        return (await self._book.current()).owners.get(fingerprint)

    def watch(self, tell: Tell) -> None:
        self._book.watch("keys", tell)

    async def check(self, fingerprint: str, address: str) -> None:
        if (line := (await self._book.current()).conditions.get(fingerprint)) is not None:
            line.check(address, self._clock())

    async def authorities(self, fingerprint: str, address: str) -> list[tuple[str, tuple[str, ...]]]:
        found, last = [], None
        for line in (await self._book.current()).authorities.get(fingerprint, ()):
            try:
                line.check(address, self._clock())
            except NotAccepted as no:
                last = no
            else:
                found.append((line.identity or "", line.principals))
        if last is not None and not found:
            raise last
        return found

    async def close(self) -> None:
        await self._book.close()


def load(path: Path) -> tuple[Book, list[str]]:
    """All that there is, and one line for each problem."""
    reader = KeyFiles(path)
    return reader.read(reader.listing())


class KeyFiles:
    """Remembers what each file held, so that one change among 100,000 files costs one file, and no step holds up the loop for long.

    A file with a fault gives no key that it did not give before, and keeps no other file from being taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listing = Listing()
        self._files: dict[str, File] = {}
        self._book = Book({}, {}, {})
        self._first = True

    def listing(self) -> Listing | str:
        """What there is; or why it cannot be listed. One file is listed under no name."""
        found = Listing()
        try:
            status = self._path.stat()
            if stat.S_ISREG(status.st_mode):
                found[""] = stamp_of(status)
            else:
                _list(str(self._path), "", self._listing, found, 0)
        except OSError as error:
            return f"{self._path}: cannot be read ({error.strerror}), must be {_WHAT}"
        self._listing = found
        return found

    def read(self, listing: Listing | str) -> tuple[Book, list[str]]:
        if isinstance(listing, str):
            return self._book, [plain(listing)]
        files: dict[str, File] = {}
        first, self._first = self._first, False  # then nothing is taken if there is a problem, and all of them are wanted
        gathered = _Gathered(self._path)
        gathered.problems += listing.faults.items()
        for name, stamp in listing.items():
            file = known = self._files.get(name)
            if file is None or file.stamp != stamp:
                file = _read(self._path, name, stamp)
                if name.rpartition("/")[0] in listing.exposed:
                    file = file._replace(stamp=(object(),), believed=False)  # to be read again when the folder is as it must be
                if first:
                    file = file if file.believed else file._replace(keys=())
                elif file.problems or not file.believed:
                    file = file.without_new(() if known is None else known.keys)
            files[name] = file
            gathered.add(name, file)
        gathered.settle(self._book)
        self._files = files
        if gathered.book != self._book:
            self._book = gathered.book
        return self._book, [plain(text) for _, text in sorted(gathered.problems, key=lambda problem: problem[0])]


class _Gathered:
    """The book while it is being written, file by file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.book = Book({}, {}, {})
        self._origin: dict[str, str] = {}  # the file that a fingerprint was seen in first
        # of a fingerprint about which two files, or lines, do not say the same: each identity, and on which conditions
        self._claims: dict[str, set[tuple[str, tuple[object, ...]]]] = {}
        self.problems: list[tuple[str, str]] = []  # by file

    def add(self, name: str, file: File) -> None:
        self.problems += ((name, problem) for problem in file.problems)
        theirs = identity_of(name) if name else ""
        if name and (fault := identity_fault(theirs)) is not None:
            self._problem(name, f"the identity {quoted(theirs)} {fault}")
            return
        for entry in file.keys:
            line = None if isinstance(entry, str) else entry
            identity = line.identity if line is not None and line.identity is not None else theirs
            if name and identity != theirs:
                self._problem(name, f"a line in it is of {quoted(identity)}, though its name says {quoted(theirs)}, must agree")
            elif line is not None and line.authority:
                self._authority(line._replace(identity=identity))
            else:
                self._key(name, entry if isinstance(entry, str) else entry.fingerprint, identity, line)

    def _key(self, name: str, fingerprint: str, identity: str, line: AuthorizedKey | None) -> None:
        owners, conditions = self.book.owners, self.book.conditions
        owner = owners.setdefault(fingerprint, identity)
        if owner != identity:
            first, second = sorted([(name, identity), (self._origin[fingerprint], owner)])
            told = f"{second[1]} has the key {fingerprint} of {first[1]}{f' ({self._path}/{first[0]})' if first[0] else ''}"
            self._problem(second[0], f"{told}, must have a key of their own")
            self._contest(fingerprint, (identity, _limits(line)))
            return
        condition = line if line is not None and (line.expires is not None or line.sources is not None) else None
        if fingerprint in self._origin:
            before = conditions.get(fingerprint)
            if _limits(before) != _limits(condition):
                self._problem(name, f"the key {fingerprint} of {identity} stands there twice with different options, must stand there once")
                self._contest(fingerprint, (identity, _limits(condition)))
            return
        self._origin[fingerprint] = name
        if condition is not None:
            conditions[fingerprint] = condition

    def _contest(self, fingerprint: str, claim: tuple[str, tuple[object, ...]]) -> None:
        first = self.book.owners[fingerprint], _limits(self.book.conditions.get(fingerprint))
        self._claims.setdefault(fingerprint, {first}).add(claim)

    def settle(self, before: Book) -> None:
        """A contested key is whose it was, on the conditions that it had, if one of the files says so still; else nobody's."""
        for key, claims in self._claims.items():
            owner, condition = before.owners.get(key), before.conditions.get(key)
            self.book.owners.pop(key)
            self.book.conditions.pop(key, None)
            if owner is not None and (owner, _limits(condition)) in claims:
                self.book.owners[key] = owner
                if condition is not None:
                    self.book.conditions[key] = condition

    def _authority(self, line: AuthorizedKey) -> None:
        self.book.authorities[line.fingerprint] = (*self.book.authorities.get(line.fingerprint, ()), line)

    def _problem(self, name: str, text: str) -> None:
        self.problems.append((name, f"{_full(self._path, name)}: {text}"))


def _limits(line: AuthorizedKey | None) -> tuple[object, ...]:
    return (None, None) if line is None else (line.expires, line.sources)


def _list(folder: str, prefix: str, known: Listing, found: Listing, depth: int) -> None:
    if everyone_may_write(Path(folder).stat().st_mode, folder):
        found.exposed.add(prefix.removesuffix("/"))
        found.faults[prefix] = f"{folder}: may be written by everyone, must not: chmod o-w {folder}"
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
            elif depth < DEPTH and _is_folder(entry):
                _list_within(entry.path, f"{prefix}{entry.name}/", known, found, depth + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Links to folders are not followed, but for those that Kubernetes makes in a volume: NAME to ..data/NAME."""
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    return Path(entry.path).readlink().parts[0] == VOLUME_DATA and entry.is_dir()


def _list_within(folder: str, prefix: str, known: Listing, found: Listing, depth: int) -> None:
    """A folder within that cannot be listed leaves its files as they were listed last, and no other folder unread."""
    try:
        _list(folder, prefix, known, found, depth)
    except FileNotFoundError:
        pass  # removed since it was listed
    except OSError as error:
        found.faults[prefix] = f"{folder}: cannot be read ({error.strerror}), must be {_WHAT}"
        found.update((name, stamp) for name, stamp in known.items() if name.startswith(prefix))


def passed_over(path: Path) -> list[str]:
    """One line for each file or folder below that `_list` leaves away without being told to by a dot in front."""
    told: list[str] = []
    if path.is_dir():
        _passed_over(path, 0, told)
    return sorted(told)


def _passed_over(folder: Path, depth: int, told: list[str]) -> None:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return  # told as a problem
    for entry in entries:
        if entry.name.startswith(".") or (entry.name.endswith(".pub") and entry.is_file()):
            continue
        if entry.is_symlink() and entry.is_dir():
            told.append(plain(f"{entry}: is not read: links to folders are not followed"))
        elif entry.is_symlink() and not entry.exists():
            told.append(plain(f"{entry}: is not read: the link leads nowhere"))
        elif not entry.is_dir():
            told.append(plain(f"{entry}: is not read: only files that end in .pub are"))
        elif entry.name.endswith(".pub"):
            told.append(plain(f"{entry}: is not read: it is a folder, and only folders that do not end in .pub are"))
        elif depth >= DEPTH:
            told.append(plain(f"{entry}: is not read: it lies more than {DEPTH} folders deep"))
        else:
            _passed_over(entry, depth + 1, told)


def identity_of(name: str) -> str:
    return _DEVICE.sub("", name.rpartition("/")[2].removesuffix(".pub"))


def _full(path: Path, name: str) -> str:
    return f"{path}/{name}" if name else str(path)


def _whose(entry: Entry) -> tuple[str, str | None, bool]:
    return (entry, None, False) if isinstance(entry, str) else (entry.fingerprint, entry.identity, entry.authority)


def _read(folder: Path, name: str, stamp: Stamp) -> File:
    """A file without a name stands for itself: its lines say whose they are."""
    path = _full(folder, name)
    data, fault = read_whole(path, "a file of public keys", FILE_BYTES if name else LIST_BYTES)
    if data is None:
        return File(stamp, (), (fault or "",), readable=False)
    if fault is None and (b"-----BEGIN" in data or b"---- BEGIN SSH2" in data):  # another format: one line about it says all
        try:
            parse_line(data.decode("ascii", "replace")[:1000])
        except ValueError as error:
            fault = f"{path}: {error}"
    entries: list[Entry] = []
    problems: list[str] = []
    damaged: set[str] = set()
    for number, text in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1):
        if not (text := text.strip()) or text.startswith("#"):
            continue
        try:
            line = read_line(text)
            if not name and line.identity is None:
                raise ValueError('does not say whose the key is, must have identity="NAME" in front of it')
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            damaged |= _keys_in(text)
        else:
            entries.append(line if any(line[1:]) else line.fingerprint)
    if fault is not None:
        return File(stamp, tuple(entries), (fault,), believed=False, damaged=frozenset(damaged))
    return File(stamp, tuple(entries), tuple(problems), damaged=frozenset(damaged))


def _keys_in(text: str) -> set[str]:
    """Fingerprints of all that could be a key in a line that cannot be read."""
    return {fingerprint(base64.b64decode(found)) for found in _BLOB.findall(text) if len(found) % 4 == 0}
