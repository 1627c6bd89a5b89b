"""Immutable values that the steps of a session pass on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from relay.text import has_control, quoted

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
    """Base of immutable values, compared by their fields."""


class Certified(Frozen, frozen=True):
    """The fields of a certificate that the audit keeps."""

    ca: str  # fingerprint of the signing key: SHA256:...
    key_id: str
    serial: int


class Identity(Frozen, frozen=True):
    """The owner of a verified public key."""

    name: str
    fingerprint: str  # of the key whose signature was verified: SHA256:...
    method: str = "publickey"  # publickey | certificate
    certificate: Certified | None = None


class Command(Frozen, frozen=True):
    """The parsed command of a client; none of its text is passed on except in these fields."""

    service: Service
    repository: str  # canonical: no leading or trailing slash, no .git suffix
    operation: Operation | None = None  # of the LFS services
    protocol: str | None = None  # GIT_PROTOCOL as the client set it: "version=2"
    folded: bool = False  # repository is folded by relay.git.names.fold, for a git host that ignores case

    @property
    def needs(self) -> AccessLevel:
        if self.service == "git-receive-pack" or self.operation == "upload":
            return "write"
        return "read"

    def line(self, path: str) -> str:
        """The command line for the git host's shell; `path` is from the route, not from the client.

        Quoted as git's sq_quote does, the only quoting that git-shell parses: single quotes always, `!` outside of them for csh.
        """
        words = [self.service, "'" + path.replace("'", "'\\''").replace("!", "'\\!'") + "'"]
        if self.operation is not None:
            words.append(self.operation)
        return " ".join(words)


class Route(Frozen, frozen=True):
    """The location of a repository: the name of an upstream and the path there.

    `read_upstream` has replicas under the same path: reads are sent to it, and with `read_fallback` to `upstream` when no replica
    serves. Writes are always sent to `upstream`; with `read_only` they are refused, and the client reads that text.

    With `moved_to`, which no other field may be beside, the repository has that name now: access and routes are asked about it.
    """

    upstream: str = ""
    path: str = ""
    read_upstream: str | None = None
    read_fallback: bool = True
    read_only: str | None = None
    moved_to: str | None = None  # a canonical name
    notice: str | None = None  # a line that clients read

    def upstreams(self, needs: AccessLevel) -> tuple[str, ...]:
        """The upstreams that may serve a command, in the order in which they are tried."""
        if needs == "write" or self.read_upstream is None:
            return (self.upstream,)
        return (self.read_upstream, self.upstream) if self.read_fallback else (self.read_upstream,)

    @property
    def names(self) -> tuple[str, ...]:
        """All upstreams of this route."""
        if self.moved_to is not None:
            return ()
        return (self.upstream,) if self.read_upstream is None else (self.upstream, self.read_upstream)


class RefUpdate(Frozen, frozen=True):
    """One command of a push: set `ref` from `old` to `new`, object ids in lower case."""

    ref: str  # bytes that are not UTF-8 are kept as surrogates, as by os.fsdecode
    old: str
    new: str

    @property
    def change(self) -> Change:
        """By the ids that the client sent (zeros mean no object); the git host checks `old` against its own."""
        if not self.new.strip("0"):
            return "delete"
        return "update" if self.old.strip("0") else "create"


class RefRule(Frozen, frozen=True):
    """Allows or forbids `changes` of the refs that match one of the patterns, to an identity with a Grant."""

    refs: tuple[str, ...]
    write: bool
    changes: tuple[Change, ...] = ("create", "update", "delete")


class Grant(Frozen, frozen=True):
    """Access was granted; a backend may add the route, which saves a question to routes.

    `refs` applies to a push: for each ref the first matching rule decides, without one `access` does.
    """

    access: AccessLevel
    route: Route | None = None
    refs: tuple[RefRule, ...] = ()


class Exit(Frozen, frozen=True):
    """How the command on the git host ended: by exit status, or by a signal, without the prefix SIG (RFC 4254 section 6.10)."""

    status: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    message: str = ""


PATH_CHARACTERS = 4096  # of a path on a git host


def path_faults(path: str) -> list[str]:
    """Why `path` is not valid as a path on a git host; empty when it is valid."""
    faults = []
    if not 0 < len(path) <= PATH_CHARACTERS:
        faults.append(f"has {len(path)} characters, allowed are 1 to {PATH_CHARACTERS}")
    if has_control(path):
        faults.append("has control characters, must have none")
    if path.startswith("-"):
        faults.append("begins with a hyphen, which git would take for an option; must begin with another character")
    return faults


def route_faults(route: Route, upstreams: Collection[str] | None) -> list[str]:
    """What is wrong with a route that a backend answered. `upstreams` are those of the configuration; None accepts any name."""
    if route.moved_to is not None:
        both = route.upstream or route.path or route.read_upstream is not None or route.read_only is not None or route.notice is not None
        return ["it has moved_to beside other fields, must have one or the other"] if both else []
    if not route.upstream:
        return ["it has neither an upstream nor moved_to"]
    faults = [f"the upstream {quoted(name)} is not configured" for name in route.names if upstreams is not None and name not in upstreams]
    return faults + [f"the path {fault}" for fault in path_faults(route.path)]
