"""Fixtures for all tests: a real sshd, a relay in front of it, keys, a hermetic git environment."""

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

# no test fails for its duration, neither of an example nor of its generation
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")

let_children_hear_signals()


@pytest.fixture(scope="session")
def sshd_installed() -> None:
    """Without an sshd the run fails in one line, instead of skipping: a suite that skips its real peer proves nothing."""
    try:
        sshd_program()
    except SshdMissingError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def sshd(sshd_installed: None) -> Iterator[Sshd]:
    """One running sshd for each test module; a test that breaks or configures it, or counts its log, needs `make_sshd`."""
    with Sshd() as server:
        yield server


@pytest.fixture
def make_sshd(sshd_installed: None) -> Iterator[Callable[..., Sshd]]:
    """Starts an sshd for this test only, with `Sshd`'s arguments; stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Sshd(**arguments))


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    """One relay for each test module in front of the module's sshd; asserts its clean end after the last test."""
    with RelayProcess(sshd) as process:
        yield process


@pytest.fixture
def make_relay() -> Iterator[Callable[..., RelayProcess]]:
    """Starts a relay for this test only, with `RelayProcess`'s arguments; stopped at its end, cleanly unless the test stopped it."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(RelayProcess(*arguments, **options))


@pytest.fixture
def key(tmp_path: Path) -> Key:
    """A fresh ed25519 key that no server knows."""
    return make_key(tmp_path / "keys", "stranger")


@pytest.fixture
def git_env(tmp_path: Path) -> dict[str, str]:
    """A hermetic environment for git without any network; `tests.support.gitrepo.git_env` makes one with a network."""
    return make_git_env(tmp_path / "home")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """xdist keeps a group together by a suffix of its node ids; with pytest 9.2, unsupported by xdist, the suffix is silently lost."""
    grouped = item.config.getoption("loadgroup", default=False) and item.get_closest_marker("xdist_group")
    if grouped and "@" not in item.nodeid:
        pytest.fail(f"xdist_group has no effect: pytest {pytest.__version__} and this pytest-xdist do not fit", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test's log and output are sent to xdist's controller in UTF-8; a lone surrogate in them would end the whole run."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
