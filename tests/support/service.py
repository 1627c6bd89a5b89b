"""The stub services of the test sshd that are not written in shell; services.sh runs `service.py NAME ARGUMENT...`."""

import hashlib
import os
import sys
import time

READ_BYTES = 1 << 20
STDOUT_CHUNK = 65536  # one chunk on stdout, then one on stderr, and so on
STDERR_CHUNK = 1024


def stderr_chunk(number: int) -> bytes:
    """The `number`th message that `mixed` puts on stderr: 1,024 bytes that contain their number."""
    return (b"chunk %08d " % number).ljust(STDERR_CHUNK - 1, b".") + b"\n"


def mixed(size: int, status: int, pattern_path: str) -> int:
    """`size` bytes of the pattern on stdout, a stderr chunk after each 64 KiB of them."""
    with open(pattern_path, "rb") as file:
        pattern = memoryview(file.read())
    sent = 0
    while sent < size:
        at = sent % len(pattern)
        sent += write_all(1, pattern[at : at + min(STDOUT_CHUNK - sent % STDOUT_CHUNK, size - sent, len(pattern) - at)])
        if sent % STDOUT_CHUNK == 0 or sent == size:
            write_all(2, memoryview(stderr_chunk((sent - 1) // STDOUT_CHUNK)))
    return status


def checksum(bytes_per_second: int) -> int:
    """`<sha256> <length>` of stdin up to its EOF; reads no faster than `bytes_per_second`, unless 0."""
    digest, length, started = hashlib.sha256(), 0, time.monotonic()
    while data := os.read(0, min(READ_BYTES, max(bytes_per_second // 20, 1)) if bytes_per_second else READ_BYTES):
        digest.update(data)
        length += len(data)
        if bytes_per_second:
            time.sleep(max(0.0, started + length / bytes_per_second - time.monotonic()))
    print(digest.hexdigest(), length, flush=True)
    return 0


def write_all(descriptor: int, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:])
    return done


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "mixed":
        sys.exit(mixed(int(arguments[0]), int(arguments[1]), arguments[2]))
    if name == "checksum":
        sys.exit(checksum(int(arguments[0])))
    sys.exit(f"unknown service {name!r}")
