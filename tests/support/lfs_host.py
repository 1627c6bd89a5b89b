"""The LFS side of a git host, as in git-lfs's documents: git-lfs-transfer, git-lfs-authenticate, and the HTTP server whose URL it prints.

host = LfsHost(sshd)                 # from here on the sshd's git-lfs-transfer and git-lfs-authenticate are these
host.only("authenticate")            # git-lfs-transfer is not served any more, so that clients fall back
host.objects(repository)             # oid -> content, as the host has it

Objects and locks lie in the bare repository's own folder. This file is also the program that the sshd runs (its last lines): nothing but
the standard library may be imported outside of LfsHost.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tests.support.sshd import Sshd

PACKET_BYTES = 65_516  # of data in one pkt-line (gitprotocol-common(5))
OWNER = "relay"  # the owner of all locks: the host does not know who logged in

FLUSH, DELIMITER = b"0000", b"0001"


class Store:
    """The objects and locks of one repository."""

    def __init__(self, repository: Path) -> None:
        self._objects = repository / "lfs" / "objects"
        self._locks = repository / "lfs" / "locks"
        for folder in (self._objects, self._locks):
            folder.mkdir(parents=True, exist_ok=True)

    def size(self, oid: str) -> int | None:
        path = self._path(oid)
        return path.stat().st_size if path.exists() else None

    def read(self, oid: str) -> bytes:
        return self._path(oid).read_bytes()

    def put(self, oid: str, size: int, data: bytes) -> bool:
        """Stores an object; False when its content does not match its oid or size."""
        if len(data) != size or hashlib.sha256(data).hexdigest() != oid:
            return False
        new = self._path(oid).with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        new.write_bytes(data)
        new.replace(self._path(oid))
        return True

    def objects(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._objects.iterdir()}

    def lock(self, path: str) -> tuple[bool, dict[str, str]]:
        """Locks a path; returns whether the lock is new, and the lock."""
        id_ = base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")
        made = {"id": id_, "path": path, "locked-at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "ownername": OWNER}
        try:
            with (self._locks / id_).open("x") as file:
                json.dump(made, file)
        except FileExistsError:
            return False, json.loads((self._locks / id_).read_text())
        return True, made

    def locks(self) -> list[dict[str, str]]:
        return [json.loads(path.read_text()) for path in sorted(self._locks.iterdir())]

    def unlock(self, id_: str) -> bool:
        try:
            (self._locks / id_).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, oid: str) -> Path:
        if len(oid) != 64 or not set(oid) <= set("0123456789abcdef"):
            raise ValueError(f"not an oid: {oid}")
        return self._objects / oid


# -- git-lfs-transfer --------------------------------------------------------------------------------------------------------


def packet(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else f"{text}\n".encode()
    return b"%04x%b" % (len(data) + 4, data)


def packets(stream: BinaryIO) -> Iterator[bytes | Literal["flush", "delimiter"]]:
    """The data of each pkt-line, or the kind of one without data, up to the stream's end."""
    while head := stream.read(4):
        if head in (FLUSH, DELIMITER):
            yield "flush" if head == FLUSH else "delimiter"
            continue
        length = int(head, 16)
        data = stream.read(length - 4)
        if length < 4 or len(data) != length - 4:
            raise ValueError("a pkt-line is cut off")
        yield data


