"""results.json: reading returns what was written, and a ratio that cannot be computed is None."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import results as store
from benchmarks.contenders import Profile
from benchmarks.results import Line, Profiled
from benchmarks.scenarios import latency, sessions
from tests.benchmarks.made import made


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    store.write(made(), tmp_path / "new" / "folder")
    assert store.read(tmp_path / "new" / "folder") == made()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.FILE).write_text('{"started": 5}')
    with pytest.raises(msgspec.ValidationError):
        store.read(tmp_path)


def test_ratio_is_none_for_what_was_not_measured() -> None:
    results = made()
    case = latency.case(Profile.STOCK, 1)
    assert results.ratio(latency.NAME, case, latency.TIME, ("relay", "nobody")) is None
    assert results.ratio(sessions.NAME, sessions.case(1), sessions.RELAY_CPU, ("relay", "direct")) is None
    assert results.ratio(latency.NAME, case, latency.TIME, ("relay", "direct"), "p50") is not None


def test_profiles_are_found_oldest_first(tmp_path: Path) -> None:
    for label, taken in (("after", "2026-02-02"), ("before", "2026-01-01")):
        one = Profiled(label, "bulk", "perf", 10, (Line(50.0, "f"),), taken)
        (tmp_path / f"{label}.json").write_bytes(msgspec.json.encode([one]))
    assert [one.label for one in store.profiles(tmp_path)] == ["before", "after"]
    assert store.profiles(tmp_path / "none") == []
