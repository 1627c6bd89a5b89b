"""An audit line for people: columns for outcome, identity, address and service, then the details.

    2026-08-01T12:00:00.000Z ok       alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out
    2026-08-01T12:00:05.000Z no login -            198.51.100.9    root     unknown_key, 3 attempts, SHA256:..., SSH-2.0-Go

No text that a client chose comes before the address: deploy/fail2ban relies on it.
"""

from __future__ import annotations

from typing import Final

from relay.observe.audit_lines import AuditLine, AuditSession, AuthFailed, CommandRejected, LoginFailed, SessionBegan, Updated, WorkerLost
from relay.observe.terminal import INFO, NOTICE, WARNING, Colour, painted
from relay.text import counted, size

WHAT: Final = {
    "git-upload-pack": "fetch",
    "git-receive-pack": "push",
    "git-upload-archive": "archive",
    "git-lfs-authenticate": "lfs auth",
    "git-lfs-transfer": "lfs",
    "": "shell",
}
NOBODY: Final = "-"
SHOWN_SECONDS: Final = 0.005  # a shorter time in line is left out

_COLOURS: Final[dict[str, Colour]] = {
    "ok": "green",
    "began": "dim",
    "refused": "dim",
    "no login": "yellow",
    "rejected": "yellow",
    "upstream": "red",
    "relay": "red",
    "lost": "red",
}


def text(line: AuditLine, coloured: bool = False) -> str:
    """The line without its newline."""
    match line:
        case AuditSession() | CommandRejected():
            outcome, who, what = _outcome(line), line.identity, line.kind or WHAT.get(line.service, line.service)
        case SessionBegan():
            outcome, who, what = "began", line.identity, "session"
        case AuthFailed():
            outcome, who, what = "refused", NOBODY, line.user
        case LoginFailed():
            outcome, who, what = "no login", NOBODY, line.user
        case WorkerLost():
            outcome, who, what = "lost", NOBODY, "worker"
    address = NOBODY if isinstance(line, WorkerLost) else line.address
    outcome = f"{outcome:<8}"
    if coloured:
        outcome = painted(outcome, _COLOURS.get(outcome.rstrip(), "yellow"))
    return f"{line.time} {outcome} {who:<12} {address:<15} {what:<8} {_details(line)}".rstrip()


def priority(line: AuditLine) -> int:
    """The priority of the line in the journal."""
    match line:
        case AuditSession() | CommandRejected():
            return WARNING if line.result in ("upstream", "relay") else INFO
        case LoginFailed():
            return NOTICE
        case WorkerLost():
            return WARNING
    return INFO


def _outcome(line: AuditSession | CommandRejected) -> str:
    if isinstance(line, CommandRejected):
        return "rejected"
    if line.result == "exit" and line.exit_status is not None:
        return f"exit {line.exit_status}"
    return f"SIG{line.exit_signal}" if line.result == "signal" else line.result


def _details(line: AuditLine) -> str:
    match line:
        case AuditSession():
            where = f" on {line.upstream} ({line.host})" if line.upstream else ""
            waited = f" ({line.waited_seconds:.2f} s of them in line)" if line.waited_seconds >= SHOWN_SECONDS else ""
            moved = f"in {line.seconds:.2f} s{waited}, {size(line.bytes_in)} in, {size(line.bytes_out)} out"
            if line.moved_from:
                moved += f", asked for as {line.moved_from}"
            if line.served_by == "cache":
                moved += ", from the cache"
            if line.replays:
                moved += f", {counted(line.replays, 'replay')}"
            if line.certificate is not None:
                moved += f", certificate {line.certificate.key_id} (serial {line.certificate.serial})"
            moved += "".join(f", {_change(ref)}" for ref in line.refs) + (f", {line.refs_more} more refs" if line.refs_more else "")
            why = f"; {line.reason}: {line.detail}" if line.detail else ""
            return f"{line.repository}{where} {moved}{why}".lstrip()
        case CommandRejected():
            times = f" ({line.times} times)" if line.times > 1 else ""
            return f"{line.repository} {line.reason}: {line.detail}{times}".lstrip()
        case SessionBegan():
            return line.session
        case AuthFailed():
            return _joined(line.reason, line.key, line.client_version, line.detail)
        case LoginFailed():
            attempts = f"{line.attempts} attempt{'s' if line.attempts > 1 else ''}" if line.attempts else ""
            return _joined(line.reason, attempts, line.key, line.client_version)
        case WorkerLost():
            return f"{line.pid} died by {line.how} with {line.sessions} session{'s' if line.sessions != 1 else ''}"


def _change(updated: Updated) -> str:
    """`+ref id` for a new ref, `-ref id` for a deleted one, else `ref old..new`; ids of seven digits."""
    old, new = (part[:7] if part.strip("0") else "" for part in (updated.old, updated.new))
    if not new:
        return f"-{updated.ref} {old}".rstrip()
    return f"{updated.ref} {old}..{new}" if old else f"+{updated.ref} {new}"


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)
