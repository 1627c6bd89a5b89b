"""The frozen values that travel between the steps of a session."""

from __future__ import annotations

from typing import Literal

import msgspec

from relay.text import has_control

Service = Literal["git-upload-pack", "git-receive-pack", "git-upload-archive", "git-lfs-authenticate", "git-lfs-transfer"]
AccessLevel = Literal["read", "write"]
Operation = Literal["download", "upload"]
Change = Literal["create", "update", "delete"]

SERVICES: tuple[Service, ...] = (
    "git-upload-pack",
    "git-receive-pack",
    "git-upload-archive",
    "git-lfs-authenticate",
    "git-lfs-transfer",
)


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """A value with equality and no behaviour."""


class Certified(Frozen, frozen=True):
    """What a certificate says of itself, for whoever looks for it later."""

    ca: str  # SHA256:..., of the key that signed it
    key_id: str
    serial: int


class Identity(Frozen, frozen=True):
    """Who a proven public key belongs to."""

    name: str
    fingerprint: str  # SHA256:..., of the key whose signature was verified
    method: str = "publickey"  # publickey | certificate
    certificate: Certified | None = None


class Command(Frozen, frozen=True):
    """What a client asked for, parsed; nothing of the client's own text travels further than these fields."""

    service: Service
    repository: str  # canonical: no leading or trailing slash, no .git suffix
    operation: Operation | None = None  # of the LFS services
    protocol: str | None = None  # GIT_PROTOCOL as the client set it: "version=2"
    folded: bool = False  # repository is as relay.git.names.fold makes it, for a git host that ignores case

    @property
    def needs(self) -> AccessLevel:
        if self.service == "git-receive-pack" or self.operation == "upload":
            return "write"
        return "read"

    def line(self, path: str) -> str:
        """The command line for the git host's shell; `path` is the route's, not the client's.

        Quoted as git's own sq_quote does, which is the only quoting that git-shell undoes: always, and `!` apart for csh.
        """
        words = [self.service, "'" + path.replace("'", "'\\''").replace("!", "'\\!'") + "'"]
        if self.operation is not None:
            words.append(self.operation)
        return " ".join(words)


class Route(Frozen, frozen=True):
    """Where a repository lives: the name of an upstream and the path it is asked for.

    With `read_upstream`, whose git hosts hold copies under the same path, reads go there, and to `upstream` only when none of those
    answers, if `read_fallback` says so. Writes never go to copies.
    """

    upstream: str
    path: str
    read_upstream: str | None = None
    read_fallback: bool = True

    def upstreams(self, needs: AccessLevel) -> tuple[str, ...]:
        """Who may serve a command, the first to be asked in front."""
        if needs == "write" or self.read_upstream is None:
            return (self.upstream,)
        return (self.read_upstream, self.upstream) if self.read_fallback else (self.read_upstream,)

    @property
    def names(self) -> tuple[str, ...]:
        """All upstreams that are named."""
        return (self.upstream,) if self.read_upstream is None else (self.upstream, self.read_upstream)


class RefUpdate(Frozen, frozen=True):
    """One command of a push: `ref` is to move from `old` to `new`, which are object ids in lower case."""

    ref: str  # what is not UTF-8 in it is kept as surrogates, as os.fsdecode does
    old: str
    new: str

    @property
    def change(self) -> Change:
        """As the client says it; a git host refuses what does not fit what it has. An id of zeros stands for no object."""
        if not self.new.strip("0"):
            return "delete"
        return "update" if self.old.strip("0") else "create"


class RefRule(Frozen, frozen=True):
    """Whether the one who was granted access may make these changes to the refs that match one of the patterns."""

    refs: tuple[str, ...]
    write: bool
    changes: tuple[Change, ...] = ("create", "update", "delete")


class Grant(Frozen, frozen=True):
    """An access backend's yes; it may already know the route, so that one call serves both questions.

    `refs` is for a push: for each ref the first rule that matches decides, and `access` where none does.
    """

    access: AccessLevel
    route: Route | None = None
    refs: tuple[RefRule, ...] = ()


class Exit(Frozen, frozen=True):
    """How the git host's command ended: a status, or a signal name without the SIG prefix (RFC 4254 section 6.10)."""

    status: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    message: str = ""


PATH_CHARACTERS = 4096  # of what a git host is asked for


def path_faults(path: str) -> list[str]:
    """What keeps `path` from being what a git host is asked for; nothing for a good one."""
    faults = []
    if not 0 < len(path) <= PATH_CHARACTERS:
        faults.append(f"has {len(path)} characters, allowed are 1 to {PATH_CHARACTERS}")
    if has_control(path):
        faults.append("has control characters, must have none")
    if path.startswith("-"):
        faults.append("begins with a hyphen, which git would take for an option; must begin with another character")
    return faults
