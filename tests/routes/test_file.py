"""Routes in a file: the first match wins, every fault, and changes while the backend is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError, Denied
from relay.model import Command, Identity, Route
from relay.routes.file import FileRoutes, load, read_routes
from relay.text import CLIENT_TEXT_BYTES
from tests.support.toml import toml_text

ROUTES = """
[[route]]
repositories = "team/secret"
upstream = "vault"
path = "secret.git"

[[route]]
repositories = "team/**"
upstream = "main"
path = "/srv/{repository}.git"

[[route]]
repositories = "*"
upstream = "main"
path = "{repository}/{repository}"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "routes.toml"
    path.write_text(text)
    return path


async def find(routes: FileRoutes, repository: str) -> Route:
    return await routes.find(Command(service="git-upload-pack", repository=repository), Identity(name="a", fingerprint=""))


async def test_the_first_match_wins_and_the_name_is_put_in(tmp_path: Path) -> None:
    routes = FileRoutes(write(tmp_path, ROUTES), ["main", "vault"])
    assert await find(routes, "team/secret") == Route(upstream="vault", path="secret.git")
    assert await find(routes, "team/a/b") == Route(upstream="main", path="/srv/team/a/b.git")
    assert await find(routes, "solo") == Route(upstream="main", path="solo/solo")
    with pytest.raises(Denied, match="no route leads to x/y"):
        await find(routes, "x/y")
    await routes.close()


async def test_a_name_that_looks_like_a_placeholder_is_put_in_once(tmp_path: Path) -> None:
    routes = FileRoutes(write(tmp_path, ROUTES), ["main", "vault"])
    assert (await find(routes, "team/{repository}")).path == "/srv/team/{repository}.git"
    await routes.close()


