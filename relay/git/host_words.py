"""A git host's output outside of git's protocol: recognises known refusals, and removes the host's paths.

A client must not learn where repositories are on a git host, nor whether one is missing or only not theirs. Git's progress and errors
within its protocol (sideband) are not changed. This is about stderr, and about output on stdout before the protocol begins, such as
warnings of a shell and messages of the day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

HELD_MOST_BYTES = 4096  # held back before the protocol begins, and of an incomplete line

Verdict = Literal["not_found", "unsupported", "refused"]


@dataclass(frozen=True, slots=True)
class KnownRefusal:
    """One kind of refusal. It applies if the command failed without a byte of git's protocol, and a line has these words."""

    host: str  # the software that writes them, for docs/upstreams.md
    words: str  # as shown in docs/upstreams.md
    pattern: re.Pattern[bytes]
    verdict: Verdict


def _refusal(host: str, words: str, verdict: Verdict) -> KnownRefusal:
    """`words` with `*` for what varies."""
    return KnownRefusal(host, words, re.compile(b".*".join(re.escape(part) for part in words.encode().split(b"*")), re.IGNORECASE), verdict)


REFUSALS = (
    _refusal("git", "does not appear to be a git repository", "not_found"),
    _refusal("git", "fatal: not a git repository", "not_found"),
    _refusal("git", "Repository not exported", "not_found"),
    _refusal("git", "access denied or repository not exported", "not_found"),
    _refusal("git", "detected dubious ownership in repository", "refused"),
    _refusal("git-shell", "unrecognized command '", "unsupported"),
    _refusal("git-shell", "Interactive git shell is not enabled", "unsupported"),
    _refusal("shells", "git-*: command not found", "unsupported"),
    _refusal("shells", "git-*: not found", "unsupported"),
    _refusal("shells", "git-*: No such file or directory", "unsupported"),
    _refusal("git", "git: '*' is not a git command", "unsupported"),
    _refusal("nologin", "This account is currently not available", "refused"),
    _refusal("Gitea, Forgejo, Gogs", "Cannot find repository", "not_found"),
    _refusal("Gitea, Forgejo, Gogs", "Repository does not exist", "not_found"),
    _refusal("Gitea, Forgejo", "User: * is not authorized to * *", "not_found"),
    _refusal("Gitea, Forgejo", "Deploy Key: * is not authorized to * *", "not_found"),
    _refusal("Gitea, Forgejo", "Unknown git command", "unsupported"),
    _refusal("Gitea, Forgejo", "LFS SSH transfer is not enabled", "unsupported"),
    _refusal("gitolite", "FATAL: * any * DENIED by ", "not_found"),
    _refusal("gitolite", "repository not found", "not_found"),
    _refusal("gitolite", "FATAL: unknown git/gitolite command", "unsupported"),
    _refusal("gitolite", "FATAL: invalid repo name", "not_found"),
    _refusal("gitolite", "FATAL: suspicious characters", "refused"),
    _refusal("GitLab", "The project you were looking for could not be found", "not_found"),
    _refusal("GitLab", "You are not allowed to ", "not_found"),
    _refusal("GitLab", "Disallowed command", "unsupported"),
    _refusal("GitHub", "ERROR: Repository not found", "not_found"),
    _refusal("Bitbucket", "Repository not found", "not_found"),
    _refusal("Gerrit", "fatal: project * not found", "not_found"),
    _refusal("Gerrit", "Project not found: ", "not_found"),  # and not theirs to see
    _refusal("Gerrit", "': not a git archive", "not_found"),
    _refusal("Gerrit", "fatal: * not permitted on this server", "not_found"),
    _refusal("soft-serve", "invalid repo", "not_found"),
    _refusal("soft-serve", "you are not authorized to do this", "not_found"),
    _refusal("soft-serve", 'unknown command "git-', "unsupported"),
)

