"""The tree of errors that end a session; the alternative is an exit status of the git host.

RelayError                       reason (closed set, for metrics), exit_status, message (for the client), fault
├── Refused                      a command that the relay refuses; nothing reached a git host fault: client
│   ├── NotGit                   the command is no git service
│   ├── Malformed                a git service with arguments that it does not take
│   ├── Denied                   no such repository, or no access to it: the same answer      fault: policy
│   │   └── Revoked              the key of the connection is no longer accepted
│   ├── RefDenied                a push that changes a protected ref, or cannot be parsed     fault: policy or client
│   ├── ReadOnly                 a push or upload by a route that takes none                  fault: policy
│   │   └── Frozen               a push or upload to an upstream that an operator has frozen
│   ├── TooMany                  more sessions than a limit allows
│   ├── HostBusy                 all connections to the git host are in use, for too long     fault: policy
│   │   ├── IdentityBusy         too many sessions of the same identity
│   │   └── RepositoryBusy       too many sessions of the same repository
│   ├── Unaudited                its beginning cannot be written to the audit                 fault: relay
│   └── Undecided                keys, access or routes could not answer                      fault: relay
├── UpstreamError                                                                             fault: upstream
│   ├── Unavailable              no connection to a git host; no byte was spliced
│   ├── Lost                     the connection to the git host broke during the session
│   ├── NoExit                   the git host closed the channel without a status
│   └── HostRefused              the git host is reached and will not run the command, in words of its own
│       └── HostLacks            it does not have the command
├── Stalled                      no progress for stall_seconds                                fault: client or upstream
├── ClientIdle                   the client sent nothing for too long when it had to          fault: client
├── ClientGone                   the client disconnected before the end                       fault: client
├── BrokeProtocol                the client broke the SSH protocol, on a channel or in general fault: client
├── Ended                        the relay ended the session: drain, or `sessions --kill`     fault: relay
└── ConfigError                  start or reload refused; never reaches a client              fault: relay

The client reads `message`, which is vague about other people and repositories; `str(error)` is exact, for the log.
"""

from __future__ import annotations

from typing import Literal

Blame = Literal["client", "policy", "upstream", "relay"]
Why = Literal[
    "timeout",  # no answer in time
    "unreachable",  # no connection, or it broke before the answer was complete
    "failed",  # the backend reported an error
    "invalid",  # an answer that cannot be parsed or is too large
    "busy",  # not asked, as too many questions are under way
]

PUSH_REFUSED = 1  # exit status of git when refs of a push were rejected
GIT_FATAL = 128  # exit status of git when it refuses
SSH_ERROR = 255  # exit status of the ssh client when the connection failed


class RelayError(Exception):
    """Ends a session with `exit_status` and `message`; `str()` is the exact detail for the log only."""

    reason = "internal"
    exit_status = SSH_ERROR
    message = "relay: internal error, try again in a moment"
    fault: Blame = "relay"

    def __init__(self, detail: str = "", *, message: str | None = None, reason: str | None = None) -> None:
        super().__init__(detail or self.message)
        if message is not None:
            self.message = message
        if reason is not None:
            self.reason = reason


class Refused(RelayError):
    """A command that the relay refuses; counted in commands_rejected_total by reason."""

    reason = "malformed"
    exit_status = GIT_FATAL
    fault: Blame = "client"


class NotGit(Refused):
    reason = "not_git"
    message = "relay: only git commands are served here"


class Malformed(Refused):
    reason = "malformed"
    message = "relay: this is not a valid git command"


class Denied(Refused):
    reason = "denied"
    message = "relay: repository not found, or you may not do this"
    fault: Blame = "policy"


class Revoked(Denied):
    """Counted as denied; the reason in the audit line is `revoked`."""

    message = "relay: the key of this connection is not accepted any more"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, reason="revoked")


class RefDenied(Refused):
    """A refused push; nothing of it reached the git host. Reasons: ref_denied, ref_malformed, ref_too_many.

    When the client has received git's report with the status of each ref, `message` is empty and `exit_status` that of git-receive-pack.
    """

    reason = "ref"
    message = "relay: the push was refused by access rules"
    fault: Blame = "policy"


