"""Fixtures that every test may ask for: a real sshd, a relay in front of it, keys, a hermetic git environment."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.gitrepo import git_env as make_git_env
from tests.support.keys import Key, make_key
from tests.support.machine import SshdMissingError, sshd_program
from tests.support.processes import let_children_hear_signals
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

# a timing never decides a test, neither that of an example nor that of making one
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")

let_children_hear_signals()


@pytest.fixture(scope="session")
def sshd_installed() -> None:
    """Fail, not skip, in one line where there is no sshd: a suite that skips its real peer proves nothing."""
    try:
        sshd_program()
    except SshdMissingError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def sshd(sshd_installed: None) -> Iterator[Sshd]:
    """One sshd a test module, running; a test that breaks, configures or counts wants `make_sshd`."""
    with Sshd() as server:
        yield server


@pytest.fixture
def make_sshd(sshd_installed: None) -> Iterator[Callable[..., Sshd]]:
    """Start an sshd of this test's own with `Sshd`'s arguments; ended with the test."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Sshd(**arguments))


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    """One relay a test module in front of the module's sshd; its clean end is asserted after the last test."""
    with RelayProcess(sshd) as process:
        yield process


@pytest.fixture
def make_relay() -> Iterator[Callable[..., RelayProcess]]:
    """Start a relay of this test's own with `RelayProcess`'s arguments; ended with the test, cleanly unless the test ended it."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(RelayProcess(*arguments, **options))


@pytest.fixture
def key(tmp_path: Path) -> Key:
    """A fresh ed25519 key that no server knows."""
    return make_key(tmp_path / "keys", "stranger")


@pytest.fixture
def git_env(tmp_path: Path) -> dict[str, str]:
    """A hermetic environment for git without any network; see `tests.support.gitrepo.git_env` for one with."""
    return make_git_env(tmp_path / "home")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """xdist keeps a group together by a suffix of its node ids; a pytest that it does not know yet (9.2) drops it without a word."""
    grouped = item.config.getoption("loadgroup", default=False) and item.get_closest_marker("xdist_group")
    if grouped and "@" not in item.nodeid:
        pytest.fail(f"xdist_group has no effect: pytest {pytest.__version__} and this pytest-xdist do not fit", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged and printed travels to xdist's controller in UTF-8; a lone surrogate in it would end the whole run."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
