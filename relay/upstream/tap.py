"""A copy of what a git host sends while a libssh2 session shakes hands, taken at the function that receives for the session.

The bytes that libssh2 has consumed cannot be read again, and looking ahead at the socket (MSG_PEEK) misses what comes between the look and
the read. libssh2 lets the receiving function be replaced (libssh2_session_callback_set2); the one here calls the one before it.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any

from relay.upstream.libssh2.library import Library, session_pointer

_CALLBACK_RECV = 6  # libssh2.h
_RECEIVE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)


class Tap:
    """From here to `remove`; while the session lives and was not given back by `remove`, this object must live too.

    Keeps `most` bytes. A host that has sent as many and no version line (`SSH-`) is cut off: libssh2 would skip its lines for ever.
    """

    def __init__(self, library: Library, session: Any, most: int) -> None:
        self._set = library.c["libssh2_session_callback_set2"]  # an object of our own, whose types nobody else sets
        self._set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self._set.restype = ctypes.c_void_p
        self._pointer = session_pointer(session)
        heard = self.heard = bytearray()
        versioned = False

        def receive(sock: int, buffer: int, length: int, flags: int, abstract: int) -> int:
            nonlocal versioned
            room = most - len(heard)
            if room <= 0 and not versioned:
                versioned = heard.startswith(b"SSH-") or b"\nSSH-" in heard
                if not versioned:
                    return -errno.ECONNRESET
            got = int(before(sock, buffer, length, flags, abstract))
            if got > 0 and room > 0:
                heard.extend(ctypes.string_at(buffer, min(got, room)))
            return got

        self._receive = _RECEIVE(receive)
        self._before = self._set(self._pointer, _CALLBACK_RECV, ctypes.cast(self._receive, ctypes.c_void_p))
        before = _RECEIVE(self._before)

    def remove(self) -> None:
        """From now on libssh2 receives by itself, at full speed."""
        self._set(self._pointer, _CALLBACK_RECV, self._before)
