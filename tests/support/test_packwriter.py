"""Packs of the pack writer are valid for git: fsck and verify-pack read every byte of them."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from tests.support.gitrepo import fsck, git, git_env
from tests.support.packwriter import random_blocks, write_blob_pack

SIZES = [0, 1, 15, 16, 2047, 2048, 65535, 65536, 300_000, 1 << 20]


def test_git_reads_every_blob_back(tmp_path: Path) -> None:
    env = git_env(tmp_path / "home")
    bare = tmp_path / "bare.git"
    git("init", "-q", "--bare", bare, env=env)
    blobs = [random.Random(size).randbytes(size) for size in SIZES]
    ids = write_blob_pack(bare, iter(blobs), len(blobs))
    for identity, blob in zip(ids, blobs, strict=True):
        assert git("cat-file", "blob", identity, cwd=bare, env=env).stdout == blob
    fsck(bare, env)
    (index,) = (bare / "objects/pack").glob("*.idx")
    git("verify-pack", index, cwd=bare, env=env)
    again = tmp_path / "again.idx"
    git("index-pack", "-o", again, index.with_suffix(".pack"), cwd=bare, env=env)
    assert again.read_bytes() == index.read_bytes()


def test_the_announced_number_must_come(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="3 blobs were announced, 2 came"):
        write_blob_pack(tmp_path, iter([b"a", b"b"]), 3)


def test_random_blocks_are_incompressible_and_never_the_same() -> None:
    first, second = list(random_blocks(2, 100_000)), list(random_blocks(2, 100_000))
    assert len({*first, *second}) == 4
    assert all(len(zlib.compress(block)) > 100_000 for block in first)
