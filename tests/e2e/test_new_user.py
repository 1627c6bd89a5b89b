"""The path of a new user: init, check, the changes that check asks for, check again, serve; following only the printed instructions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.gitrepo import git, git_env, make_repo, rev_parse
from tests.support.keys import make_key
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.run([sys.executable, "-m", "relay", *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_init_check_serve(sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    made = relay("init", str(folder))
    assert made.returncode == 0, made.stderr

    # 1. "On the git host, let the relay in: add this line"
    line = re.search(r"^ +(ssh-ed25519 \S+ git-ssh-relay)$", made.stdout, re.MULTILINE)
    assert line, made.stdout
    sshd.authorize(line[1])

    # `check` names exactly the settings that are not filled in yet
    checked = relay("check", "-c", str(folder / "relay.toml"))
    assert checked.returncode == 1
    assert [problem.split(": ")[1] for problem in checked.stderr.splitlines()] == [
        "upstreams.main.addresses",
        "upstreams.main.host_keys",
    ]

    # 2. addresses, and the host key that the printed command shows
    scan = re.search(r"^ +(ssh-keyscan .*)$", made.stdout, re.MULTILINE)
    assert scan, made.stdout
    command = scan[1].replace("GIT_HOST", "127.0.0.1").replace("-p 22", f"-p {sshd.port}")
    scanned = subprocess.run(["sh", "-c", command.replace("/dev/stderr", "/dev/null")], capture_output=True, text=True, timeout=30)
    shown = subprocess.run(["sh", "-c", command.split("|")[0] + "|" + command.split("|")[1]], capture_output=True, text=True, timeout=30)
    assert "SHA256:" in scanned.stdout
    pinned = shown.stdout.strip()
    assert pinned.startswith("ssh-ed25519 ")
    text = (folder / "relay.toml").read_text()
    text = text.replace("git.example.com:22", f"127.0.0.1:{sshd.port}").replace("host_keys = []", f'host_keys = ["{pinned}"]')
    text = re.sub(r'(?m)^user = "git" +# user name with which the relay logs in$', f'user = "{sshd.user}"', text)
    text = text.replace("0.0.0.0:2222", "127.0.0.1:0").replace("127.0.0.1:9122", "127.0.0.1:0")  # a test takes no fixed port
    (folder / "relay.toml").write_text(text)

    # 3. a person's key, a rule, a route
    alice = make_key(tmp_path / "alice", "alice")
    (folder / "keys" / "alice.pub").write_text(alice.line + "\n")
    access = (folder / "access.toml").read_text()
    assert 'allow = "read"' in access
    (folder / "access.toml").write_text(access.replace('allow = "read"', 'allow = "write"', 1))
    routes = (folder / "routes.toml").read_text()
    (folder / "routes.toml").write_text(re.sub(r'(?m)^path = ".*?"', f'path = "{sshd.root}/{{repository}}.git"', routes))

    # 4. check, check --connect, serve
    checked = relay("check", "-c", str(folder / "relay.toml"), "--connect")
    assert checked.returncode == 0, checked.stderr
    assert f"upstream main: logged in to 127.0.0.1:{sshd.port} as {sshd.user}" in checked.stdout
    make_repo(sshd.root / "team/app.git")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(
            [sys.executable, "-m", "relay", "serve", "-c", str(folder / "relay.toml")], env=environment, stdout=log, stderr=log
        )
    try:

        def said() -> str:
            return (tmp_path / "log").read_text()

        wait_until(lambda: "listening on" in said() or serve.poll() is not None, 30, "relay serve listens")
        port = re.search(r"listening on 127\.0\.0\.1:(\d+)", said())
        assert port, said()
        known_hosts = tmp_path / "known_hosts"
        host_key = " ".join((folder / "host_ed25519.pub").read_text().split()[:2])
        known_hosts.write_text(f"[127.0.0.1]:{port[1]} {host_key}\n")
        environment = git_env(tmp_path / "home", key=alice.private, known_hosts=known_hosts)
        work = tmp_path / "work"
        git("clone", "-q", f"ssh://git@127.0.0.1:{port[1]}/team/app", str(work), env=environment)
        (work / "new").write_text("by a new user\n")
        git("-C", str(work), "add", "new", env=environment)
        git("-C", str(work), "commit", "-q", "-m", "new", env=environment)
        git("-C", str(work), "push", "-q", env=environment)
        assert rev_parse(work, environment) == rev_parse(sshd.root / "team/app.git", environment)
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(30) == 0, said()
    finally:
        if serve.poll() is None:
            serve.kill()
            serve.wait()
