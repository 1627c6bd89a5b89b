"""A dashboard as a picture: panels placed by gridPos and drawn from Prometheus's answers, in the style of Grafana's dark theme."""

from __future__ import annotations

import datetime
import io
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from tests.grafana.expressions import Json
from tests.grafana.units import written

WIDTH, CELL, GAP, HEADER, FOOTER = 1440, 36, 8, 56, 26  # pixels; CELL is the height of one row of the grid
DOTS = 100
PAGE, PANEL, EDGE, TEXT, FAINT, GRID = "#111217", "#181b1f", "#2a2d33", "#ccccdc", "#8e8e99", "#2c3235"
COLOURS = {
    "green": "#73bf69", "yellow": "#fade2a", "red": "#f2495c", "blue": "#5794f2", "orange": "#ff9830", "purple": "#b877d9",
    "dark-red": "#c4162a", "transparent": PANEL, "text": TEXT,
}  # fmt: skip
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#705da0", "#96d98d", "#c0d8ff")
SMALL, BODY, TITLE = 8.0, 9.0, 10.0  # points

Series = tuple[str, list[float], list[float]]  # name, times, values


def picture(dashboard: Json, answers: dict[int, list[list[Json]]], start: float, end: float, note: str, path: Path) -> None:
    """Writes a PNG. `answers` are Prometheus's answers by panel id, a list for each target of the panel."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height = HEADER + rows * CELL + FOOTER
    mpl.rcParams.update({"font.family": "DejaVu Sans", "text.color": TEXT})
    figure = Figure(figsize=(WIDTH / DOTS, height / DOTS), dpi=DOTS, facecolor=PAGE)
    FigureCanvasAgg(figure)
    sheet = Sheet(figure, height, start, end)
    sheet.header(dashboard)
    for panel in dashboard["panels"]:
        sheet.panel(panel, answers.get(panel["id"], [[] for _ in panel.get("targets", [])]))
    sheet.text(GAP * 1.5, height - FOOTER / 2, note, SMALL, FAINT)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS, facecolor=PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    _with_few_colours(Image.open(buffer).convert("RGB")).save(path, optimize=True)


def _with_few_colours(image: Image.Image) -> Image.Image:
    """The picture with 256 colours, a third of the size: the theme's colours are kept, mixed ones are approximated."""
    theme = [int(colour[at : at + 2], 16) for colour in (PAGE, PANEL, TEXT, FAINT, *COLOURS.values(), *PALETTE) for at in (1, 3, 5)]
    mixed = image.quantize(256 - len(theme) // 3, kmeans=1, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette((theme + mixed)[: 3 * 256])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


class Sheet:
    """One figure with its coordinates in pixels from the upper left corner."""

    def __init__(self, figure: Figure, height: int, start: float, end: float) -> None:
        self._figure = figure
        self._height = height
        self._start, self._end = start, end
        self._all = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), zorder=0)
        self._all.axis("off")

    def text(self, x: float, y: float, text: str, size: float, colour: str = TEXT, **options: Any) -> float:
        """Draws a text; returns its width."""
        drawn = self._all.text(x, y, text, fontsize=size, color=colour, **{"va": "center", **options})
        return float(drawn.get_window_extent().width)

    def header(self, dashboard: Json) -> None:
        x = GAP * 1.5 + self.text(GAP * 1.5, HEADER / 2, dashboard["title"], 14, weight="bold") + 30
        for variable in dashboard["templating"]["list"]:
            value = "Prometheus" if variable["type"] == "datasource" else "All"
            x += self.text(x, HEADER / 2, variable["label"], BODY, FAINT) + 8
            x += self.text(x, HEADER / 2, value, BODY) + 24
        span = " to ".join(_clock(when, "%H:%M:%S") for when in (self._start, self._end))
        self.text(WIDTH - GAP * 1.5, HEADER / 2, f"{_clock(self._start, '%Y-%m-%d')}  {span} UTC", BODY, FAINT, ha="right")

    def panel(self, panel: Json, answers: list[list[Json]]) -> None:
        place = panel["gridPos"]
        column = (WIDTH - GAP) / 24
        x, y = GAP + place["x"] * column, HEADER + place["y"] * CELL
        width, height = place["w"] * column - GAP, place["h"] * CELL - GAP
        if panel["type"] == "row":
            self.text(x + 4, y + height / 2, f"▾  {panel['title']}", TITLE + 1, weight="bold")
            return
        style = "round,pad=0,rounding_size=3"
        self._all.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PANEL, edgecolor=EDGE, linewidth=0.8))
        self.text(x + 9, y + 15, panel["title"], TITLE)
        draw = {"stat": self._stat, "timeseries": self._lines, "state-timeline": self._states, "table": self._table}[panel["type"]]
        draw(panel, answers, x, y + 26, width, height - 26)

    # -- kinds of panels

    def _stat(self, panel: Json, answers: list[list[Json]], x: float, y: float, width: float, height: float) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        found = _series(panel, answers)
        name, times, values = found[0] if found else ("", [], [])
        last = next((value for value in reversed(values) if not math.isnan(value)), math.nan)
        word, colour = _mapped(defaults, last)
        colour = colour or _threshold(defaults, last)
        text = word or written(last, defaults["unit"], defaults.get("decimals"))
        if panel["options"]["graphMode"] == "area" and len(times) > 1:
            axes = self._axes(x + 1, y + height * 0.5, width - 2, height * 0.5 - 1)
            top = max((value for value in values if not math.isnan(value)), default=0.0)
            axes.set_xlim(self._start, self._end)
            axes.set_ylim(0, (top or 1) * 1.15)
            axes.fill_between(times, values, color=colour, alpha=0.18, linewidth=0)
            axes.plot(times, values, color=colour, linewidth=1)
            axes.axis("off")
        middle = y + height * 0.40
        if panel["options"]["textMode"] == "value_and_name":
            self.text(x + width / 2, y + height * 0.16, name, BODY + 1, TEXT, ha="center")
            middle = y + height * 0.55
        self.text(x + width / 2, middle, text, 21, colour, ha="center", zorder=5)

    def _lines(self, panel: Json, answers: list[list[Json]], x: float, y: float, width: float, height: float) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        found = _series(panel, answers)
        if not found:
            self.text(x + width / 2, y + height / 2, defaults.get("noValue", "No data"), TITLE, FAINT, ha="center")
            return
        colours = _colours(panel, [name for name, _, _ in found])
        legend = self._legend([(name, colours[name]) for name, _, _ in found], x + 10, y + height, width - 20)
        unit = defaults["unit"]
        axes = self._axes(x + 70, y + 4, width - 84, height - 26 - legend)
        stacked = defaults["custom"]["stacking"]["mode"] == "normal"
        free = _unstacked(panel)
        moments = _with_gaps(sorted({time for _, times, _ in found for time in times}))
        floor = [0.0] * len(moments)
        top = 0.0
        for name, times, values in found:
            known = dict(zip(times, values, strict=True))
            if stacked and name not in free:
                roof = [
                    low + (0.0 if math.isnan(value := known.get(time, 0.0)) else value) for low, time in zip(floor, moments, strict=True)
                ]
                axes.fill_between(moments, floor, roof, color=colours[name], alpha=0.7, linewidth=0)
                floor, top = roof, max(top, *roof)
            else:
                line = [known.get(time, math.nan) for time in moments]
                axes.plot(moments, line, color=colours[name], linewidth=1.1, linestyle="--" if name in free else "-")
                if name not in free:
                    axes.fill_between(moments, line, color=colours[name], alpha=0.07, linewidth=0)
                top = max([top, *(value for value in line if not math.isnan(value))])
        for step in defaults["thresholds"]["steps"] if defaults["custom"]["thresholdsStyle"]["mode"] == "dashed" else []:
            if step["value"] is not None:
                axes.axhline(step["value"], color=COLOURS[step["color"]], linewidth=0.9, linestyle="--")
                top = max(top, step["value"])
        top = min(top * 1.08, defaults.get("max", math.inf) * 1.02) or 1.0
        axes.set_ylim(defaults.get("min", 0), top)
        self._time_axis(axes, width - 84)
        ticks = _ticks(top, unit)
        axes.set_yticks(ticks, [written(tick, unit) for tick in ticks])
        axes.set_axisbelow(True)
        axes.grid(color=GRID, linewidth=0.7)

    def _states(self, panel: Json, answers: list[list[Json]], x: float, y: float, width: float, height: float) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        found = sorted(_series(panel, answers))
        words = defaults["mappings"][0]["options"]
        if not found:
            self.text(x + width / 2, y + height / 2, defaults.get("noValue", "No data"), TITLE, FAINT, ha="center")
            return
        legend = self._legend([(one["text"], COLOURS[one["color"]]) for one in words.values()], x + 10, y + height, width - 20)
        left = 186 if max(len(name) for name, _, _ in found) > 12 else 74
        axes = self._axes(x + left, y + 2, width - left - 14, height - 24 - legend)
        for row, (_, times, values) in enumerate(found):
            for begin, end, value in _stretches(times, values):
                if (one := words.get(f"{value:g}")) is not None:
                    axes.add_patch(Rectangle((begin, row + 0.1), end - begin, 0.8, color=COLOURS[one["color"]], alpha=0.8, linewidth=0))
        axes.set_ylim(len(found), 0)
        axes.set_yticks([row + 0.5 for row in range(len(found))], [name for name, _, _ in found])
        self._time_axis(axes, width - left)

    def _table(self, panel: Json, answers: list[list[Json]], x: float, y: float, width: float, height: float) -> None:
        """As many columns as fit; Grafana would scroll."""
        options = panel["transformations"][0]["options"]
        labels = [sample["metric"] for sample in answers[0]]
        columns = sorted(options["indexByName"], key=options["indexByName"].__getitem__)
        left = x + 10
        for column in columns:
            cells = [label.get(column, "") for label in labels]
            across = max([len(column) * 6.6, *(len(cell) * 6.3 for cell in cells)]) + 16
            if left + across > x + width:
                break
            self.text(left, y + 12, column, BODY, COLOURS["blue"])
            for row, cell in enumerate(cells, 1):
                self.text(left, y + 12 + row * 25, cell, BODY)
            left += across
        for row in range(len(labels)):
            self._all.plot([x + 8, x + width - 8], [y + 25 + row * 25] * 2, color=GRID, linewidth=0.7)

    # -- parts of panels

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self._figure.add_axes(
            (x / WIDTH, 1 - (y + height) / self._height, width / WIDTH, height / self._height), facecolor="none", zorder=3
        )
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(colors=FAINT, labelsize=SMALL, length=0, pad=4)
        return axes

    def _time_axis(self, axes: Axes, width: float) -> None:
        axes.set_xlim(self._start, self._end)
        span = self._end - self._start
        pace = next(one for one in (5, 10, 15, 30, 60, 300, 900, 3600) if span / one <= max(2, width / 80))
        ticks = [
            tick
            for number in range(int(span // pace) + 2)
            if self._start + 0.05 * span < (tick := (self._start // pace + number) * pace) <= self._end
        ]
        axes.set_xticks(ticks, [_clock(tick, "%H:%M:%S") for tick in ticks])

    def _legend(self, names: Sequence[tuple[str, str]], x: float, bottom: float, width: float) -> float:
        """The legend: names, each after a mark of its colour, in lines from the bottom up; returns the height."""
        lines: list[list[tuple[str, str, float]]] = [[]]
        used = 0.0
        for name, colour in names:
            probe = self._all.text(0, 0, name, fontsize=SMALL)
            across = float(probe.get_window_extent().width) + 32
            probe.remove()
            if used + across > width and lines[-1]:
                lines.append([])
                used = 0.0
            lines[-1].append((name, colour, across))
            used += across
        for number, line in enumerate(lines):
            left, y = x, bottom - 11 - (len(lines) - 1 - number) * 16
            for name, colour, across in line:
                self._all.plot([left, left + 12], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt")
                self.text(left + 17, y, name, SMALL)
                left += across
        return len(lines) * 16


def _series(panel: Json, answers: list[list[Json]]) -> list[Series]:
    found = []
    for target, samples in zip(panel["targets"], answers, strict=True):
        for sample in samples:
            pairs = sample.get("values") or [sample["value"]]
            name = target["legendFormat"]
            for label, value in sample["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            values = [float(value) for _, value in pairs]
            if not all(map(math.isnan, values)):
                found.append((name, [float(time) for time, _ in pairs], values))
    return found


def _colours(panel: Json, names: list[str]) -> dict[str, str]:
    own = {}
    for override in panel["fieldConfig"]["overrides"]:
        for one in override["properties"]:
            if one["id"] == "color":
                own[override["matcher"]["options"]] = COLOURS.get(one["value"]["fixedColor"], one["value"]["fixedColor"])
    return {name: own.get(name) or PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}


def _unstacked(panel: Json) -> set[str]:
    """The series that are drawn dashed and not stacked."""
    return {
        o["matcher"]["options"]
        for o in panel["fieldConfig"]["overrides"]
        if any(one["id"] == "custom.lineStyle" for one in o["properties"])
    }


def _with_gaps(times: list[float]) -> list[float]:
    """Inserts a missing value wherever samples are missing, so that no line bridges the gap."""
    step = min((after - before for before, after in pairwise(times)), default=1.0)
    missing = [(before + after) / 2 for before, after in pairwise(times) if after - before > step * 1.5]
    return sorted([*times, *missing])


def _stretches(times: list[float], values: list[float]) -> Iterator[tuple[float, float, float]]:
    """Runs of equal values without a gap: (begin, end, value)."""
    step = min((after - before for before, after in pairwise(times)), default=1.0)
    begin = 0
    for number in range(1, len(times) + 1):
        if number == len(times) or values[number] != values[begin] or times[number] - times[number - 1] > step * 1.5:
            yield times[begin], times[number - 1] + step, values[begin]
            begin = number


def _mapped(defaults: Json, value: float) -> tuple[str, str]:
    for mapping in defaults["mappings"]:
        if (one := mapping["options"].get(f"{value:g}")) is not None:
            return one["text"], COLOURS[one["color"]]
    return "", ""


def _threshold(defaults: Json, value: float) -> str:
    steps = [step["color"] for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    return COLOURS[steps[-1]] if steps else TEXT


def _ticks(top: float, unit: str) -> list[float]:
    """Three to seven round figures."""
    scale = 100.0 if unit == "percentunit" else 1.0
    rough = top * scale / 5
    power = 10.0 ** math.floor(math.log10(rough))
    pace = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough * 0.999)
    if unit == "short":
        pace = max(1.0, pace)
    return [number * pace / scale for number in range(int(top * scale / pace) + 1)]


def _clock(when: float, form: str) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.UTC).strftime(form)