class ReadOnly(Refused):
    """A push or LFS upload where none is taken; nothing of it reached the git host. `text` says why, in an operator's words.

    When the client has received git's report with `text` for each ref, `message` is empty and `exit_status` that of git-receive-pack.
    """

    reason = "read_only"
    exit_status = PUSH_REFUSED
    message = "relay: this repository takes no pushes"
    fault: Blame = "policy"

    def __init__(self, detail: str = "", *, message: str | None = None, text: str = "") -> None:
        super().__init__(detail)
        self.text = text
        if message is not None:
            self.message = message


class Frozen(ReadOnly):
    reason = "frozen"
    message = "relay: the git host takes no pushes now"


class TooMany(Refused):
    reason = "too_many"
    message = "relay: too many concurrent sessions"


class HostBusy(Refused):
    """A session that waited in line for too long, or found the line full. That is no fault of the git host."""

    reason = "upstream"
    exit_status = SSH_ERROR
    message = "relay: all connections to the git host are in use, try again in a moment"
    fault: Blame = "policy"


class IdentityBusy(HostBusy):
    reason = "identity"
    message = "relay: too many of your sessions run or wait already, try again when some have ended"


class RepositoryBusy(HostBusy):
    reason = "repository"
    message = "relay: too many sessions use this repository already, try again in a moment"


class Unaudited(Refused):
    """The beginning of a session could not be written to the audit, and audit_required is set."""

    reason = "audit"
    exit_status = SSH_ERROR
    message = "relay: sessions cannot be recorded just now, try again in a moment"
    fault: Blame = "relay"


class Undecided(Refused):
    """A backend answered neither yes nor no. `why` is a label of metrics; `reason`, in the audit line, is `undecided_` followed by it."""

    reason = "undecided"
    exit_status = SSH_ERROR
    message = "relay: access could not be decided just now, try again in a moment"
    fault: Blame = "relay"

    def __init__(self, detail: str = "", why: Why = "failed") -> None:
        super().__init__(detail, reason=f"undecided_{why}")
        self.why = why


class UpstreamError(RelayError):
    reason = "host"
    message = "relay: the git host is unavailable, try again in a moment"
    fault: Blame = "upstream"


class Unavailable(UpstreamError):
    """No byte was spliced. Reasons: dial, timeout, host_key, handshake, auth, channel, exec, paused, closing, no_upstream.

    `passing`: a git host that is being restarted fails in this way, so another try may succeed soon.
    """

    reason = "dial"

    def __init__(self, detail: str = "", *, reason: str | None = None, passing: bool | None = None) -> None:
        super().__init__(detail, reason=reason)
        self.passing = self.reason in ("dial", "timeout") if passing is None else passing
        if self.reason == "paused":
            self.fault = "policy"  # the operator's


class Lost(UpstreamError):
    reason = "lost"
    message = "relay: the connection to the git host was lost, try again"


class NoExit(UpstreamError):
    reason = "no_exit"
    message = "relay: the git host ended without an exit status, try again"


class HostRefused(UpstreamError):
    reason = "host_refused"
    exit_status = GIT_FATAL
    message = "relay: the git host refused the command; its administrators can see why in the relay's log"


class HostLacks(HostRefused):
    reason = "host_lacks"
    message = "relay: the git host does not have this command"


class Stalled(RelayError):
    reason = "stalled"
    message = "relay: no progress was made for too long, the session was ended"
    fault: Blame = "upstream"


class ClientIdle(RelayError):
    """Reasons: client_idle, client_idle_busy (other sessions waited for the git host)."""

    reason = "client_idle"
    message = "relay: the session was idle for too long, try again"
    fault: Blame = "client"


class ClientGone(RelayError):
    reason = "client_gone"
    message = ""
    fault: Blame = "client"


class BrokeProtocol(RelayError):
    """The client sent something invalid, which the detail names; the relay ended the session or the whole connection."""

    reason = "protocol"
    message = "relay: the client broke the SSH protocol, the session was ended"
    fault: Blame = "client"


class Ended(RelayError):
    reason = "drained"
    message = "relay: the service is restarting, try again in a moment"


class ConfigError(RelayError):
    """All problems that were found, one line each: `file:key: what is wrong, what is allowed`."""

    reason = "config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
