"""Lines of an authorized_keys file (sshd(8)) with the options in front of the key; pure.

There are three kinds of options. The relay honours those in HONOURED. It ignores those in MEANINGLESS, which permit or forbid what it
grants to nobody (terminals, forwardings, tunnels), and environment=, which sshd ignores too by default. Any other option refuses the line:
it may forbid something that the relay cannot check.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from fnmatch import fnmatchcase
from ipaddress import IPv6Address, ip_network
from typing import NamedTuple

from relay.address import real_address
from relay.keys import KeyOptions, NotAccepted, identity_fault
from relay.openssh.public_key import LINE_BYTES, PublicKey, fingerprint, parse_line
from relay.text import quoted

MEANINGLESS = {  # the relay grants none of these to anybody
    *("agent-forwarding", "no-agent-forwarding", "port-forwarding", "no-port-forwarding", "x11-forwarding", "no-x11-forwarding"),
    *("pty", "no-pty", "user-rc", "no-user-rc", "restrict"),
    *("environment", "permitopen", "permitlisten", "tunnel"),
}
VALUED = {"environment", "permitopen", "permitlisten", "tunnel", "command", "from", "expiry-time", "principals", "identity"}
HONOURED = ("cert-authority", "command", "expiry-time", "from", "identity", "no-touch-required", "principals", "verify-required")

_OPTION = re.compile(r'([A-Za-z0-9-]+)(?:="((?:[^"\\]|\\.)*)")?(,|[ \t]+|$)')
_GITOLITE = re.compile(r"(?:\S*/)?(?:gitolite-shell|gl-auth-command) +(\S+) *")
_NUMBERED = re.compile(r"\S.* key-\d+")  # as Gitea and GitLab name keys, not people
_ADDRESS = re.compile(r"!?[0-9A-Fa-f:.*?]+(/\d+)?")
_TIMES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


class AuthorizedKey(NamedTuple):
    """A key with its options. Plain values, for there may be a hundred thousand."""

    fingerprint: str
    identity: str | None = None  # None: the name of the file is the identity
    expires: float | None = None  # seconds since the epoch
    sources: tuple[str, ...] | None = None
    authority: bool = False  # cert-authority: the key of a CA that signs certificates for the identity
    principals: tuple[str, ...] = ()
    options: KeyOptions = KeyOptions()

    def check(self, address: str, now: float) -> None:
        """Raises NotAccepted when the key may not be used from `address`, or has expired."""
        if self.expires is not None and now > self.expires:
            raise NotAccepted(f"the key's expiry-time was {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.expires))}", "expired")
        if self.sources is not None and not matches(address, self.sources):
            raise NotAccepted(f"the key may not be used from {address} (from={quoted(','.join(self.sources))})", "source_address")


def read_line(text: str) -> AuthorizedKey:
    """One line that is neither empty nor a comment. Raises ValueError with what is wrong and what is allowed."""
    if len(text) > LINE_BYTES:
        raise ValueError(f"has {len(text)} characters, allowed are {LINE_BYTES}")
    values, rest = divided(text)
    if not values:
        return AuthorizedKey(fingerprint(parse_line(rest).blob))
    line = _line(values)
    return line._replace(fingerprint=fingerprint(parse_line(rest).blob))


def divided(text: str) -> tuple[dict[str, str], str]:
    """The options of a line by name, and the rest: type, base64 and comment. Raises ValueError for options that `read_line` refuses."""
    first = _OPTION.match(text)
    if first is None or not (first[2] is not None or first[3] == "," or first[1].lower() in MEANINGLESS | VALUED | set(HONOURED)):
        if re.match(r"[A-Za-z0-9-]+=", text):
            raise ValueError('has options in front of the key that cannot be read, must be NAME or NAME="VALUE", divided by commas')
        return {}, text
    return _options(text)


def forced_identity(command: str) -> str | None:
    """Who gitolite's forced command says the key's owner is; None for another command. Raises ValueError for one that names a key."""
    if (gitolite := _GITOLITE.fullmatch(command)) is not None:
        return gitolite[1]
    if _NUMBERED.fullmatch(command):
        raise ValueError(f'runs {quoted(command)}, which names a key and not a person; must have identity="NAME" in its place')
    return None


def key_of(text: str) -> PublicKey:
    """The key of a line that `read_line` has read."""
    try:
        return parse_line(text)
    except ValueError:
        return parse_line(_options(text)[1])


def _options(text: str) -> tuple[dict[str, str], str]:
    """The options by name, and the rest of the line. An option given twice with different values is a fault."""
    values: dict[str, str] = {}
    at = 0
    while True:
        if (found := _OPTION.match(text, at)) is None:
            raise ValueError('has options in front of the key that cannot be read, must be NAME or NAME="VALUE", divided by commas')
        name, value = found[1].lower(), found[2]
        known = name in MEANINGLESS or name in HONOURED
        if not known:
            raise ValueError(
                f"has the option {quoted(name)}, which the relay cannot see to; "
                f"allowed are {', '.join(HONOURED)} and what forbids or permits forwarding and terminals"
            )
        if (value is not None) != (name in VALUED):
            raise ValueError(f"has the option {name} {'with' if value is not None else 'without'} a value, must be the other way")
        value = re.sub(r'\\"', '"', value or "")
        if values.setdefault(name, value) != value and name not in MEANINGLESS:
            raise ValueError(f"has the option {name} twice, must have it once")
        at = found.end()
        if found[3] != ",":
            return values, text[at:]


def _line(values: dict[str, str]) -> AuthorizedKey:
    identity = values.get("identity")
    if (command := values.get("command")) is not None:
        if (forced := forced_identity(command)) is None:
            raise ValueError(f"forces the command {quoted(command)}, which a relay cannot run; must have no command= but gitolite-shell's")
        if identity not in (None, forced):
            raise ValueError(f"is {quoted(identity or '')} by identity= and {quoted(forced)} by command=, must be one")
        identity = forced
    if identity is not None and (fault := identity_fault(identity)) is not None:
        raise ValueError(f"the identity {quoted(identity)} {fault}")
    authority = "cert-authority" in values
    if "principals" in values and not authority:
        raise ValueError("has principals= without cert-authority, must have both or neither")
    principals = tuple(name for name in values.get("principals", "").split(",") if name)
    if "principals" in values and not principals:
        raise ValueError("has principals= without a name, must name one or more, divided by commas")
    return AuthorizedKey(
        "",
        identity,
        expiry(values["expiry-time"]) if "expiry-time" in values else None,
        _sources(values["from"]) if "from" in values else None,
        authority,
        principals,
        KeyOptions("verify-required" in values, "no-touch-required" in values),
    )


def expiry(text: str) -> float:
    """YYYYMMDD[HHMM[SS]] in local time, with a trailing Z in UTC; returns seconds since the epoch."""
    digits = text.removesuffix("Z")
    try:
        if not digits.isascii() or not digits.isdecimal():
            raise ValueError
        parsed = time.strptime(digits, _TIMES[len(digits)])
        return float(timegm(parsed)) if text.endswith("Z") else time.mktime(parsed)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"has the expiry-time {quoted(text)}, must be YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, perhaps with Z") from None


def _sources(text: str) -> tuple[str, ...]:
    """Addresses, networks and patterns of addresses. No host names: the owner of an address chooses the name that it resolves to."""
    found = tuple(item.strip() for item in text.split(","))
    for item in found:
        if not _ADDRESS.fullmatch(item):
            raise ValueError(f"has {quoted(item)} in from=, must be an address, a network, or a pattern of addresses with * and ?")
        if "/" in item:
            try:
                ip_network(item.removeprefix("!"))
            except ValueError:
                raise ValueError(f"has {quoted(item)} in from=, must be a network: ADDRESS/BITS with no bit set behind them") from None
    return found


def matches(address: str, patterns: tuple[str, ...]) -> bool:
    """Whether one pattern matches, and no negated one (ssh_config(5), PATTERNS)."""
    real = real_address(address)
    if real is None:
        return False
    texts = {str(real), real.exploded} if isinstance(real, IPv6Address) else {str(real)}
    found = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        hit = real in ip_network(bare) if "/" in bare else any(fnmatchcase(text, bare.lower()) for text in texts)
        if hit and pattern.startswith("!"):
            return False
        found = found or hit
    return found
