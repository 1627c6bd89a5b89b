"""Parses an exec request's command line (RFC 4254 section 6.5) into a Command, or refuses it; pure.

Of the shell only the quoting that git's clients use is understood (git and JGit: 'it'\\''s', 'a'\\!'b'; libgit2 and dulwich: single quotes;
git-lfs: bare words). Expansions, operators and a second command are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec

from relay.errors import Malformed, NotGit
from relay.git.names import CONTROL, REPOSITORY_BYTES, SURROGATE, BadName, check_repository, fold
from relay.model import SERVICES, Command, Operation, Service
from relay.text import printable

LINE_LIMIT: Final = 8_192  # characters; the longest name with every byte quoted as '\'' takes 4,096
REPOSITORY_LIMIT: Final = REPOSITORY_BYTES
PROTOCOL_LIMIT: Final = 256  # bytes of GIT_PROTOCOL
SHOWN_CHARACTERS: Final = 64  # of a word of the command that a message repeats

_SERVICES: Final[dict[str, Service]] = {name: name for name in SERVICES}
_OPERATIONS: Final[dict[str, Operation]] = {"download": "download", "upload": "upload"}

_PIECE: Final = re.compile(
    r"""
      (?P<space>\ +)
    | '(?P<single>[^']*)'
    | "(?P<double>(?:[^"\\$`]|\\.)*)"
    | \\(?P<escaped>.)
    | (?P<bare>[^\ '"\\;&|<>`$()]+)
    """,
    re.VERBOSE,
)
_DOUBLE_ESCAPE: Final = re.compile(r'\\([$`"\\])')  # within double quotes a backslash before any other character stays

_NTFS: Final = re.compile(r":|~\d")

_PROTOCOL: Final = re.compile(r"[a-z0-9.-]+(?:=[a-z0-9.-]*)?(?::[a-z0-9.-]+(?:=[a-z0-9.-]*)?)*")


def parse(line: str, protocol: str | None = None, strip: Sequence[str] = ()) -> Command:
    """The git service, canonical repository and LFS operation that `line` asks for; `protocol` is a GIT_PROTOCOL of `valid_protocol`.

    The first of `strip` with which the path begins is taken off.

    Raises NotGit for any other command, and Malformed for a git service with arguments that it does not take; the message of both is one
    sentence for the client. No text makes it raise anything else.
    """
    try:
        words = _words(line)
    except Malformed:
        rough = [word.strip("'\"") for word in line[:LINE_LIMIT].split(maxsplit=2)]
        if _service(rough) is None:
            _refuse_command(rough, line)
        raise
    found = _service(words)
    if found is None:
        _refuse_command(words, line)
    service, arguments = found
    if protocol is not None and (len(protocol) > PROTOCOL_LIMIT or not _PROTOCOL.fullmatch(protocol)):
        _refuse("GIT_PROTOCOL is not valid, only key=value pairs joined by colons are allowed")
    takes_operation = service.startswith("git-lfs-")
    usage = f"{service} PATH download|upload" if takes_operation else f"{service} PATH"
    for word in arguments:
        if word.startswith("-"):
            _refuse(f"options are not allowed (got '{printable(word, SHOWN_CHARACTERS)}'), only: {usage}")
    if len(arguments) != 1 + takes_operation:
        _refuse(f"{len(arguments)} arguments given, only {1 + takes_operation} allowed: {usage}")
    operation: Operation | None = None
    if takes_operation:
        operation = _OPERATIONS.get(arguments[1])
        if operation is None:
            _refuse(f"the operation '{printable(arguments[1], SHOWN_CHARACTERS)}' is not known, only download and upload are allowed")
    path = arguments[0]
    path = next((path.removeprefix(prefix) for prefix in strip if path.startswith(prefix)), path)
    return Command(service=service, repository=canonical(path), operation=operation, protocol=protocol)


def strip_fault(prefix: str) -> str | None:
    """Why no client's path can usefully begin with `prefix`; None for a valid one."""
    if not prefix.endswith("/") or len(prefix) < 2 or "//" in prefix:
        return "must end in one slash, and have a folder before it, as /srv/git/ or ~/"
    if prefix[0] not in "/~":
        return "must begin with / or ~: without it the name of a repository may begin so"
    if CONTROL.search(prefix) or "'" in prefix or "\\" in prefix:
        return "holds a character that no path of a client has here"
    if any(segment in (".", "..") for segment in prefix.split("/")):
        return "has a segment . or .., must be a path as clients write it"
    return None


