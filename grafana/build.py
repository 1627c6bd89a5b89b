"""Writes the dashboards to grafana/dashboards, as Grafana provisions them, and copies for the Helm chart: `python -m grafana.build`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana.overview import OVERVIEW
from grafana.panels import Json
from grafana.upstreams import UPSTREAMS

FOLDER = Path(__file__).parent / "dashboards"
RULES = Path(__file__).parent / "rules"
CHART = Path(__file__).parents[1] / "deploy" / "helm" / "files"  # a chart reads no file outside of its folder
DASHBOARDS = {"overview.json": OVERVIEW, "upstreams.json": UPSTREAMS}


def text(dashboard: Json) -> str:
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def chart_files() -> dict[Path, str]:
    """What lies in the chart's folder, by path."""
    dashboards = {CHART / "dashboards" / name: text(dashboard) for name, dashboard in DASHBOARDS.items()}
    return dashboards | {CHART / "rules" / path.name: path.read_text() for path in sorted(RULES.glob("*.yml"))}


if __name__ == "__main__":
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / name).write_text(text(dashboard))
    for path, content in chart_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
