"""The table of the relay's assumptions about asyncssh's sources: that it is complete, and what start-up does when a source has changed."""

from __future__ import annotations

import ast
import importlib
import inspect
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.auth import Auth, ServerAuth
from asyncssh.connection import SSHConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from asyncssh.kex_dh import _KexDHBase, _KexECDH, _KexHybridECDH

from relay.errors import ConfigError
from relay.ssh import wire
from relay.ssh.asyncssh_pins import FILES, NEEDED, READ, WIRE, Findings, as_read, changed, digest, file_digest, look, pinned, settle
from tests.support.gitrepo import git, make_repo, rev_list
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

ROOT = Path(__file__).parents[2]
PINS = {**WIRE, **NEEDED}

# classes whose objects the relay drives without subclassing them
DRIVEN = {Auth, ServerAuth, GCMCipher, GCMEncryption, _KexDHBase, _KexECDH, _KexHybridECDH}
# documented interfaces, meant to be subclassed
PUBLIC = (asyncssh.SSHServer, asyncssh.SSHServerSession, Exception)
NOT_METHODS = {"__module__", "__doc__", "__annotations__", "__orig_bases__", "__parameters__", "__slots__", "__repr__"}


@pytest.mark.parametrize("name", PINS)
def test_asyncssh_is_the_one_that_was_read(name: str) -> None:
    assert digest(pinned(name)) == PINS[name], (
        f"asyncssh {asyncssh.__version__} changed {name}, which relay/ssh/ replaces or relies on: "
        f"compare the two, then write {digest(pinned(name))!r} into relay/ssh/asyncssh_pins.py (docs/releasing.md)"
    )


def test_the_installed_version_and_its_files_are_those_that_were_read() -> None:
    folder = Path(asyncssh.__file__).parent
    assert asyncssh.__version__ == READ, "read the new version (docs/releasing.md), then write it into relay/ssh/asyncssh_pins.py"
    assert {name: file_digest(folder / name) for name in FILES} == FILES
    assert {name.removesuffix(".py").replace("/", ".") for name in FILES} == {_module(name) for name in PINS}


def test_no_pin_is_in_both_groups() -> None:
    assert not set(WIRE) & set(NEEDED)


# -- the table is complete -----------------------------------------------------------------------------------------------------


def _module(name: str) -> str:
    return ".".join(takewhile(str.islower, name.split(".")[:-1]))


def _function(thing: Any) -> Any:
    return getattr(thing, "fget", thing)


def _is_asyncssh(kind: type) -> bool:
    return kind.__module__.startswith("asyncssh.") and not issubclass(kind, PUBLIC)


def _name(kind: type, attribute: str) -> str:
    return f"{kind.__module__.removeprefix('asyncssh.')}.{kind.__qualname__}.{attribute}"


def _sources() -> Iterator[tuple[Any, ast.Module]]:
    files = [*sorted((ROOT / "relay/ssh").glob("*.py")), ROOT / "relay/connection.py"]
    for path in files:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        yield module, ast.parse(path.read_text())


def _subclasses() -> Iterator[type]:
    """The relay's subclasses of classes of asyncssh that are not meant to be subclassed."""
    for module, _ in _sources():
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and any(map(_is_asyncssh, kind.__mro__[1:])):
                yield kind


def overridden(kind: type) -> Iterator[str]:
    """The names of asyncssh that `kind` overrides: methods, properties and tables of handlers."""
    for attribute in vars(kind).keys() - NOT_METHODS:
        for base in kind.__mro__[1:]:
            if _is_asyncssh(base) and attribute in vars(base):
                yield _name(base, attribute)
                break


def written(kind: type) -> Iterator[tuple[str, str]]:
    """(attribute, method that sets it), for each method of a class of asyncssh."""
    for method, function in vars(kind).items():
        if inspect.isfunction(function):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    yield node.attr, _name(kind, method)


def private_names(module: Any, tree: ast.AST, ours: bool = True) -> Iterator[str]:
    """Private attributes that `tree` uses, without those of `self` in classes without a base of asyncssh."""
    for node in ast.iter_child_nodes(tree):
        own = ours
        if isinstance(node, ast.ClassDef):
            own = not any(map(_is_asyncssh, getattr(module, node.name).__mro__))
        if (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and not (own and ast.unparse(node.value) == "self")
        ):
            yield node.attr
        yield from private_names(module, node, own)


def relied_upon() -> dict[str, str]:
    """The functions of asyncssh that must be pinned -> why."""
    found: dict[str, str] = {}
    bases = set(DRIVEN)
    for kind in _subclasses():
        bases.update(filter(_is_asyncssh, kind.__mro__[1:]))
        found |= dict.fromkeys(overridden(kind), f"{kind.__qualname__} overrides it")
    used = {name: module.__name__ for module, tree in _sources() for name in private_names(module, tree)}
    for base in bases:
        for attribute, value in vars(base).items():
            if attribute in used and inspect.isfunction(_function(value)):
                found.setdefault(_name(base, attribute), f"{used[attribute]} calls or wraps it")
        for attribute, method in written(base):
            if attribute in used:
                found.setdefault(method, f"it sets {attribute}, which {used[attribute]} uses")
    return found


def test_all_that_the_relay_overrides_or_whose_state_it_uses_is_pinned() -> None:
    missing = {name: why for name, why in relied_upon().items() if name not in PINS}
    assert not missing, f"read them, then add them to relay/ssh/asyncssh_pins.py: {missing}"


