"""The client of a hostile server, in a process of its own because it may crash; it prints its report as one line of JSON.

    python -m tests.native.victim PORT '{"cipher": ..., "mac": ..., "kex": ..., "write": bytes, "ignore_stderr": ..., ...}'

It logs in, runs a command, writes, reads to the end and asks how the command ended. `stage` is how far it came and `error`
the exception that stopped it. A library that is fooled into a crash prints nothing.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from tests.native.client import READ_SIZE, Channel, Client, SSH2Error, exit_of, relay_build
from tests.native.inetd import new_key

LIBSSH2_CHANNEL_EXTENDED_DATA_IGNORE = 1


def run(client: Client, order: dict[str, Any], seen: dict[str, Any]) -> None:
    """Runs the session as far as the server allows; fills `seen` on the way."""
    client.handshake(order["cipher"], order.get("mac", ""), kex=order.get("kex", "curve25519-sha256"))
    seen["stage"] = "login"
    client.login("git", new_key()[0])
    seen["stage"] = "exec"
    client.execute("command")
    channel: Channel = client.channel
    if order.get("ignore_stderr"):
        client.drive(channel.handle_extended_data2, LIBSSH2_CHANNEL_EXTENDED_DATA_IGNORE)
    seen["stage"] = "write"
    client.write(bytes(order.get("write", 0)))
    seen["stage"] = "read"
    while True:
        rc, data = client.drive(channel.read, READ_SIZE)
        if rc == 0:
            break
        seen["read"] += len(data)
    seen["stage"] = "end"
    client.drive(channel.wait_closed)
    seen["status"] = channel.get_exit_status()
    if relay_build():
        seen["has_status"], seen["signal"] = exit_of(channel)
    seen["stage"] = "done"


def main() -> None:
    """Connect, run, report."""
    order = json.loads(sys.argv[2])
    seen: dict[str, Any] = {"stage": "handshake", "error": None, "read": 0}
    sock = socket.socket()
    if "receive_buffer" in order:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, order["receive_buffer"])
    if "send_buffer" in order:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, order["send_buffer"])
    sock.connect(("127.0.0.1", int(sys.argv[1])))
    with Client(sock) as client:
        try:
            run(client, order, seen)
        except SSH2Error as error:
            seen["error"] = type(error).__name__
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
