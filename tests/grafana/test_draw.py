"""Pictures of the dashboards: numbers formatted as by Grafana, every kind of panel drawn, files small enough for a repository."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.grafana.draw import WIDTH, _stretches, _ticks, _with_gaps, picture
from tests.grafana.expressions import Json, dashboards, panels
from tests.grafana.units import written

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PICTURE_BYTES = 300_000
LABELS = {"__name__": "relay_build_info", "instance": "10.0.0.7:9122", "version": "0.1.0", "libssh2": "1.11.1+relay-2"}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"), (0.0815, "s", "81.5 ms"), (0.000042, "s", "42 µs"), (2.5, "s", "2.5 s"), (90, "s", "1.5 min"),
        (0.00144, "percentunit", "0.144%"), (1, "percentunit", "100%"), (0, "percentunit", "0%"),
        (7_040_000, "Bps", "7.04 MB/s"), (12, "Bps", "12 B/s"), (0, "Bps", "0 B/s"),
        (8.66, "reqps", "8.66 req/s"), (1234, "cps", "1.23k c/s"), (0.25, "cps", "0.25 c/s"),
        (64, "short", "64"), (20_000, "short", "20 K"), (math.nan, "s", "–"),
    ],
)  # fmt: skip
def test_figures(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_figures_with_decimals() -> None:
    assert written(0.00144, "percentunit", 2) == "0.14%"
    assert written(8.66, "reqps", 1) == "8.7 req/s"


def test_every_unit_of_the_dashboards_can_be_written() -> None:
    for dashboard in dashboards().values():
        for panel in panels(dashboard):
            unit = panel["fieldConfig"]["defaults"]["unit"]
            assert unit in ("none", "short") or written(1.0, unit) != "1", f"{panel['title']}: {unit} is written without its sign"


@pytest.mark.parametrize("top", [0.0003, 0.07, 1.0, 33, 520, 7e6])
@pytest.mark.parametrize("unit", ["s", "percentunit", "Bps", "cps"])
def test_an_axis_has_a_few_round_figures(top: float, unit: str) -> None:
    ticks = _ticks(top, unit)
    assert 3 <= len(ticks) <= 7 and ticks[0] == 0 and ticks[-1] <= top * 1.001


def test_equal_states_are_one_stretch() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 7.0, 8.0]
    assert list(_stretches(times, [1, 1, 0, 0, 0, 1])) == [(0, 2, 1), (2, 4, 0), (7, 8, 0), (8, 9, 1)]
    assert list(_stretches([5.0], [2])) == [(5, 6, 2)]


def test_no_line_leads_across_a_gap() -> None:
    assert _with_gaps([0.0, 1.0, 4.0, 5.0]) == [0.0, 1.0, 2.5, 4.0, 5.0]
    assert _with_gaps([7.0]) == [7.0]


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_a_picture_of_all_panels(name: str, tmp_path: Path) -> None:
    dashboard, start = dashboards()[name], 1_700_000_000.0
    answers = {
        panel["id"]: [made_up(target, start, number) for number, target in enumerate(panel["targets"])] for panel in panels(dashboard)
    }
    path = tmp_path / f"{name}.png"
    picture(dashboard, answers, start, start + 60, "made up", path)
    with Image.open(path) as drawn, Image.open(IMAGES / path.name) as kept:
        assert drawn.width == WIDTH
        assert drawn.size == kept.size, "run: make dashboards"
        bare = tmp_path / "bare.png"
        picture(dashboard, {panel: [[] for _ in targets] for panel, targets in answers.items()}, start, start + 60, "made up", bare)
        assert len(drawn.convert("L").getcolors() or []) > 20
    assert bare.stat().st_size < path.stat().st_size


def made_up(target: Json, start: float, number: int) -> list[Json]:
    values = [[start + second, str((second % 7 + number) / 10 if second != 30 else "NaN")] for second in range(60)]
    labels = {label: f"{label}-{number}" for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
    if target["format"] == "table":
        return [{"metric": LABELS, "values": values[-1:]}]
    return [{"metric": labels, "values": values[-1:] if target["instant"] else values}]


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_the_pictures_that_are_kept(name: str) -> None:
    path = IMAGES / f"{name}.png"
    assert path.stat().st_size < PICTURE_BYTES
    assert f"docs/images/{name}.png" in (IMAGES.parents[1] / "README.md").read_text()
