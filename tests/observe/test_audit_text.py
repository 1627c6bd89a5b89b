"""An audit line for people: aligned columns, and no text of a stranger before the address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.events import ConnectionRecord, Outcome
from relay.model import SERVICES, Certified, Exit, Identity, RefUpdate
from relay.observe.audit_lines import AuditLine, ended, failed_login, lost, refusal, rejection
from relay.observe.audit_text import WHAT, priority, text
from relay.observe.terminal import INFO, NOTICE, WARNING
from tests.observe.test_audit import OK, new_session, pushed


def outcome(result: Any, reason: str = "x", status: int | None = 128, signal: str | None = None, detail: str = "") -> Outcome:
    return Outcome(result=result, reason=reason, exit=Exit(status=status, signal=signal), seconds=1, detail=detail)


CERTIFIED = Identity(
    name="alice", fingerprint="SHA256:abc", method="certificate", certificate=Certified(ca="SHA256:ca", key_id="alice@work", serial=7)
)

PUSHED = pushed("refs/heads/main", more=5)
PUSHED.updates += [RefUpdate(ref="refs/tags/v1", old="0" * 40, new="b" * 40), RefUpdate(ref="refs/heads/old", old="a" * 40, new="0" * 40)]
PUSHED.count += 2

LINES: list[tuple[AuditLine, str, int]] = [
    (
        rejection(new_session(command=None), outcome("client", "too_many", detail="10 are open"), 9_999),
        "rejected alice        192.0.2.7       shell    too_many: 10 are open (9999 times)",
        INFO,
    ),
    (lost(4711, "signal SIGKILL", 1), "lost     -            -               worker   4711 died by signal SIGKILL with 1 session", WARNING),
    (
        ended(new_session(), OK),
        "ok       alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out",
        INFO,
    ),
    (
        ended(new_session(replays=2), OK),
        "ok       alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out, 2 replays",
        INFO,
    ),
    (
        ended(new_session(served_by="cache"), OK),
        "ok       alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out, from the cache",
        INFO,
    ),
    (
        ended(new_session(identity=CERTIFIED), OK),
        "ok       alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out, "
        "certificate alice@work (serial 7)",
        INFO,
    ),
    (
        ended(new_session(asked=PUSHED), OK),
        "ok       alice        192.0.2.7       push     team/app on main (10.0.0.5:22) in 1.25 s, 340 B in, 12.3 MB out, "
        "refs/heads/main aaaaaaa..bbbbbbb, +refs/tags/v1 bbbbbbb, -refs/heads/old aaaaaaa, 5 more refs",
        INFO,
    ),
    (
        ended(new_session(), outcome("exit", "exit", 1)),
        "exit 1   alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.00 s, 340 B in, 12.3 MB out",
        INFO,
    ),
    (
        ended(new_session(), outcome("signal", "signal", None, "KILL")),
        "SIGKILL  alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.00 s, 340 B in, 12.3 MB out",
        INFO,
    ),
    (
        ended(new_session(), outcome("upstream", "lost", 255, detail="no answer")),
        "upstream alice        192.0.2.7       fetch    team/app on main (10.0.0.5:22) in 1.00 s, 340 B in, 12.3 MB out; lost: no answer",
        WARNING,
    ),
    (
        ended(new_session(command=None, upstream="", bytes_in=0, bytes_out=0), OK),
        "ok       alice        192.0.2.7       shell    in 1.25 s, 0 B in, 0 B out",
        INFO,
    ),
    (
        rejection(new_session(upstream=""), outcome("policy", "denied", detail="no rule")),
        "rejected alice        192.0.2.7       fetch    team/app denied: no rule",
        INFO,
    ),
    (
        refusal(new_session().connection, "unknown_key", "SHA256:x", ""),
        "refused  -            192.0.2.7       git      unknown_key, SHA256:x, SSH-2.0-OpenSSH_9.9",
        INFO,
    ),
    (
        failed_login(new_session().connection, "grace", "", 1),
        "no login -            192.0.2.7       git      grace, 1 attempt, SSH-2.0-OpenSSH_9.9",
        NOTICE,
    ),
    (
        failed_login(new_session().connection, "unknown_key", "SHA256:x", 3),
        "no login -            192.0.2.7       git      unknown_key, 3 attempts, SHA256:x, SSH-2.0-OpenSSH_9.9",
        NOTICE,
    ),
]


@pytest.mark.parametrize(("line", "said", "level"), LINES, ids=lambda value: type(value).__name__)
def test_a_line(line: AuditLine, said: str, level: int) -> None:
    time, _, rest = text(line).partition(" ")
    assert (time, rest) == (line.time, said)
    assert priority(line) == level


def test_colours_change_nothing_but_the_look() -> None:
    for line, _, _ in LINES:
        coloured = text(line, coloured=True)
        assert coloured.count("\x1b[") == 2
        assert re.sub(r"\x1b\[\d*m", "", coloured) == text(line)


def test_every_service_has_a_word() -> None:
    assert set(WHAT) == {*SERVICES, ""}
    assert max(map(len, WHAT.values())) <= 8


@given(st.text(), st.text(), st.text())
def test_no_text_of_a_client_comes_before_the_address(user: str, version: str, detail: str) -> None:
    connection = ConnectionRecord(id="c1", address="192.0.2.7", port=1, user=user, client_version=version)
    for line in (refusal(connection, "wrong_user", "", detail), failed_login(connection, "wrong_user", "", 1)):
        said = text(line)
        assert re.match(r"\S+ (refused |no login) - {12}192\.0\.2\.7 {7}", said)
        assert said.isprintable()


def test_the_page_shows_lines_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    shown = [line.strip() for line in page.splitlines() if line.startswith("    2")]
    failed = replace(
        failed_login(new_session().connection, "wrong_user", "SHA256:...", 3),
        address="198.51.100.9",
        user="root",
        client_version="SSH-2.0-Go",
    )
    said = [text(line).partition(" ")[2] for line in (ended(new_session(), OK), failed)]
    assert said == [line.partition(" ")[2] for line in shown]
