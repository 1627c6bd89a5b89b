"""Certificates that the relay signs: what ssh-keygen reads in them, for whom, and for how long."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay.config import UserCertificateSettings
from relay.keys.certificate import check_claims, check_principals, parse_certificate
from relay.upstream.hostkeys import HostKeys
from relay.upstream.libssh2 import Login
from relay.upstream.user_certificate import CLOCK_SECONDS, Signer, filled, template_fault
from tests.support.certificates import blob
from tests.support.keys import KEY_KINDS, Key, KeyKind, make_key

NOW = 1_893_542_400.0  # 2030-01-02 00:00 UTC


def signer(ca: Key, now: float = NOW, **settings: object) -> Signer:
    given = UserCertificateSettings(ca_key=str(ca.private), **settings)  # type: ignore[arg-type]
    return Signer(given, ca.load(), "git", HostKeys({}), lambda: now)


def made(login: Login, folder: Path) -> tuple[Path, Path]:
    """The private key and the certificate of one login, as files."""
    assert login.credentials is not None
    private, public = login.credentials()
    key, certificate = folder / "key", folder / "key-cert.pub"
    key.write_bytes(private)
    key.chmod(0o600)
    certificate.write_bytes(public)
    return key, certificate


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_certificate_names_the_identity_and_permits_nothing_else(tmp_path: Path, kind: KeyKind) -> None:
    ca = make_key(tmp_path, "ca", kind)
    key, certificate = made(signer(ca).login("alice@example.com"), tmp_path)
    said = subprocess.run(["ssh-keygen", "-L", "-f", certificate], capture_output=True, text=True, check=True, env={"TZ": "UTC"}).stdout
    assert "Type: ssh-ed25519-cert-v01@openssh.com user certificate" in said
    assert ca.fingerprint in said and 'Key ID: "alice@example.com"' in said
    assert "Valid: from 2030-01-01T23:59:00 to 2030-01-02T00:05:00" in said
    assert re.search(r"Principals: \n +alice@example\.com\n", said)
    assert "Critical Options: (none)" in said and "Extensions: (none)" in said
    assert asyncssh.read_private_key(key).public_data == parse_certificate(blob(certificate)).key


def test_the_relay_itself_would_accept_it(tmp_path: Path) -> None:
    ca = make_key(tmp_path, "ca")
    _, certificate = made(signer(ca, time.time()).login("alice"), tmp_path)
    found = parse_certificate(blob(certificate))
    check_claims(found, "127.0.0.1")
    check_principals(found, ["alice"])
    assert found.valid_before - found.valid_after == 300 + CLOCK_SECONDS


def test_every_login_has_another_key_and_another_number(tmp_path: Path) -> None:
    login = signer(make_key(tmp_path, "ca")).login("alice")
    found = [parse_certificate(blob(made(login, tmp_path)[1])) for _ in range(3)]
    assert len({one.key for one in found}) == len({one.serial for one in found}) == 3
    assert all(0 < one.serial < 1 << 63 for one in found)


def test_templates(tmp_path: Path) -> None:
    ca = make_key(tmp_path, "ca")
    settings: dict[str, Any] = {"key_id": "relay/{identity}", "principals": ["git", "u-{identity}"], "user": "{identity}"}
    settings["valid_seconds"] = 60
    login = signer(ca, **settings).login("alice")
    assert (login.user, login.private_key) == ("alice", b"")
    found = parse_certificate(blob(made(login, tmp_path)[1]))
    assert (found.key_id, found.principals, found.valid_before) == (b"relay/alice", (b"git", b"u-alice"), int(NOW) + 60)
    assert signer(ca).login("alice").user == "git"
    assert filled("{identity}{identity}", "a{identity}") == "a{identity}a{identity}", "a name is no template"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{identity}", None),
        ("x", None),
        ("{}", "has braces"),
        ("{name}", "has braces"),
        ("{{identity}}", "has braces"),
        ("a,b", "no comma"),
        ("a\nb", "printable"),
    ],
)
def test_what_is_no_template(template: str, fault: str | None) -> None:
    found = template_fault(template)
    assert found is None if fault is None else fault in (found or "")


def test_the_clocks_are_named_for_a_certificate_that_is_refused(tmp_path: Path) -> None:
    clocks = signer(make_key(tmp_path, "ca"), valid_seconds=300).login("alice").clocks
    assert clocks is not None
    said = clocks()
    assert "it is 2030-01-02T00:00:00Z at the relay" in said
    assert "valid from 2030-01-01T23:59:00Z to 2030-01-02T00:05:00Z" in said
    assert "may be 60 s behind the relay's and 300 s ahead" in said