def test_every_problem_is_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [[route]]
        repositories = "team**"
        upstream = "mian"
        path = "/srv/{repo}.git"

        [[route]]
        repositories = "team/*"
        upstream = "main"
        path = "/srv/all.git"

        [[route]]
        repositories = "a"
        upstream = "main"
        path = "-x\\u0007"

        [[route]]
        upstrem = "main"
        """,
    )
    targets, problems = load(path, ["main", "archive"])
    assert targets == ()
    assert sorted(problems) == sorted(
        [
            f"{path}:18: route#4.upstrem: unknown key, allowed are repositories, upstream, path, moved_to, read_upstream, "
            "read_fallback, read_only, notice",
            f"{path}:17: route#4.repositories: is missing, must be text (* within one path segment, ** across, "
            "{identity} for the name of who asks)",
            f"{path}:17: route#4.upstream: is missing, must be there; or moved_to must be, with the name that the repository has now",
            f"{path}:17: route#4.path: is missing, must be there; or moved_to must be, with the name that the repository has now",
            f'{path}:3: route#1.repositories: "team**" must have ** alone between slashes, as in team/**',
            f'{path}:4: route#1.upstream: is "mian", the upstreams are "archive", "main"',
            f"{path}:5: route#1.path: has braces besides {{repository}} and {{identity}}, which are the only placeholders that are allowed",
            f'{path}:10: route#2.path: is the same for all of "team/*", must have {{repository}} in it',
            f"{path}:15: route#3.path: has control characters, must have none",
            f"{path}:15: route#3.path: begins with a hyphen, which git would take for an option; must begin with another character",
        ]
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty, must say why"),
        ("two\\nlines", "has control characters, must have none"),
        ("x" * (CLIENT_TEXT_BYTES + 1), f"has {CLIENT_TEXT_BYTES + 1} bytes, at most {CLIENT_TEXT_BYTES} are allowed"),
    ],
)
def test_the_text_of_a_read_only_route_must_be_one_that_clients_can_read(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path, ROUTES + f'read_only = "{text}"\n')
    assert load(path, ["main", "vault"])[1] == [f"{path}:16: route#3.read_only: {fault}"]


def test_read_upstream_must_be_another_configured_upstream(tmp_path: Path) -> None:
    path = write(tmp_path, ROUTES + 'read_upstream = "main"\n')
    assert load(path, ["main", "vault"])[1] == [f'{path}:16: route#3.read_upstream: is "main" as upstream, must be another or be left out']
    path = write(tmp_path, ROUTES + 'read_upstream = "copies"\n')
    assert load(path, ["main", "vault"])[1] == [f'{path}:16: route#3.read_upstream: is "copies", the upstreams are "main", "vault"']


def test_no_route_at_all_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "# nothing yet\n")
    assert load(path, ["main"])[1] == [f"{path}: route: is missing, must be tables: [[route]], at least 1"]


def test_without_upstreams_their_names_are_not_checked(tmp_path: Path) -> None:
    assert load(write(tmp_path, ROUTES), [])[1] == []


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"routes.toml: is missing"):
        FileRoutes(tmp_path / "routes.toml", ["main"])


async def test_a_change_takes_effect_and_a_faulty_one_allows_nothing_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, ROUTES)
    routes = FileRoutes(path, ["main", "vault"], look_seconds=0)
    path.write_text(ROUTES.replace('"vault"', '"vaults"'))
    assert (await find(routes, "team/secret")).upstream == "vault"
    assert len(caplog.messages) == 1
    assert 'route#1.upstream: is "vaults", the upstreams are "main", "vault"' in caplog.messages[0]
    path.write_text(ROUTES.replace('"vault"', '"main"'))
    assert (await find(routes, "team/secret")).upstream == "main"
    await routes.close()


@pytest.mark.parametrize(
    "fault",
    [
        '[[route]]\nrepositories = "x"\nupstream = "none"\npath = "x"\n',
        '[[route]]\nupstream = "main"\npath = "x"\n',
        '[[route]]\nrepositories = "x"\nupstream = "main"\npath = "x"\nhow = 1\n',
        '[[route]]\nrepositories = "/"\nupstream = "main"\npath = "x"\n',
        "[other]\n",
    ],
)
async def test_a_removed_route_is_denied_at_once_even_if_the_file_has_a_fault(tmp_path: Path, fault: str) -> None:
    path = write(tmp_path, ROUTES)
    routes = FileRoutes(path, ["main", "vault"], look_seconds=0)
    rest = ROUTES.split("[[route]]", 2)[2]
    new = '[[route]]\nrepositories = "a/b"\nupstream = "main"\npath = "y"\n'
    path.write_text("[[route]]" + rest + new + fault)
    with pytest.raises(Denied):
        await find(routes, "team/secret")  # not found by the next route, to another git host
    assert (await find(routes, "team/app")).path == "/srv/team/app.git"
    with pytest.raises(Denied):
        await find(routes, "a/b")
    path.write_text("[[route]]" + rest + new)
    assert (await find(routes, "team/secret")).upstream == "main"
    assert (await find(routes, "a/b")).path == "y"
    await routes.close()


texts = st.text(max_size=12) | st.sampled_from(["**", "a/*", "main", "/srv/{repository}", "{", "-"])
route = st.dictionaries(st.sampled_from(["repositories", "upstream", "path", "x"]), texts | st.lists(texts, max_size=2))


@given(st.lists(route, min_size=1, max_size=3))
def test_any_table_is_routes_or_problems_in_words(tmp_path_factory: pytest.TempPathFactory, tables: list[dict[str, object]]) -> None:
    path = write(tmp_path_factory.mktemp("any"), toml_text({"route": tables}))
    targets, problems = load(path, ["main"])
    assert bool(targets) != bool(problems)
    assert all(line.isprintable() and line.startswith(f"{path}:") for line in problems)


def test_a_route_to_an_upstream_that_ignores_case_is_of_folded_names(tmp_path: Path) -> None:
    route = '[[route]]\nrepositories = "Team/*"\nupstream = "%s"\npath = "{repository}"\n'
    path = write(tmp_path, route % "main" + route % "old")
    assert read_routes(path, ["main", "old"])[1] == []
    why = "with ignore_case names are folded, to lower case and composed, before they are matched"
    assert read_routes(path, ["main", "old"], ["old"])[1] == [f'{path}:6: route#2.repositories: "Team/*" must be "team/*": {why}']


# -- repositories that have moved, and {identity} ------------------------------------------------------------------------------

MOVED = """
[[route]]
repositories = "team/old"
moved_to = "team/new"

