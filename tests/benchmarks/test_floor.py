"""The floor: every byte and session of it is carried, what it cannot do is told, and it is left out where it cannot be built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import floor
from benchmarks.golang import Built
from benchmarks.processes import MeasureError
from benchmarks.scenarios.sessions import encapsulation_seconds

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-std=c11"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> floor.Floor:
    done = floor.build(tmp_path_factory.mktemp("floor"))
    if done.path is None:
        pytest.skip(f"the floor cannot be built here: {done.note}")
    return floor.opened(done.path)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("size", [1, 32_700, 32_768, 1_000_003])
def test_every_byte_of_a_stream_is_carried(built: floor.Floor, direction: str, size: int) -> None:
    figures = built.bulk(direction, size)
    assert figures.count == size
    assert figures.cpu_seconds > 0
    assert figures.seconds > 0
    assert figures.calls >= 3  # a recv, a send, and the recv that says the stream is over


def test_every_session_is_served(built: floor.Floor) -> None:
    figures = built.sessions(7)
    assert figures.count == 7
    assert figures.cpu_seconds > 0
    assert figures.calls >= 7 * 20  # more if a read comes in two parts


def test_ml_kem_is_part_of_a_session_or_said_to_be_missing(built: floor.Floor) -> None:
    if built.mlkem:
        assert built.sessions(3, mlkem=True).count == 3
    else:
        with pytest.raises(MeasureError, match="this OpenSSL has no ML-KEM-768"):
            built.sessions(3, mlkem=True)


def test_an_encapsulation_takes_some_time() -> None:
    assert 0 < encapsulation_seconds() < 1


@pytest.mark.parametrize(
    "words", [[], ["bulk"], ["bulk", "0", "1", "1"], ["bulk", "1x", "1", "1"], ["sessions", "-1"], ["sessions", "1", "rsa"]]
)
def test_wrong_words_end_with_a_line_about_them(built: floor.Floor, words: list[str]) -> None:
    done = subprocess.run([str(built.path), *words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_the_compiler_has_nothing_to_warn_about() -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler was found")
    done = subprocess.run([compiler, *WARNINGS, str(floor.SOURCE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_without_a_compiler_leaves_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert floor.build(tmp_path) == Built(None, "no C compiler was found")


def test_a_failing_build_leaves_it_out_with_the_compilers_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'floor.c:21:10: fatal error: openssl/evp.h: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = "the compiler says: floor.c:21:10: fatal error: openssl/evp.h: No such file or directory"
    assert floor.build(tmp_path / "out") == Built(None, said)
