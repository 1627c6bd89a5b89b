"""A private key that cannot be used, and one that was pasted."""

from __future__ import annotations

import asyncssh

from tests.preflight.helpers import Setup


def test_a_protected_key_of_the_relay(setup: Setup) -> None:
    path = setup.folder / "upstream_ed25519"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path), passphrase="secret")
    assert setup.problems() == [
        "relay.toml: upstreams.main.private_key: upstream_ed25519 is protected by a passphrase,"
        " must not be (take it off: ssh-keygen -p -N '' -f upstream_ed25519)"
    ]


def test_no_private_key_is_ever_repeated(setup: Setup) -> None:
    """A user may paste the key itself instead of its path."""
    secret = setup.upstream.private.read_text()
    problems = setup.problems(upstreams={"main": {"private_key": secret, "host_keys": [secret]}}, host_keys=[secret])
    assert len(problems) == 3
    body = "".join(secret.splitlines()[1:-1])
    shown = "".join(problems)
    assert not any(body[at : at + 24] in shown for at in range(len(body) - 24))
