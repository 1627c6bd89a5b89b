"""libssh2's errors in the relay's words: what went wrong with the git host, not what the binding calls it."""

from __future__ import annotations

from typing import Any

from relay.upstream.libssh2.binding import exceptions as of

_ENDED = "the git host ended the connection"
_DAMAGED = "a packet from the git host is damaged, or was changed on its way"
_BROKEN = "the git host broke the SSH protocol"
_REFUSED = "the git host refused it"
_NO_CHANNEL = "the git host broke the rules of a channel"
_NO_KEY = "libssh2 cannot read the private key, it must be an OpenSSH or PEM key without a passphrase"
_NO_TYPE = "libssh2 or the git host does not support a key of this type"
_MISUSED = "libssh2 was called in a wrong way, which is a fault of the relay"

WORDS: dict[type[of.SSH2Error], str] = {
    of.SocketDisconnectError: _ENDED,
    of.SocketRecvError: _ENDED,
    of.SocketSendError: _ENDED,
    of.BannerRecvError: "the git host sent no SSH version",
    of.BannerSendError: _ENDED,
    of.KexFailureError: "the git host's answer to the key exchange is not valid",
    of.KeyExchangeError: "the git host's answer to the key exchange is not valid",
    of.SessionStartupError: "the git host's answer to the key exchange is not valid",
    of.SessionHandshakeError: "the git host's answer to the key exchange is not valid",
    of.SessionHostKeyError: "the git host's host key cannot be read",
    of.HostkeyInitError: "the git host's host key cannot be read",
    of.HostkeySignError: "the signature by the git host's host key is wrong",
    of.InvalidMACError: _DAMAGED,
    of.MacFailureError: _DAMAGED,
    of.DecryptError: _DAMAGED,
    of.EncryptError: "a packet to the git host could not be encrypted",
    of.Timeout: "the git host gave no answer in time",
    of.SocketTimeout: "the git host gave no answer in time",
    of.ProtocolError: _BROKEN,
    of.OutOfBoundaryError: _BROKEN,
    of.InvalidRequestError: _MISUSED,
    of.InvalidPollTypeError: _MISUSED,
    of.BadUseError: _MISUSED,
    of.BadSocketError: _MISUSED,
    of.BufferTooSmallError: _BROKEN,
    of.AllocError: "no memory is left",
    of.RandGenError: "the system gives no random numbers",
    of.HashInitError: "libssh2 cannot compute a hash that was agreed upon",
    of.HashCalcError: "libssh2 cannot compute a hash that was agreed upon",
    of.MethodNoneError: "nothing in common was found",
    of.MethodNotSupported: _NO_TYPE,
    of.AlgoUnsupportedError: _NO_TYPE,
    of.AuthenticationError: "the git host does not let this key in",
    of.PublickeyUnverifiedError: "the git host does not let this key in",
    of.PasswordExpiredError: "the account's password has expired",
    of.MissingUserAuthBannerError: _BROKEN,
    of.FileError: _NO_KEY,
    of.KeyfileAuthFailedError: _NO_KEY,
    of.PublicKeyInitError: _NO_KEY,
    of.PublicKeyProtocolError: _BROKEN,
    of.RequestDeniedError: _REFUSED,
    of.ChannelRequestDenied: _REFUSED,
    of.ChannelFailure: "the git host refused it: its account may not, or MaxSessions of its sshd_config is too low",
    of.ChannelClosedError: "the git host closed the channel",
    of.ChannelEOFSentError: "the channel's input has ended",
    of.ChannelOutOfOrderError: _NO_CHANNEL,
    of.ChannelUnknownError: _NO_CHANNEL,
    of.ChannelWindowExceeded: _NO_CHANNEL,
    of.ChannelPacketExceeded: _NO_CHANNEL,
    of.ChannelWindowFullError: _NO_CHANNEL,
    of.ChannelError: _NO_CHANNEL,
    of.ZlibError: _DAMAGED,
    of.CompressError: _DAMAGED,
}

UNREADABLE_KEY = (of.FileError, of.KeyfileAuthFailedError, of.PublicKeyInitError, of.AlgoUnsupportedError)  # the host was not asked


def words(error: of.SSH2Error, session: Any) -> str:
    """One sentence, and libssh2's number for the error where it has one (libssh2.h, LIBSSH2_ERROR_...)."""
    said = next((WORDS[kind] for kind in type(error).__mro__ if kind in WORDS), "libssh2 failed and does not say why")
    number = session.last_errno() if session is not None else 0
    return f"{said} (libssh2 error {number})" if number else said
