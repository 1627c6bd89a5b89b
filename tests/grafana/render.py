"""`make dashboards`: runs relays and a Prometheus through two minutes of faults and draws both dashboards into docs/images.

python -m tests.grafana.render [--seconds 120] [--again]     # --again: from the answers of the last run, in build/dashboards.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from tests.grafana.demo import Demo
from tests.grafana.draw import picture
from tests.grafana.expressions import dashboards, fill, panels
from tests.grafana.town import Town
from tests.support.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
ANSWERS = ROOT / "build" / "dashboards.json"
RELAYS = 2
HASTEN = 15  # how many times shorter the windows in the rules are: 5m becomes 20s
RATE_INTERVAL = "8s"
STEP_SECONDS = 1.0
WARM_SECONDS = 12.0  # seconds of load before the shown time, so that rates have a full window
NOTE = (
    "Answers of a Prometheus to {relays} relays of 2 workers over {seconds:.0f} s: a git host, an address, the authority and Redis go,"
    " a worker is killed, an archive is crowded and then frozen, a git host is paused, a scanner comes. Times in the rules: 1/{hasten}."
)


def observed(seconds: float) -> dict[str, Any]:
    """Every panel's answers over a run of `seconds`, by dashboard and panel id."""
    with Town(RELAYS) as town, Prometheus(*(relay.admin_url for relay in town.relays), hasten=HASTEN, scrape_seconds=1.0) as prometheus:
        start = time.time() + WARM_SECONDS
        asyncio.run(Demo(town, WARM_SECONDS + seconds).run())
        end = time.time()
        found: dict[str, dict[str, list[Any]]] = {}
        for name, dashboard in dashboards().items():
            found[name] = {}
            for panel in panels(dashboard):
                found[name][str(panel["id"])] = [
                    prometheus.query_range(fill(target["expr"], RATE_INTERVAL), end if target["instant"] else start, end, STEP_SECONDS)
                    for target in panel["targets"]
                ]
        return {"start": start, "end": end, "answers": found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.grafana.render")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    if not options.again:
        ANSWERS.parent.mkdir(exist_ok=True)
        ANSWERS.write_text(json.dumps(observed(options.seconds)))
    run = json.loads(ANSWERS.read_text())
    note = NOTE.format(relays=RELAYS, seconds=run["end"] - run["start"], hasten=HASTEN)
    for name, dashboard in dashboards().items():
        answers = {int(panel): samples for panel, samples in run["answers"][name].items()}
        path = IMAGES / f"{name}.png"
        picture(dashboard, answers, run["start"], run["end"], note, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
