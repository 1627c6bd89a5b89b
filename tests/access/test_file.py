"""Rules in a file: groups, patterns, order, every way to be wrong, and changes while it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.file import FileAccess, load
from relay.errors import ConfigError, Denied
from relay.model import Change, Command, Identity, RefUpdate
from relay.refs import Judge
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


# -- rules that name refs ----------------------------------------------------------------------------------------------------

PEOPLE, REPOSITORIES = ["alice", "bob"], ["team/app", "x"]
REFS = ["refs/heads/main", "refs/heads/a", "refs/tags/v1"]
IDS: dict[Change, tuple[str, str]] = {"create": ("0", "1"), "update": ("1", "2"), "delete": ("1", "0")}

some_rule = st.fixed_dictionaries(
    {
        "repositories": st.sampled_from(["**", "team/*", "x"]),
        "who": st.lists(st.sampled_from([*PEOPLE, "*"]), min_size=1, max_size=2),
    },
    optional={
        "refs": st.lists(st.sampled_from(["refs/heads/main", "refs/heads/*", "refs/**", "**"]), min_size=1, max_size=2),
        "changes": st.lists(st.sampled_from(sorted(IDS)), min_size=1, max_size=2),
    },
)


def told(rule: dict[str, Any], verb: str) -> dict[str, Any]:
    """A whole rule: only one with refs may name changes, and only one without may allow to read alone."""
    rule = {name: value for name, value in rule.items() if name != "changes" or "refs" in rule}
    if verb == "read" and "refs" not in rule:
        return {**rule, "allow": "read"}
    return {**rule, "deny": "write"} if verb == "deny" else {**rule, "allow": "write"}


def matching(pattern: str, name: str) -> bool:
    """For the patterns above only."""
    return pattern == "**" or name == pattern or (pattern[-1] == "*" and name.startswith(pattern.rstrip("*")))


def table_says(rules: list[dict[str, Any]], who: str, repository: str, ref: str, change: Change) -> bool:
    """The table of docs/backends.md, line by line."""
    about = [rule for rule in rules if matching(rule["repositories"], repository)]
    general = [rule for rule in about if "refs" not in rule]
    named = [
        rule
        for rule in about
        if any(matching(pattern, ref) for pattern in rule.get("refs", [])) and change in rule.get("changes", list(IDS))
    ]

    def names(rule: dict[str, Any]) -> bool:
        return who in rule["who"] or "*" in rule["who"]

    if any("deny" in rule and names(rule) for rule in (*general, *named)):
        return False
    if any("allow" in rule and names(rule) for rule in named):
        return True
    if any("allow" in rule for rule in named):
        return False
    return any(rule.get("allow") == "write" and names(rule) for rule in general)


@given(st.lists(st.tuples(some_rule, st.sampled_from(["read", "write", "write", "deny"])), max_size=6), st.randoms())
def test_the_table_of_the_documentation(tmp_path_factory: pytest.TempPathFactory, made: list[Any], order: Any) -> None:
    rules = [told(*one) for one in made]
    shuffled = list(rules)
    order.shuffle(shuffled)
    path = write(tmp_path_factory.mktemp("refs"), toml_text({"rule": shuffled}) if rules else "")

    async def ask() -> None:
        access = FileAccess(path)
        for who in PEOPLE:
            for repository in REPOSITORIES:
                command = Command(service="git-receive-pack", repository=repository)
                expected = {(ref, change): table_says(rules, who, repository, ref, change) for ref in REFS for change in IDS}
                try:
                    grant = await access.check(Identity(name=who, fingerprint=""), command, "", "")
                except Denied:
                    assert not any(expected.values())
                    continue
                assert grant.access == "write"
                for (ref, change), may_write in expected.items():
                    old, new = IDS[change]
                    assert Judge(grant.refs).allows(RefUpdate(ref=ref, old=old, new=new)) is may_write, (who, repository, ref, change)
        await access.close()

    asyncio.run(ask())


async def test_a_rule_with_refs_neither_reads_nor_uploads(tmp_path: Path) -> None:
    access = FileAccess(
        write(tmp_path, '[[rule]]\nrepositories = "**"\nwho = ["alice"]\nallow = "write"\nrefs = ["refs/heads/docs/**"]\n')
    )
    assert await may(access, "alice", "write", "a") and not await may(access, "alice", "read", "a")
    upload = Command(service="git-lfs-authenticate", repository="a", operation="upload")
    with pytest.raises(Denied):
        await access.check(Identity(name="alice", fingerprint=""), upload, "", "")
    await access.close()


async def test_without_refs_a_grant_has_none(tmp_path: Path) -> None:
    access = FileAccess(write(tmp_path, RULES))
    push = Command(service="git-receive-pack", repository="team/app")
    assert (await access.check(Identity(name="alice", fingerprint=""), push, "", "")).refs == ()
    await access.close()


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ('allow = "write"\ndeny = "write"', 'rule#1.deny: stands beside allow, must be one of the two'),
        ('deny = "read"', 'rule#1.deny: is "read", must be one of "write"'),
        ('allow = "read"\nrefs = ["refs/heads/main"]', 'rule#1.allow: is "read" beside refs, must be "write"'),
        ('allow = "write"\nrefs = []', "rule#1.refs: is an empty list, must be a list of text, at least 1"),
        ('allow = "write"\nrefs = ["main"]', 'rule#1.refs: "main" must be the whole name, as in refs/heads/main'),
        ('allow = "write"\nrefs = ["refs/heads//x"]', "no two in a row"),
        ('allow = "write"\nchanges = ["delete"]', "rule#1.changes: stands without refs"),
        ('allow = "write"\nrefs = ["**"]\nchanges = ["force"]', 'rule#1.changes: item 1 is "force", must be one of'),
    ],
)
def test_a_rule_about_refs_that_is_wrong(tmp_path: Path, rule: str, wrong: str) -> None:
    path = write(tmp_path, f'[[rule]]\nrepositories = "**"\nwho = ["alice"]\n{rule}\n')
    [line] = load(path)[1]
    assert line.startswith(f"{path}:rule#1.") and wrong in line
