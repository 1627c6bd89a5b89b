"""The schema of the audit, and what becomes of a stranger's words in a line."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import jsonschema
import msgspec

from relay.audit_lines import Line, LoginFailed, Result, audit_schema, ended, failed_login, refusal, rejection
from relay.events import Outcome
from relay.model import Certified, Exit, Identity
from tests.test_audit import OK, new_session


def test_it_is_a_schema_and_describes_every_field_of_every_line() -> None:
    jsonschema.Draft202012Validator.check_schema(audit_schema())
    definitions = audit_schema()["$defs"]
    kinds = {kind.__name__ for kind in get_args(Line)}
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
    made: list[Line] = [
        ended(session, OK),
        ended(session, Outcome(result="signal", reason="signal", exit=Exit(signal="KILL"), seconds=1)),
        rejection(session, Outcome(result="policy", reason="denied", exit=Exit(status=128), seconds=0, detail="no rule")),
        refusal(session.connection, "unknown_key", "SHA256:x", "nobody's"),
        failed_login(session.connection, "unknown_key", "SHA256:x", 3),
    ]
    assert {type(line) for line in made} == set(get_args(Line))
    for line in made:
        validator.validate(json.loads(msgspec.json.encode(line)))


def test_a_certificate_is_told_of() -> None:
    told = Certified(ca="SHA256:ca", key_id="alice@example.com\n" + "x" * 200, serial=(1 << 64) - 1)
    identity = Identity(name="alice", fingerprint="SHA256:abc", method="certificate", certificate=told)
    for line in (ended(new_session(identity=identity), OK), rejection(new_session(identity=identity), OK)):
        assert line.certificate is not None
        assert (line.certificate.ca, line.certificate.serial) == (told.ca, told.serial)
        assert line.certificate.key_id.startswith("alice@example.com\\x0axx") and len(line.certificate.key_id.encode()) <= 160
        jsonschema.Draft202012Validator(audit_schema()).validate(json.loads(msgspec.json.encode(line)))


def test_the_results_are_those_of_an_outcome() -> None:
    assert Result == get_type_hints(Outcome)["result"]


def test_a_stranger_s_words_are_escaped_and_cut() -> None:
    connection = new_session().connection
    connection.user, connection.client_version = "a\nb\x1b[2J", "v" * 10_000
    line = failed_login(connection, "wrong_user", "", 1)
    assert isinstance(line, LoginFailed)
    assert line.user == "a\\x0ab\\x1b[2J"
    assert len(line.client_version.encode()) <= 255 and line.client_version.endswith("…")


def test_what_is_no_control_character_but_acts_as_one_is_escaped_too() -> None:
    connection = new_session().connection
    connection.user = "\u202egit\u2028x"
    assert refusal(connection, "wrong_user", "", "").user == "\\u202egit\\u2028x"
