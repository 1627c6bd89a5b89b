"""Keys in files: a folder like gitolite's keydir, or one file like sshd's authorized_keys; read again when changed.

In a folder the file's name is the identity: the keys in alice.pub and alice@laptop.pub belong to alice. The name is cut at an @ that no
dot follows, so the keys in alice@example.com.pub belong to alice@example.com. Subfolders are read too; files that begin with a dot or do
not end in .pub are ignored. In one file each line has an option that names the identity. Any key may have options. After a change only the
files that changed are read again.

There are three cases of a changed file with a fault:
1. It can be read: keys that are new in it are not accepted, keys that were removed from it are no longer accepted.
2. One of its lines cannot be read, but still contains a key that was accepted: this key stays as it was.
3. It (or its folder) cannot be read at all: its keys stay as they were.

With faulty_lines = "skip" a fault of a line, or of keys that contradict each other, is none of the file: the line is left out, at start and
after a change alike, so a key whose line was damaged is not accepted any more, and all other lines take effect. A file that cannot be
read, that everyone may write or that holds a private key stays a fault.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from relay.backends.watched import LOOK_SECONDS, Tell, Watched, stamp_of
from relay.config.trust import everyone_may_write
from relay.errors import ConfigError
from relay.keys import KeyOptions, NotAccepted, SpokenFor, identity_fault
from relay.keys.authorized_keys import AuthorizedKey, key_of, read_line
from relay.keys.trusted_file import read_whole
from relay.openssh.public_key import PublicKey, fingerprint, parse_line
from relay.text import plain, quoted

PUB_FILE_BYTES = 1 << 20  # of one .pub file
LIST_BYTES = 64 << 20  # of one file for everybody
VOLUME_DATA = "..data"  # in a Kubernetes volume a link to the folder with the content; a change renames a new link over it
LEFT_OUT_LOGGED = 100  # lines that are logged for one change
DEPTH = 8  # of folders within folders

Stamp = tuple[object, ...]
Entry = str | AuthorizedKey  # a bare fingerprint for a key without options: the garbage collector does not track strings

_log = logging.getLogger("relay.keys")

_BLOB = re.compile(r"(?<![A-Za-z0-9+/])AAAA[A-Za-z0-9+/]{16,}={0,2}")  # a key in base64 begins with the length of its type's name
_DEVICE = re.compile(r"@[^.]+$")  # gitolite: alice@laptop
_WHAT = "a folder of .pub files, or a file of lines as in authorized_keys"


class KeyFile(NamedTuple):
    """What the last read of one file found."""

    stamp: Stamp
    keys: tuple[Entry, ...]
    problems: tuple[str, ...] = ()
    readable: bool = True  # False: its content is unknown
    believed: bool = True  # False: others may write it, or it holds a private key
    damaged: frozenset[str] = frozenset()  # fingerprints of keys in lines that cannot be read

    @property
    def whole(self) -> bool:
        """Whether its problems are those of single lines."""
        return self.readable and self.believed

    def without_new(self, before: tuple[Entry, ...]) -> KeyFile:
        """For a file with a fault: the keys of `before` that the file still has, or whose line cannot be read."""
        if not self.readable:
            return self._replace(keys=before)
        known = set(map(_key_of, before))
        kept = [key for key in self.keys if _key_of(key) in known and (self.believed or key in before)]
        there = {_key_of(key)[0] for key in kept}
        kept += (key for key in before if _key_of(key)[0] in self.damaged - there)
        return self._replace(keys=tuple(kept))


class Book(NamedTuple):
    """The keys of all files together."""

    owners: dict[str, str]  # fingerprint to identity
    conditions: dict[str, AuthorizedKey]  # by fingerprint, of keys that have any
    authorities: dict[str, tuple[AuthorizedKey, ...]]  # by the CA's fingerprint; every entry has an identity


class Listing(dict[str, Stamp]):
    """The stamp of each .pub file below the folder.

    `faults` has a line for each folder that everyone may write (`exposed`) and for each that cannot be listed, by the folder's prefix.
    Comparison is written in Python, because dict's own would hold the GIL until it is done and stop the event loop.
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
    """Looks keys up in a `Book`, which is replaced as a whole after a change."""

    source = "file"

    def __init__(
        self, path: Path, *, skip: bool = False, look_seconds: float = LOOK_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        reader = KeyFiles(path, skip=skip)
        self._clock = clock
        self._reader = reader
        self._book = Watched(f"keys in {path}", reader.listing, reader.read, look_seconds=look_seconds, in_parts=True)
        if self._book.problems:
            raise ConfigError(self._book.problems)

    @property
    def left_out(self) -> int:
        """How many lines the last read left out."""
        return len(self._reader.left_out)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        return (await self._book.current()).owners.get(fingerprint)

    def watch(self, tell: Tell) -> None:
        self._book.watch("keys", tell)

    async def check(self, fingerprint: str, address: str) -> KeyOptions:
        if (line := (await self._book.current()).conditions.get(fingerprint)) is None:
            return KeyOptions()
        line.check(address, self._clock())
        return line.options

    async def authorities(self, fingerprint: str, address: str) -> list[SpokenFor]:
        found: list[SpokenFor] = []
        last = None
        for line in (await self._book.current()).authorities.get(fingerprint, ()):
            try:
                line.check(address, self._clock())
            except NotAccepted as no:
                last = no
            else:
                found.append(SpokenFor(line.identity or "", line.principals, line.options))
        if last is not None and not found:
            raise last
        return found

    async def close(self) -> None:
        await self._book.close()


def load(path: Path, *, skip: bool = False) -> tuple[Book, list[str]]:
    """The keys of all files, and one line for each problem."""
    reader = KeyFiles(path, skip=skip)
    return reader.read(reader.listing())


def left_out(path: Path) -> list[str]:
    """One line for each line that faulty_lines = "skip" leaves out."""
    reader = KeyFiles(path, skip=True)
    reader.read(reader.listing())
    return list(reader.left_out)


class KeyFiles:
    """Remembers what each file held, so that one change among 100,000 files reads one file.

    A fault in one file does not keep the changes of other files from being accepted. With `skip` the faults of lines are in `left_out`,
    and not among the problems.
    """

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        self._path = path
        self._skip = skip
        self.left_out: tuple[str, ...] = ()
        self._listing = Listing()
        self._files: dict[str, KeyFile] = {}
        self._book = Book({}, {}, {})
        self._first = True

    def listing(self) -> Listing | str:
        """The files, or why they cannot be listed. If `path` is a single file, its name in the listing is empty."""
        found = Listing()
        try:
            status = self._path.stat()
            if stat.S_ISREG(status.st_mode):
                found[""] = stamp_of(status)
            else:
                _list_folder(str(self._path), "", self._listing, found, 0)
        except OSError as error:
            return f"{self._path}: cannot be read ({error.strerror}), must be {_WHAT}"
        self._listing = found
        return found

    def read(self, listing: Listing | str) -> tuple[Book, list[str]]:
        if isinstance(listing, str):
            return self._book, [plain(listing)]
        files: dict[str, KeyFile] = {}
        first, self._first = self._first, False  # at start any problem refuses everything, and all problems are shown
        gathered = _Gathered(self._path)
        gathered.problems += listing.faults.items()
        for name, stamp in listing.items():
            file = known = self._files.get(name)
            if file is None or file.stamp != stamp:
                file = _read(self._path, name, stamp)
                if name.rpartition("/")[0] in listing.exposed:
                    file = file._replace(stamp=(object(),), believed=False)  # equals no other stamp: read again next time
                if first:
                    file = file if file.believed else file._replace(keys=())
                elif (file.problems and not (self._skip and file.whole)) or not file.believed:
                    file = file.without_new(() if known is None else known.keys)
            files[name] = file
            gathered.add(name, file)
        gathered.settle(Book({}, {}, {}) if self._skip else self._book)
        self._files = files
        if gathered.book != self._book:
            self._book = gathered.book
        self._leave_out(gathered.lines if self._skip else [], first)
        return self._book, _sorted(gathered.problems if self._skip else [*gathered.problems, *gathered.lines])

    def _leave_out(self, lines: list[tuple[str, str]], first: bool) -> None:
        """Logs those that are new after a change; what is left out at start is logged by the supervisor, once for all workers."""
        left_out = tuple(_sorted(lines))
        if not first:
            new = sorted(set(left_out) - set(self.left_out))
            for line in new[:LEFT_OUT_LOGGED]:
                _log.warning("left out of the keys: %s", line)
            if len(new) > LEFT_OUT_LOGGED:
                _log.warning("left out of the keys: %d more lines; relay check names all", len(new) - LEFT_OUT_LOGGED)
        self.left_out = left_out


def _sorted(problems: list[tuple[str, str]]) -> list[str]:
    return [plain(text) for _, text in sorted(problems, key=lambda problem: problem[0])]


class _Gathered:
    """Collects the keys of all files into a `Book`, and the conflicts between files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.book = Book({}, {}, {})
        self._origin: dict[str, str] = {}  # the file that a fingerprint was seen in first
        # fingerprints for which two files or lines disagree: each identity with its conditions
        self._claims: dict[str, set[tuple[str, tuple[object, ...]]]] = {}
        self.problems: list[tuple[str, str]] = []  # of files and folders, by file
        self.lines: list[tuple[str, str]] = []  # of lines, and of keys that contradict each other

    def add(self, name: str, file: KeyFile) -> None:
        told = self.lines if file.whole else self.problems
        told += ((name, problem) for problem in file.problems)
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
        condition = line if _limits(line) != _limits(None) else None
        if fingerprint in self._origin:
            before = conditions.get(fingerprint)
            if _limits(before) != _limits(condition):
                self._problem(name, f"the key {fingerprint} of {identity} is listed twice with different options, must be listed once")
                self._contest(fingerprint, (identity, _limits(condition)))
            return
        self._origin[fingerprint] = name
        if condition is not None:
            conditions[fingerprint] = condition

    def _contest(self, fingerprint: str, claim: tuple[str, tuple[object, ...]]) -> None:
        first = self.book.owners[fingerprint], _limits(self.book.conditions.get(fingerprint))
        self._claims.setdefault(fingerprint, {first}).add(claim)

    def settle(self, before: Book) -> None:
        """A key for which files disagree keeps its owner and conditions if one of the files still has them; else it belongs to nobody."""
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
        self.lines.append((name, f"{_full(self._path, name)}: {text}"))


def _limits(line: AuthorizedKey | None) -> tuple[object, ...]:
    return (None, None, KeyOptions()) if line is None else (line.expires, line.sources, line.options)


def _list_folder(folder: str, prefix: str, known: Listing, found: Listing, depth: int) -> None:
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
                    continue  # renamed or removed since the folder was listed, or a dangling link
                if stat.S_ISREG(status.st_mode):
                    name, stamp = prefix + entry.name, stamp_of(status)
                    before = known.get(name)
                    found[name] = before if before is not None and before == stamp else stamp
            elif depth < DEPTH and _is_folder(entry):
                _list_subfolder(entry.path, f"{prefix}{entry.name}/", known, found, depth + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Links to folders are not followed, except those that Kubernetes makes in a volume: NAME to ..data/NAME."""
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    return Path(entry.path).readlink().parts[0] == VOLUME_DATA and entry.is_dir()


def _list_subfolder(folder: str, prefix: str, known: Listing, found: Listing, depth: int) -> None:
    """Lists a subfolder. If it cannot be listed, its files stay as they were listed last."""
    try:
        _list_folder(folder, prefix, known, found, depth)
    except FileNotFoundError:
        pass  # removed since its parent was listed
    except OSError as error:
        found.faults[prefix] = f"{folder}: cannot be read ({error.strerror}), must be {_WHAT}"
        found.update((name, stamp) for name, stamp in known.items() if name.startswith(prefix))


def key_facts(path: Path) -> Iterator[tuple[str, PublicKey]]:
    """The fingerprint of each plain key that can be read, with the key itself; for `relay check`, which looks at their types."""
    listing = KeyFiles(path).listing()
    for name in () if isinstance(listing, str) else listing:
        data, _ = read_whole(_full(path, name), "a file of public keys", PUB_FILE_BYTES if name else LIST_BYTES)
        for text in (data or b"").decode("utf-8-sig", "replace").split("\n"):
            if (text := text.strip()) and not text.startswith("#"):
                try:
                    line = read_line(text)
                except ValueError:
                    continue  # reported where the keys are read
                if not line.authority:
                    yield line.fingerprint, key_of(text)


def unread_files(path: Path) -> list[str]:
    """One line for each file or folder that `_list_folder` ignores, except those that begin with a dot."""
    told: list[str] = []
    if path.is_dir():
        _unread_files(path, 0, told)
    return sorted(told)


def _unread_files(folder: Path, depth: int, told: list[str]) -> None:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return  # already reported as a problem
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
            _unread_files(entry, depth + 1, told)


def identity_of(name: str) -> str:
    return _DEVICE.sub("", name.rpartition("/")[2].removesuffix(".pub"))


def _full(path: Path, name: str) -> str:
    return f"{path}/{name}" if name else str(path)


def _key_of(entry: Entry) -> tuple[str, str | None, bool]:
    return (entry, None, False) if isinstance(entry, str) else (entry.fingerprint, entry.identity, entry.authority)


def _read(folder: Path, name: str, stamp: Stamp) -> KeyFile:
    """Reads one file. With an empty `name` it is the single file `folder`, whose lines name the identities."""
    path = _full(folder, name)
    data, fault = read_whole(path, "a file of public keys", PUB_FILE_BYTES if name else LIST_BYTES)
    if data is None:
        return KeyFile(stamp, (), (fault or "",), readable=False)
    if fault is None and (b"-----BEGIN" in data or b"---- BEGIN SSH2" in data):  # another format: one problem for all lines
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
            entries.append(line.fingerprint if line == AuthorizedKey(line.fingerprint) else line)
    if fault is not None:
        return KeyFile(stamp, tuple(entries), (fault,), believed=False, damaged=frozenset(damaged))
    return KeyFile(stamp, tuple(entries), tuple(problems), damaged=frozenset(damaged))


def _keys_in(text: str) -> set[str]:
    """Fingerprints of everything that may be a key in a line that cannot be read."""
    return {fingerprint(base64.b64decode(found)) for found in _BLOB.findall(text) if len(found) % 4 == 0}
