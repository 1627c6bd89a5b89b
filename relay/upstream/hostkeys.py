"""The host keys that prove a git host, pinned in the configuration or in a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from relay.address import is_example, parse_address
from relay.config import UpstreamSettings
from relay.openssh.public_key import HOST_KEY_TYPES, PublicKey, fingerprint, parse_line
from relay.text import quoted

__all__ = ["HostKeys", "Where", "fingerprint", "parse_known_hosts", "parse_pinned", "read_host_keys"]

KNOWN_HOSTS_BYTES = 8 << 20
SSH_PORT = 22

Where = Callable[[str], str]  # the place of one of an upstream's keys, as problems begin
HostKeyFault = tuple[int, str]  # the number of the line or item, counted from 1, and what is wrong with it

# The signature algorithms of a key type, best first (RFC 8332); ssh-rsa with SHA-1 is not among them, nor is any certificate.
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


class HostKeys:
    """Raw blobs by key type; what the git host shows must be one of them, byte for byte."""

    def __init__(self, keys: Iterable[PublicKey] = ()) -> None:
        by_type: dict[str, list[bytes]] = {}
        for key in keys:
            blobs = by_type.setdefault(key.type, [])
            if key.blob not in blobs:
                blobs.append(key.blob)
        self.blobs: Mapping[str, Sequence[bytes]] = by_type
        self._all = frozenset(blob for blobs in by_type.values() for blob in blobs)

    def __repr__(self) -> str:
        return f"<host keys {' '.join(self.fingerprints) or 'none'}>"

    def __bool__(self) -> bool:
        return bool(self._all)

    def match(self, blob: bytes) -> bool:
        return blob in self._all

    @property
    def types(self) -> list[str]:
        """The host key algorithms to negotiate (RFC 4253 section 7.1): only those that a pinned key can answer."""
        return [name for kind in HOST_KEY_TYPES if kind in self.blobs for name in _ALGORITHMS.get(kind, (kind,))]

    @property
    def fingerprints(self) -> list[str]:
        return [fingerprint(blob) for blobs in self.blobs.values() for blob in blobs]


def parse_pinned(lines: Sequence[str]) -> tuple[HostKeys, list[HostKeyFault]]:
    """Lines as in a .pub file; a fault's number is the item's."""
    keys: list[PublicKey] = []
    faults: list[HostKeyFault] = []
    for number, line in enumerate(lines, 1):
        try:
            keys.append(parse_line(line, HOST_KEY_TYPES))
        except ValueError as error:
            faults.append((number, str(error)))
    return HostKeys(keys), faults


def parse_known_hosts(text: str, host: str, port: int) -> tuple[HostKeys, list[HostKeyFault]]:
    """The keys of one address: plain, wildcard and hashed host names; `host` for port 22, `[host]:port` for another.

    A key marked @revoked never proves the host, wherever else it stands. @cert-authority lines are passed over, as no
    certificate is accepted, and so are keys of unknown types, which OpenSSH ignores too. Faults carry the line's number.
    """
    name = (host if port == SSH_PORT else f"[{host}]:{port}").lower()
    keys: list[PublicKey] = []
    revoked: set[bytes] = set()
    faults: list[HostKeyFault] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if marker not in ("", "@revoked", "@cert-authority"):
            faults.append((number, f"begins with {quoted(marker)}, allowed markers are @revoked and @cert-authority"))
            continue
        if len(words) < 3:
            faults.append((number, "is cut off, must be 'hosts type base64'"))
            continue
        if marker == "@cert-authority" or words[1] not in HOST_KEY_TYPES:
            continue
        try:
            if not _names(words[0], name):
                continue
            key = parse_line(" ".join(words[1:3]), HOST_KEY_TYPES)
        except ValueError as error:
            faults.append((number, str(error)))
            continue
        if marker:
            revoked.add(key.blob)
        else:
            keys.append(key)
    return HostKeys(key for key in keys if key.blob not in revoked), faults


def read_host_keys(upstream: UpstreamSettings, where: Where, base: Path) -> tuple[HostKeys, list[str]]:
    """The keys of all addresses of an upstream, and one line for each problem.

    `where` tells the place of one of the upstream's keys: `relay.toml:12: upstreams.main.host_keys`; files are relative to `base`.
    """
    if upstream.known_hosts is None:
        if not upstream.host_keys:
            return HostKeys(), [f"{where('host_keys')}: {_nothing_pinned(upstream)}"]
        found, faults = parse_pinned(upstream.host_keys)
        return found, [f"{where('host_keys')}: item {number} {text}" for number, text in faults]
    if upstream.host_keys:
        return HostKeys(), [f"{where('known_hosts')}: is set beside host_keys, must be one of the two"]
    path = base / upstream.known_hosts
    try:
        with path.open("rb") as file:
            data = file.read(KNOWN_HOSTS_BYTES + 1)
    except OSError as error:
        return HostKeys(), [f"{where('known_hosts')}: {path} cannot be read ({error.strerror}), must be a known_hosts file"]
    if len(data) > KNOWN_HOSTS_BYTES:
        return HostKeys(), [f"{where('known_hosts')}: {path} is larger than the {KNOWN_HOSTS_BYTES} bytes that are allowed"]
    return _known_hosts_of_all(data.decode("utf-8", "replace"), upstream.addresses, where, path)


def _known_hosts_of_all(text: str, addresses: Sequence[str], where: Where, path: Path) -> tuple[HostKeys, list[str]]:
    keys: list[PublicKey] = []
    problems: dict[str, None] = {}  # a set in order: the same line is at fault for every address
    for address in addresses:
        try:
            host, port = parse_address(address)
        except ValueError:
            continue  # told where addresses are checked
        found, faults = parse_known_hosts(text, host, port)
        problems.update((f"{path}:{number}: {fault}", None) for number, fault in faults)
        if not found:
            problems[f"{where('known_hosts')}: {path} has no usable key of {address}, must have one for every address"] = None
        keys += (PublicKey(kind, blob, "") for kind, blobs in found.blobs.items() for blob in blobs)
    return HostKeys(keys), list(problems)


def _nothing_pinned(upstream: UpstreamSettings) -> str:
    try:
        host, port = parse_address(upstream.addresses[0])
    except (ValueError, IndexError):
        host, port = "GIT_HOST", SSH_PORT
    ask = f"ssh-keyscan -t ed25519 -p {port} {'GIT_HOST' if is_example(host) else host}"
    return f"is empty, must pin the git host's key as in a .pub file (get it: {ask}), or known_hosts must name a file"


def _names(patterns: str, name: str) -> bool:
    """Whether a hosts field means `name`. Raises ValueError for a damaged hash."""
    if patterns.startswith("|"):
        parts = patterns.split("|")
        try:
            _, version, salt, digest = parts
            if version != "1":
                raise ValueError(version)
            expected = base64.b64decode(digest, validate=True)
            return hmac.compare_digest(expected, hmac.digest(base64.b64decode(salt, validate=True), name.encode(), hashlib.sha1))
        except (binascii.Error, ValueError):
            raise ValueError("has a damaged host name hash, must be |1|salt|hash as ssh-keygen -H writes it") from None
    found = False
    for pattern in patterns.lower().split(","):
        if _wildcard(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _wildcard(pattern: str) -> re.Pattern[str]:
    """`*` and `?` as ssh_config(5) PATTERNS has them; a run of stars is one star, so that matching stays cheap."""
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in re.sub(r"\*+", "*", pattern)))
