"""Warnings about rules without effect: only where the decisions are the same without the rule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.file import FileAccess, load
from relay.access.ref_rules import CHANGES
from relay.access.remarks import remarks
from relay.errors import Denied
from relay.git.refs import RefJudge
from relay.model import Command, Identity, RefUpdate
from tests.support.problems import unplaced
from tests.support.toml import toml_text

GROUPS: dict[str, list[str]] = {"core": ["alice", "bob"], "all": ["alice", "bob", "carol"], "none": []}


def told(folder: Path, *rules: dict[str, Any], known: Sequence[str] | None = None, routed: Sequence[str] | None = None) -> list[str]:
    """The remarks about rules, without the file's name and the line."""
    path = folder / "access.toml"
    path.write_text(toml_text({"groups": GROUPS, "rule": list(rules)}))
    assert load(path)[1] == []
    lines = [unplaced(line).removeprefix(f"{path}: ") for line in remarks(path, known, routed)]
    return [line for line in lines if not line.startswith("groups.") or known is not None]


def rule(repositories: str = "**", who: str = "*", **more: Any) -> dict[str, Any]:
    return {"repositories": repositories, "who": who.split(), **(more or {"allow": "read"})}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([rule(), rule("team/*", "alice")], ["rule#2: has no effect beside rule#1"]),
        ([rule(), rule("team/*", "alice", allow="write")], []),
        ([rule("team/*", "alice"), rule()], []),
        ([rule(who="@all", allow="write"), rule(who="@core")], ["rule#2: has no effect beside rule#1"]),
        ([rule(who="@core"), rule(who="@all")], []),
        ([rule("*"), rule("*/**"), rule("**")], ["rule#3: has no effect beside rule#1, rule#2"]),
        ([rule("team/*", "@core", deny="write"), rule("team/app", "bob", allow="write")],
            ["rule#2: allows no writing, for that is denied by rule#1"]),
        ([rule("team/app", "bob", allow="write"), rule("team/*", "@core", deny="write")],
            ["rule#1: allows no writing, for that is denied by rule#2"]),
        ([rule(refs=["refs/heads/*"], who="@core", allow="write"), rule(refs=["refs/heads/main"], who="bob", allow="write")],
            ["rule#2: has no effect beside rule#1"]),
        ([rule(refs=["refs/heads/*"], who="bob", allow="write"), rule(refs=["refs/heads/main"], who="@core", allow="write")], []),
        ([rule(allow="write"), rule(refs=["refs/heads/main"], who="bob", allow="write")], []),
        ([rule(who="bob", deny="write"), rule(refs=["refs/heads/main"], who="bob", deny="write")],
            ["rule#2: has no effect beside rule#1"]),
        ([rule(who="@none")], ["rule#1.who: names nobody: the groups have no members"]),
        ([rule("team/a,team/b")],
            ['rule#1.repositories: "team/a,team/b" has a comma in it, which parts nothing: alternatives are patterns each']),
        ([rule("team/.*")],
            ['rule#1.repositories: "team/.*" has a segment .*, which matches only what begins with a dot; * matches any']),
        ([rule(refs=["refs/head/main"], deny="write")],
            ['rule#1.refs: "refs/head/main" is no branch and no tag: branches are refs/heads/..., tags refs/tags/...']),
        ([rule(refs=["refs/Heads/main"], deny="write")],
            ['rule#1.refs: "refs/Heads/main" is no branch and no tag: branches are refs/heads/..., tags refs/tags/...']),
        ([rule(refs=["refs/heads/main", "refs/tags/v1.*", "refs/for/**", "refs/notes/x"], deny="write")], []),
    ],
)  # fmt: skip
def test_rules_without_effect(tmp_path: Path, rules: list[dict[str, Any]], expected: list[str]) -> None:
    assert told(tmp_path, *rules) == expected


def test_names_without_a_key(tmp_path: Path) -> None:
    lines = told(tmp_path, rule(who="Alice core dave @core"), rule(who="@all @none", allow="write"), known=["alice", "bob"])
    assert lines == [
        'groups.all: no key is of "carol"',
        'rule#1.who: no key is of "Alice"; there is "alice"',
        'rule#1.who: no key is of "core"; the group is "@core"',
        'rule#1.who: no key is of "dave"',
    ]


