"""Decoding TOML into structs: all faults at once, in plain text, with the same verdict as msgspec."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, field

from relay.config import Config, Table
from relay.config.toml import TOML_FILE_BYTES, Places, Problems, TomlFault, below, decode, read
from relay.errors import ConfigError
from relay.text import plain, quoted


class Local(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="local"):
    path: str = "here"


class Remote(Table, frozen=True, forbid_unknown_fields=True, tag_field="source", tag="remote"):
    url: str
    wait_seconds: Annotated[float, Meta(gt=0, le=60)] = 5


class Row(Table, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=3)]
    side: Literal["left", "right"] = "left"


class Sheet(Table, frozen=True, forbid_unknown_fields=True):
    rows: Annotated[list[Row], Meta(min_length=1)]
    size: Annotated[int, Meta(ge=1, le=9)] = 1
    share: Annotated[float, Meta(ge=0)] = 0.5
    grace_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 30
    buffer_bytes: Annotated[int, Meta(ge=1)] = 4
    on: bool = True
    word: Annotated[str, Meta(pattern="^[a-z]+$")] = "a"
    words: list[Annotated[str, Meta(description="a word of the language")]] = field(default_factory=list)
    maybe: str | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    place: Local | Remote = field(default_factory=Local)


GOOD: dict[str, Any] = {"rows": [{"name": "a"}]}


def faults_of(**changes: Any) -> list[tuple[str, str]]:
    faults: list[TomlFault] = []
    decode(Sheet, {**GOOD, **changes}, faults)
    return [(fault.key, fault.text) for fault in faults]


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"size": 0}, "size", "is 0, must be a whole number from 1 to 9"),
        ({"size": 1.0}, "size", "is 1.0, must be a whole number from 1 to 9"),
        ({"size": True}, "size", "is true, must be a whole number from 1 to 9"),
        ({"size": 10**100}, "size", "is a very large number, must be a whole number from 1 to 9"),
        ({"share": -0.1}, "share", "is -0.1, must be a number from 0 on"),
        ({"grace_seconds": -3}, "grace_seconds", "is -3, must be a number of seconds above 0 and at most 86400"),
        ({"grace_seconds": math.nan}, "grace_seconds", "is nan, must be a number of seconds above 0 and at most 86400"),
        ({"grace_seconds": math.inf}, "grace_seconds", "is inf, must be a number of seconds above 0 and at most 86400"),
        ({"grace_seconds": "30"}, "grace_seconds", 'is "30", must be a number of seconds above 0 and at most 86400'),
        ({"buffer_bytes": 0}, "buffer_bytes", "is 0, must be a whole number of bytes from 1 on"),
        ({"on": 1}, "on", "is 1, must be true or false"),
        ({"on": "yes"}, "on", 'is "yes", must be true or false'),
        ({"word": ""}, "word", 'is "", must be text that matches ^[a-z]+$'),
        ({"word": "a\n"}, "word", 'is "a?", must be text that matches ^[a-z]+$'),
        ({"word": datetime.date(2026, 1, 2)}, "word", "is a date or time (2026-01-02), must be text that matches ^[a-z]+$"),
        ({"words": "a"}, "words", 'is "a", must be a list of text (a word of the language)'),
        ({"words": ["a", 5]}, "words", "item 2 is 5, must be text (a word of the language)"),
        ({"maybe": []}, "maybe", "is an empty list, must be text"),
        ({"groups": ["a"]}, "groups", "is a list of 1, must be tables: [groups.NAME]"),
        ({"groups": {"a": ["x", 1]}}, "groups.a", "item 2 is 1, must be text"),
        ({"groups": {"a b\n": 1}}, 'groups."a b?"', "is 1, must be a list of text"),
        ({"rows": []}, "rows", "is an empty list, must be tables: [[rows]], at least 1"),
        ({"rows": [{"name": "a"}, {"name": "long"}]}, "rows#2.name", 'is "long", must be text of 1 to 3 characters'),
        ({"rows": [{"side": "left"}]}, "rows#1.name", "is missing, must be text of 1 to 3 characters"),
        ({"rows": [{"name": "a", "side": "up"}]}, "rows#1.side", 'is "up", must be one of "left", "right"'),
        ({"rows": [{"name": "a", "sid": 1}]}, "rows#1.sid", "unknown key, allowed are name, side"),
        ({"rows": [5]}, "rows#1", "is 5, must be a table: [rows#1]"),
        ({"place": "local"}, "place", 'is "local", must be a table: [place]'),
        ({"place": {"source": "moon"}}, "place.source", 'is "moon", allowed are "local", "remote"'),
        ({"place": {"source": 1}}, "place.source", 'is 1, allowed are "local", "remote"'),
        ({"place": {"url": "x"}}, "place.url", "unknown key, allowed are source, path"),
        ({"place": {"source": "remote"}}, "place.url", "is missing, must be text"),
        ({"sise": 1}, "sise", f"unknown key, allowed are {', '.join(Sheet.__struct_fields__)}"),
    ],
)
def test_a_fault_is_explained_in_words(changes: dict[str, Any], key: str, text: str) -> None:
    assert faults_of(**changes) == [(key, text)]


def test_all_faults_at_once_and_the_rest_is_still_read() -> None:
    faults: list[TomlFault] = []
    sheet = decode(Sheet, {"rows": [{"name": ""}, {"name": "b"}], "size": 99, "on": False, "what": 1}, faults)
    assert {fault.key for fault in faults} == {"rows#1.name", "size", "what"}
    assert (sheet.rows[1].name, sheet.size, sheet.on) == ("b", 1, False)


def test_the_source_chooses_the_table_and_the_default_stands_in_when_left_out() -> None:
    faults: list[TomlFault] = []
    assert decode(Sheet, {**GOOD, "place": {"source": "remote", "url": "x"}}, faults).place == Remote(url="x")
    assert decode(Sheet, {**GOOD, "place": {"path": "there"}}, faults).place == Local(path="there")
    assert decode(Sheet, {**GOOD, "share": 1}, faults).share == 1.0
    assert faults == []


# -- against msgspec -----------------------------------------------------------------------------------------------------

_values = st.sampled_from(
    [
        *(-1, 0, 1, 2, 65_536, 10**7, 0.5, math.nan, math.inf, True, False, datetime.date(2026, 1, 1)),
        *("", "git", "x y", "off", "file", "-", "10.0.0.5:22"),
        *([], ["a"], ["a", ""], [1], {}, {"a": 1}, {"path": "x"}, {"source": "file"}, {"level": "info"}),
    ]
)
_upstream = st.dictionaries(
    st.sampled_from(["addresses", "user", "known_hosts", "host_keys", "idle_seconds", "connections_max", "send_identity", "port"]), _values
)
_limits = st.dictionaries(st.sampled_from(["login_grace_seconds", "auth_attempts", "buffer_bytes", "drain_seconds", "x"]), _values)
_config = st.fixed_dictionaries(
    {"upstreams": st.dictionaries(st.sampled_from(["main", "a b"]), _upstream | _values, max_size=2) | _values},
    optional={
        "user": _values,
        "listen": _values,
        "workers": _values,
        "limits": _limits | _values,
        "keys": _values,
        "log": _values,
        "proxy_protocol": _values,
        "what": _values,
    },
)


@given(_config)
@example({"upstreams": {}, "keys": {}})
def test_the_verdict_is_msgspecs(table: dict[str, Any]) -> None:
    faults: list[TomlFault] = []
    value = decode(Config, table, faults)
    if isinstance(keys := table.get("keys"), dict):  # the default source, which msgspec does not fill in
        table = {**table, "keys": {"source": "file", **keys}}
    try:
        expected = msgspec.convert(table, Config)
    except msgspec.ValidationError:
        assert faults
    else:
        assert faults == []
        assert value == expected


# -- files ---------------------------------------------------------------------------------------------------------------


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "sheet.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("size = 1\nrows = [\n", "3: Invalid value at the end of the file, must be TOML"),
        ("size = 1\nsize = 2\n", "2: the key size is there already, must be there once"),
        ('"a b".c = 1\n"a b".c = 2\n', '2: the key "a b".c is there already, must be there once'),
        ("[a]\nx = 1\n[a]\ny = 1\n", "3: the table [a] is there already, must be there once"),
        ("size = 1\nsize\u00a0= 2\n".encode("utf-16"), " is UTF-16, must be TOML in UTF-8"),
        ("\n\nsize 1\n", "3: Expected '=' after a key in a key/value pair in column 6, must be TOML"),
        (b"size = 1\nword = '\xff'\n", "2: is not UTF-8, must be a TOML file"),
        ("a = " + "[" * 100_000, " is nested too deeply, must be a TOML file"),
        (b"#" * (TOML_FILE_BYTES + 1), f" is larger than the {TOML_FILE_BYTES} bytes that are allowed"),
    ],
)
def test_invalid_toml_is_one_problem_with_its_line(tmp_path: Path, data: bytes | str, line: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(ConfigError) as caught:
        read(path, Sheet)
    assert caught.value.problems == [f"{path}:{line}"]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfsize = 5\n")
    assert read(path, Sheet)[1].lines == read(write(tmp_path, b"size = 5\n"), Sheet)[1].lines


def test_no_file_and_no_permission_to_read_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: is missing, must be a TOML file"):
        read(tmp_path / "none.toml", Sheet)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\), must be a TOML file"):
        read(tmp_path, Sheet)


def test_a_file_that_everyone_may_write_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "size = 0\n[[rows]]\nname = 'a'\n")
    path.chmod(0o646)
    _, problems = read(path, Sheet)
    assert problems.lines == [
        f"{path}:1: size: is 0, must be a whole number from 1 to 9",
        f"{path}: may be written by everyone (mode 0646), must not: chmod o-w {path}",
    ]


def test_problems_that_follow_from_a_fault_are_dropped() -> None:
    problems = Problems(Places("f"), [TomlFault("a.b", "is wrong"), TomlFault("rule#2.who", "is wrong")])
    for key in ("a.b", "a.b.c", "a", "rule#2", "rule"):
        problems.add(key, "follows")
    for key in ("a.bc", "a.c", "rule#1", "rule#2.allow", "rule#22"):
        problems.add(key, "stands")
    assert [line for line in problems.lines if "follows" in line] == []
    assert len([line for line in problems.lines if "stands" in line]) == 5


LONG = 80 * "x"
PLACED = f"""user = 1

