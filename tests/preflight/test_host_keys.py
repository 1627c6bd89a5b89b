"""Host keys: one of each type, long enough, with certificates that are theirs."""

from __future__ import annotations

from typing import Any

import asyncssh
import pytest

from relay.preflight import load_all, remarks
from tests.preflight.helpers import Setup
from tests.support.certificates import PAST, Ca
from tests.support.keys import make_key


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host_keys": ["keys"]}, "relay.toml: host_keys: keys cannot be read (Is a directory), must be a private key"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_host_keys_of_every_type_stand_side_by_side(setup: Setup) -> None:
    make_key(setup.folder, "host_ecdsa", "ecdsa")
    asyncssh.generate_private_key("ssh-rsa", key_size=3072).write_private_key(str(setup.folder / "host_rsa"))
    (setup.folder / "host_rsa").chmod(0o600)
    assert setup.problems(host_keys=["host_ed25519", "host_ecdsa", "host_rsa"]) == []


def test_a_second_host_key_of_a_type_and_a_short_one(setup: Setup) -> None:
    make_key(setup.folder, "other")
    make_key(setup.folder, "short", "rsa")
    assert setup.problems(host_keys=["host_ed25519", "other", "short", "short"]) == [
        "relay.toml: host_keys: other is a second ssh-ed25519 key beside host_ed25519, allowed is one of each type",
        'relay.toml: host_keys: "short" is listed twice, must be listed once',
        'relay.toml: host_keys: short is an RSA key of 2048 bits, must have 3072 with profile = "modern"',
    ]
    assert setup.problems(host_keys=["short"], algorithms={"profile": "compatible"}) == []


def test_host_certificates(setup: Setup) -> None:
    ca = Ca(setup.folder / "far")
    problems = setup.problems(host_certificates=[str(ca.sign(setup.host)), "none.pub"])
    assert (
        len(problems) == 2 and "the certificate is a user's, must be a host's" in problems[0] and "none.pub: cannot be read" in problems[1]
    )
    old = ca.sign(setup.host, principals=["relay"], validity=PAST, host=True)
    assert setup.problems(host_certificates=[str(old)]) == []
    [told] = remarks(load_all(setup.path))
    assert "host_certificates: the certificate of the ssh-ed25519 key ran out at 2020-01-0" in told
