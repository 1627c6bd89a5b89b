"""One authenticated SSH connection to a git host: a non-blocking libssh2 session driven by the loop's reader and writer callbacks.

Only this package imports ssh2. A connection has three layers, each a subclass of the one before: `transport` (RFC 4253: the socket, the key
exchange, one operation at a time, `close`), `streams` (a running command's input, output and exit) and `connection` (login, a channel
opened ahead, one command after another). Breaking one of these rules of libssh2 1.11.1 corrupts data silently, or hangs:

* A session has one outgoing packet. An operation that met EAGAIN with output pending *owns* the session until it is done.
* A write is retried with the same bytes: one frozen chunk of at most WRITE_BYTES, kept until it is accepted.
* Every read asks for READ_BYTES, stdout and stderr alike; otherwise libssh2 credits WINDOW_ADJUSTs that it never sent.
* No call that can send is made unless poll() says that the socket takes output, and its buffer is large: a packet that is
  only partly sent when a key exchange begins wedges the session for ever.
* One session serves one exec at a time; a channel is opened ahead.
"""

from relay.upstream.libssh2.connection import Connection, Login
from relay.upstream.libssh2.streams import KEEPALIVES_UNANSWERED, Peer
from relay.upstream.libssh2.transport import loaded_library, probe

__all__ = ["KEEPALIVES_UNANSWERED", "Connection", "Login", "Peer", "loaded_library", "probe"]
