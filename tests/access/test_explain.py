"""What `relay check --explain` says of each rule about a repository, against what FileAccess decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.access.explain import explain
from relay.access.file import load
from relay.errors import ConfigError
from relay.model import Command
from tests.support.problems import unplaced
from tests.support.toml import toml_text

RULES: list[dict[str, Any]] = [
    {"repositories": "**", "who": ["*"], "allow": "read"},
    {"repositories": "team/**", "who": ["@core", "carol"], "allow": "write"},
    {"repositories": "team/*", "refs": ["refs/heads/main"], "changes": ["delete"], "who": ["carol"], "allow": "write"},
    {"repositories": "team/app", "who": ["bob"], "deny": "write"},
    {"repositories": "other", "who": ["dave"], "allow": "write"},
]
FIRST = "rule#1: allows read for *"
SECOND = "rule#2: allows write for @core, carol"
THIRD = "rule#3: allows write of the refs refs/heads/main (delete) for carol"
FOURTH = "rule#4: denies write for bob"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"groups": {"core": ["alice", "bob"]}, "rule": RULES}))
    assert load(path)[1] == []
    return path


@pytest.mark.parametrize(
    ("who", "command", "groups", "effects"),
    [
        (
            "alice",
            Command(service="git-receive-pack", repository="team/app"),
            'is in "@core"',
            [
                "names them, for reading only",
                "applies",
                'does not name "alice", so protects these refs from them',
                'does not name "alice"',
            ],
        ),
        (
            "bob",
            Command(service="git-upload-pack", repository="team/app"),
            'is in "@core"',
            ["applies", "applies", "is about pushes only", "is about writing only"],
        ),
        (
            "carol",
            Command(service="git-receive-pack", repository="team/app"),
            "is in no group",
            ["names them, for reading only", "applies", "applies to a push of these refs", 'does not name "carol"'],
        ),
        (
            "carol",
            Command(service="git-lfs-authenticate", repository="team/app", operation="upload"),
            "is in no group",
            ["names them, for reading only", "applies", "is about pushes only", 'does not name "carol"'],
        ),
    ],
    ids=["pushes", "reads", "pushes refs", "uploads"],
)
def test_each_rule_about_the_repository_has_its_effect(path: Path, who: str, command: Command, groups: str, effects: list[str]) -> None:
    first, *lines = explain(path, who, command)
    assert first == f'{path}: "{who}" {groups}'
    said = [unplaced(line).removeprefix(f"{path}: ") for line in lines]
    assert said == [f"{rule}: {effect}" for rule, effect in zip((FIRST, SECOND, THIRD, FOURTH), effects, strict=True)]
    assert lines[0].startswith(f"{path}:{path.read_text().splitlines().index('[[rule]]') + 1}: ")


def test_a_repository_that_no_rule_is_about_and_a_file_with_a_fault(path: Path) -> None:
    command = Command(service="git-upload-pack", repository="x/y")
    path.write_text(toml_text({"rule": RULES[3:]}))
    assert explain(path, "alice", command) == [f"{path}: no rule is about this repository"]
    path.write_text(toml_text({"rule": RULES[1:]}))
    with pytest.raises(ConfigError, match="@core"):
        explain(path, "alice", command)


def test_a_folded_name_is_compared_with_folded_patterns(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"rule": [{"repositories": "Team/App", "who": ["*"], "allow": "read"}]}))
    command = Command(service="git-upload-pack", repository="team/app")
    assert len(explain(path, "alice", command)) == 1
    assert explain(path, "alice", Command(service="git-upload-pack", repository="team/app", folded=True))[1:], "it is about it"


def test_a_rule_for_the_identitys_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(toml_text({"rule": [{"repositories": "users/{identity}/**", "who": ["*"], "allow": "read"}]}))
    command = Command(service="git-upload-pack", repository="users/alice/x")
    said = {who: explain(path, who, command)[1].rpartition("for *: ")[2] for who in ("alice", "bob", "a*")}
    assert said == {
        "alice": "applies",
        "bob": 'is about {identity}\'s own repositories, and so not for "bob", whose folder it is not',
        "a*": "is about {identity}'s own repositories, and so not for \"a*\", whose name can be no folder's",
    }