[[route]]
repositories = "gone/**"
moved_to = "group/**"

[[route]]
repositories = "users/{identity}/**"
upstream = "main"
path = "/home/{identity}/{repository}"

[[route]]
repositories = "**"
upstream = "main"
path = "{repository}"
"""


async def test_a_repository_that_has_moved_has_its_new_name_and_no_path(tmp_path: Path) -> None:
    routes = FileRoutes(write(tmp_path, MOVED), ["main"])
    assert await find(routes, "team/old") == Route(moved_to="team/new")
    assert await find(routes, "gone/x/y") == Route(moved_to="group/x/y")
    assert await find(routes, "team/new") == Route(upstream="main", path="team/new")
    await routes.close()


async def test_a_route_of_the_identitys_own_is_for_nobody_else(tmp_path: Path) -> None:
    routes = FileRoutes(write(tmp_path, MOVED), ["main"])
    for who, repository, path in (
        ("a", "users/a/x", "/home/a/users/a/x"),
        ("b", "users/a/x", "users/a/x"),
        ("*", "users/a/x", "users/a/x"),
        ("..", "users/a/x", "users/a/x"),
    ):
        found = await routes.find(Command(service="git-upload-pack", repository=repository), Identity(name=who, fingerprint=""))
        assert found.path == path
    folded = Command(service="git-upload-pack", repository="users/a/x", folded=True)
    assert (await routes.find(folded, Identity(name="A", fingerprint=""))).path == "users/a/x"
    await routes.close()


def moves(*pairs: tuple[str, str], before: str = "") -> str:
    lead = f'[[route]]\nrepositories = "{before}"\nupstream = "main"\npath = "{{repository}}"\n' if before else ""
    return lead + "".join(f'[[route]]\nrepositories = "{old}"\nmoved_to = "{new}"\n' for old, new in pairs)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (moves(("a", "b"), ("b", "c")), 'route#1.moved_to: "b" has moved itself by route#2, must be the name that it has now'),
        (moves(("b", "c"), ("a", "b")), 'route#2.moved_to: "b" has moved itself by route#1'),
        (moves(("a", "b"), ("b", "a")), 'route#1.moved_to: "b" has moved itself by route#2'),
        (moves(("a/**", "b/**"), ("b/x", "c")), 'route#1.moved_to: "b/**" has moved itself by route#2'),
        (moves(("x", "old/app"), ("old/**", "new/**")), 'route#1.moved_to: "old/app" has moved itself by route#2'),
        (moves(("team/**", "team/attic/**")), 'route#1.moved_to: "team/attic/**" lies within "team/**" itself, which would move for ever'),
        (moves(("u/{identity}/**", "x/**"), ("y", "u/a/b")), 'route#2.moved_to: "u/a/b" has moved itself by route#1'),
        (moves(("a", "a")), 'route#1.moved_to: "a" is the name that it has in repositories'),
        ('[[route]]\nrepositories = "a"\n', "route#1.upstream: is missing, must be there; or moved_to must be"),
        (moves(("a", "b")) + 'path = "x"\n', "route#1.path: is set beside moved_to, must be left out"),
        (moves(("a", "b")) + 'read_only = "x"\n', "route#1.read_only: is set beside moved_to, must be left out"),
    ],
)
def test_moves_that_lead_nowhere_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    _, problems = load(write(tmp_path, text), ["main"])
    assert any(problem in line for line in problems), problems


@pytest.mark.parametrize(
    "text",
    [
        moves(("a", "b"), ("c", "b")),
        moves(("team/**", "team/attic/**"), before="team/attic/**"),
        moves(("x", "old/app"), ("old/**", "new/**"), before="old/app"),
    ],
)
def test_moves_that_end_are_accepted(tmp_path: Path, text: str) -> None:
    assert load(write(tmp_path, text), ["main"])[1] == []


def test_ten_thousand_moves_are_compared_in_a_moment(tmp_path: Path) -> None:
    found, problems = load(write(tmp_path, moves(*((f"old/{one}", f"new/{one}") for one in range(10_000)))), ["main"])
    assert len(found) == 10_000 and problems == []
