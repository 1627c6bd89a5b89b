"""Key exchanges (RFC 4253 section 7): the algorithms are negotiated once for each kind of client and remembered.

A client's KEXINIT is the same at every login but for its cookie. asyncssh would parse and log its ten lists each time, and write its own.
The key exchange itself, with its signature, is asyncssh's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncssh
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import MSG_GLOBAL_REQUEST, MSG_KEXINIT
from asyncssh.kex import get_kex
from asyncssh.packet import Boolean, SSHPacket, String

from relay.ssh import wire
from relay.ssh.client_key import KnownKeys
from relay.ssh.gcm import fresh_noise
from relay.ssh.packets import PacketConnection
from relay.text import printable

COOKIE_END = 17  # of a KEXINIT: its number, and 16 random bytes
KINDS_MOST = 256  # remembered; asyncssh negotiates with clients of further kinds
KIND_BYTES = 4_096  # a longer KEXINIT is not remembered
LISTED_CHARACTERS = 400  # of a list of algorithms, in the log and the audit

_KINDS = {"encryption": "cipher"}  # asyncssh's word: the RFC's


class NoCommonAlgorithm(asyncssh.KeyExchangeFailed):
    """Client and relay have no key exchange, host key type, cipher, MAC or compression in common."""

    def __init__(self, what: str, theirs: Sequence[bytes], ours: Sequence[bytes]) -> None:
        super().__init__(f"no common {what}: the client offers {_listed(theirs)}, the relay {_listed(ours)}")


def _listed(names: Sequence[bytes]) -> str:
    return printable(b",".join(names).decode("ascii", "replace"), LISTED_CHARACTERS) or "nothing"


class Agreement(NamedTuple):
    """What was negotiated with a client of one kind, under this server's options."""

    key_exchange: bytes
    host_key: Any
    ciphers: tuple[bytes, bytes]  # client to server, server to client
    macs: tuple[bytes, bytes]
    compressions: tuple[bytes, bytes]
    extensions: bool  # the client takes MSG_EXT_INFO (RFC 8308)
    strict: bool
    ignores_guess: bool  # drop the wrongly guessed packet (first_kex_packet_follows, RFC 4253 section 7)


class SharedHandshakeState:
    """What connections with the same options share."""

    def __init__(self, kinds_most: int | None = None) -> None:
        self.kinds_most = KINDS_MOST if kinds_most is None else kinds_most
        self.agreements: dict[bytes, Agreement] = {}  # by KEXINIT without cookie
        self.proposal = b""  # our KEXINIT without cookie
        self.host_keys = b""  # hostkeys-00@openssh.com
        self.keys = KnownKeys()


