"""An sshd whose git dies at a chosen packet, with or without its sshd; see mortal_shell.py for how.

with MortalSshd() as sshd:
    make_repo(sshd.root / "team/app.git")
    sshd.plan(Death("sshd", 7), Death("KILL", 3, half=True))   # of the next two commands
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.machine import python_for
from tests.support.sshd import Sshd

Kind = Literal["sshd", "KILL", "TERM", "hang"]
KINDS: tuple[Kind, ...] = ("sshd", "KILL", "TERM")  # that end the command


@dataclass(frozen=True)
class Death:
    """After `packets` packets of git's output, and with `half` the first half of another one."""

    kind: Kind
    packets: int
    half: bool = False


class MortalSshd(Sshd):
    """`first`: has the same repositories and the same plan; another host key, as every Sshd."""

    def __init__(self, first: MortalSshd | None = None, **arguments: Any) -> None:
        authorized: Iterable[str] = [first.key.line] if first is not None else ()
        super().__init__(authorized=authorized, **arguments)
        if first is not None:
            self.root = first.root

    def plan(self, *deaths: Death) -> None:
        """How the next commands die, one after another; those after them live."""
        (self.root / ".deaths").write_text("".join(f"{one.kind} {one.packets} {int(one.half)}\n" for one in deaths))
        for name in ("died", "packets", "written"):
            (self.root / f".{name}").write_text("")

    def hold(self) -> None:
        """Who is about to die waits for `let_go`."""
        (self.root / ".hold").touch()

    def let_go(self) -> None:
        (self.root / ".hold").unlink()

    @property
    def written(self) -> int:
        """How many bytes the command wrote that is about to die; 0 if none is."""
        return int((self.root / ".written").read_text() or 0)

    @property
    def died(self) -> int:
        """How many of the plan's deaths came."""
        return len((self.root / ".died").read_text().splitlines())

    @property
    def packets(self) -> tuple[int, int]:
        """Of the last command that sent a pack: how many packets to the end of ls-refs' answer, and how many before pack data."""
        listed, before_pack = (self.root / ".packets").read_text().splitlines()[-1].split()
        return int(listed), int(before_pack)

    def _environment(self) -> dict[str, str]:
        environment = super()._environment()
        shell = self._state / "mortal_shell"
        source = Path(__file__).with_name("mortal_shell.py").read_text()
        shell.write_text(f"#!{python_for(self.user)} -IS\n{source}")
        shell.chmod(0o755)
        return {**environment, "MORTAL_GIT_SHELL": environment["STUB_GIT_SHELL"], "STUB_GIT_SHELL": str(shell)}
