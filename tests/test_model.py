"""The values that modules share: frozen, the command line as git and a shell parse it, and text made safe for a terminal."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model import PATH_CHARACTERS, SERVICES, Command, Exit, Grant, Identity, Route, path_faults
from relay.text import printable

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("service", "operation", "needs"),
    [
        ("git-upload-pack", None, "read"),
        ("git-upload-archive", None, "read"),
        ("git-receive-pack", None, "write"),
        ("git-lfs-authenticate", "download", "read"),
        ("git-lfs-authenticate", "upload", "write"),
        ("git-lfs-transfer", "download", "read"),
        ("git-lfs-transfer", "upload", "write"),
    ],
)
def test_what_a_command_needs(service: str, operation: str | None, needs: str) -> None:
    assert service in SERVICES
    assert Command(service=service, repository="a", operation=operation).needs == needs  # type: ignore[arg-type]


@given(path=texts)
def test_the_line_is_one_word_of_path_for_a_shell(path: str) -> None:
    command = Command(service="git-upload-pack", repository="not/used")
    assert shlex.split(command.line(path)) == ["git-upload-pack", path]


@given(path=texts)
@settings(max_examples=20, deadline=None)
def test_a_real_shell_agrees(path: str) -> None:
    line = Command(service="git-lfs-transfer", repository="a", operation="upload").line(path)
    done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, check=True)
    assert done.stdout == f"git-lfs-transfer\n{path}\nupload\n".encode()


def test_quoting_is_gits_own() -> None:
    """git's sq_quote: always quoted, an exclamation mark escaped; git-shell accepts no other quoting."""
    assert Command(service="git-upload-pack", repository="a").line("/srv/it's!.git") == "git-upload-pack '/srv/it'\\''s'\\!'.git'"


@pytest.mark.parametrize(
    "value", [Identity(name="a", fingerprint="b"), Route(upstream="a", path="b"), Grant(access="read"), Exit(status=0), Exit(signal="KILL")]
)
def test_values_are_frozen_and_equal_by_what_they_hold(value: object) -> None:
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], "other")  # type: ignore[attr-defined]
    assert type(value)(**{name: getattr(value, name) for name in value.__struct_fields__}) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/srv/git/a.git", None),
        ("a" * PATH_CHARACTERS, None),
        ("", "has 0 characters, allowed are 1 to 4096"),
        ("a" * (PATH_CHARACTERS + 1), "has 4097 characters"),
        ("a\nb", "has control characters"),
        ("a\x85b", "has control characters"),
        ("--upload-pack=x", "begins with a hyphen"),
    ],
)
def test_what_a_git_host_is_never_asked_for(path: str, said: str | None) -> None:
    faults = path_faults(path)
    assert faults == [] if said is None else len(faults) == 1 and faults[0].startswith(said)


@given(text=st.text(max_size=300), limit=st.integers(1, 250))
def test_printable_text_is_one_short_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) == min(len(text), limit)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 for one in shown)
    assert len(text) <= limit or shown.endswith("…")


def test_reads_go_to_copies_first_and_writes_never() -> None:
    alone, copied = Route(upstream="main", path="/x"), Route(upstream="main", path="/x", read_upstream="copies")
    spared = Route(upstream="main", path="/x", read_upstream="copies", read_fallback=False)
    assert [route.upstreams("read") for route in (alone, copied, spared)] == [("main",), ("copies", "main"), ("copies",)]
    assert {route.upstreams("write") for route in (alone, copied, spared)} == {("main",)}
    assert [route.names for route in (alone, copied)] == [("main",), ("main", "copies")]