def canonical(path: str) -> str:
    """The canonical name of a repository: without a slash at its ends and without the suffix .git; canonical(canonical(x)) == canonical(x).

    Raises Malformed for a name that is empty or longer than REPOSITORY_LIMIT, is not UTF-8, or has an empty, `.`, `..` or `.git` segment, a
    segment that begins with `-` or `~`, a backslash, a control character, or a second suffix .git (it would have two canonical names).
    """
    name = path.removeprefix("/").removesuffix("/").removesuffix(".git")
    try:
        check_repository(name)
    except BadName as bad:
        _refuse(bad.message)
    return name


def folded(command: Command) -> Command:
    """The command for a git host that ignores case: with one name for all names that such a host may take for the same repository.

    Raises Malformed when the folded name is not valid, and for NTFS's other names of a file: streams (app:x), short names (APPLIC~1).
    """
    if _NTFS.search(command.repository):
        _refuse("a colon, or a tilde before a digit, is not allowed in a repository name there")
    return msgspec.structs.replace(command, repository=canonical(fold(command.repository)), folded=True)


def valid_protocol(value: bytes) -> str | None:
    """GIT_PROTOCOL as git sends it (git(1): key[=value] joined by colons), at most PROTOCOL_LIMIT bytes; None if it is not that."""
    if len(value) > PROTOCOL_LIMIT or not value.isascii():
        return None
    text = value.decode("ascii")
    return text if _PROTOCOL.fullmatch(text) else None


def _words(line: str) -> list[str]:
    """The words of `line` by POSIX shell quoting (XCU 2.2). Raises Malformed for anything else that a shell would interpret."""
    if len(line) > LINE_LIMIT:
        _refuse(f"the command is too long, at most {LINE_LIMIT:,} characters are allowed")
    if SURROGATE.search(line):
        _refuse("the command is not valid UTF-8")
    if CONTROL.search(line):
        _refuse("the command holds a control character")
    words: list[str] = []
    word: str | None = None  # None between words; '' is an empty word
    position = 0
    while position < len(line):
        piece = _PIECE.match(line, position)
        if piece is None:
            _refuse_piece(line[position:])
        position = piece.end()
        text = piece[piece.lastgroup or 0]
        if piece.lastgroup == "space":
            if word is not None:
                words.append(word)
            word = None
            continue
        if piece.lastgroup == "bare" and word is None and text.startswith("#"):
            _refuse("comments are not allowed, quote a name that begins with '#'")
        if piece.lastgroup == "double":
            text = _DOUBLE_ESCAPE.sub(r"\1", text)
        word = (word or "") + text
    if word is not None:
        words.append(word)
    return words


def _service(words: list[str]) -> tuple[Service, list[str]] | None:
    """The service and its arguments, for `git-upload-pack ...` and `git upload-pack ...`."""
    if words and words[0] in _SERVICES:
        return _SERVICES[words[0]], words[1:]
    if len(words) > 1 and words[0] == "git" and f"git-{words[1]}" in _SERVICES:
        return _SERVICES[f"git-{words[1]}"], words[2:]
    return None


def _refuse_piece(rest: str) -> NoReturn:
    if rest[0] == "'":
        _refuse("a single quote is not closed")
    if rest[0] == '"':
        _refuse("a double quote is not closed, or holds $ or `, which are not expanded here")
    if rest[0] == "\\":
        _refuse("a backslash at the end escapes nothing")
    _refuse(f"an unquoted {rest[0]} is not allowed, only one git command and its arguments")


def _refuse_command(words: list[str], line: str) -> NoReturn:
    # shows both words of "git status": "only git commands (got 'git')" would explain nothing
    name = " ".join(words[:2] if words[:1] == ["git"] else words[:1])
    raise NotGit(f"not a git service: {printable(line)}", message=f"{NotGit.message} (got '{printable(name, SHOWN_CHARACTERS)}')")


def _refuse(sentence: str) -> NoReturn:
    raise Malformed(sentence, message=f"relay: {sentence}")
