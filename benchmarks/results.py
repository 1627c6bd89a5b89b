"""The results of a run, as written to results.json and read back for tables, plots and targets."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.figures import Series, Spread, ratio
from benchmarks.sizes import Sizes

FILE = "results.json"


class Failure(msgspec.Struct, frozen=True):
    """A contender that failed in a case; it has no measurements there."""

    scenario: str
    case: str
    contender: str
    message: str


class Line(msgspec.Struct, frozen=True):
    """One function's own share of the samples, 0 to 100."""

    percent: float
    where: str


class Profiled(msgspec.Struct, frozen=True):
    """One profiler's view of the relay of one commit during one load; `label` tells before from after."""

    label: str
    load: str
    profiler: str
    samples: int
    lines: tuple[Line, ...]
    taken: str
    commit: str = ""


class Results(msgspec.Struct):
    """One run. `methods` has each scenario's paragraph, `left_out` the contenders and cases that were not measured, and the reason."""

    started: str
    sizes: Sizes
    machine: dict[str, str]
    contenders: dict[str, str] = {}
    notes: list[str] = []
    left_out: dict[str, str] = {}
    methods: dict[str, str] = {}
    series: list[Series] = []
    failures: list[Failure] = []
    seconds: float = 0.0
    scenario_seconds: dict[str, float] = {}

    def find(self, scenario: str, case: str, quantity: str, contender: str) -> Series | None:
        for series in self.series:
            if (series.scenario, series.case, series.quantity, series.contender) == (scenario, case, quantity, contender):
                return series
        return None

    def ratio(self, scenario: str, case: str, quantity: str, pair: tuple[str, str], statistic: str = "median") -> Spread | None:
        """The first contender's value as a multiple of the second's; None if either was not measured or the divisor is zero."""
        of, to = (self.find(scenario, case, quantity, contender) for contender in pair)
        if of is None or to is None:
            return None
        try:
            return ratio(of, to, statistic)
        except ValueError:
            return None

    def cases(self, scenario: str) -> list[str]:
        return list(dict.fromkeys(series.case for series in self.series if series.scenario == scenario))


def read(folder: Path) -> Results:
    """Raises FileNotFoundError, or msgspec.ValidationError for a file of another version."""
    return msgspec.json.decode((folder / FILE).read_bytes(), type=Results)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def profiles(*folders: Path) -> list[Profiled]:
    """All profiles in the folders, oldest first; of a label that is in several folders, those of the last folder."""
    files = {path.name: path for folder in folders for path in folder.glob("*.json")}
    found = [one for path in files.values() for one in msgspec.json.decode(path.read_bytes(), type=list[Profiled])]
    return sorted(found, key=lambda one: one.taken)
