"""A git host that finds a repository under two spellings, and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from relay.upstream.case_probe import ignores_case, other_spelling
from relay.upstream.libssh2 import Connection
from tests.support.gitrepo import make_repo
from tests.support.sshd import Sshd
from tests.upstream.peers import login


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("/srv/git/team/app.git", "/srv/git/team/APP.git"),
        ("/srv/git/team/App", "/srv/git/team/aPP"),
        ("app.git", "APP.git"),
        ("/srv/git/1.git", None),
        ("/", None),
    ],
)
def test_the_other_spelling(path: str, other: str | None) -> None:
    assert other_spelling(path) == other


async def test_what_is_found_under_both_spellings_is_on_a_host_that_ignores_case(make_sshd: Callable[..., Sshd]) -> None:
    """A symlink stands for a file system that ignores case: the client sees no difference."""
    sshd = make_sshd()
    dial = partial(Connection.dial, sshd.address, sshd.port, login(sshd), 15)
    path = sshd.root / "case/app.git"
    assert await ignores_case(dial, str(path)) is None
    make_repo(path)
    assert await ignores_case(dial, str(path)) is False
    (path.parent / "APP.git").symlink_to(path)
    assert await ignores_case(dial, str(path)) is True