# only at the start of a word, so that URLs, `5 MiB/s` and `and/or` are not taken for paths
_QUOTED_PATH = re.compile(rb"'(?:/|~[\w.-]*/)[^'\n]*'|\"(?:/|~[\w.-]*/)[^\"\n]*\"")
_UNQUOTED_PATH = re.compile(rb"(?<![\w/:.~@%+-])(?:/|~[\w.-]*/)[^\s'\"`;,()<>|:]+")
_NO_TEXT = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")
_MESSAGE = re.compile(rb"[\w.: -]*\b(?:fatal|error|warning)\b", re.IGNORECASE)
_LENGTH = re.compile(rb"^[0-9a-f]{4}", re.IGNORECASE | re.MULTILINE)  # of a pkt-line, at the start of a line
_JSON = re.compile(rb"^[ \t]*\{", re.MULTILINE)
ARCHIVE_ACK = b"0008ACK\n0000"  # git-upload-archive says so before it has looked at the repository, and tells its fate in sideband 2


def verdict(words: bytes) -> KnownRefusal | None:
    """The known refusal in `words`, the output of a command that failed; None if there is none."""
    if not words:
        return None
    return next((one for one in REFUSALS if one.pattern.search(words)), None)


def protocol_start(data: bytes) -> int | None:
    """Where git's protocol begins in `data`, after a shell's lines: at a whole pkt-line, or the line with the first byte that is no text.

    None if it has not begun. A line that looks like a length (`2026-11-28 10:00 welcome`) is the shell's: no packet so long follows.
    """
    for found in _LENGTH.finditer(data):
        if found.start() + max(int(found[0], 16), len(found[0])) <= len(data):
            return found.start()
    no_text = _NO_TEXT.search(data)
    return None if no_text is None else data.rfind(b"\n", 0, no_text.start()) + 1


def archive_start(data: bytes) -> int | None:
    """As `protocol_start`, for git-upload-archive, but None until the output shows that the repository exists."""
    at = 0
    while at < len(data):
        if ARCHIVE_ACK.startswith(data[at : at + len(ARCHIVE_ACK)]):  # the next packet is in sideband 2 if the repository is missing
            return at if data[at + len(ARCHIVE_ACK) + 4 :][:1] not in (b"", b"\2") else None
        at = data.find(b"\n", at) + 1 or len(data)
    return protocol_start(data)


def json_start(data: bytes) -> int | None:
    found = _JSON.search(data)
    return None if found is None else found.start()


class HostWords:
    """Cleans a git host's output in one session. `path` is the route's; the client knows it as `repository`."""

    def __init__(self, path: str, repository: str) -> None:
        self._path = path.encode("utf-8", "surrogateescape")
        self._repository = repository.encode("utf-8", "surrogateescape")
        self._tail = b""  # an incomplete line of stderr
        self._binary = False  # the output is not text, so any byte may look like a path

    def stderr(self, data: bytes) -> bytes:
        """The output that may be sent now: whole lines. Lines beyond HELD_MOST_BYTES, and what is no text, are not held back."""
        held = self._tail + data
        cut = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
        if len(held) - cut > HELD_MOST_BYTES or _NO_TEXT.search(held, cut):
            cut = len(held)
        self._tail = held[cut:]
        return self.clean(held[:cut]) if cut else b""

    def rest(self) -> bytes:
        """The incomplete line, when no more output follows."""
        tail, self._tail = self._tail, b""
        return self.clean(tail)

    def clean(self, text: bytes) -> bytes:
        """`text` without the host's paths. From a stream that is not text only the route's path is removed."""
        if self._path and self._path != self._repository:
            text = text.replace(self._path, self._repository)
        return b"".join(map(self._clean_line, text.splitlines(keepends=True)))

    def _clean_line(self, line: bytes) -> bytes:
        self._binary = self._binary or _NO_TEXT.search(line) is not None
        if b"/" not in line or (self._binary and not _MESSAGE.match(line)):
            return line
        line = _QUOTED_PATH.sub(lambda found: found[0][:1] + b"(path)" + found[0][-1:], line)
        return _UNQUOTED_PATH.sub(b"(path)", line)
