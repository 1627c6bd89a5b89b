"""Another package with the name `relay`: the relay never starts with parts of it, and says in one line what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import git_ssh_relay
from relay import DISTRIBUTION, __version__
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
RAN = "another relay was run"
OTHER = f"import sys\nprint({RAN!r}, file=sys.stderr)\n"


def other_package(folder: Path) -> Path:
    (folder / "relay").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "cli.py"):
        (folder / "relay" / name).write_text(OTHER)
    return folder


def other_module(folder: Path) -> Path:
    folder.mkdir()
    (folder / "relay.py").write_text(OTHER)
    return folder


def run(*command: str | Path, path: Path | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert all(word in line for word in ("relay: ", *words)), line


@pytest.mark.parametrize("script", ["relay", "git-ssh-relay"])
@pytest.mark.parametrize("other", [other_package, other_module])
def test_the_console_script_refuses_when_another_one_would_be_imported(
    tmp_path: Path, script: str, other: Callable[[Path], Path]
) -> None:
    done = run(SCRIPTS / script, "--version", path=other(tmp_path / "elsewhere"), cwd=tmp_path)
    refused(done, "another package with the name relay", str(tmp_path / "elsewhere"), str(ROOT / "relay"), "PYTHONPATH")


@pytest.mark.parametrize("script", ["relay", "git-ssh-relay"])
def test_the_console_scripts_run_the_relay_in_a_folder_with_another_one(tmp_path: Path, script: str) -> None:
    """They do not look there."""
    assert run(SCRIPTS / script, "--version", cwd=other_package(tmp_path / "here")).stdout == f"relay {__version__}\n"


def installed(folder: Path) -> Path:
    """A folder as of site-packages, with the relay in it."""
    folder.mkdir()
    (folder / "relay").symlink_to(ROOT / "relay")
    shutil.copy(ROOT / "git_ssh_relay.py", folder)
    return folder


def overwritten(folder: Path) -> Path:
    """The same, after another distribution put its `relay/__init__.py` there."""
    folder.mkdir()
    shutil.copytree(ROOT / "relay", folder / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "git_ssh_relay.py", folder)
    (folder / "relay/__init__.py").write_text(OTHER)
    return folder


def test_python_m_relay_refuses_when_another_one_was_installed_over_it(tmp_path: Path) -> None:
    site = overwritten(tmp_path / "site")
    done = run(sys.executable, "-m", "relay", "--version", path=site, cwd=tmp_path)
    assert done.stderr.splitlines()[:-1] == [RAN], "Python runs the package's __init__ before anything of ours"
    refused(
        subprocess.CompletedProcess(done.args, done.returncode, done.stdout, done.stderr.splitlines()[-1]),
        str(site / "relay/__init__.py"),
        "another package with the name relay",
    )


def test_the_launcher_refuses_when_another_one_was_installed_over_it_and_runs_nothing_of_it(tmp_path: Path) -> None:
    site = overwritten(tmp_path / "site")
    refused(run(sys.executable, "-P", "-m", "git_ssh_relay", "--version", path=site, cwd=tmp_path), "installed over", str(site / "relay"))


def test_the_launcher_refuses_when_the_package_is_gone(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    shutil.copy(ROOT / "git_ssh_relay.py", tmp_path / "site")
    done = run(sys.executable, "-S", "-P", "-m", "git_ssh_relay", "--version", path=tmp_path / "site", cwd=tmp_path)  # -S: no site-packages
    refused(done, "is not on Python's path")


def test_a_package_beside_a_module_of_the_same_name_wins(tmp_path: Path) -> None:
    """PyPI's `relay` is one module: in one site-packages `import relay` gives ours."""
    site = installed(tmp_path / "site")
    (site / "relay.py").write_text(OTHER)
    code = "import relay; assert relay.DISTRIBUTION; print(relay.__file__)"
    done = run(sys.executable, "-P", "-c", code, path=site, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{site / 'relay/__init__.py'}\n", "")


def test_the_script_of_pypis_relay_names_ours() -> None:
    """Installed later it takes the place of bin/relay: `from relay import _main; sys.exit(_main())`."""
    refused(run(sys.executable, "-c", "import sys; from relay import _main; sys.exit(_main())"), "run git-ssh-relay instead")


def test_the_mark_is_in_the_package() -> None:
    assert DISTRIBUTION == "git-ssh-relay"
    assert git_ssh_relay.refusal() == ""


def test_workers_do_not_import_from_the_folder_that_the_relay_was_started_in(
    sshd: Sshd, tmp_path: Path, make_relay: Callable[..., RelayProcess]
) -> None:
    here = other_package(tmp_path / "here")
    relay = make_relay(sshd, program=("env", f"--chdir={here}", str(SCRIPTS / "relay")))
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    assert RAN not in relay.log_text()
