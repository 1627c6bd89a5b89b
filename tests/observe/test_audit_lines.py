"""The schema of the audit, and how a stranger's text is escaped in a line."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import jsonschema
import msgspec
import pytest

from relay.events import Outcome
from relay.git.fetch_request import FetchRequest
from relay.git.push_commands import BadCommands, CommandList
from relay.model import Certified, Exit, Identity
from relay.observe.audit_lines import (
    LINE_BYTES,
    AuditLine,
    LoginFailed,
    Result,
    audit_schema,
    began,
    ended,
    failed_login,
    lost,
    refusal,
    rejection,
)
from tests.git.test_fetch_request import LS
from tests.observe.test_audit import OK, new_session, pushed


def test_it_is_a_schema_and_describes_every_field_of_every_line() -> None:
    jsonschema.Draft202012Validator.check_schema(audit_schema())
    definitions = audit_schema()["$defs"]
    kinds = {kind.__name__ for kind in get_args(AuditLine)}
    assert kinds <= set(definitions)
    for name in kinds:
        definition = definitions[name]
        assert definition["description"], name
        fields = set(definition["properties"]) - {"event"}
        assert fields | {"event"} == set(definition["required"]), "a consumer may rely on every field"
        for one_field in fields:
            assert definition["properties"][one_field].get("description"), (name, one_field)


def test_every_kind_of_line_is_as_the_schema_says() -> None:
    validator = jsonschema.Draft202012Validator(audit_schema())
    session = new_session()
    made: list[AuditLine] = [
        ended(session, OK),
        ended(session, Outcome(result="signal", reason="signal", exit=Exit(signal="KILL"), seconds=1)),
        rejection(session, Outcome(result="policy", reason="denied", exit=Exit(status=128), seconds=0, detail="no rule")),
        refusal(session.connection, "unknown_key", "SHA256:x", "nobody's"),
        failed_login(session.connection, "unknown_key", "SHA256:x", 3),
        lost(4711, "signal SIGKILL", 3),
        began(session),
    ]
    assert {type(line) for line in made} == set(get_args(AuditLine))
    for line in made:
        validator.validate(json.loads(msgspec.json.encode(line)))


def test_a_certificate_is_in_the_line() -> None:
    told = Certified(ca="SHA256:ca", key_id="alice@example.com\n" + "x" * 200, serial=(1 << 64) - 1)
    identity = Identity(name="alice", fingerprint="SHA256:abc", method="certificate", certificate=told)
    for line in (ended(new_session(identity=identity), OK), rejection(new_session(identity=identity), OK)):
        assert line.certificate is not None
        assert (line.certificate.ca, line.certificate.serial) == (told.ca, told.serial)
        assert line.certificate.key_id.startswith("alice@example.com\\x0axx") and len(line.certificate.key_id.encode()) <= 160
        jsonschema.Draft202012Validator(audit_schema()).validate(json.loads(msgspec.json.encode(line)))


def test_the_results_are_those_of_an_outcome() -> None:
    assert Result == get_type_hints(Outcome)["result"]


def test_text_of_a_client_is_escaped_and_cut() -> None:
    connection = new_session().connection
    connection.user, connection.client_version = "a\nb\x1b[2J", "v" * 10_000
    line = failed_login(connection, "wrong_user", "", 1)
    assert isinstance(line, LoginFailed)
    assert line.user == "a\\x0ab\\x1b[2J"
    assert len(line.client_version.encode()) <= 255 and line.client_version.endswith("…")


def test_format_characters_are_escaped_too() -> None:
    connection = new_session().connection
    connection.user = "\u202egit\u2028x"
    assert refusal(connection, "wrong_user", "", "").user == "\\u202egit\\u2028x"


# -- git's requests ----------------------------------------------------------------------------------------------------------


def test_a_push_s_line_lists_its_ref_updates() -> None:
    session = new_session(asked=pushed("refs/heads/main", "refs/tags/v1"))
    for line in (ended(session, OK), rejection(session, OK)):
        assert (line.kind, line.git_version, line.refs_more, line.refs_truncated) == ("push", 1, 0, False)
        assert [(one.old, one.new) for one in line.refs] == [("a" * 64, "b" * 64)] * 2
        jsonschema.Draft202012Validator(audit_schema()).validate(json.loads(msgspec.json.encode(line)))
    assert [one.ref for one in ended(new_session(asked=pushed("refs/a", "refs/b")), OK).refs] == ["refs/a", "refs/b"]


@pytest.mark.parametrize("count", [1, 10, 64])
@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/" + "é" * 200, "refs/\x00\udcff" * 40])
def test_as_many_as_the_line_holds_and_the_number_of_the_rest(count: int, ref: str) -> None:
    line = ended(new_session(asked=pushed(*[ref] * count, more=1_000_000)), OK)
    assert len(line.refs) + line.refs_more == 1_000_000 + count
    room = LINE_BYTES - len(msgspec.json.encode(line)) - 1
    assert room >= 0
    assert len(line.refs) == count or room < 64 + 300 + 180, "there was room for another"
    assert all(one.ref.isprintable() for one in line.refs)


def test_a_fetch_s_line_tells_its_kind_and_version() -> None:
    asked = FetchRequest()
    asked.feed(LS)
    line = ended(new_session(asked=asked), OK)
    assert (line.kind, line.git_version, line.refs) == ("list", 2, [])
    line = ended(new_session(), OK)
    assert (line.kind, line.git_version, line.refs, line.refs_more, line.refs_truncated) == ("", None, [], 0, False)


def test_a_list_that_could_not_be_parsed_is_marked_as_truncated() -> None:
    asked = CommandList()
    with pytest.raises(BadCommands):
        asked.feed(b"nonsense")
    line = ended(new_session(asked=asked), OK)
    assert (line.kind, line.refs, line.refs_truncated) == ("", [], True)
