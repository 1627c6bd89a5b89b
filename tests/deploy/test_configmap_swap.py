"""A running relay sees a change of a ConfigMap or Secret as the kubelet makes it: a new folder, and `..data` renamed onto the old link."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from relay.errors import Denied
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.toml import toml_text
from tests.support.wait import wait_until

QUESTION = "git-upload-pack 'stub/emit/10'"


class Volume:
    """A folder as the kubelet keeps it: each file is a link to `..data/NAME`, and `..data` one to a folder named after the time."""

    def __init__(self, path: Path, files: Mapping[str, str]) -> None:
        self.path = path
        self._number = 0
        path.mkdir()
        self.swap(files)

    def swap(self, files: Mapping[str, str]) -> None:
        """As the kubelet's AtomicWriter does: write the new folder, rename the link, then make and remove the links of single files."""
        self._number += 1
        before = (self.path / "..data").readlink() if self._number > 1 else None
        there = self.path / f"..2026_11_29_05_20_{self._number:02}.1"
        there.mkdir(mode=0o755)
        for name, text in files.items():
            (there / name).write_text(text)
        (self.path / "..data_tmp").symlink_to(there.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        for link in list(self.path.iterdir()):
            if not link.name.startswith("..") and link.name not in files:
                link.unlink()
        if before is not None:
            for file in (self.path / before).iterdir():
                file.unlink()
            (self.path / before).rmdir()


def rule(*who: str) -> str:
    return toml_text({"rule": [{"repositories": "**", "who": list(who), "allow": "read"}]})


def test_access_and_people_change_without_a_restart(
    sshd: Sshd, key: Key, tmp_path: Path, make_relay: Callable[..., RelayProcess]
) -> None:
    config = Volume(tmp_path / "config", {"access.toml": rule("alice")})
    people = Volume(tmp_path / "people", {"bob.pub": key.line + "\n"})
    changes = {"access": {"path": str(config.path / "access.toml")}, "keys": {"path": str(people.path)}}
    relay = make_relay(sshd, config=changes)
    assert relay.ssh(key=key).run(QUESTION).stderr.decode() == Denied.message + "\n"
    config.swap({"access.toml": rule("alice", "bob")})
    wait_until(lambda: relay.ssh(key=key).run(QUESTION).returncode == 0, message="bob may read since the ConfigMap was changed")
    assert relay.ssh().run(QUESTION).returncode == 255, "alice has no key there"
    people.swap({"alice.pub": relay.key.line + "\n"})
    wait_until(lambda: relay.ssh().run(QUESTION).returncode == 0, message="alice may log in since the ConfigMap was changed")
    wait_until(lambda: relay.ssh(key=key).run(QUESTION).returncode == 255, message="bob's key went with his file")
