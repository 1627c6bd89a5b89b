"""The queries of dashboards and rules, with a dashboard's variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"
RULES = FOLDER.parent / "rules"
ALL = {"job": ".+", "instance": ".+", "upstream": ".+"}  # as Grafana fills in All

Json = dict[str, Any]

_SELECTOR = re.compile(r'\b((?:\w+:)?(?:relay_\w+|relay:\w+)(?::\w+)?|up|ALERTS)\b(?!\()(?:\{((?:[^"{}]|"[^"]*")*)\})?')
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


@dataclass(frozen=True)
class Expression:
    """One query of a panel."""

    panel: str  # dashboard: title
    text: str

    def filled(self, rate_interval: str, chosen: Mapping[str, str] = ALL) -> str:
        return fill(self.text, rate_interval, chosen)


def dashboards() -> dict[str, Json]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: Json) -> list[Json]:
    """The panels that show data."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[Expression]:
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Expression(f"{name}: {panel['title']}", target["expr"])


def rules(name: str) -> list[Json]:
    """The rules of recording.yml or alerts.yml."""
    return [rule for group in yaml.safe_load((RULES / name).read_text())["groups"] for rule in group["rules"]]


def fill(text: str, rate_interval: str, chosen: Mapping[str, str] = ALL) -> str:
    values = {**chosen, "__rate_interval": rate_interval}
    return _VARIABLE.sub(lambda match: values[match[1] or match[2]], text)


def selectors(expression: str) -> set[str]:
    """Every selector of an expression, as a query of its own: name{matchers}."""
    return {f"{match[1]}{{{match[2] or ''}}}" for match in _SELECTOR.finditer(expression)}


def metric_names(text: str) -> set[str]:
    """Names with the relay's prefix; of recorded metrics the whole name."""
    return set(re.findall(r"(?<![\w:$])(?:\w+:)?relay[_:]\w+(?::\w+)?", text))
