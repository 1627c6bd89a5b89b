"""Which binding of libssh2 this process uses: relay_ssh2, which has the hardened library, or ssh2-python, with the one of its wheel.

relay_ssh2 is the binding of ssh2-python under another name (native/source.sh), so that both may be installed. Where it is missing, or
cannot be loaded (as for want of a libcrypto), ssh2-python serves, and the log says why. Where neither can be loaded, importing this module
raises ConfigError, whose line every command prints.
"""

from __future__ import annotations

import os
import sys

from relay.errors import ConfigError

WHY_STOCK = ""  # why relay_ssh2 is not used; empty when it is

STOCK_ASKED = "RELAY_LIBSSH2=stock asks for it"

if os.environ.get("RELAY_LIBSSH2") == "stock":  # to compare the two, and to serve without the hardened one if it is suspected
    WHY_STOCK = STOCK_ASKED
else:
    try:
        import relay_ssh2.session  # noqa: F401  # loads the library, too
    except ModuleNotFoundError as error:
        WHY_STOCK = "git-ssh-relay-native is not installed" if error.name == "relay_ssh2" else f"relay_ssh2 cannot be loaded: {error}"
    except ImportError as error:
        WHY_STOCK = f"relay_ssh2 cannot be loaded: {error}"

if WHY_STOCK:
    try:
        from ssh2 import exceptions
        from ssh2.error_codes import LIBSSH2_ERROR_EAGAIN
        from ssh2.exceptions import AuthenticationError, ChannelFailure, ChannelRequestDenied, SocketSendError, SSH2Error
        from ssh2.session import (
            LIBSSH2_METHOD_COMP_CS,
            LIBSSH2_METHOD_COMP_SC,
            LIBSSH2_METHOD_CRYPT_CS,
            LIBSSH2_METHOD_CRYPT_SC,
            LIBSSH2_METHOD_HOSTKEY,
            LIBSSH2_METHOD_KEX,
            LIBSSH2_METHOD_MAC_CS,
            LIBSSH2_METHOD_MAC_SC,
            LIBSSH2_SESSION_BLOCK_INBOUND,
            LIBSSH2_SESSION_BLOCK_OUTBOUND,
            Session,
        )
        from ssh2.utils import handle_error_codes
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "ssh2"
        why = "ssh2-python is not installed" if missing else f"ssh2-python cannot be loaded: {error}"
        if WHY_STOCK == STOCK_ASKED:
            line = f"RELAY_LIBSSH2=stock asks for ssh2-python; {why}; pip install ssh2-python, or unset RELAY_LIBSSH2"
        else:
            line = f"{WHY_STOCK}; {why}; pip install 'git-ssh-relay[native]'"
        raise ConfigError([f"no libssh2 for {sys.executable}: {line}"]) from None
else:
    from relay_ssh2 import exceptions
    from relay_ssh2.error_codes import LIBSSH2_ERROR_EAGAIN
    from relay_ssh2.exceptions import AuthenticationError, ChannelFailure, ChannelRequestDenied, SocketSendError, SSH2Error
    from relay_ssh2.session import (
        LIBSSH2_METHOD_COMP_CS,
        LIBSSH2_METHOD_COMP_SC,
        LIBSSH2_METHOD_CRYPT_CS,
        LIBSSH2_METHOD_CRYPT_SC,
        LIBSSH2_METHOD_HOSTKEY,
        LIBSSH2_METHOD_KEX,
        LIBSSH2_METHOD_MAC_CS,
        LIBSSH2_METHOD_MAC_SC,
        LIBSSH2_SESSION_BLOCK_INBOUND,
        LIBSSH2_SESSION_BLOCK_OUTBOUND,
        Session,
    )
    from relay_ssh2.utils import handle_error_codes

LIBRARY = "libssh2" if WHY_STOCK else "librelay_ssh2"  # how the name of the shared library's file begins

__all__ = [
    "LIBRARY",
    "LIBSSH2_ERROR_EAGAIN",
    "LIBSSH2_METHOD_COMP_CS",
    "LIBSSH2_METHOD_COMP_SC",
    "LIBSSH2_METHOD_CRYPT_CS",
    "LIBSSH2_METHOD_CRYPT_SC",
    "LIBSSH2_METHOD_HOSTKEY",
    "LIBSSH2_METHOD_KEX",
    "LIBSSH2_METHOD_MAC_CS",
    "LIBSSH2_METHOD_MAC_SC",
    "LIBSSH2_SESSION_BLOCK_INBOUND",
    "LIBSSH2_SESSION_BLOCK_OUTBOUND",
    "WHY_STOCK",
    "AuthenticationError",
    "ChannelFailure",
    "ChannelRequestDenied",
    "SSH2Error",
    "Session",
    "SocketSendError",
    "exceptions",
    "handle_error_codes",
]
