"""The HAProxy configuration: valid for HAProxy, with timeouts that fit the relay's. tests/e2e/test_shared.py runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from relay.config import LimitsSettings
from tests.support.haproxy import program

FILE = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


def check(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program(), "-c", "-V", "-f", str(file)], capture_output=True, text=True, timeout=60)


def test_haproxy_finds_no_fault_and_warns_of_nothing() -> None:
    done = check(FILE)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "Configuration file is valid\n"


def test_a_misspelt_line_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "haproxy.cfg"
    wrong.write_text(FILE.read_text().replace("option redispatch", "option redispach"))
    assert "redispach" in check(wrong).stderr


def test_quiet_sessions_outlive_its_timeouts_by_the_relays_keepalives() -> None:
    times = dict(re.findall(r"^\s*timeout (\S+) (\d+)m$", FILE.read_text(), re.MULTILINE))
    for side in ("client", "server"):
        assert int(times[side]) * 60 > 3 * LimitsSettings().keepalive_seconds
