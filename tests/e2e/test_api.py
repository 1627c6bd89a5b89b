"""The README's Python example: the test runs its lines unchanged, and the real git clones through it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gitrepo import commit, git, make_repo, rev_list, rev_parse
from tests.support.machine import free_port
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
MARK = "<!-- tests/e2e/test_api.py runs these lines -->\n```python\n"
ADDRESS = '"127.0.0.1", 2222'


@pytest.fixture
def program() -> str:
    text = (ROOT / "README.md").read_text()
    assert text.count(MARK) == 1
    return text.partition(MARK)[2].partition("```")[0]


@pytest.fixture
def served(sshd: Sshd, program: str) -> Iterator[tuple[RelayProcess, Path]]:
    """A configured relay of which only the files are used, and the output of the README's program in its folder."""
    relay = RelayProcess(sshd)
    relay.port = free_port()
    assert program.count(ADDRESS) == 1
    (relay.folder / "program.py").write_text(program.replace(ADDRESS, f'"127.0.0.1", {relay.port}'))
    relay.known_hosts.write_text(f"[127.0.0.1]:{relay.port} {relay.host_key_line}\n")
    output = relay.folder / "output"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "program.py"], cwd=relay.folder, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: process.poll() is not None or relay.ssh().run(None).returncode == 0, 30, "the program serves")
        assert process.poll() is None, output.read_text()
        yield relay, output
        assert process.poll() is None, output.read_text()
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        process.wait(10)
        relay.close()


def test_a_dozen_lines(program: str) -> None:
    assert len([line for line in program.splitlines() if line.strip() and "import" not in line]) <= 12


def test_git_goes_through_it(served: tuple[RelayProcess, Path], sshd: Sshd, tmp_path: Path) -> None:
    relay, output = served
    bare = make_repo(sshd.root / "team/app.git")
    env = relay.git_env(tmp_path / "home", protocol=2)
    work = tmp_path / "work"
    git("clone", relay.url("team/app"), work, env=env)
    assert rev_list(work, env, "HEAD") == rev_list(bare, env, "HEAD")
    pushed = commit(work, env)
    git("push", "origin", "HEAD:main", cwd=work, env=env)
    assert rev_parse(bare, env, "main") == pushed
    wait_until(lambda: "service='git-receive-pack', repository='team/app'" in output.read_text(), message="the observer was told")
    assert relay.ssh().run("ls").returncode == 128
    assert relay.ssh("PreferredAuthentications=password").run(None).returncode == 255
    assert sshd.commands()[-1].identity == "alice"
