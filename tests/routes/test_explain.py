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
    lines = explain(path, Command(service="git-upload-pack", repository="team/app"), UPSTREAMS)
    assert [unplaced(line).removeprefix(f"{path}: ") for line in lines] == [
        "route#2: team/* leads to upstream main: decides",
        "route#3: ** leads to upstream old: not asked, the first one decides",
    ]
    path.write_text(toml_text({"route": routes[:1]}))
    assert explain(path, Command(service="git-upload-pack", repository="x"), UPSTREAMS) == [f"{path}: no route is about this repository"]
    path.write_text(toml_text({"route": [{**routes[0], "upstream": "gone"}]}))
    with pytest.raises(ConfigError, match="gone"):
        explain(path, Command(service="git-upload-pack", repository="x"), UPSTREAMS)
