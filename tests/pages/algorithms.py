"""The algorithms of both sides in the order in which they are offered, as the code has them, for docs/security.md."""

from __future__ import annotations

from relay.algorithms import PROFILES
from relay.upstream.libssh2.transport import _CIPHERS, _KEX, _MACS
from tests.pages.markdown import code, table

WHAT = {
    "kex_algs": "key exchange",
    "encryption_algs": "cipher",
    "mac_algs": "MAC, where the cipher has none of its own",
    "signature_algs": "user keys",
}
UPSTREAM = {"kex_algs": _KEX, "encryption_algs": _CIPHERS, "mac_algs": _MACS}


def algorithms() -> str:
    rows = []
    for name, what in WHAT.items():
        offered = [PROFILES[profile][name] for profile in ("modern", "compatible")]
        upstream = UPSTREAM[name].split(",") if name in UPSTREAM else []
        rows.append([what, *(", ".join(map(code, one)) for one in (*offered, upstream))])
    rows[-1][-1] = "the type of `private_key`"
    return table(("", "clients, `modern`", "clients, `compatible`", "git hosts"), rows)
