"""The algorithms of both sides from the code, in the order of the offer, for docs/security.md."""

from __future__ import annotations

from relay.ssh.algorithms import PROFILES
from relay.upstream.algorithms import Offer, offer
from tests.pages.markdown import code, table

WHAT = {
    "kex_algs": "key exchange",
    "encryption_algs": "cipher",
    "mac_algs": "MAC, where the cipher has none of its own",
    "signature_algs": "user keys",
}
HOSTS = [offer("modern", hardened=True), offer("compatible", hardened=True), offer("compatible", hardened=False)]


def _lists(one: Offer) -> dict[str, list[str]]:
    return {"kex_algs": list(one.key_exchanges), "encryption_algs": list(one.ciphers), "mac_algs": list(one.macs)}


def algorithms() -> str:
    clients = [PROFILES[profile] for profile in ("modern", "compatible")]
    rows = [[what, *(", ".join(map(code, one[name])) for one in clients)] for name, what in WHAT.items()]
    hosts = [[what, *(", ".join(map(code, _lists(one)[name])) for one in HOSTS)] for name, what in WHAT.items() if name in _lists(HOSTS[0])]
    hosts.append(["login", *["the type of `private_key`"] * len(HOSTS)])
    return "\n\n".join(
        (
            table(("", "clients, `modern`", "clients, `compatible`"), rows),
            table(("", "git hosts, `modern`", "git hosts, `compatible`", "git hosts, `compatible` on the stock libssh2"), hosts),
        )
    )
