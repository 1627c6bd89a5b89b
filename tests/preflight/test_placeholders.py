"""Values that an example left to its reader: one line for each, in place of what only follows from it."""

from __future__ import annotations

from tests.preflight.helpers import Setup

LEFT = "still has the placeholder REPLACE-ME of an example, must have your own value instead"


def test_a_placeholder_is_one_line_and_what_follows_from_it_none(setup: Setup) -> None:
    (setup.folder / "access.toml").write_text('[[rule]]\nrepositories = "**"\nwho = ["@REPLACE-ME"]\nallow = "read"\n')
    problems = setup.problems(listen=["REPLACE-ME"], workers="two")
    assert problems[:2] == [f"relay.toml: {LEFT}", f"access.toml: {LEFT}"]
    assert [line.partition(",")[0] for line in problems[2:]] == ['relay.toml: workers: is "two"']


def test_what_has_nothing_to_do_with_a_placeholder_is_told_as_well(setup: Setup) -> None:
    (setup.folder / "keys" / "bob.pub").write_text("REPLACE-ME\n")
    (setup.folder / "upstream_ed25519").unlink()
    problems = setup.problems()
    assert problems[0] == f"keys/bob.pub:1: {LEFT}"
    assert len(problems) == 2 and problems[1].startswith("relay.toml: upstreams.main.private_key: upstream_ed25519 is missing")
