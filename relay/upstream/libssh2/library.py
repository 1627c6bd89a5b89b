"""How a libssh2 channel's command ended, read from the loaded library, since the binding cannot tell.

ssh2-python passes NULL lengths for the exit signal, so a death by signal reads as status 0; and libssh2 1.11.1 has no way to say that
no status was received at all, which reads as 0 too (RFC 4254 section 6.10 makes both optional). The hardened build and later libssh2
export `libssh2_channel_has_exit_status`. On 1.11.1 a value that no shell can produce is stored in the channel before the
command is started; if it is still there at the end, no status came.
"""

from __future__ import annotations

import ctypes
from typing import Any

from relay.model import Exit
from relay.text import printable

_UNTOLD = -0x5EED_5EED  # a value that waitpid() cannot give as exit status
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_OBJECT_HEAD = 2 * _POINTER  # ob_refcnt, ob_type; then the first C field of the Cython object
_EXIT_STATUS_OFFSET_1_11_1 = 5 * _POINTER  # list_node (next, prev, head), channel_type, channel_type_len
_SIGNAL_NAME_MAX = 64


class UnknownLibrary(RuntimeError):
    """The loaded libssh2 does not tell how a command ended: a death could pass for a success."""


class Library:
    """The libssh2 that is mapped into this process from a file whose name begins with `name`."""

    def __init__(self, name: str) -> None:
        self.path = _mapped(name)
        c = self.c = ctypes.CDLL(self.path)
        c.libssh2_version.restype = ctypes.c_char_p
        self.version = c.libssh2_version(0).decode("ascii", "replace")
        self.build = ""  # of the hardened library
        if hasattr(c, "libssh2_relay_build"):
            c.libssh2_relay_build.restype = ctypes.c_char_p
            self.build = c.libssh2_relay_build().decode("ascii", "replace")
        self._has_status = getattr(c, "libssh2_channel_has_exit_status", None)
        if self._has_status is not None:
            self._has_status.argtypes = [ctypes.c_void_p]
            self._has_status.restype = ctypes.c_int
        elif self.version != "1.11.1":
            raise UnknownLibrary(f"libssh2 {self.version} at {self.path} cannot say whether an exit status came; use 1.11.1 or native/")
        self._setenv = getattr(c, "libssh2_channel_setenv_noreply", None)  # of the hardened library
        if self._setenv is not None:
            self._setenv.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p, ctypes.c_uint]
            self._setenv.restype = ctypes.c_int
        self._hold = getattr(c, "libssh2_session_hold", None)  # of the hardened library
        if self._hold is not None:
            self._hold.argtypes = [ctypes.c_void_p, ctypes.c_int]
            self._hold.restype = ctypes.c_int
        self._get_status = c.libssh2_channel_get_exit_status  # called directly: the binding treats statuses from 2**31 on as error codes
        self._get_status.argtypes = [ctypes.c_void_p]
        self._get_status.restype = ctypes.c_int
        self._get_signal = c.libssh2_channel_get_exit_signal
        self._get_signal.argtypes = [ctypes.c_void_p] + [ctypes.c_void_p] * 6
        self._free = c.libssh2_free
        self._free.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._free.restype = None

    def __str__(self) -> str:
        return f"{self.version}+{self.build}" if self.build else f"{self.version} (stock)"

    @property
    def sets_env_unasked(self) -> bool:
        """Whether `setenv` is available: a variable costs no round trip then."""
        return self._setenv is not None

    def setenv(self, pointer: int, name: bytes, value: bytes) -> int:
        """Sends an env request that wants no reply (RFC 4254 section 6.4); libssh2's code, to be retried while it is EAGAIN.

        `pointer`: the channel's (`channel_pointer`).
        """
        assert self._setenv is not None
        return int(self._setenv(pointer, name, len(name), value, len(value)))

    def hold(self, pointer: int, on: bool) -> int:
        """On: small packets are held back. Off: they are sent, in one write; libssh2's code, and while it is EAGAIN whatever is called next
        sends the rest. `pointer`: the session's (`session_pointer`). A library that cannot hold back sends each packet at once.
        """
        return int(self._hold(pointer, on)) if self._hold is not None else 0

    def before_exec(self, channel: Any) -> None:
        """Marks the channel so that `after_close` can tell a status of 0 from none."""
        if self._has_status is not None:
            return
        pointer = channel_pointer(channel)
        status = ctypes.c_int.from_address(pointer + _EXIT_STATUS_OFFSET_1_11_1)
        if status.value != 0:
            raise UnknownLibrary(f"libssh2 {self.version} at {self.path}: its channel is not laid out as in 1.11.1")
        status.value = _UNTOLD
        if self._get_status(pointer) != _UNTOLD:
            status.value = 0
            raise UnknownLibrary(f"libssh2 {self.version} at {self.path}: its channel is not laid out as in 1.11.1")

    def after_close(self, channel: Any) -> Exit | None:
        """The exit of a channel that both sides closed, or None if the git host sent none."""
        pointer = channel_pointer(channel)
        name, length = ctypes.c_void_p(), ctypes.c_size_t()
        self._get_signal(pointer, ctypes.byref(name), ctypes.byref(length), None, None, None, None)
        if name.value:
            text = ctypes.string_at(name.value, min(length.value, _SIGNAL_NAME_MAX)).decode("ascii", "replace")
            self._free(session_pointer(channel.session), name)
            return Exit(signal=printable(text, _SIGNAL_NAME_MAX))
        if self._has_status is not None:
            told = bool(self._has_status(pointer))
        else:
            told = ctypes.c_int.from_address(pointer + _EXIT_STATUS_OFFSET_1_11_1).value != _UNTOLD
        return Exit(status=self._get_status(pointer) & 0xFFFF_FFFF) if told else None


def channel_pointer(channel: Any) -> int:
    """LIBSSH2_CHANNEL * of an ssh2.channel.Channel, whose C fields are that pointer and its Session, in this order."""
    address = id(channel) + _OBJECT_HEAD
    if ctypes.c_size_t.from_address(address + _POINTER).value != id(channel.session):
        raise UnknownLibrary("ssh2-python: a Channel object is not laid out as expected")
    return ctypes.c_size_t.from_address(address).value


def session_pointer(session: Any) -> int:
    """LIBSSH2_SESSION * of an ssh2.session.Session, its first C field."""
    return ctypes.c_size_t.from_address(id(session) + _OBJECT_HEAD).value


def _mapped(name: str) -> str:
    """The path of the shared library `name` that this process has mapped."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and path.rsplit("/", 1)[-1].startswith(name):
                return "/" + path
    raise UnknownLibrary(f"{name} is not loaded")