@pytest.mark.parametrize(
    "name",
    [
        "channel.SSHChannel._process_close",
        "channel.SSHChannel._close_send",
        "channel.SSHChannel._accept_data",
        "connection.SSHConnection._process_global_request",
        "connection.SSHConnection._process_channel_open",
        "connection.SSHConnection._keepalive_timer_callback",
        "connection.SSHConnection._recv_pkthdr",
        "connection.SSHServerConnection.__init__",
    ],
)
def test_the_search_finds_what_is_known_to_be_relied_upon(name: str) -> None:
    assert name in relied_upon()


def test_the_search_finds_an_override_and_a_use_of_private_state(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection(asyncssh.SSHServerConnection):
        def _recv_pkthdr(self) -> bool:
            return super()._recv_pkthdr()

    assert list(overridden(Connection)) == ["connection.SSHConnection._recv_pkthdr"]
    module = importlib.import_module("relay.ssh.wire")
    assert list(private_names(module, ast.parse("connection._send_seq += 1\nself._own = 2"))) == ["_send_seq"]
    assert ("_send_seq", "connection.SSHConnection.send_packet") in set(written(SSHConnection))


# -- a changed source ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ENABLED", True)


def test_a_changed_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def send_packet(self: Any, pkttype: int, *args: bytes, handler: Any = None) -> None: ...

    monkeypatch.setattr(SSHConnection, "send_packet", send_packet)
    assert list(changed(WIRE)) == ["connection.SSHConnection.send_packet"]
    assert list(changed(NEEDED)) == []


def test_a_function_that_is_gone_and_a_new_message_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SSHConnection, "_recv_pkthdr")
    monkeypatch.setattr(SSHConnection, "_packet_handlers", {**SSHConnection._packet_handlers, 192: SSHConnection._process_ignore})
    assert list(changed(NEEDED)) == ["connection.SSHConnection._packet_handlers", "connection.SSHConnection._recv_pkthdr"]


def test_the_version_that_was_read_is_served_as_ever(enabled: None) -> None:
    assert look() == Findings(READ, [], [])
    assert settle() is None
    assert wire.ENABLED


def test_a_version_that_was_not_read_turns_the_direct_path_off_with_one_warning(enabled: None) -> None:
    findings = look("2.24.99")
    assert findings == Findings("2.24.99", [], [])
    remark = settle(findings)
    assert remark is not None
    assert remark.startswith("asyncssh 2.24.99: ")
    assert "RELAY_WIRE=0" in remark
    assert not wire.ENABLED
    assert settle(findings) is None


def test_a_changed_source_of_the_direct_path_alone_turns_it_off(enabled: None) -> None:
    remark = settle(Findings(READ, ["kex.get_kex"], []))
    assert remark is not None
    assert "kex.get_kex changed" in remark
    assert not wire.ENABLED


def test_a_changed_source_that_is_needed_refuses_in_one_line(enabled: None) -> None:
    with pytest.raises(ConfigError) as refused:
        settle(Findings("2.24.99", ["kex.get_kex"], ["a", "b", "c", "d", "e", "f"]))
    assert refused.value.problems == [
        f"asyncssh 2.24.99: the relay was written for {READ} and relies on a, b, c, d and 2 more: changed; install {READ}"
    ]


def test_files_that_cannot_be_read_are_not_those_that_were_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert as_read(READ)
    monkeypatch.setattr(asyncssh, "__file__", str(tmp_path / "__init__.py"))
    assert not as_read(READ)


@pytest.fixture
def patched(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """The environment of a process that imports a changed copy of asyncssh, in whose connection.py one text is replaced."""

    def make(old: str, new: str) -> dict[str, str]:
        copy = tmp_path / "asyncssh"
        shutil.copytree(Path(asyncssh.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        source = (copy / "connection.py").read_text()
        assert source.count(old) == 1
        (copy / "connection.py").write_text(source.replace(old, new))
        return {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    return make


def test_a_relay_whose_direct_path_was_not_read_warns_once_and_serves(
    sshd: Sshd, tmp_path: Path, patched: Callable[[str, str], dict[str, str]]
) -> None:
    env = patched('        """Send an SSH packet"""\n', '        """Send one SSH packet"""\n')
    bare = make_repo(sshd.root / "team/app.git")
    with RelayProcess(sshd, env=env, config={"workers": 2}) as relay:
        work = tmp_path / "work"
        git_env = relay.git_env(tmp_path / "home", protocol=2)
        git("clone", relay.url("team/app"), work, env=git_env)
        assert rev_list(work, git_env, "HEAD") == rev_list(bare, git_env, "HEAD")
        assert relay.log_text().count("connection.SSHConnection.send_packet changed") == 1
        assert "RELAY_WIRE=0" in relay.log_text()


def test_a_relay_with_a_needed_source_that_was_not_read_does_not_start(
    sshd: Sshd, tmp_path: Path, patched: Callable[[str, str], dict[str, str]]
) -> None:
    relay = RelayProcess(sshd)
    env = patched('        """Receive and parse an SSH packet header"""\n', '        """Receive an SSH packet header"""\n')
    try:
        for command in ("serve", "check"):
            done = subprocess.run(
                [sys.executable, "-m", "relay", command, "-c", relay.config_file],
                env=env,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode != 0
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "asyncssh" in line]
            assert len(lines) == 1, done
            assert f"the relay was written for {READ} and relies on connection.SSHConnection._recv_pkthdr" in lines[0]
    finally:
        relay.close()
