"""A collector that cannot be used."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from relay.preflight import tracing as module
from tests.preflight.helpers import Setup


@pytest.mark.parametrize(
    ("tracing", "problem"),
    [
        (
            {"url": "http://collector.test:4318/v1/traces"},
            "tracing.url: is http:// to another machine, must be https://, or plain_http = true on a network that is nobody else's",
        ),
        (
            {"url": "https://a:b@collector.test/"},
            "tracing.url: has a user or a password in it, must not: the log shows URLs; use token_file",
        ),
        (
            {"url": "https://collector.test/", "token_file": "none"},
            "tracing.token_file: the file cannot be read (No such file or directory), must be the path of a file that holds it",
        ),
        (
            {"url": "https://collector.test/", "ca_file": "none.pem"},
            "tracing.ca_file: none.pem cannot be read (No such file or directory), must be certificates in PEM",
        ),
    ],
)
def test_a_collector_of_traces_that_cannot_be_used(setup: Setup, tracing: dict[str, Any], problem: str) -> None:
    assert setup.problems(tracing=tracing) == [f"relay.toml: {problem}"]


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("t0ken\n", 0o644, "the file is open to everyone (mode 0644), must be 0600 or 0640"),
        ("two words\n", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        ("t0ken\n", 0o640, None),
    ],
)
def test_a_token_of_the_collector_is_judged_as_other_secrets_are(setup: Setup, text: str, mode: int, problem: str | None) -> None:
    (setup.folder / "token").write_text(text)
    (setup.folder / "token").chmod(mode)
    told = setup.problems(tracing={"url": "https://collector.test/", "token_file": "token"})
    assert told == ([] if problem is None else [f"relay.toml: tracing.token_file: {problem}"])


def test_a_ca_file_of_the_collector_that_is_none(setup: Setup) -> None:
    (setup.folder / "ca.pem").write_text("no certificate\n")
    [problem] = setup.problems(tracing={"url": "https://collector.test/", "ca_file": "ca.pem"})
    assert problem.startswith("relay.toml: tracing.ca_file: ca.pem cannot be read (")


def test_tracing_without_the_sdk_says_what_to_install(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "opentelemetry.sdk" else found(name))
    assert setup.problems(tracing={"url": "https://collector.test/"}) == [
        "relay.toml: tracing: needs OpenTelemetry's SDK, which is not installed: pip install 'git-ssh-relay[tracing]'"
    ]
