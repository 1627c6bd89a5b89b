"""Stores on one folder, and benches: workers of one process with a store each; closed after the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.packs.store import Store
from tests.packs.bench import Bench
from tests.packs.helpers import make_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the stores of a test keep their entries."""
    return tmp_path / "packs"


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Callable[..., Store]]:
    """Makes stores on one folder, as each worker has one."""
    stores: list[Store] = []

    def store(**settings: Any) -> Store:
        stores.append(make_store(folder, **settings))
        return stores[-1]

    yield store
    for one in stores:
        one.close()
    await asyncio.sleep(0)  # results of threads


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    """A worker."""
    folder.mkdir(mode=0o700)
    bench = Bench(folder)
    bench.store.start()
    yield bench
    await bench.close()


@pytest.fixture
async def other(bench: Bench) -> AsyncIterator[Bench]:
    """Another worker on the folder of `bench`."""
    other = Bench(bench.store.path)
    yield other
    await other.close()
