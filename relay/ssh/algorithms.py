"""The SSH algorithms that are offered to clients (RFC 4253 section 7.1), and the other options of the server side, built once.

The client's order wins, and OpenSSH puts chacha20 and CTR before GCM: a profile that wants AES-GCM must offer nothing else. `modern`
is what OpenSSH 7.4, libssh2 1.11, PuTTY 0.78, Apache MINA 2.9, Go and later speak; `compatible` adds what dropbear and older clients need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncssh
from asyncssh.public_key import SSHLocalKeyPair

from relay.config import Config
from relay.keys import HostCertificate
from relay.openssh.public_key import CERTIFICATE_SUFFIX, CLIENT_SIGNATURES

PROFILES: dict[str, dict[str, list[str]]] = {
    "modern": {
        "kex_algs": ["mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org"],
        "encryption_algs": ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com"],
        "mac_algs": ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"],
        "signature_algs": CLIENT_SIGNATURES,
    },
    "compatible": {
        "kex_algs": [
            "mlkem768x25519-sha256",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "ecdh-sha2-nistp256",
            "ecdh-sha2-nistp384",
            "ecdh-sha2-nistp521",
            "diffie-hellman-group16-sha512",
            "diffie-hellman-group18-sha512",
            "diffie-hellman-group14-sha256",
        ],
        "encryption_algs": [
            "aes256-gcm@openssh.com",
            "aes128-gcm@openssh.com",
            "chacha20-poly1305@openssh.com",
            "aes256-ctr",
            "aes192-ctr",
            "aes128-ctr",
        ],
        "mac_algs": [
            "hmac-sha2-256-etm@openssh.com",
            "hmac-sha2-512-etm@openssh.com",
            "hmac-sha2-256",
            "hmac-sha2-512",
        ],
        "signature_algs": CLIENT_SIGNATURES,
    },
}

SERVER_VERSION = "git-ssh-relay"  # without a number: scanners need not learn it

RECEIVE_WINDOW_BYTES = 2 << 20  # of a session, for what its client sends
SEND_PACKET_LEAST_BYTES = 100  # a client with a smaller maximum packet size would cost a packet for every few bytes
RECEIVE_PACKET_BYTES = 32_700  # one packet in is one packet out: libssh2 takes this much at once

REKEY_BYTES = {"modern": 32 << 30, "compatible": 1 << 30}  # AES allows 64 GiB under one key (RFC 4344 section 3.2)


RSA_HOST_SIGNATURES = [b"rsa-sha2-256", b"rsa-sha2-512"]  # asyncssh also offers SHA-1; the last one proves keys that are announced


class HostKey(SSHLocalKeyPair):
    """A host key with one signature algorithm (RFC 8332).

    asyncssh offers every algorithm of a key with one object, on which the choice of the latest connection holds for all of them.
    """

    def __init__(self, key: asyncssh.SSHKey, algorithm: bytes, certificate: bytes = b"") -> None:
        """With the blob of a `certificate` the key is offered as certified (OpenSSH's PROTOCOL.certkeys)."""
        super().__init__(key, None, None, None)
        self.certified = bool(certificate)
        self.sig_algorithm = algorithm
        self.sig_algorithms = [algorithm]
        self.algorithm = algorithm + CERTIFICATE_SUFFIX.encode() if certificate else algorithm
        self.host_key_algorithms = [self.algorithm]
        self.public_data = certificate or self.public_data


def _with_each_algorithm(keys: list[asyncssh.SSHKey], certificates: Sequence[HostCertificate]) -> list[HostKey]:
    """First the certificates: a client that lists both kinds in its order gets what it prefers, whatever the relay's."""
    blobs = {one.key: one.blob for one in certificates}
    signing = [(key, name) for key in keys for name in (RSA_HOST_SIGNATURES if key.algorithm == b"ssh-rsa" else key.sig_algorithms)]
    certified = [HostKey(key, name, blobs[key.public_data]) for key, name in signing if key.public_data in blobs]
    return certified + [HostKey(key, name) for key, name in signing]


def server_options(config: Config, host_keys: list[asyncssh.SSHKey], certificates: Sequence[HostCertificate] = ()) -> dict[str, Any]:
    """Keyword arguments for asyncssh.create_server or SSHServerConnectionOptions: public keys and sessions, nothing else.

    `host_keys` are loaded keys, not paths: asyncssh reads paths again for every connection. `certificates` are of some of them.
    """
    keepalive = config.limits.keepalive_seconds
    return {
        **PROFILES[config.algorithms.profile],
        "compression_algs": ["none"],
        "server_host_keys": _with_each_algorithm(host_keys, certificates),
        "send_server_host_keys": True,  # hostkeys-00@openssh.com, so that clients learn a new key before the old one goes
        "public_key_auth": True,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_host": None,
        "allow_pty": False,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "line_editor": False,
        "allow_scp": False,
        "encoding": None,
        "login_timeout": config.limits.login_grace_seconds,
        "keepalive_interval": keepalive,
        "keepalive_count_max": 3,
        "tcp_keepalive": True,
        "window": RECEIVE_WINDOW_BYTES,
        "max_pktsize": RECEIVE_PACKET_BYTES,
        "rekey_bytes": REKEY_BYTES[config.algorithms.profile],
        "server_version": SERVER_VERSION,
    }
