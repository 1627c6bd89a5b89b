"""Access rules in a file: groups, patterns, order, every fault, and changes while the backend is asked."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.file import AccessRule, FileAccess, ReadableRules, load, narrowed, read_rules
from relay.errors import ConfigError, Denied
from relay.git.globs import compile_glob
from relay.git.names import fold
from relay.git.refs import RefJudge
from relay.model import Change, Command, Identity, RefUpdate
from tests.support.problems import unplaced
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
        assert str(error) in (f"no rule allows {who} to {what} {repository}", f"a rule denies {who} to {what} {repository}")
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
async def test_identities_groups_and_everyone(tmp_path: Path, who: str, what: str, repository: str, expected: bool) -> None:
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
            f"{path}:17: rules: unknown key, allowed are groups, rule",
            f'{path}:5: groups.worse: is "alice", must be a list of text',
            f'{path}:3: groups.core: "@bots" {unspeakable}',
            f'{path}:3: groups.core: "*" {unspeakable}',
            f'{path}:4: groups."a/b": the group\'s name {printable}',
            f'{path}:8: rule#1.repositories: "/team" must have no slash at its ends and no two in a row',
            f'{path}:9: rule#1.who: "@cor" is no group, the groups are "@core", "@a/b", "@worse"',
            f'{path}:9: rule#1.who: "a?b" {printable}',
            f"{path}:15: rule#2.alow: unknown key, allowed are repositories, who, allow, deny, refs, changes",
            f"{path}:14: rule#2.who: is an empty list, must be a list of text, at least 1"
            " (identities, @groups, or * for everyone who authenticated)",
            f'{path}:12: rule#2.allow: is missing, must be one of "read", "write"; or deny must be "write"',
        ]
    )


def test_a_group_without_any_groups(tmp_path: Path) -> None:
    path = write(tmp_path, '[[rule]]\nrepositories = "**"\nwho = ["@core"]\nallow = "read"\n')
    assert load(path)[1] == [f'{path}:3: rule#1.who: "@core" is no group, there is no [groups] table']


def test_a_missing_or_invalid_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"access.toml: is missing"):
        FileAccess(tmp_path / "access.toml")
    with pytest.raises(ConfigError, match=r"access.toml:1: .*must be TOML"):
        FileAccess(write(tmp_path, "[[rule"))


async def test_a_change_takes_effect_and_a_faulty_one_allows_nothing_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, RULES)
    access = FileAccess(path, look_seconds=0)
    assert await may(access, "alice", "write", "team/app")
    path.write_text(RULES.replace("@core", "@cor"))
    assert await may(access, "alice", "write", "team/app")
    assert len(caplog.messages) == 1
    assert '"@cor" is no group' in caplog.messages[0]
    path.write_text(RULES.replace("alice", "alicf"))
    assert not await may(access, "alice", "write", "team/app")
    path.write_text("")  # removes all rules at once
    assert not await may(access, "dave", "read", "public/a")
    await access.close()


OPEN = """
[groups]
core = ["alice", "bob"]
bots = ["ci"]
"""
CORE = '[[rule]]\nrepositories = "team/*"\nwho = ["@core", "erin"]\nallow = "write"\n'
BOTS = '[[rule]]\nrepositories = "team/**"\nwho = ["@bots", "carol"]\nallow = "read"\n'
MAIN = '[[rule]]\nrepositories = "team/*"\nwho = ["bob"]\nallow = "write"\nrefs = ["refs/heads/main"]\n'
FROZEN = '[[rule]]\nrepositories = "team/old"\nwho = ["*"]\ndeny = "write"\n'
FAULTS = {  # further faults of a file from which a right was removed
    "a group that is none": '[[rule]]\nrepositories = "x"\nwho = ["@none"]\nallow = "read"\n',
    "a key that is none": '[[rule]]\nrepositories = "x"\nwho = ["carol"]\nallow = "read"\nhow = 1\n',
    "a pattern that is none": '[[rule]]\nrepositories = "/x/"\nwho = ["carol"]\nallow = "read"\n',
    "no repositories": '[[rule]]\nwho = ["*"]\nallow = "write"\n',
    "an access that is none": '[[rule]]\nrepositories = "x"\nwho = ["carol"]\nallow = "admin"\n',
    "who is no list": '[[rule]]\nrepositories = "x"\nwho = "carol"\nallow = "read"\n',
    "a rule that is no table": "rule = 1\n",
}


async def pushes(access: FileAccess, who: str, ref: str) -> bool:
    command = Command(service="git-receive-pack", repository="team/app")
    try:
        grant = await access.check(Identity(name=who, fingerprint=""), command, "", "")
    except Denied:
        return False
    return RefJudge(grant.refs).allows(RefUpdate(old="0" * 40, new="1" * 40, ref=ref))


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "a rule that is no table"])
async def test_a_removed_rule_is_removed_at_once_even_if_the_file_has_a_fault(tmp_path: Path, fault: str) -> None:
    path = write(tmp_path, OPEN + CORE + BOTS)
    access = FileAccess(path, look_seconds=0)
    new = '[[rule]]\nrepositories = "**"\nwho = ["dave"]\nallow = "write"\n'
    for groups, rules, gone, still in (
        (OPEN.replace('"alice", ', ""), CORE + BOTS, "alice", "bob"),  # from a group
        (OPEN.replace('"alice", ', ""), CORE.replace(', "erin"', "") + BOTS, "erin", "bob"),  # from a rule
        (OPEN.replace('"alice", ', ""), BOTS, "bob", "carol"),  # the rule
    ):
        assert await may(access, gone, "read", "team/app")
        path.write_text(groups + rules + FAULTS[fault] + new)
        assert not await may(access, gone, "read", "team/app")
        assert await may(access, still, "read", "team/app")
        assert not await may(access, "dave", "read", "team/app"), "nothing new is allowed"
    path.write_text(OPEN + CORE + BOTS + new)
    assert await may(access, "alice", "write", "team/app") and await may(access, "dave", "write", "team/app")
    await access.close()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_narrower_rule_applies_at_once_even_if_the_file_has_a_fault(tmp_path: Path, fault: str) -> None:
    path = write(tmp_path, OPEN + CORE + BOTS)
    access = FileAccess(path, look_seconds=0)
    if fault == "a rule that is no table":  # the rules cannot be read
        path.write_text(OPEN.replace('"alice", ', "").replace("[groups]", "rule = 1\n[groups]"))
        assert await may(access, "alice", "write", "team/app")
        await access.close()
        return
    path.write_text(OPEN + CORE.replace('"write"', '"read"') + BOTS + FAULTS[fault])
    assert await may(access, "alice", "read", "team/app") and not await may(access, "alice", "write", "team/app")
    path.write_text(OPEN + CORE + BOTS)
    assert await may(access, "alice", "write", "team/old")
    path.write_text(OPEN + CORE + BOTS + FROZEN + MAIN + FAULTS[fault])
    assert not await may(access, "alice", "write", "team/old"), "a rule that denies"
    assert not await pushes(access, "alice", "refs/heads/main"), "a rule that protects"
    assert await pushes(access, "alice", "refs/heads/topic")
    assert not await pushes(access, "bob", "refs/heads/main"), "what it newly allows must wait"
    await access.close()


@pytest.mark.parametrize("broken", ['refs = ["main"]', 'rfs = ["refs/heads/main"]', "refs = []", 'refs = "refs/heads/main"'])
async def test_a_fault_in_a_rule_that_protects_or_denies_allows_nothing(tmp_path: Path, broken: str) -> None:
    path = write(tmp_path, OPEN + CORE + MAIN + FROZEN)
    access = FileAccess(path, look_seconds=0)
    assert await pushes(access, "bob", "refs/heads/main") and not await pushes(access, "alice", "refs/heads/main")
    path.write_text(OPEN + CORE + MAIN.replace('refs = ["refs/heads/main"]', broken) + FROZEN.replace("deny", "dny"))
    assert not await pushes(access, "alice", "refs/heads/main")
    assert await pushes(access, "bob", "refs/heads/main"), "a rule with a fault is compared with the one that it came from"
    assert not await may(access, "alice", "write", "team/old")
    await access.close()


async def test_an_invalid_or_missing_file_leaves_the_rules_as_they_were(tmp_path: Path) -> None:
    path = write(tmp_path, OPEN + CORE)
    access = FileAccess(path, look_seconds=0)
    path.write_text("[[rule\n" + BOTS)
    assert await may(access, "alice", "write", "team/app")
    path.unlink()
    assert await may(access, "alice", "write", "team/app")
    assert access._rules.problems == [f"{path}: is missing, must be a TOML file"]
    await access.close()


def test_a_thousand_rules_are_narrowed_in_one_step_each() -> None:
    rule = AccessRule(compile_glob("team/*"), False, frozenset({"alice"}), "write")
    many = tuple(rule._replace(repositories=re.compile(f"team/{number}")) for number in range(20_000))
    assert len(narrowed(many, ReadableRules(many[1:], (), {}, True))) == 19_999


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
    """A whole rule: only a rule with refs may name changes, and only one without refs may allow just reading."""
    rule = {name: value for name, value in rule.items() if name != "changes" or "refs" in rule}
    if verb == "read" and "refs" not in rule:
        return {**rule, "allow": "read"}
    return {**rule, "deny": "write"} if verb == "deny" else {**rule, "allow": "write"}


def matching(pattern: str, name: str) -> bool:
    """A matcher for the patterns above only."""
    return pattern == "**" or name == pattern or (pattern[-1] == "*" and name.startswith(pattern.rstrip("*")))


def table_says(rules: list[dict[str, Any]], who: str, repository: str, ref: str, change: Change) -> bool:
    """The decision by the table of docs/backends.md, line by line."""
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
                    assert RefJudge(grant.refs).allows(RefUpdate(ref=ref, old=old, new=new)) is may_write, (who, repository, ref, change)
        await access.close()

    asyncio.run(ask())


async def test_a_rule_with_refs_neither_reads_nor_uploads(tmp_path: Path) -> None:
    access = FileAccess(write(tmp_path, '[[rule]]\nrepositories = "**"\nwho = ["alice"]\nallow = "write"\nrefs = ["refs/heads/docs/**"]\n'))
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
        ('allow = "write"\ndeny = "write"', "rule#1.deny: is set beside allow, must be one of the two"),
        ('deny = "read"', 'rule#1.deny: is "read", must be one of "write"'),
        ('allow = "read"\nrefs = ["refs/heads/main"]', 'rule#1.allow: is "read" beside refs, must be "write"'),
        ('allow = "write"\nrefs = []', "rule#1.refs: is an empty list, must be a list of text, at least 1"),
        ('allow = "write"\nrefs = ["main"]', 'rule#1.refs: "main" must be the whole name, as in refs/heads/main'),
        ('allow = "write"\nrefs = ["refs/heads//x"]', "no two in a row"),
        ('allow = "write"\nchanges = ["delete"]', "rule#1.changes: is set without refs"),
        ('allow = "write"\nrefs = ["**"]\nchanges = ["force"]', 'rule#1.changes: item 1 is "force", must be one of'),
    ],
)
def test_an_invalid_rule_for_refs(tmp_path: Path, rule: str, wrong: str) -> None:
    path = write(tmp_path, f'[[rule]]\nrepositories = "**"\nwho = ["alice"]\n{rule}\n')
    [line] = load(path)[1]
    assert unplaced(line).startswith(f"{path}: rule#1.") and wrong in line


@pytest.mark.parametrize("pattern", ["team/App", "TEAM/*", "team/Gro\u0308ße", "**/A*"])
async def test_a_rule_about_a_name_is_about_its_folded_one_too(tmp_path: Path, pattern: str) -> None:
    """If a git host ignores case, a denied name stays denied in the folded spelling that the host gets."""
    name = fold(pattern.replace("**", "team").replace("*", "app"))
    allow = '[[rule]]\nrepositories = "**"\nwho = ["*"]\nallow = "write"\n'
    access = FileAccess(write(tmp_path, f'{allow}[[rule]]\nrepositories = "{pattern}"\nwho = ["*"]\ndeny = "write"\n'))
    for folded, denied in ((False, False), (True, True)):
        command = Command(service="git-receive-pack", repository=name, folded=folded)
        try:
            await access.check(Identity(name="alice", fingerprint=""), command, "", "")
        except Denied:
            assert denied
        else:
            assert not denied
    await access.close()


def test_a_pattern_that_no_folded_name_fits_is_refused_where_all_names_are_folded(tmp_path: Path) -> None:
    rules = '[[rule]]\nrepositories = "team/App"\nwho = ["*"]\ndeny = "write"\nrefs = ["refs/heads/MAIN"]\n'
    path = write(tmp_path, rules)
    assert read_rules(path)[1] == []
    why = "with ignore_case names are folded, to lower case and composed, before they are matched"
    assert read_rules(path, folded=True)[1] == [
        f'{path}:2: rule#1.repositories: "team/App" must be "team/app": {why}',
        f'{path}:5: rule#1.refs: "refs/heads/MAIN" must be "refs/heads/main": {why}',
    ]
    with pytest.raises(ConfigError):
        FileAccess(path, folded=True)


# -- {identity} ----------------------------------------------------------------------------------------------------------------

OWN = """
[[rule]]
repositories = "users/{identity}/**"
who = ["*"]
allow = "write"

