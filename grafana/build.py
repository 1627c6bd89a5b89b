"""Writes the dashboards to grafana/dashboards, as Grafana provisions them: `python -m grafana.build`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana.overview import OVERVIEW
from grafana.panels import Json
from grafana.upstreams import UPSTREAMS

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = {"overview.json": OVERVIEW, "upstreams.json": UPSTREAMS}


def text(dashboard: Json) -> str:
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / name).write_text(text(dashboard))
