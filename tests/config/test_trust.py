"""Which other users may change a file: owners, modes, links, sticky folders, and read-only mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.config.trust import everyone_may_write, is_read_only, path_fault

ROOT = Path(__file__).parents[2]


def read_only(*below: Path) -> Any:
    """A statvfs for which these folders are mounted read-only."""

    def statvfs(where: Any) -> Any:
        inside = any(Path(where).is_relative_to(folder) for folder in below)
        return SimpleNamespace(f_flag=os.ST_RDONLY if inside else 0)

    return statvfs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in its own folders; no other user may write the upper ones."""
    folder = tmp_path / "etc" / "relay"
    folder.mkdir(parents=True)
    for one in (tmp_path, tmp_path / "etc", folder):
        one.chmod(0o755)
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o644)
    return folder / "file"


def test_a_file_that_only_its_owner_may_write(path: Path) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o777, 0o606])
@pytest.mark.parametrize("up", [0, 1, 2], ids=["file", "folder", "folder above"])
def test_others_may_write_the_file_or_a_folder_above_it(path: Path, up: int, mode: int) -> None:
    place = [path, path.parent, path.parent.parent][up]
    place.chmod(mode | (0o111 if up else 0))
    fault = path_fault(path)
    assert fault is not None and fault.startswith(f"{place} may be written by others (mode 0")
    assert path_fault(path, read_only(place)) is None, "nobody can write to what is mounted read-only"
    if up:
        place.chmod(0o1777)
        assert path_fault(path) is None, "in a folder with the sticky bit only owners replace what is theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("up", [0, 1, 2], ids=["file", "folder", "folder above"])
def test_a_file_of_another_owner(path: Path, up: int) -> None:
    place = [path, path.parent, path.parent.parent][up]
    os.chown(place, 12345, 0)
    assert path_fault(path) == f"{place} belongs to the user 12345, must belong to root or to the relay's user"
    assert path_fault(path, read_only(place)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_group_that_has_others_in_it(path: Path) -> None:
    path.chmod(0o664)
    assert path_fault(path, private_group=True) is None and path_fault(path) is not None
    os.chown(path, 0, 12345)
    path.chmod(0o664)
    assert path_fault(path, private_group=True) is not None
    assert path_fault(path) == f"{path} may be written by others (mode 0664), must not: chmod go-w {path}"


def test_a_link_on_the_way_is_followed_and_its_folder_is_checked(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("../etc/relay")
    assert path_fault(other / "link" / "file") is None
    assert path_fault(other / "link" / ".." / "relay" / "file") is None
    other.chmod(0o777)
    assert path_fault(other / "link" / "file") == f"{other} may be written by others (mode 0777), must not: chmod go-w {other}"
    other.chmod(0o755)
    path.parent.parent.chmod(0o777)
    assert path_fault(other / "link" / "file") is not None
    (other / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        path_fault(other / "round")
    with pytest.raises(FileNotFoundError):
        path_fault(other / "none")


def test_a_read_only_mount(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap so: mode 0777, owned by root, read-only."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o777)
    assert everyone_may_write(folder.stat().st_mode, folder) and not is_read_only(folder)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs a mount namespace")
    code = (
        "import os, sys; from pathlib import Path; from relay.config.trust import *; folder = Path(sys.argv[1]);"
        "print(everyone_may_write(folder.stat().st_mode, folder), path_fault(folder / 'file'))"
    )
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" && exec "{sys.executable}" -c "{code}" "{folder}"'
    command, env = ["unshare", "-m", "sh", "-c", script], {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=env)
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("this machine makes no mount namespace")
    assert (done.stdout, done.stderr) == ("False None\n", "")
