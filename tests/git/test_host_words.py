"""Error texts of git hosts: the kind of refusal, and that paths of the git host are removed."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.host_words import HELD_MOST_BYTES, REFUSALS, HostWords, archive_start, json_start, protocol_start, verdict

PATH = "/srv/git repositories/team/app.git"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("fatal: '/srv/x.git' does not appear to be a git repository", "not_found"),
        ("fatal: not a git repository: '/srv/x.git'", "not_found"),
        ("fatal: detected dubious ownership in repository at '/srv/x.git'\nTo add an exception: ...", "refused"),
        ("fatal: unrecognized command 'git-lfs-transfer '/srv/x.git' download'", "unsupported"),
        ("bash: line 1: git-lfs-transfer: command not found", "unsupported"),
        ("sh: 1: git-lfs-authenticate: not found", "unsupported"),
        ("This account is currently not available.", "refused"),
        ("Gitea: Cannot find repository: team/app", "not_found"),
        ("FATAL: R any team/app relay DENIED by fallthru\n(or you mis-spelled the reponame)", "not_found"),
        ("FATAL: W any team/app alice DENIED by refs/.*", "not_found"),
        ("ERROR: The project you were looking for could not be found or you don't have permission to view it.", "not_found"),
        ("ERROR: Repository not found.", "not_found"),
        ("error: something else went wrong", None),
        ("warning: setlocale: LC_ALL: cannot change locale (C.UTF-8)", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("before", ["", "bash: warning: setlocale: LC_ALL: cannot change locale (de_DE.UTF-8)\n", "Welcome to /srv!\r\n"])
def test_known_refusals_whatever_stands_before_them(before: str, said: str, expected: str | None) -> None:
    found = verdict((before + said + "\n").encode())
    assert (found.verdict if found is not None else None) == expected


def test_each_row_of_the_table_knows_its_own_words() -> None:
    for one in REFUSALS:
        assert one.pattern.search(one.words.replace("*", "any").encode()), one


@pytest.mark.parametrize(
    ("said", "clean"),
    [
        (f"fatal: '{PATH}' does not work", "fatal: 'team/app' does not work"),
        ("fatal: '/srv/other dir/x.git' does not work", "fatal: '(path)' does not work"),
        ("Could not chdir to home directory /srv/git: No such file", "Could not chdir to home directory (path): No such file"),
        ("error: unable to open /srv/git/x/objects/ab/cd: Permission denied", "error: unable to open (path): Permission denied"),
        ("/etc/profile: line 3: oops", "(path): line 3: oops"),
        ("path=/srv/git ~git/x and ~/y", "path=(path) (path) and (path)"),
        ("error: pöck /srv/göt/x.pack is bad", "error: pöck (path) is bad"),
        ("see https://git.example.org/help/ssh and http://[::1]:80/x", "see https://git.example.org/help/ssh and http://[::1]:80/x"),
        ("Receiving: 50% (1/2), 5 MiB | 2 MiB/s and/or refs/heads/main", "Receiving: 50% (1/2), 5 MiB | 2 MiB/s and/or refs/heads/main"),
    ],
)
def test_no_path_is_left_but_addresses_and_fractions_are(said: str, clean: str) -> None:
    words = HostWords(PATH, "team/app")
    assert words.stderr(said.encode() + b"\n").decode() == clean + "\n"


@given(st.lists(st.integers(0, 200), max_size=8))
def test_a_path_that_comes_in_pieces_is_found(cuts: list[int]) -> None:
    said = f"fatal: '{PATH}' and /srv/x\rerror: /var/lib/y".encode()
    places = sorted({0, len(said), *(cut % len(said) for cut in cuts)})
    words = HostWords(PATH, "team/app")
    got = b"".join(words.stderr(said[begin:end]) for begin, end in itertools.pairwise(places)) + words.rest()
    assert got == b"fatal: 'team/app' and (path)\rerror: (path)"


@given(st.binary(max_size=300).filter(lambda data: b"/" not in data and b"~" not in data))
def test_what_has_no_path_arrives_as_it_is(data: bytes) -> None:
    words = HostWords(PATH, "team/app")
    assert words.stderr(data) + words.rest() == data


def test_what_is_no_text_and_endless_lines_are_not_waited_for() -> None:
    words = HostWords(PATH, "team/app")
    assert words.stderr(b"\0 /x") == b"\0 /x"
    assert words.stderr(b"x" * (HELD_MOST_BYTES + 1)) == b"x" * (HELD_MOST_BYTES + 1)
    assert words.stderr(b"x") == b""
    assert words.rest() == b"x"


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (b"000aversio", 0),
        (b"000aversi", None),
        (b"0000", 0),
        (b"000", None),
        (b"warning\n0000", 8),
        (b"warning\n", None),
        (b"2026-11-28 10:00 welcome\nbeef\n", None),
        (b"2026-11-28 10:00 welcome\n000aversio", 25),
        (b"", None),
        (b"PACK\0\0\0\2", 0),
        (b"warning\n00ab0123 HEAD\0", 8),
    ],
)
def test_where_gits_protocol_begins(data: bytes, start: int | None) -> None:
    assert protocol_start(data) == start


@pytest.mark.parametrize("before", [b"", b"warning\n", b"2026-11-28 10:00\n/srv/x: oops\n"])
@pytest.mark.parametrize(
    ("data", "start"),
    [
        (b"0008ACK\n0000", None),
        (b"0008ACK\n00000025\2fatal: ", None),
        (b"0008ACK\n00000025\1PK", 0),
        (b"000dNACK not\n", 0),
    ],
)
def test_an_archive_begins_when_its_repository_is_known_to_be_there(before: bytes, data: bytes, start: int | None) -> None:
    for end in range(len(before + data)):
        assert archive_start((before + data)[:end]) in (None, len(before))
    assert archive_start(before + data) == (None if start is None else len(before) + start)


@pytest.mark.parametrize(("data", "start"), [(b'{"href": 1}', 0), (b"warning {\n  {", 10), (b"warning\n", None)])
def test_where_the_answer_of_git_lfs_authenticate_begins(data: bytes, start: int | None) -> None:
    assert json_start(data) == start


def test_the_table_is_in_the_docs_words_only_once() -> None:
    rows = [(one.host, one.words) for one in REFUSALS]
    assert len(set(rows)) == len(rows)
    assert all(re.fullmatch(r"[^|\n]+", words) for _, words in rows), "each fits a table of Markdown"
