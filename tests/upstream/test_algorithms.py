"""Algorithms offered to git hosts: `compatible` appends to `modern`, and the stock libssh2 offers none that it has bugs in."""

from __future__ import annotations

from relay.config import HostAlgorithms
from relay.upstream.algorithms import AEAD, Offer, offer


def everything(one: Offer) -> list[str]:
    return [*one.key_exchanges, *one.ciphers, *one.macs]


def test_compatible_appends_to_modern() -> None:
    modern = offer("modern", hardened=True)
    assert modern == offer("modern", hardened=False)
    for hardened in (True, False):
        wide = offer("compatible", hardened)
        for ours, wider in zip(
            (modern.key_exchanges, modern.ciphers, modern.macs), (wide.key_exchanges, wide.ciphers, wide.macs), strict=True
        ):
            assert wider[: len(ours)] == ours, "a host that has a modern one is spoken to as before"


def test_nist_curves_need_no_hardened_library() -> None:
    assert {"ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"} <= set(offer("compatible", hardened=False).key_exchanges)


def test_the_stock_library_is_never_given_what_it_has_faults_in() -> None:
    profiles: tuple[HostAlgorithms, ...] = ("modern", "compatible")
    stock = {name for profile in profiles for name in everything(offer(profile, hardened=False))}
    assert not [name for name in stock if name.startswith("diffie-hellman") or "chacha20" in name or "-etm@" in name]
    hardened = everything(offer("compatible", hardened=True))
    assert [name for name in hardened if name.startswith("diffie-hellman") or "chacha20" in name or "-etm@" in name] == [
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group14-sha256",
        "chacha20-poly1305@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
    ]


def test_no_broken_algorithm_is_offered() -> None:
    for name in everything(offer("compatible", hardened=True)):
        assert not {"sha1", "md5", "cbc", "arcfour", "none", "3des"} & set(name.replace("@", "-").split("-")), name
    assert {name for name in offer("compatible", hardened=True).ciphers if "ctr" not in name} == AEAD