class Transfer:
    """git-lfs's docs/proposals/ssh_adapter.md, version 1, for one connection."""

    def __init__(self, store: Store, operation: str, read: BinaryIO, write: BinaryIO) -> None:
        self._store = store
        self._operation = operation
        self._packets = packets(read)
        self._write = write

    def serve(self) -> int:
        self._say(packet("version=1"), packet("locking"), FLUSH)
        while (request := self._request()) is not None:
            command, arguments, data = request
            name, _, rest = command.partition(" ")
            if name == "quit":
                self._status(200)
                return 0
            handler = getattr(self, f"_{name.replace('-', '_')}", None)
            if handler is None or not name.isascii():
                self._status(405, message=f"{name} is not known")
            else:
                handler(rest, arguments, data)
        return 1  # the client disconnected without a quit command

    def _request(self) -> tuple[str, dict[str, str], list[bytes]] | None:
        """Command, arguments, and the pkt-lines after the delimiter."""
        lines: list[str] = []
        data: list[bytes] = []
        delimited = False
        for one in self._packets:
            if one == "flush":
                arguments = (line.partition("=") for line in lines[1:])
                return lines[0], {name: value for name, _, value in arguments}, data
            if one == "delimiter":
                delimited = True
            elif delimited:
                data.append(one)
            else:
                lines.append(one.decode().removesuffix("\n"))
        return None

    def _say(self, *parts: bytes) -> None:
        self._write.write(b"".join(parts))
        self._write.flush()

    def _status(self, status: int, *arguments: str, message: str | None = None) -> None:
        said = [packet(f"status {status}"), *map(packet, arguments)]
        if message is not None:
            said += [DELIMITER, packet(message)]
        self._say(*said, FLUSH)

    def _version(self, rest: str, arguments: dict[str, str], data: list[bytes]) -> None:
        self._status(200 if rest == "1" else 400)

    def _batch(self, rest: str, arguments: dict[str, str], data: list[bytes]) -> None:
        lines = []
        for one in data:
            oid, size, *_ = one.decode().split()
            there = self._store.size(oid) is not None
            action = {"upload": "noop" if there else "upload", "download": "download" if there else "noop"}[self._operation]
            lines.append(packet(f"{oid} {size} {action}"))
        self._say(packet("status 200"), packet("hash-algo=sha256"), DELIMITER, *lines, FLUSH)

    def _put_object(self, oid: str, arguments: dict[str, str], data: list[bytes]) -> None:
        if self._operation != "upload":
            self._status(403, message="this is a download")
        elif self._store.put(oid, int(arguments["size"]), b"".join(data)):
            self._status(200)
        else:
            self._status(400, message="corrupt data")

    def _verify_object(self, oid: str, arguments: dict[str, str], data: list[bytes]) -> None:
        if self._store.size(oid) == int(arguments["size"]):
            self._status(200)
        else:
            self._status(404, message="no such object")

    def _get_object(self, oid: str, arguments: dict[str, str], data: list[bytes]) -> None:
        if self._store.size(oid) is None:
            self._status(404, message="no such object")
            return
        content = self._store.read(oid)
        parts = [packet(content[start : start + PACKET_BYTES]) for start in range(0, len(content), PACKET_BYTES)]
        self._say(packet("status 200"), packet(f"size={len(content)}"), DELIMITER, *parts, FLUSH)

    def _lock(self, rest: str, arguments: dict[str, str], data: list[bytes]) -> None:
        new, lock = self._store.lock(arguments["path"])
        self._status(201 if new else 409, *(f"{name}={value}" for name, value in lock.items()))

    def _list_lock(self, rest: str, arguments: dict[str, str], data: list[bytes]) -> None:
        lines = []
        for lock in self._store.locks():
            if arguments.get("path", lock["path"]) == lock["path"] and arguments.get("id", lock["id"]) == lock["id"]:
                lines.append(f"lock {lock['id']}")
                lines += (f"{name} {lock['id']} {lock[name]}" for name in ("path", "locked-at", "ownername"))
                lines.append(f"owner {lock['id']} ours")
        self._say(packet("status 200"), DELIMITER, *map(packet, lines), FLUSH)

    def _unlock(self, id_: str, arguments: dict[str, str], data: list[bytes]) -> None:
        known = [lock for lock in self._store.locks() if lock["id"] == id_]
        if known and self._store.unlock(id_):
            self._status(200, *(f"{name}={value}" for name, value in known[0].items()))
        else:
            self._status(404, message="no such lock")


# -- git-lfs-authenticate and its HTTP server --------------------------------------------------------------------------------


def token(secret: bytes, repository: str, operation: str) -> str:
    return hmac.digest(secret, f"{operation} {repository}".encode(), "sha256").hex()


