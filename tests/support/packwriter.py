"""A git pack of incompressible blobs written directly: git fast-import takes several times as long, most of it in its own SHA-1.

Formats: gitformat-pack, "pack-*.pack files" and "Version 2 pack-*.idx files". test_packwriter.py checks the result
with git fsck.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

OBJ_BLOB = 3
MAX_PACK_BYTES = 0x7FFF_FFFF  # a larger pack's index needs a table of 8-byte offsets, which this module does not write


def random_blocks(count: int, size: int) -> Iterator[bytes]:
    """Incompressible blocks, different on every call; faster than os.urandom."""
    keystream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(size)
    return (keystream.update(zeros) for _ in range(count))


def write_blob_pack(repository: Path, blobs: Iterator[bytes], count: int) -> list[str]:
    """Add one pack with `count` blobs to a bare repository; returns their ids in order. At most 2 GiB together."""
    folder = repository / "objects/pack"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "tmp_pack"
    entries: list[tuple[bytes, int, int]] = []  # id, CRC-32 of the packed entry, offset
    checksum = hashlib.sha1(usedforsecurity=False)
    with temporary.open("wb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            checksum.update(data)

        write(struct.pack(">4sII", b"PACK", 2, count))
        for blob in blobs:
            identity = hashlib.sha1(b"blob %d\0" % len(blob), usedforsecurity=False)
            identity.update(blob)
            entry = _entry_header(OBJ_BLOB, len(blob)) + zlib.compress(blob, 0)
            entries.append((identity.digest(), zlib.crc32(entry), file.tell()))
            write(entry)
        assert len(entries) == count, f"{count} blobs were announced, {len(entries)} came"
        assert file.tell() <= MAX_PACK_BYTES, "a pack this large needs 8-byte offsets"
        pack_checksum = checksum.digest()
        file.write(pack_checksum)
    name = folder / f"pack-{pack_checksum.hex()}"
    name.with_suffix(".idx").write_bytes(_index(sorted(entries), pack_checksum))
    temporary.rename(name.with_suffix(".pack"))
    return [identity.hex() for identity, _, _ in entries]


def _entry_header(kind: int, size: int) -> bytes:
    """Type and inflated size: 4 bits of the size beside the type, then 7 a byte, the lowest first."""
    byte, size = (kind << 4) | (size & 0x0F), size >> 4
    header = bytearray()
    while size:
        header.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    header.append(byte)
    return bytes(header)


def _index(entries: list[tuple[bytes, int, int]], pack_checksum: bytes) -> bytes:
    counts = [0] * 256
    for identity, _, _ in entries:
        counts[identity[0]] += 1
    fanout = [sum(counts[: first + 1]) for first in range(256)]
    body = b"".join(
        [
            struct.pack(">4sI256I", b"\xfftOc", 2, *fanout),
            *(identity for identity, _, _ in entries),
            *(struct.pack(">I", crc) for _, crc, _ in entries),
            *(struct.pack(">I", offset) for _, _, offset in entries),
            pack_checksum,
        ]
    )
    return body + hashlib.sha1(body, usedforsecurity=False).digest()
