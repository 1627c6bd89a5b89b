"""Exec lines of real clients, hostile lines, and properties of the parser for any text."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.errors import Malformed, NotGit, Refused
from relay.git.command import LINE_LIMIT, PROTOCOL_LIMIT, REPOSITORY_LIMIT, canonical, parse, strip_fault, valid_protocol
from relay.model import SERVICES, Command
from tests.fuzz.targets import check_command, check_name, check_protocol

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine must not fail the test


def git_quoted(text: str) -> str:
    """sq_quote of git's quote.c: single quotes, with ' and ! taken out and escaped by a backslash."""
    return "'" + text.replace("'", "\0").replace("!", "'\\!'").replace("\0", "'\\''") + "'"


def double_quoted(text: str) -> str:
    return '"' + "".join("\\" + c if c in '$`"\\' else c for c in text) + '"'


def backslashed(text: str) -> str:
    return "".join(c if c.isalnum() or c == "/" else "\\" + c for c in text)


segments = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"], exclude_characters="/\\"), min_size=1, max_size=40
).filter(lambda s: s[0] not in "-~" and s not in (".", "..") and not s.endswith(".git"))
repositories = st.lists(segments, min_size=1, max_size=4).map("/".join)
fragments = [*"ab/.-~'\"\\$`;&|<>(){}!*?# \n\t\x00\x7f\u2028\u202e\ud800é", ".git", "git-upload-pack "]
attacks = st.lists(st.sampled_from(fragments)).map("".join)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("git-upload-pack 'team/app.git'", Command(service="git-upload-pack", repository="team/app")),  # git, scp-like URL
        ("git-upload-pack '/team/app.git'", Command(service="git-upload-pack", repository="team/app")),  # git, ssh:// URL; libgit2
        ("git-receive-pack '/team/app.git/'", Command(service="git-receive-pack", repository="team/app")),
        ("git-upload-archive 'team/app'", Command(service="git-upload-archive", repository="team/app")),
        ("git upload-pack 'team/app.git'", Command(service="git-upload-pack", repository="team/app")),
        ("git receive-pack team/app.git", Command(service="git-receive-pack", repository="team/app")),
        ('git-upload-pack "team/my app.git"', Command(service="git-upload-pack", repository="team/my app")),
        ("git-upload-pack 'it'\\''s/wow'\\!''", Command(service="git-upload-pack", repository="it's/wow!")),
        ("'git-upload-pack' team/'a b'c.git", Command(service="git-upload-pack", repository="team/a bc")),
        ("  git-upload-pack   app  ", Command(service="git-upload-pack", repository="app")),
        ("git-upload-pack 'a;b&c|d$(e)`f`'", Command(service="git-upload-pack", repository="a;b&c|d$(e)`f`")),
        ("git-upload-pack 'größe/日本.git'", Command(service="git-upload-pack", repository="größe/日本")),
        (
            "git-lfs-authenticate team/app.git download",
            Command(service="git-lfs-authenticate", repository="team/app", operation="download"),
        ),
        ("git-lfs-authenticate '/team/c#.git' upload", Command(service="git-lfs-authenticate", repository="team/c#", operation="upload")),
        ("git-lfs-transfer team/app.git upload", Command(service="git-lfs-transfer", repository="team/app", operation="upload")),
    ],
)
def test_command_lines_of_real_clients(line: str, expected: Command) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("/srv/git/team/app.git", "team/app"),
        ("~/team/app.git", "team/app"),
        ("~git/team/app", "team/app"),
        ("/srv/gitolite/app", "srv/gitolite/app"),
        ("srv/git/team/app", "srv/git/team/app"),
        ("/srv/git//srv/git/x", "srv/git/x"),  # once only
        ("/srv/git/", None),
        ("/srv/git/../../etc", None),
        ("~bob/x", None),
    ],
)
def test_the_beginning_of_an_old_path_is_taken_off_once(path: str, repository: str | None) -> None:
    strip = ["/srv/git/", "~/", "~git/"]
    if repository is not None:
        assert parse(f"git-upload-pack '{path}'", None, strip).repository == repository
    else:
        with pytest.raises(Malformed):
            parse(f"git-upload-pack '{path}'", None, strip)


@pytest.mark.parametrize("prefix", ["/srv/git/", "~/", "~git/", "/größe/"])
def test_a_beginning_that_may_be_taken_off(prefix: str) -> None:
    assert strip_fault(prefix) is None


@pytest.mark.parametrize("prefix", ["", "/", "/srv/git", "srv/git/", "/srv//git/", "/srv/../", "/./", "/a'b/", "/a\\b/", "/a\n/", "team/"])
def test_a_beginning_that_no_path_can_have_or_that_hides_a_name(prefix: str) -> None:
    assert strip_fault(prefix)


def test_the_protocol_is_in_the_command_and_checked_again() -> None:
    assert parse("git-upload-pack a", "version=2").protocol == "version=2"
    assert parse("git-upload-pack a", "v" * PROTOCOL_LIMIT).protocol == "v" * PROTOCOL_LIMIT
    with pytest.raises(Malformed, match="GIT_PROTOCOL"):
        parse("git-upload-pack a", "version=2 x")
    with pytest.raises(Malformed, match="GIT_PROTOCOL"):
        parse("git-upload-pack a", "v" * (PROTOCOL_LIMIT + 1))


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("ls", "ls"),
        ("ls -la; rm -rf /", "ls"),
        ("ls 'unbalanced", "ls"),
        ("", ""),
        ("git", "git"),
        ("git status --short .", "git status"),
        ("git-shell -c 'git-upload-pack a'", "git-shell"),
        ("/usr/bin/git-upload-pack 'a'", "/usr/bin/git-upload-pack"),
        ("GIT_DIR=/etc git-upload-pack 'a'", "GIT_DIR=/etc"),
        ("GIT-UPLOAD-PACK 'a'", "GIT-UPLOAD-PACK"),
        ("git-upload-packs 'a'", "git-upload-packs"),
        ("scp -t /tmp", "scp"),
        ("\x1b[31mevil", "?[31mevil"),
        ("\ud800\u202e", "??"),
        ("x" * 1_000_000, "x" * 63 + "…"),
    ],
)
def test_another_command_is_named_in_one_printable_word(line: str, got: str) -> None:
    with pytest.raises(NotGit) as refused:
        parse(line)
    assert refused.value.message == f"relay: only git commands are served here (got '{got}')"
    assert (refused.value.exit_status, refused.value.reason) == (128, "not_git")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("git-upload-pack", "0 arguments given, only 1 allowed: git-upload-pack PATH"),
        ("git-upload-pack a b", "2 arguments given, only 1 allowed: git-upload-pack PATH"),
        ("git-lfs-authenticate a", "1 arguments given, only 2 allowed: git-lfs-authenticate PATH download|upload"),
        ("git-lfs-authenticate a upload 87428fc522803d31", "3 arguments given, only 2 allowed"),
        ("git-lfs-transfer a lock", "the operation 'lock' is not known, only download and upload are allowed"),
        ("git-lfs-transfer a ''", "the operation '' is not known"),
        ("git-upload-pack --strict a", "options are not allowed (got '--strict')"),
        ("git-upload-pack a --timeout=1", "options are not allowed (got '--timeout=1')"),
        ("git-upload-pack '--advertise-refs' a", "options are not allowed (got '--advertise-refs')"),
        ("git upload-pack --stateless-rpc a", "options are not allowed (got '--stateless-rpc')"),
        ("git-upload-pack -- a", "options are not allowed (got '--')"),
        ("git-upload-pack 'a'; ls", "an unquoted ; is not allowed"),
        ("git-upload-pack 'a' & ls", "an unquoted & is not allowed"),
        ("git-upload-pack a|ls", "an unquoted | is not allowed"),
        ("git-upload-pack a>b", "an unquoted > is not allowed"),
        ("git-upload-pack a<b", "an unquoted < is not allowed"),
        ("git-upload-pack `ls`", "an unquoted ` is not allowed"),
        ("git-upload-pack $HOME", "an unquoted $ is not allowed"),
        ("git-upload-pack (a)", "an unquoted ( is not allowed"),
        ("git-upload-pack a)", "an unquoted ) is not allowed"),
        ("git-upload-pack a\nls", "holds a control character"),
        ("git-upload-pack 'a\x00'", "holds a control character"),
        ("git-upload-pack 'a\u202e'", "holds a control character"),
        ("git-upload-pack 'a\udcff'", "not valid UTF-8"),
        ('git-upload-pack "$HOME"', "$ or `"),
        ('git-upload-pack "`ls`"', "$ or `"),
        ("git-upload-pack 'a", "a single quote is not closed"),
        ("'git-upload-pack a", "a single quote is not closed"),
        ('git-upload-pack "a', "a double quote is not closed"),
        ("git-upload-pack a\\", "a backslash at the end"),
        ("git-upload-pack #a", "comments are not allowed"),
        ("git-upload-pack " + "a" * LINE_LIMIT, "the command is too long, at most 8,192 characters are allowed"),
    ],
)
def test_a_git_service_with_arguments_it_does_not_take(line: str, says: str) -> None:
    with pytest.raises(Malformed) as refused:
        parse(line)
    assert refused.value.message.startswith("relay: ") and says in refused.value.message
    assert (refused.value.exit_status, refused.value.reason) == (128, "malformed")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "is empty"),
        ("/", "is empty"),
        (".git", "is empty"),
        ("/.git/", "is empty"),
        ("//a", "empty, '.', '..' and '.git' segments"),
        ("a//b", "empty, '.', '..' and '.git' segments"),
        ("a//", "empty, '.', '..' and '.git' segments"),
        ("a/.git", "empty, '.', '..' and '.git' segments"),
        (".git/a", "empty, '.', '..' and '.git' segments"),
        (".", "empty, '.', '..' and '.git' segments"),
        ("..", "empty, '.', '..' and '.git' segments"),
        ("..git", "empty, '.', '..' and '.git' segments"),
        ("...git", "empty, '.', '..' and '.git' segments"),
        ("a/../b", "empty, '.', '..' and '.git' segments"),
        ("a/./b", "empty, '.', '..' and '.git' segments"),
        ("a/..", "empty, '.', '..' and '.git' segments"),
        ("../a", "empty, '.', '..' and '.git' segments"),
        ("-a", "begin with '-' or '~'"),
        ("a/-b", "begin with '-' or '~'"),
        ("~", "begin with '-' or '~'"),
        ("/~alice/app", "begin with '-' or '~'"),
        ("~.git", "begin with '-' or '~'"),
        ("a\\..\\b", "backslash"),
        ("a\tb", "control character"),
        ("a\x9b", "control character"),
        ("a\udc80", "UTF-8"),
        ("a.git.git", "ends in .git at most once"),
        ("é" * (REPOSITORY_LIMIT // 2) + "a", "too long, at most 1,024 bytes"),
    ],
)
def test_names_that_are_refused(path: str, says: str) -> None:
    with pytest.raises(Malformed) as refused:
        canonical(path)
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a", "a"),
        ("/a/b.git/", "a/b"),
        ("a.git/b", "a.git/b"),
        ("a..b", "a..b"),
        ("...", "..."),
        ("a-b~c", "a-b~c"),
        (".config", ".config"),
        ("git", "git"),
        ("é" * (REPOSITORY_LIMIT // 2) + ".git", "é" * (REPOSITORY_LIMIT // 2)),
    ],
)
def test_names_and_their_canonical_form(path: str, name: str) -> None:
    assert canonical(path) == name


@UNHURRIED
@given(repositories, st.sampled_from(SERVICES), st.sampled_from([git_quoted, double_quoted, backslashed, shlex.quote]), st.data())
def test_any_quoting_of_a_name_comes_back_exactly(name: str, service: str, quoted: object, data: st.DataObject) -> None:
    assert callable(quoted)
    written = data.draw(st.sampled_from(["", "/"])) + name + data.draw(st.sampled_from(["", "/", ".git", ".git/"]))
    operation = data.draw(st.sampled_from(["download", "upload"])) if "lfs" in service else ""
    command = parse(f"{service} {quoted(written)} {operation}")
    assert (command.service, command.repository, command.operation) == (service, name, operation or None)
    # the git host's shell splits the line into exactly these words, with exactly the route's path
    path = f"/srv/git/{command.repository}.git"
    assert shlex.split(command.line(path)) == [service, path, *([operation] if operation else [])]


@UNHURRIED
@given(st.one_of(attacks, st.text(), attacks.map("git-upload-pack ".__add__), attacks.map(lambda t: f"git-lfs-transfer {t} upload")))
@example("git-upload-pack ''")
def test_any_text_is_a_clean_command_or_refused(line: str) -> None:
    check_command(line)


@UNHURRIED
@given(st.one_of(attacks, repositories.map(lambda name: f"/{name}.git/"), st.text()))
def test_a_canonical_name_is_its_own_canonical_name(path: str) -> None:
    check_name(path)


@UNHURRIED
@given(st.text(st.sampled_from("ab '\"\\"), max_size=30))
def test_words_are_those_of_the_shell(text: str) -> None:
    """Compared with shlex: if shlex finds a service and one argument, the parser finds the same argument."""
    try:
        words: list[str] | None = shlex.split(text)
    except ValueError:
        words = None
    try:
        parsed = parse(f"git-upload-pack {text}").repository
    except Refused:
        # refused for its quoting, its number of words, or the content of its word
        assert words is None or len(words) != 1 or not words[0] or "\\" in words[0]
    else:
        assert words == [parsed]


@settings(UNHURRIED, max_examples=200)
@given(st.lists(st.sampled_from([*"ab/ '\"\\#!*?~={}[]^%+,:@.$`;|&<>()", "'\\''", "'\\!'"]), max_size=12).map("".join))
def test_an_accepted_line_is_read_as_a_real_shell_reads_it(text: str) -> None:
    """The test gives only accepted lines to the shell, which prints their words and runs nothing else."""
    try:
        name = parse(f"git-upload-pack a{text}").repository
    except Refused:
        return
    printed = subprocess.run(["sh", "-f", "-c", f"printf '%s\\0' git-upload-pack a{text}"], capture_output=True, check=True)
    words = printed.stdout.decode().split("\0")
    assert words[:-1] == ["git-upload-pack", words[1]]
    assert canonical(words[1]) == name


@pytest.mark.parametrize("value", [b"version=2", b"version=1", b"version=0", b"version=2:object-format=sha256", b"version", b"a.b=c.d:e"])
def test_valid_protocols(value: bytes) -> None:
    assert valid_protocol(value) == value.decode()


@pytest.mark.parametrize(
    "value", [b"", b":", b"version=2\n", b"version=2 x", b"=2", b"version=2:", b"version==2", b"VERSION=2", b"$(ls)", b"\xff", b"a" * 257]
)
def test_invalid_protocols(value: bytes) -> None:
    assert valid_protocol(value) is None


def test_a_line_and_a_protocol_of_just_their_limit() -> None:
    line = "git-upload-pack app"
    assert parse(line.ljust(LINE_LIMIT)).repository == "app"
    with pytest.raises(Malformed, match="too long"):
        parse(line.ljust(LINE_LIMIT + 1))
    assert valid_protocol(b"v" * PROTOCOL_LIMIT) == "v" * PROTOCOL_LIMIT


@UNHURRIED
@given(st.binary(max_size=300))
def test_any_bytes_are_a_protocol_or_none(value: bytes) -> None:
    check_protocol(value)
