"""The SSH algorithms that are offered to git hosts (RFC 4253 section 7.1), by the setting `algorithms` and the libssh2 that is loaded.

`modern` is offered with any library. `compatible` adds what a git host under FIPS, or an old or small one, may insist on. Three of its
parts need the hardened library, because libssh2 1.11.1 has a fault there that the other side can reach:

* Diffie-Hellman: the other side's public value is not checked (GHSA-m9rg-h9jv-9gvh).
* chacha20-poly1305: a packet length of 1 to 3 makes a negative size (GHSA-x4g5-mgfc-cxvv).
* encrypt-then-MAC: a short packet overflows the buffer (GHSA-6c79-444r-wx26).

The relay's order decides, so a git host that has an algorithm of `modern` is spoken to as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.config import HostAlgorithms

AEAD = frozenset({"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"})  # these need no MAC

_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org")
_KEX_NIST = ("ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521")
_KEX_DIFFIE_HELLMAN = ("diffie-hellman-group16-sha512", "diffie-hellman-group14-sha256")
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
_CHACHA20 = ("chacha20-poly1305@openssh.com",)
_MACS = ("hmac-sha2-256", "hmac-sha2-512")
_MACS_ETM = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com")


@dataclass(frozen=True, slots=True)
class Offer:
    """The relay's name-lists, the one it prefers first; the same for both directions."""

    key_exchanges: Sequence[str]
    ciphers: Sequence[str]
    macs: Sequence[str]


def offer(algorithms: HostAlgorithms, hardened: bool) -> Offer:
    """`hardened`: whether the loaded libssh2 is the one that native/ builds."""
    if algorithms == "modern":
        return Offer(_KEX, _CIPHERS, _MACS)
    if not hardened:
        return Offer(_KEX + _KEX_NIST, _CIPHERS, _MACS)
    return Offer(_KEX + _KEX_NIST + _KEX_DIFFIE_HELLMAN, _CIPHERS + _CHACHA20, _MACS + _MACS_ETM)
