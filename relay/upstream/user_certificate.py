"""User certificates that the relay signs for a session's identity, so that the git host knows who it is (PROTOCOL.certkeys).

Each login has a new key and certificate, kept in memory for this login only: a stolen one is valid for `valid_seconds` at most.
The certificate permits a login and commands, but no terminal and no forwarding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from secrets import randbits

import asyncssh

from relay.config import HostAlgorithms, UserCertificateSettings
from relay.upstream.hostkeys import HostKeys
from relay.upstream.libssh2 import Login

CLOCK_SECONDS = 60  # how far a git host's clock may be behind
PLACEHOLDER = "{identity}"


class Signer:
    """The relay's CA for one upstream; `user` is the upstream's user, for settings that name none."""

    def __init__(
        self,
        settings: UserCertificateSettings,
        ca_key: asyncssh.SSHKey,
        user: str,
        host_keys: HostKeys,
        clock: Callable[[], float] = time.time,
        algorithms: HostAlgorithms = "modern",
    ) -> None:
        self._settings = settings
        self._ca_key = ca_key
        self._user = settings.user or user
        self._host_keys = host_keys
        self._algorithms: HostAlgorithms = algorithms
        self._clock = clock

    def login(self, identity: str) -> Login:
        """A Login as this identity, each time with a new key."""
        return Login(
            user=filled(self._user, identity),
            private_key=b"",
            host_keys=self._host_keys,
            algorithms=self._algorithms,
            credentials=lambda: self._credentials(identity),
            clocks=self._clocks,
        )

    def _clocks(self) -> str:
        """Between which times a git host's clock must be to accept a certificate made now; git hosts do not say why they refuse one."""
        now, valid = int(self._clock()), int(self._settings.valid_seconds)
        first, here, last = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (now - CLOCK_SECONDS, now, now + valid))
        return (
            f"compare the clocks (date -u): it is {here} at the relay, and the certificate is valid from {first} to {last}, "
            f"so the git host's clock may be {CLOCK_SECONDS} s behind the relay's and {valid} s ahead"
        )

    def _credentials(self, identity: str) -> tuple[bytes, bytes]:
        """A private key in OpenSSH format, and the certificate's line."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        now = int(self._clock())
        certificate = self._ca_key.generate_user_certificate(
            key,
            filled(self._settings.key_id, identity),
            serial=randbits(63) | 1,
            principals=[filled(name, identity) for name in self._settings.principals],
            valid_after=now - CLOCK_SECONDS,
            valid_before=now + int(self._settings.valid_seconds),
            permit_x11_forwarding=False,
            permit_agent_forwarding=False,
            permit_port_forwarding=False,
            permit_pty=False,
            permit_user_rc=False,
        )
        return key.export_private_key("openssh"), certificate.export_certificate()


def filled(template: str, identity: str) -> str:
    return template.replace(PLACEHOLDER, identity)


def template_fault(template: str) -> str | None:
    """What keeps a text from being a template, and what is allowed; None for a good one."""
    if set(template.replace(PLACEHOLDER, "")) & {"{", "}"}:
        return f"has braces besides {PLACEHOLDER}, which is the only placeholder that is allowed"
    if "," in template or not template.isprintable():
        return "must have printable characters only, and no comma"
    return None
