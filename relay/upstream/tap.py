"""A copy of what a git host sends during a libssh2 session's handshake, taken in the session's receive function.

The bytes that libssh2 has consumed cannot be read again, and looking ahead at the socket (MSG_PEEK) misses what comes between the look and
the read. libssh2 lets the receive function be replaced (libssh2_session_callback_set2); this one calls the original.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any

from relay.upstream.libssh2.library import Library, session_pointer

_CALLBACK_RECV = 6  # libssh2.h
_RECEIVE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)


class Tap:
    """Copies from its creation until `remove`. It must not be freed earlier than the session unless `remove` was called.

    Keeps `most` bytes. After as many bytes without a version line (`SSH-`) reading fails: libssh2 would skip lines for ever.
    """

    def __init__(self, library: Library, session: Any, most: int) -> None:
        self._set = library.c[
            "libssh2_session_callback_set2"
        ]  # by item: a function object of its own, whose argument types no other code sets
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
        """Gives libssh2 its own receive function back."""
        self._set(self._pointer, _CALLBACK_RECV, self._before)
