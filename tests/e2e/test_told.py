"""What an operator tells people: a banner before the login, a notice after it, by the real ssh and git; and an audit that is required."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.gitrepo import git, make_repo
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until


def test_git_shows_banner_and_notice_and_is_not_disturbed(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    routes = [{"repositories": "**", "upstream": "main", "path": f"{sshd.root}/{{repository}}.git", "notice": "closed on Friday"}]
    relay = make_relay(sshd, config={"banner": "Only for staff.\nEverything is recorded.", "notice": "ask 4711"}, routes={"route": routes})
    make_repo(sshd.root / "told.git")
    env = relay.git_env(tmp_path / "home")
    done = git("clone", relay.url("told"), tmp_path / "work", env=env)
    said = done.stderr.decode().splitlines()
    lines = ["Only for staff.", "Everything is recorded.", "relay: notice: ask 4711", "relay: notice: closed on Friday"]
    assert [line for line in said if line in lines] == lines, said
    assert git("ls-remote", relay.url("told"), env=env).stdout.count(b"\n") == 2
    archived = git("archive", f"--remote={relay.url('told')}", "--format=tar", "HEAD", env=env)
    assert b"relay: notice" in archived.stderr and archived.stdout.startswith(b"pax_global_header")
    shell = relay.ssh().run("")
    assert b"relay: notice: ask 4711" in shell.stderr and b"notice" not in shell.stdout


def test_no_session_begins_while_the_audit_cannot_be_written(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"log": {"audit": "/dev/full", "audit_required": True}})
    wait_until(lambda: relay.get("/ready")[0] == 200, message="it is ready")
    done = relay.ssh().run("git-upload-pack 'stub/emit/10/0'")
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr == b"relay: sessions cannot be recorded just now, try again in a moment\n"
    wait_until(lambda: relay.get("/ready")[0] == 503, message="it is not ready")
    assert "unaudited" in relay.get("/ready")[1]
    assert relay.metric("relay_commands_rejected_total", reason="audit") == 1
    assert relay.metric("relay_change_not_taken_since_seconds", what="audit") > 0
    relay.wait_for_log(r"session \S+ of alice: audit: audit: /dev/full cannot be written: .*No space left")
