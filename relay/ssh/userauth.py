"""Authentication requests (RFC 4252) of one client connection: public keys and nothing else, judged by the server logic.

A request is answered inline unless a backend must be asked. asyncssh would make an object, two coroutines and two tasks for each, look
through seven methods, and decode each key as a certificate first, and again for the offer and for the signed request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh
from asyncssh.constants import MSG_USERAUTH_FAILURE, MSG_USERAUTH_REQUEST
from asyncssh.packet import Boolean, NameList, SSHPacket, SSHPacketHandler, String
from asyncssh.saslprep import SASLPrepError

from relay.ssh.client_key import ClientKey, signature_flags, verifies
from relay.ssh.kex import KexConnection, SharedHandshakeState
from relay.ssh.quiet import QUIET
from relay.text import printable

USER_NAME_BYTES = 1024
METHODS = NameList([b"publickey"])
SHA1 = "the client signs with ssh-rsa (SHA-1), allowed for an RSA key are rsa-sha2-256 and rsa-sha2-512"

_MSG_USERAUTH_PK_OK = 60  # RFC 4252 section 7


class Judge(asyncssh.SSHServer):
    """Server logic that decides about keys and is told of each failure; asyncssh tells an SSHServer neither.

    Its begin_auth is synchronous and returns True; validate_key is called instead of validate_public_key.
    """

    def bad_signature(self, detail: str = "") -> None:
        raise NotImplementedError

    def unusable_key(self, detail: str) -> None:
        """The client offers a key that cannot be decoded, or of a type that is not known."""
        raise NotImplementedError

    def accepts_flags(self, flags: int | None) -> bool:
        """Whether a right signature of the candidate is accepted with these flags, None of a key that is no security key; tells why not."""
        raise NotImplementedError

    def failure_due(self) -> None:
        """Called before a failure is sent; raises DisconnectError when it is one too many, which is then sent instead."""
        raise NotImplementedError

    def is_candidate(self) -> bool:
        """Whether the key that was validated last belongs to an identity."""
        raise NotImplementedError

    async def validate_key(self, username: str, key: ClientKey) -> bool:
        """Whether the key belongs to an identity. Called for the offer, and for the signed request before its signature is verified."""
        raise NotImplementedError

    async def validate_certificate(self, username: str, blob: bytes) -> asyncssh.SSHKey | None:
        """The key that must have signed, or None. asyncssh would decode the certificate and pass on neither its key id nor its serial."""
        raise NotImplementedError


_saslprep = asyncssh.saslprep.saslprep


def _prepared(text: str) -> str:
    """SASLprep (RFC 4013) of a user name, which leaves printable ASCII as it is; asyncssh calls it three times a login."""
    return text if text.isascii() and text.isprintable() else _saslprep(text)


setattr(asyncssh.connection, "saslprep", _prepared)  # noqa: B010 - mypy knows the function's own parameter name


class Attempt(SSHPacketHandler):
    """One request that is being decided. It is the connection's `_auth`: the next request replaces it, and it gets messages 60 to 79."""

    task: asyncio.Task[None] | None = None

    @property
    def logger(self) -> Any:
        return QUIET

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class LoginConnection(KexConnection):
    """Answers authentication requests itself when its server logic is a Judge; otherwise asyncssh does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions, once: SharedHandshakeState) -> None:
        super().__init__(loop, options, once)
        self._first_failure = True
        self._unanswered = False  # the current attempt has no answer yet
        self._key: tuple[bytes, ClientKey] | None = None  # the key offered last: as received, and decoded

    def _process_userauth_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> Any:
        owner = self._owner
        if not isinstance(owner, Judge) or self._auth_complete:
            return super()._process_userauth_request(pkttype, pktid, packet)
        user, service, method = packet.get_string(), packet.get_string(), packet.get_string()
        if len(user) >= USER_NAME_BYTES:
            raise asyncssh.IllegalUserName("Username too long")
        if service != b"ssh-connection":
            raise asyncssh.ServiceNotAvailable("Unexpected service in auth request")
        try:
            username = _prepared(user.decode("utf-8"))
        except (UnicodeDecodeError, SASLPrepError) as error:
            raise asyncssh.IllegalUserName(str(error)) from None
        if self._auth is not None:
            before, self._auth = self._auth, None
            before.cancel()
            if self._unanswered:  # superseded requests count as failures: each may have cost a question to a backend
                owner.failure_due()
        self._key_options = {}
        self._cert_options = None
        if username != self._username:
            self._username = username
            owner.begin_auth(username)
        if method != b"publickey":
            self.send_userauth_failure(False)
            return None
        attempt: Any = Attempt()
        self._auth, self._unanswered = attempt, True
        attempt.task = self.create_task(self._judge(attempt, username, packet))
        return None

    async def _judge(self, attempt: Any, username: str, packet: SSHPacket) -> None:
        proves, algorithm, blob = packet.get_boolean(), packet.get_string(), packet.get_string()
        message, signature = (packet.get_consumed_payload(), packet.get_string()) if proves else (b"", b"")
        packet.check_end()
        valid = await self.validate_public_key(username, blob, message, signature)
        if self._auth is not attempt:
            return  # superseded by another request, or the connection ended
        if not valid:
            self.send_userauth_failure(False)
        elif proves:
            await self.send_userauth_success()
        else:
            self._unanswered = False
            self.send_packet(_MSG_USERAUTH_PK_OK, String(algorithm), String(blob))

    async def reload_config(self) -> None:
        """Does nothing: no option depends on the user, and asyncssh would build all options anew for every login."""

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Whether the key or certificate belongs to an identity and, if there is a message, whether the key has signed it."""
        owner = self._owner
        if not isinstance(owner, Judge):
            return await super().validate_public_key(username, key_data, msg, signature)
        key = await self._validated(owner, username, key_data)
        if key is None:
            return False
        valid = not msg or verifies(key, String(self._session_id) + msg, signature)
        if valid and msg and not owner.accepts_flags(signature_flags(key, signature)):
            return False
        if valid and msg and self._key is not None and self._key[0] == key_data:
            known = self._key[1]
            self._once.keys.add(known.blob, known)
        if not valid and owner.is_candidate():
            owner.bad_signature(SHA1 if signature.startswith(String(b"ssh-rsa")) else "")
        return valid

    async def _validated(self, owner: Judge, username: str, blob: bytes) -> asyncssh.SSHKey | None:
        """The key that must have signed, or None; a certificate is recognised by its type's name (RFC 4253 section 6.6)."""
        if b"-cert-v0" in blob[4 : 4 + int.from_bytes(blob[:4], "big")]:
            return await owner.validate_certificate(username, blob)
        known = self._once.keys
        key = known.get(blob)
        if key is None:
            if self._key is None or self._key[0] != blob:
                try:
                    self._key = (blob, ClientKey.decoded(blob))
                except asyncssh.KeyImportError as error:
                    owner.unusable_key(printable(str(error)))
                    return None
            key = self._key[1]
        return key.key if await owner.validate_key(username, key) else None

    def send_userauth_failure(self, partial_success: bool) -> None:
        owner = self._owner
        if not isinstance(owner, Judge):
            super().send_userauth_failure(partial_success)
            return
        first, self._first_failure = self._first_failure, False
        if not first:  # the first request asks with method "none" which methods there are
            owner.failure_due()
        self._auth = None
        self.send_packet(MSG_USERAUTH_FAILURE, METHODS, Boolean(partial_success))

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions, not methods
        **KexConnection._packet_handlers,
        MSG_USERAUTH_REQUEST: _process_userauth_request,
    }