def authenticate(url: str, secret: bytes, repository: str, operation: str) -> str:
    """What git-lfs-authenticate prints (git-lfs's docs/api/server-discovery.md)."""
    name = base64.urlsafe_b64encode(repository.encode()).decode()
    header = {"Authorization": f"RemoteAuth {token(secret, repository, operation)}"}
    return json.dumps({"href": f"{url}/{name}", "header": header, "expires_in": 3600})


class _Api(BaseHTTPRequestHandler):
    """git-lfs's docs/api/batch.md with the basic transfer, and the verification of locks before a push."""

    protocol_version = "HTTP/1.1"
    secret = b""

    def do_POST(self) -> None:
        body = json.loads(self._body())
        repository, what = self._asked()
        if what == "objects/batch" and self._may(body["operation"]):
            objects = [self._object(repository, one, body["operation"]) for one in body["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif what == "locks/verify" and self._may("upload"):
            self._answer(200, {"ours": [], "theirs": []})
        else:
            self._answer(403, {"message": "not allowed"})

    def do_PUT(self) -> None:
        repository, what = self._asked()
        data = self._body()
        allowed = self._may("upload")
        stored = allowed and Store(Path(repository)).put(what.removeprefix("objects/"), len(data), data)
        self._answer(200 if stored else 403 if not allowed else 400, {})

    def do_GET(self) -> None:
        repository, what = self._asked()
        if not self._may("download"):
            self._answer(403, {"message": "not allowed"})
            return
        data = Store(Path(repository)).read(what.removeprefix("objects/"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _object(self, repository: str, asked: dict[str, Any], operation: str) -> dict[str, Any]:
        there = Store(Path(repository)).size(asked["oid"]) is not None
        if operation == "download" and not there:
            return {**asked, "error": {"code": 404, "message": "no such object"}}
        if operation == "upload" and there:
            return asked
        action = {
            "href": f"http://{self.headers['Host']}/{self.path.split('/')[1]}/objects/{asked['oid']}",
            "header": {"Authorization": self.headers["Authorization"]},
        }
        return {**asked, "authenticated": True, "actions": {operation: action}}

    def _asked(self) -> tuple[str, str]:
        name, _, what = self.path.removeprefix("/").partition("/")
        return base64.urlsafe_b64decode(name).decode(), what

    def _may(self, operation: str) -> bool:
        expected = f"RemoteAuth {token(self.secret, self._asked()[0], operation)}"
        return hmac.compare_digest(self.headers.get("Authorization", ""), expected)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.git-lfs+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class LfsHost:
    """A context manager: its HTTP server on loopback stops at the end."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        secret = os.urandom(16)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_Api,), {"secret": secret}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._url, self._secret = f"http://127.0.0.1:{self._server.server_port}", secret.hex()
        for service in ("transfer", "authenticate"):
            self._serve(service)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def only(self, service: str) -> None:
        """`transfer` or `authenticate`; from now on the host does not know the other."""
        for name in ("transfer", "authenticate"):
            if name == service:
                self._serve(name)
            else:
                self._sshd.lfs_script(f"git-lfs-{name}", f"#!/bin/sh\necho 'git-lfs-{name}: command not found' >&2\nexit 127\n")

    def objects(self, repository: str) -> dict[str, bytes]:
        return Store(self._sshd.root / f"{repository}.git").objects()

    def _serve(self, service: str) -> None:
        program = f"{sys.executable} -I -S {Path(__file__).resolve()}"
        self._sshd.lfs_script(f"git-lfs-{service}", f'#!/bin/sh\nexec {program} {service} {self._url} {self._secret} "$@"\n')


def main(service: str, url: str, secret: str, repository: str, operation: str) -> int:
    if service == "authenticate":
        print(authenticate(url, bytes.fromhex(secret), repository, operation))
        return 0
    return Transfer(Store(Path(repository)), operation, sys.stdin.buffer, sys.stdout.buffer).serve()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