[[rule]]
repositories = "users/**"
who = ["admin"]
allow = "write"

[[rule]]
repositories = "users/{identity}/**"
refs = ["refs/heads/main"]
who = ["*"]
allow = "write"

[[rule]]
repositories = "team"
who = ["*"]
allow = "write"

[[rule]]
repositories = "team"
refs = ["refs/heads/users/{identity}/**"]
who = ["*"]
allow = "write"
"""


async def own_grant(access: FileAccess, who: str, repository: str, *, service: Any = "git-upload-pack", folded: bool = False) -> Any:
    command = Command(service=service, repository=repository, folded=folded)
    try:
        return await access.check(Identity(name=who, fingerprint=""), command, "", "")
    except Denied:
        return None


async def test_everybody_has_a_folder_of_their_own_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(OWN)
    access = FileAccess(path)
    for service in ("git-upload-pack", "git-receive-pack"):
        assert await own_grant(access, "alice", "users/alice/x", service=service)
    for who in ("bob", "*", "**", "..", "alice/x", "ALICE", "alic*", "{identity}", "alice.git", "-", "[a]lice"):
        assert await own_grant(access, who, "users/alice/x") is None, who
        assert await own_grant(access, who, f"users/{who}/x") is None or who in ("bob", "ALICE"), who
    assert await own_grant(access, "admin", "users/alice/x")
    assert await own_grant(access, "Alice", "users/alice/x", folded=True) is None
    assert await own_grant(access, "alice", "users/alice/x", folded=True)
    await access.close()


async def own_pushes(access: FileAccess, who: str, repository: str, ref: str) -> bool:
    grant = await own_grant(access, who, repository, service="git-receive-pack")
    return grant is not None and RefJudge(grant.refs).allows(RefUpdate(ref=ref, old="0" * 40, new="1" * 40))


async def test_refs_of_the_identitys_own_are_protected_from_others(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(OWN)
    access = FileAccess(path)
    assert await own_pushes(access, "alice", "users/alice/x", "refs/heads/main")
    assert not await own_pushes(access, "admin", "users/alice/x", "refs/heads/main")
    assert await own_pushes(access, "admin", "users/alice/x", "refs/heads/topic")
    assert await own_pushes(access, "alice", "team", "refs/heads/users/alice/topic")
    assert await own_pushes(access, "alice", "team", "refs/heads/topic")
    for who in ("bob", "*", "a*", "x.lock", ".."):
        assert not await own_pushes(access, who, "team", "refs/heads/users/alice/topic"), who
    assert await own_pushes(access, "x.lock", "team", "refs/heads/topic")
    await access.close()


@pytest.mark.parametrize("pattern", ["users/{id}/**", "users/{identity}x/**", "{repository}", "users/{identity", "x{identity}"])
def test_other_braces_stay_refused(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"rule": [{"repositories": pattern, "who": ["*"], "allow": "read"}]}))
    [problem] = load(path)[1]
    assert "rule#1.repositories" in problem and ("must not have {" in problem or "alone between slashes" in problem)


def test_a_rule_for_everybodys_folder_is_not_one_for_all_folders_when_a_file_with_a_fault_is_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"rule": [{"repositories": "users/{identity}/**", "who": ["*"], "allow": "write"}]}))
    before = read_rules(path)[0].rules
    path.write_text(toml_text({"rule": [{"repositories": "users/*/**", "who": ["*"], "allow": "write"}, {"repositories": "x", "who": []}]}))
    now, problems = read_rules(path)
    assert problems and not any(rule.allow for rule in narrowed(before, now))


async def test_the_groups_of_an_identity_are_in_doubt_while_the_file_has_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    rule = {"repositories": "**", "who": ["*"], "allow": "read"}
    path.write_text(toml_text({"groups": {"ops": ["alice"], "bots": ["ci"]}, "rule": [rule]}))
    access = FileAccess(path, look_seconds=0)
    assert await access.groups_of("alice") == ({"ops"}, {"ops"})
    assert await access.groups_of("nobody") == (set(), set())
    path.write_text(toml_text({"groups": {"ops": [], "bots": ["ci", "alice"]}, "rule": [{**rule, "who": ["@none"]}]}))
    assert await access.groups_of("alice") == ({"ops", "bots"}, set())
    assert await access.groups_of("ci") == ({"bots"}, {"bots"})
    path.write_text("no toml")
    assert await access.groups_of("alice") == ({"ops"}, {"ops"}), "of what cannot be read at all nothing is known"
    path.write_text(toml_text({"groups": {"bots": ["alice"]}, "rule": [rule]}))
    assert await access.groups_of("alice") == ({"bots"}, {"bots"})
    await access.close()
