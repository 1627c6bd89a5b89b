"""What `relay check --explain` says of each route about a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.model import Command
from relay.routes.explain import explain
from tests.support.problems import unplaced
from tests.support.toml import toml_text

UPSTREAMS = ["main", "old"]


def test_the_first_route_decides_and_the_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    routes = [
        {"repositories": "archive/**", "upstream": "old", "path": "/old/{repository}"},
        {"repositories": "team/*", "upstream": "main", "path": "/srv/{repository}"},
        {"repositories": "**", "upstream": "old", "path": "/old/{repository}"},
    ]
    path.write_text(toml_text({"route": routes}))
    lines = explain(path, "alice", Command(service="git-upload-pack", repository="team/app"), UPSTREAMS)
    assert [unplaced(line).removeprefix(f"{path}: ") for line in lines] == [
        "route#2: team/* leads to upstream main: decides",
        "route#3: ** leads to upstream old: not asked, the first one decides",
    ]
    own = {"repositories": "users/{identity}/**", "upstream": "main", "path": "{repository}"}
    theirs = [own, {"repositories": "old", "moved_to": "team/app"}]
    path.write_text(toml_text({"route": [*theirs, *routes]}))

    def leads(who: str, repository: str) -> list[str]:
        return [unplaced(line) for line in explain(path, who, Command(service="git-upload-pack", repository=repository), UPSTREAMS)]

    assert leads("alice", "users/alice/x")[0] == f"{path}: route#1: users/{{identity}}/** leads to upstream main: decides"
    assert leads("bob", "users/alice/x") == [f"{path}: route#5: ** leads to upstream old: decides"]
    assert leads("bob", "old")[0] == f"{path}: route#2: old has moved to team/app: decides"
    path.write_text(toml_text({"route": routes[:1]}))
    elsewhere = Command(service="git-upload-pack", repository="x")
    assert explain(path, "alice", elsewhere, UPSTREAMS) == [f"{path}: no route is about this repository"]
    path.write_text(toml_text({"route": [{**routes[0], "upstream": "gone"}]}))
    with pytest.raises(ConfigError, match="gone"):
        explain(path, "alice", Command(service="git-upload-pack", repository="x"), UPSTREAMS)