[upstreams.main]
addresses = []
[upstreams.'a b']
[[rule]]
[[rule]]
who = 1
[upstreams.'{LONG} 1']
[upstreams.'{LONG} 2']
"""


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("user", "a.toml:1"),
        ("upstreams.main.addresses", "a.toml:4"),
        ("upstreams.main.port", "a.toml:3"),  # missing: the line of its table's header
        ("upstreams.main.user_certificate.ca_key", "a.toml:3"),
        ('upstreams."a b"', "a.toml:5"),
        ('upstreams."a b".addresses', "a.toml:5"),
        ("rule", "a.toml:6"),
        ("rule#1", "a.toml:6"),
        ("rule#2.who", "a.toml:8"),
        ("rule#2.allow", "a.toml:7"),
        ("rule#3.who", "a.toml:6"),
        ("listen", "a.toml"),  # missing at the top, where there is no header
        (below("upstreams", f"{LONG} 1"), "a.toml"),  # cut in the message, where two keys look the same
        (below("upstreams", f"{LONG} 2") + ".addresses", "a.toml"),
    ],
)
def test_a_problem_names_the_line_of_its_key(key: str, place: str) -> None:
    assert Places("a.toml", PLACED).where(key) == f"{place}: {key}"
    assert Places("a.toml").where(key) == f"a.toml: {key}"


def test_a_file_s_problems_name_lines_whatever_its_line_ends_and_mark_are(tmp_path: Path) -> None:
    path = tmp_path / "sheet.toml"
    path.write_bytes(b"\xef\xbb\xbf# a sheet\r\nsize = 99\r\n[[rows]]\r\nname = 'b'\r\n[[rows]]\r\nside = 'left'\r\n")
    _, problems = read(path, Sheet)
    problems.add("rows#1", "is too plain")
    assert problems.lines == [
        f"{path}:5: rows#2.name: is missing, must be text of 1 to 3 characters",
        f"{path}:2: size: is 99, must be a whole number from 1 to 9",
        f"{path}:3: rows#1: is too plain",
    ]


@given(st.text())
def test_a_message_is_always_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= 2 * 60 + 2
