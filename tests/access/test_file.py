"""Rules in a file: groups, patterns, order, every way to be wrong, and changes while it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.file import FileAccess, load
from relay.errors import ConfigError, Denied
from relay.model import Command, Identity
from tests.support.toml import toml_text

RULES = """
[groups]
core = ["alice", "bob"]
bots = ["ci"]

[[rule]]
repositories = "team/*"
who = ["@core"]
allow = "write"

[[rule]]
repositories = "team/**"
who = ["@bots", "carol"]
allow = "read"

[[rule]]
repositories = "public/**"
who = ["*"]
allow = "read"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "access.toml"
    path.write_text(text)
    return path


async def may(access: FileAccess, who: str, what: str, repository: str) -> bool:
    command = Command(service="git-receive-pack" if what == "write" else "git-upload-pack", repository=repository)
    try:
        await access.check(Identity(name=who, fingerprint=""), command, "", "")
    except Denied as error:
        assert str(error) == f"no rule allows {who} to {what} {repository}"
        return False
    return True


@pytest.mark.parametrize(
    ("who", "what", "repository", "expected"),
    [
        ("alice", "write", "team/app", True),
        ("alice", "read", "team/app", True),
        ("bob", "write", "team/app", True),
        ("alice", "write", "team/lib/x", False),
        ("alice", "read", "team/lib/x", False),
        ("ci", "read", "team/lib/x", True),
        ("ci", "write", "team/app", False),
        ("carol", "read", "team/app", True),
        ("core", "read", "team/app", False),
        ("@core", "read", "team/app", False),
        ("dave", "read", "team/app", False),
        ("dave", "read", "public/a/b", True),
        ("*", "read", "public/a", True),
        ("dave", "write", "public/a", False),
        ("dave", "read", "public", False),
        ("dave", "read", "xpublic/a", False),
    ],
)
async def test_who_may_what(tmp_path: Path, who: str, what: str, repository: str, expected: bool) -> None:
    access = FileAccess(write(tmp_path, RULES))
    assert await may(access, who, what, repository) is expected
    await access.close()


async def test_a_later_rule_may_allow_more(tmp_path: Path) -> None:
    rule = '[[rule]]\nrepositories = "**"\nwho = ["alice"]\nallow = "%s"\n'
    access = FileAccess(write(tmp_path, rule % "read" + rule % "write"))
    assert await may(access, "alice", "write", "a")
    await access.close()


def test_every_problem_is_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [groups]
        core = ["alice", "@bots", "*"]
        "a/b" = []
        worse = "alice"

        [[rule]]
        repositories = "/team"
        who = ["@cor", "@worse", "a\\nb"]
        allow = "write"

        [[rule]]
        repositories = "**"
        who = []
        alow = "read"

        [[rules]]
        """,
    )
    rules, problems = load(path)
    assert rules == ()
    unspeakable = "must not be * and must not begin with @, which have a meaning in access rules"
    printable = "must have printable characters only, no slash, and no space at its ends"
    assert sorted(problems) == sorted(
        [
            f"{path}:rules: unknown key, allowed are groups, rule",
            f'{path}:groups.worse: is "alice", must be a list of text',
            f'{path}:groups.core: "@bots" {unspeakable}',
            f'{path}:groups.core: "*" {unspeakable}',
            f'{path}:groups."a/b": the group\'s name {printable}',
            f'{path}:rule#1.repositories: "/team" must have no slash at its ends and no two in a row',
            f'{path}:rule#1.who: "@cor" is no group, the groups are "@core", "@a/b", "@worse"',
            f'{path}:rule#1.who: "a?b" {printable}',
            f"{path}:rule#2.alow: unknown key, allowed are repositories, who, allow, deny, refs, changes",
            f"{path}:rule#2.who: is an empty list, must be a list of text, at least 1"
            " (identities, @groups, or * for everyone who authenticated)",
            f'{path}:rule#2.allow: is missing, must be one of "read", "write"; or deny must be "write"',
        ]
    )


def test_a_group_without_any_groups(tmp_path: Path) -> None:
    path = write(tmp_path, '[[rule]]\nrepositories = "**"\nwho = ["@core"]\nallow = "read"\n')
    assert load(path)[1] == [f'{path}:rule#1.who: "@core" is no group, there is no [groups] table']


def test_no_file_and_no_toml_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"access.toml: is missing"):
        FileAccess(tmp_path / "access.toml")
    with pytest.raises(ConfigError, match=r"access.toml:1: .*must be TOML"):
        FileAccess(write(tmp_path, "[[rule"))


async def test_a_change_is_seen_and_a_broken_one_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, RULES)
    access = FileAccess(path, look_seconds=0)
    assert await may(access, "alice", "write", "team/app")
    path.write_text(RULES.replace("@core", "@cor"))
    assert await may(access, "alice", "write", "team/app")
    assert len(caplog.messages) == 1
    assert '"@cor" is no group' in caplog.messages[0]
    path.write_text(RULES.replace("alice", "alicf"))
    assert not await may(access, "alice", "write", "team/app")
    path.write_text("")  # everything off at once
    assert not await may(access, "dave", "read", "public/a")
    await access.close()


texts = st.text(max_size=12) | st.sampled_from(["*", "@a", "a", "**", "a/*", "read", "write"])
rule = st.dictionaries(st.sampled_from(["repositories", "who", "allow", "x"]), texts | st.lists(texts, max_size=3))
tables = st.fixed_dictionaries(
    {},
    optional={
        "groups": st.dictionaries(texts, st.lists(texts, max_size=3) | texts, max_size=3),
        "rule": st.lists(rule, min_size=1, max_size=3),
    },
)


@given(tables)
def test_any_table_is_rules_or_problems_in_words(tmp_path_factory: pytest.TempPathFactory, table: dict[str, object]) -> None:
    path = write(tmp_path_factory.mktemp("any"), toml_text(table))
    rules, problems = load(path)
    assert not (rules and problems)
    assert all(line.isprintable() and line.startswith(f"{path}:") for line in problems)
