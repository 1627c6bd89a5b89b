"""Three workers, each a process, fill and read entries while one is killed or stopped, or the file is harmed, at a random moment."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from relay.packs.entry import HEADER_BYTES
from tests.packs.helpers import key_of, make_store, names, until
from tests.packs.peer import Peer

PIECE = 100_000
HARMS = ("nothing", "fail", "kill who fills", "kill who reads", "stop who fills", "cut", "flip", "unlink", "empty the folder")


@pytest.mark.parametrize("harm", HARMS)
async def test_whoever_reads_gets_all_or_an_error(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "packs"
    folder.mkdir(0o700)
    choice = random.Random(harm)
    async with AsyncExitStack() as stack:

        async def peer() -> Peer:
            return await stack.enter_async_context(Peer(folder))

        peers = [await peer() for _ in range(3)]
        for number in range(4):
            name = f"entry{number}"
            peers = [one if one.alive else await peer() for one in peers]
            kinds = [await one.do("ask", name) for one in peers]
            assert kinds == ["fill", "joined", "joined"]
            filler, readers = peers[0], peers[1:]
            pieces, at = choice.randrange(1, 30), choice.randrange(30)
            waiting = [asyncio.ensure_future(result(one, name)) for one in readers]
            whole = True
            for piece in range(pieces):
                if piece == min(at, pieces - 1):
                    if harm == "cut":  # not between a thread's look at the length and its write
                        await until(lambda piece=piece, name=name: size_of(folder, name) == HEADER_BYTES + piece * PIECE)  # type: ignore[misc]
                    whole = await do_harm(harm, folder, name, filler, readers, choice)
                    if not filler.alive:
                        break
                await filler.do("write", name, PIECE)
            if filler.alive:
                await filler.do("publish", name)
            results = await asyncio.gather(*waiting)
            for one, got in zip(readers, results, strict=True):
                if not one.alive:
                    continue
                if whole:
                    assert got == pieces * PIECE, (harm, number, got)
                else:
                    assert isinstance(got, str) or (harm in ("cut", "flip") and got == pieces * PIECE), (harm, number, got)
            for one in peers:
                if one.alive:
                    await one.do("close", name)
            peers = peers[1:] + peers[:1]
    store = make_store(folder)
    store.look()
    await until(lambda: not store._sweeping)
    assert not [name for name in names(folder) if name.startswith(".")], "no worker left anything that a look does not remove"
    store.close()


def size_of(folder: Path, name: str) -> int:
    return (folder / key_of(name).hex()).stat().st_size


async def result(one: Peer, name: str) -> int | str | None:
    """The length of what was read, all of which was right, or why it failed; None when the reader was killed."""
    try:
        got = await one.do("result", name)
    except ValueError:  # no answer: it was killed
        return None
    assert got is not False, "wrong bytes"
    return got  # type: ignore[no-any-return]


async def do_harm(harm: str, folder: Path, name: str, filler: Peer, readers: list[Peer], choice: random.Random) -> bool:
    """Whether who reads must still get all."""
    path = folder / key_of(name).hex()
    match harm:
        case "fail":
            await filler.do("fail", name)
        case "kill who fills":
            await filler.kill()
        case "kill who reads":
            await choice.choice(readers).kill()
            return True
        case "stop who fills":
            await filler.stop()
            await asyncio.sleep(choice.random() * 0.3)  # some of its readers' looks; whatever they see, it goes on
            await filler.go_on()
            return True
        case "cut":
            os.truncate(path, max(HEADER_BYTES, path.stat().st_size - 1 - choice.randrange(PIECE)))
        case "flip":
            with path.open("r+b") as file:
                file.seek(choice.randrange(24, 500))
                file.write(os.urandom(4))
        case "unlink":
            path.unlink()
            return True
        case "empty the folder":
            for one in folder.iterdir():
                one.unlink()
            return True
        case _:
            return True
    return False
