"""Warnings about routes that are never used: only for routes that no name matches first."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from relay.git.globs import compile_glob
from relay.routes.remarks import RoutesReview, review
from tests.git.test_coverage import NAMES, patterns
from tests.support.problems import unplaced
from tests.support.toml import toml_text


def looked(folder: Path, *repositories: str, upstream: str = "main") -> RoutesReview:
    path = folder / "routes.toml"
    routes = [{"repositories": one, "upstream": upstream, "path": "{repository}"} for one in repositories]
    path.write_text(toml_text({"route": routes}))
    found = review(path, ["main", "old"])
    assert found is not None
    return RoutesReview([unplaced(line).removeprefix(f"{path}: ") for line in found.remarks], found.patterns, found.moved, found.unused)


def test_routes_behind_one_that_matches_all(tmp_path: Path) -> None:
    assert looked(tmp_path, "team/**", "team/*", "**", "lib").remarks == [
        'route#2: is never taken: route#1 matches all that "team/*" does, and comes before',
        'route#4: is never taken: route#3 matches all that "lib" does, and comes before',
    ]
    assert looked(tmp_path, "*", "*/**", "**").remarks == ['route#3: is never taken: the routes before it match all that "**" does']
    assert looked(tmp_path, "team/*", "team/**", "**").remarks == []


def test_upstreams_to_which_no_route_leads(tmp_path: Path) -> None:
    assert looked(tmp_path, "**").unused == ["old"]
    assert looked(tmp_path, "**", upstream="old").unused == ["main"]
    table = {"repositories": "**", "upstream": "main", "path": "{repository}", "read_upstream": "old"}
    (tmp_path / "routes.toml").write_text(toml_text({"route": [table]}))
    found = review(tmp_path / "routes.toml", ["main", "old"])
    assert found is not None and found.unused == [] and found.patterns == ["**"]


def test_a_new_name_to_which_no_route_leads(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    moves = [{"repositories": "old/**", "moved_to": "new/**"}, {"repositories": "a", "moved_to": "b"}]
    path.write_text(toml_text({"route": [*moves, {"repositories": "new/*/x", "upstream": "main", "path": "{repository}"}]}))
    found = review(path, ["main"])
    assert found is not None and (found.patterns, found.moved) == (["new/*/x"], [("old/**", 0), ("a", 0)])
    assert [unplaced(line) for line in found.remarks] == [f'{path}: route#2.moved_to: no route leads to "b", so nobody gets there']


def test_a_file_with_a_problem_has_no_review(tmp_path: Path) -> None:
    assert review(tmp_path / "none.toml", []) is None
    (tmp_path / "routes.toml").write_text("route = 5")
    assert review(tmp_path / "routes.toml", []) is None


@given(st.lists(patterns, min_size=1, max_size=5))
def test_no_name_reaches_a_route_that_is_reported_as_unused(several: list[str]) -> None:
    with TemporaryDirectory() as folder:
        for line in looked(Path(folder), *several).remarks:
            number = int(line.removeprefix("route#").partition(":")[0])
            compiled = [compile_glob(pattern) for pattern in several[:number]]
            assert not [name for name in NAMES if compiled[-1].fullmatch(name) and not any(one.fullmatch(name) for one in compiled[:-1])]
