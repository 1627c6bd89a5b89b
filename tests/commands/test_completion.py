"""Completion of the command line in the real bash, zsh and fish."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relay.cli import main, tree
from relay.commands.completion import SHELLS, completion

SECONDS = 60.0  # for a shell to answer; a busy machine takes long


def script(tmp_path: Path, shell: str, name: str) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / name
    path.write_text(completion(tree(), shell))
    return path


CASES = [
    (["relay", "che"], {"check"}, {"serve"}),
    (["git-ssh-relay", "sess"], {"sessions"}, {"serve"}),
    (["relay", "check", "--str"], {"--strict"}, {"--connect"}),
    (["relay", "upstreams", "p"], {"pause"}, {"resume", "serve"}),
    (["relay", "upstreams", "pause", "--w"], {"--wait"}, {"--watch"}),
    (["relay", "sessions", "--sort", "ra"], {"rate"}, {"repository"}),
    (["relay", "check", "-c", "rel"], {"relay.toml"}, {"check"}),
    (["relay", "check", "--explain", "serve", "--str"], set(), {"serve"}),
    (["relay", "completion", "z"], {"zsh"}, {"bash"}),
]
ids = [" ".join(words) for words, _, _ in CASES]


@pytest.mark.parametrize(("words", "there", "not_there"), CASES, ids=ids)
def test_bash_offers_what_fits(tmp_path: Path, words: list[str], there: set[str], not_there: set[str]) -> None:
    path = script(tmp_path, "bash", "relay.bash")
    (tmp_path / "relay.toml").touch()
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _relay; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", code, "bash", str(path), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    offered = set(done.stdout.split())
    assert there <= offered and not offered & not_there, offered


def test_bash_knows_both_names(tmp_path: Path) -> None:
    path = script(tmp_path, "bash", "relay.bash")
    done = subprocess.run(["bash", "--norc", "-c", f"source {path}; complete -p"], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == {"complete -F _relay relay", "complete -F _relay git-ssh-relay"}


@pytest.mark.parametrize(("words", "there", "not_there"), CASES, ids=ids)
def test_fish_offers_what_fits(tmp_path: Path, words: list[str], there: set[str], not_there: set[str]) -> None:
    path = script(tmp_path, "fish", "relay.fish")
    (tmp_path / "relay.toml").touch()
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}
    code = f"source {path}; complete -C '{' '.join(words)}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    offered = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert there <= offered and not offered & not_there, offered


class Zsh:
    """An interactive zsh on a terminal of its own, in a folder, with the completion loaded: what it has written since `type` is `seen`."""

    def __init__(self, folder: Path) -> None:
        settings = ["unsetopt beep", "setopt no_list_ambiguous", "zstyle ':completion:*' menu no", "PS1='ready> '"]
        (folder / ".zshrc").write_text("\n".join(["autoload -Uz compinit; compinit -u -D", "source ./_relay", *settings, ""]))
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            env = {"PATH": os.environ["PATH"], "HOME": str(folder), "ZDOTDIR": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
            os.execvpe("zsh", ["zsh", "-i"], env)
        self.seen, self.typed = "", 0
        self.until("ready> ")

    def until(self, text: str) -> None:
        end = time.monotonic() + SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come within {SECONDS:g} s: {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace")

    def type(self, keys: str, text: str) -> None:
        """Types `keys`, waits for `text`, and empties the line."""
        self.seen = ""
        os.write(self.fd, keys.encode())
        self.until(text)
        # Ctrl-U empties the line; with Ctrl-C the terminal would forget keys that were not read yet. No echo of keys has the number
        self.typed += 1
        os.write(self.fd, f"\x15print mark$(({self.typed} + 1000))\n".encode())
        self.until(f"mark{self.typed + 1000}\r\n")
        self.seen = self.seen.partition(f"mark{self.typed + 1000}\r\n")[2]
        self.until("ready> ")

    def close(self) -> None:
        os.write(self.fd, b"\x15exit\n")
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def test_zsh_completes_what_fits(tmp_path: Path) -> None:
    script(tmp_path, "zsh", "_relay")
    (tmp_path / "relay.toml").touch()
    zsh = Zsh(tmp_path)
    try:
        zsh.type("relay che\t", "relay check ")
        zsh.type("git-ssh-relay sess\t", "git-ssh-relay sessions ")
        zsh.type("relay check --str\t", "relay check --strict ")
        zsh.type("relay upstreams p\t", "relay upstreams pause ")
        zsh.type("relay upstreams pause --wai\t", "relay upstreams pause --wait ")
        zsh.type("relay sessions --sort rat\t", "relay sessions --sort rate ")
        zsh.type("relay check -c rel\t", "relay check -c relay.toml ")
        zsh.type("relay completion z\t", "relay completion zsh ")
        zsh.type("relay c\t", "print a script")  # several fit: they are listed with their descriptions
    finally:
        zsh.close()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_parse_it(tmp_path: Path, shell: str) -> None:
    done = subprocess.run([shell, "-n", script(tmp_path, shell, "script")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_relay_completion_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == completion(tree(), shell)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "invalid choice: 'tcsh' (choose from 'bash', 'zsh', 'fish')" in capsys.readouterr().err or sys.version_info >= (3, 12)