def test_groups_that_no_rule_names(tmp_path: Path) -> None:
    lines = told(tmp_path, rule(who="@core"), known=GROUPS["all"])
    assert lines == ['groups.all: no rule names "@all"', 'groups.none: no rule names "@none"']


def test_repositories_to_which_no_route_leads(tmp_path: Path) -> None:
    lines = told(tmp_path, rule("taem/*"), rule("te*/**", allow="write"), routed=["team/**", "lib"])
    assert lines == ['rule#1.repositories: no route leads to a repository that "taem/*" matches']


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "access.toml").touch()
    [line] = remarks(tmp_path / "access.toml", None, None)
    assert line == f"{tmp_path}/access.toml: rule: there is none, so nobody may read or write anything"
    assert remarks(tmp_path / "none.toml", None, None) == []


REPOSITORIES = ["a", "b", "a/b", "b/a"]
IDS = [("0" * 40, "a" * 40), ("b" * 40, "a" * 40), ("a" * 40, "0" * 40)]  # create, update, delete
REFS = ["refs/heads/main", "refs/heads/x", "refs/tags/x"]

some_rules = st.lists(
    st.builds(
        lambda repositories, who, what, refs, changes: {
            "repositories": repositories,
            "who": who,
            **({"deny": "write"} if what == "deny" else {"allow": "write" if refs else what}),
            **({"refs": refs} if refs else {}),
            **({"changes": changes} if refs and changes else {}),
        },
        st.sampled_from(["**", "*", "a", "a/*", "a/**", "**/b", "*/**"]),
        st.lists(st.sampled_from(["*", "alice", "bob", "@core"]), min_size=1, max_size=2, unique=True),
        st.sampled_from(["read", "write", "deny"]),
        st.lists(st.sampled_from(["**", "refs/heads/*", "refs/heads/main", "refs/tags/**"]), max_size=2, unique=True),
        st.lists(st.sampled_from(CHANGES), max_size=2, unique=True),
    ),
    min_size=1,
    max_size=5,
)


async def decisions(path: Path, rules: list[dict[str, Any]]) -> list[list[bool]]:
    """All decisions of these rules for a few names: for each person and repository each change to each ref, and reading."""
    path.write_text(toml_text({"groups": GROUPS, "rule": rules}))
    access = FileAccess(path)
    decided: list[list[bool]] = []
    for who, repository in product(["alice", "bob", "carol"], REPOSITORIES):
        identity = Identity(name=who, fingerprint="")
        judged = []
        try:
            grant = await access.check(identity, Command(service="git-receive-pack", repository=repository), "", "")
        except Denied:
            pass
        else:
            judged = [RefJudge(grant.refs).allows(RefUpdate(ref=ref, old=old, new=new)) for ref in REFS for old, new in IDS]
        decided.append(judged)
        try:
            await access.check(identity, Command(service="git-upload-pack", repository=repository), "", "")
        except Denied:
            decided.append([])
        else:
            decided.append([False])
    await access.close()
    return decided


@given(some_rules)
def test_a_rule_without_effect_can_be_left_out(rules: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "access.toml"
        for line in told(Path(folder), *rules):
            if ": has no effect beside" in line:
                number = int(line.removeprefix("rule#").partition(":")[0])
                assert asyncio.run(decisions(path, rules)) == asyncio.run(decisions(path, rules[: number - 1] + rules[number:])), line
            if ": allows no writing" in line:
                number = int(line.removeprefix("rule#").partition(":")[0])
                denies = [one for one in rules if "deny" in one and "refs" not in one]
                assert not any(any(judged) for judged in asyncio.run(decisions(path, [rules[number - 1], *denies]))), line


def test_rules_for_what_has_moved_and_folders_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"rule": [rule("gone/x"), rule("kept/x"), rule("users/{identity}/**"), rule("users/alice/y")]}))
    lines = [
        unplaced(line).removeprefix(f"{path}: ")
        for line in remarks(path, ["alice", "a*", "b.git"], ["kept/x", "users/alice/**"], [("gone/**", 1), ("kept/**", 1)])
    ]
    assert lines == [
        'rule#1.repositories: all that "gone/x" matches has moved, must be what it is called now',
        'rule#3.repositories: matches nothing for "a*", "b.git": such a name can be no segment of a repository\'s name',
    ]