class KexConnection(PacketConnection):
    """`once` is shared by all connections with the same options."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions, once: SharedHandshakeState) -> None:
        super().__init__(loop, options)
        self._once = once

    def _send_kexinit(self) -> None:
        once = self._once
        if not wire.ENABLED:
            super()._send_kexinit()
            return
        if not once.proposal:
            super()._send_kexinit()
            once.proposal = self._server_kexinit[COOKIE_END:]
            return
        self._kex_complete = False
        self._rekey_bytes_sent = 0
        if self._rekey_seconds:
            self._rekey_time = time.monotonic() + self._rekey_seconds
        self._server_kexinit = b"".join((bytes((MSG_KEXINIT,)), fresh_noise(1)[: COOKIE_END - 1], once.proposal))
        self.send_packet(MSG_KEXINIT, self._server_kexinit[1:])

    def _choose_alg(self, alg_type: str, local_algs: Sequence[bytes], remote_algs: Sequence[bytes]) -> bytes:
        for algorithm in remote_algs:
            if algorithm in local_algs:
                return algorithm
        raise NoCommonAlgorithm(_KINDS.get(alg_type, alg_type), remote_algs, local_algs)

    def choose_server_host_key(self, peer_host_key_algs: Sequence[bytes]) -> bool:
        if not super().choose_server_host_key(peer_host_key_algs):
            raise NoCommonAlgorithm("host key type", peer_host_key_algs, list(self._server_host_keys))
        return True

    def _guard(self) -> None:
        """Whatever exception the client's value causes in the cryptography counts as the client's fault, not as an internal error."""
        kex: Any = self._kex
        compute = kex._compute_server_shared

        def shared() -> Any:
            prime = getattr(kex, "_p", 0)
            if prime and not 1 < kex._e < prime - 1:
                raise asyncssh.KeyExchangeFailed("The client's Diffie-Hellman value is out of range")
            try:
                return compute()
            except asyncssh.DisconnectError:
                raise
            except Exception as error:  # noqa: BLE001 - of whatever type: it comes from a stranger's value
                raise asyncssh.KeyExchangeFailed(f"The client's key exchange value is not possible: {error}") from None

        kex._compute_server_shared = shared

    async def _process_kexinit(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Drops a guessed packet unless both sides prefer the same key exchange and host key (RFC 4253 section 7).

        asyncssh keeps the packet whenever the client's first choice is agreed upon. Dropbear then sends it again and would be disconnected.
        """
        if self._session_id and not self._auth_complete:  # OpenSSH's client waits for the login too (ssh_packet_need_rekeying)
            raise asyncssh.ProtocolError("A second key exchange before authentication")
        payload = packet.get_full_payload()
        kind = payload[COOKIE_END:]
        if self._kex is None and wire.ENABLED and (known := self._once.agreements.get(kind)) is not None:
            self._agree(known, payload)
            self._guard()
            return
        fields = SSHPacket(packet.get_remaining_payload())
        await super()._process_kexinit(pkttype, pktid, packet)
        self._guard()
        fields.get_bytes(16)  # cookie
        key_exchange, host_key, *_ = [fields.get_namelist() for _ in range(10)]
        alike = key_exchange[:1] == self._kex_algs[:1] and host_key[:1] == list(self._server_host_keys)[:1]
        self._ignore_first_kex = fields.get_boolean() and not alike
        if wire.ENABLED and self._kex is not None and len(kind) <= KIND_BYTES and len(self._once.agreements) < self._once.kinds_most:
            self._once.agreements[kind] = Agreement(
                key_exchange=self._kex.algorithm,
                host_key=self._server_host_key,
                ciphers=(self._enc_alg_cs, self._enc_alg_sc),
                macs=(self._mac_alg_cs, self._mac_alg_sc),
                compressions=(self._cmp_alg_cs, self._cmp_alg_sc),
                extensions=b"ext-info-c" in key_exchange,
                strict=b"kex-strict-c-v00@openssh.com" in key_exchange,
                ignores_guess=self._ignore_first_kex,
            )

    def _agree(self, known: Agreement, payload: bytes) -> None:
        """As asyncssh's _process_kexinit, in the same order of steps, with a known outcome."""
        self._client_kexinit = payload
        if not self._session_id:
            self._can_send_ext_info = self._can_send_ext_info or known.extensions
            self._strict_kex = self._strict_kex or known.strict
        if self._strict_kex and not self._recv_encryption and self._recv_seq != 0:
            raise asyncssh.ProtocolError("Strict key exchange violation: KEXINIT was not the first packet")
        if self._kexinit_sent:
            self._kexinit_sent = False
        else:
            self._send_kexinit()
        self._kex = get_kex(self, known.key_exchange)
        self._ignore_first_kex = known.ignores_guess
        self._server_host_key = known.host_key
        self._enc_alg_cs, self._enc_alg_sc = known.ciphers
        self._mac_alg_cs, self._mac_alg_sc = known.macs
        self._cmp_alg_cs, self._cmp_alg_sc = known.compressions

    def send_server_host_keys(self) -> None:
        """Announces the plain keys; as sshd no certificates, which asyncssh would."""
        once = self._once
        if not once.host_keys:
            plain = [blob for blob, key in self._all_server_host_keys.items() if not getattr(key, "certified", False)]
            once.host_keys = b"".join((String("hostkeys-00@openssh.com"), Boolean(False), *map(String, plain)))
        self.send_packet(MSG_GLOBAL_REQUEST, once.host_keys)

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions, not methods
        **SSHServerConnection._packet_handlers,
        MSG_KEXINIT: _process_kexinit,
    }
