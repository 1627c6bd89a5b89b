"""One authenticated SSH connection to a git host: a non-blocking libssh2 session driven by the loop's reader and writer callbacks.

The package is the sole importer of ssh2. A connection in three layers, each on the one before: `transport` (RFC 4253: the socket, key
exchange, one operation at a time, the end), `streams` (a running command's input, output and exit) and `connection` (login, a channel
ahead, one command after another). The rules of libssh2 1.11.1 that are kept here, each of which is silent corruption or a hang when
broken:

* A session has one outgoing packet. An operation that met EAGAIN with output pending *owns* the session until it is done.
* A write is retried with the same bytes: one frozen chunk of at most WRITE_BYTES, kept until it is accepted.
* Every read asks for READ_BYTES, stdout and stderr alike, or window adjusts are credited that were never sent.
* No call that can send is made unless poll() says that the socket takes output, and its buffer is large: a packet that is
  only partly sent when a key exchange begins wedges the session for ever.
* One session serves one exec at a time; a channel is opened ahead.
"""

from relay.upstream.libssh2.connection import Connection, Login
from relay.upstream.libssh2.streams import KEEPALIVES_UNANSWERED, Peer
from relay.upstream.libssh2.transport import loaded_library, probe

__all__ = ["KEEPALIVES_UNANSWERED", "Connection", "Login", "Peer", "loaded_library", "probe"]
