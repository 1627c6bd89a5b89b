"""The dashboards: valid by Grafana's own types, without gaps in the layout, without a fixed data source, each panel described."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units

from grafana.build import DASHBOARDS, FOLDER, text
from grafana.panels import COLUMNS
from tests.grafana.expressions import RULES, Json, dashboards, expressions, metric_names, panels, rules
from tests.pages.metrics import families

UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}
UNTYPED = {"definition"}  # fields that Grafana writes and its types lack

# Metrics that no panel shows, and why.
NOT_SHOWN: dict[str, str] = {}

each = pytest.mark.parametrize("name", sorted(dashboards()))


@each
def test_it_is_what_its_page_says(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.read_text() == text(DASHBOARDS[path.name]), "run: python -m grafana.build"


def test_grafana_knows_every_field() -> None:
    """Each dashboard is the same after a round trip through Grafana's own types, which drop unknown fields."""
    plugins.register_default_plugins()
    for name, dashboard in dashboards().items():
        assert set(lost(dashboard, through_grafana(dashboard))) <= UNTYPED, name
    wrong = dashboards()["overview"]
    panels(wrong)[0]["options"]["colourMode"] = "value"
    panels(wrong)[1]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert {"colourMode", "unitt"} <= set(lost(wrong, through_grafana(wrong)))


def through_grafana(dashboard: Json) -> Json:
    back: Json = json.loads(json.dumps(model.Dashboard.from_json(dashboard), cls=encoder.JSONEncoder))
    return back


def lost(before: Any, after: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost(value, after[name], name) if name in after else (name,)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, key)
    elif before != after:
        yield key


@each
def test_it_can_be_provisioned(name: str) -> None:
    dashboard = dashboards()[name]
    assert "id" not in dashboard, "an id belongs to one Grafana"
    assert re.fullmatch(r"[a-z-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 36  # Grafana 9 and later; 10.0 writes 38
    sources = list(every(dashboard, "datasource"))
    assert sources and all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    first = dashboard["templating"]["list"][0]
    assert (first["type"], first["name"], first["query"]) == ("datasource", "datasource", "prometheus")
    declared = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps([target["expr"] for panel in panels(dashboard) for target in panel["targets"]])))
    assert used - {"__rate_interval"} == declared - {"datasource"}


def test_uids_are_unique() -> None:
    assert len({dashboard["uid"] for dashboard in dashboards().values()}) == len(dashboards())


def every(value: Any, key: str) -> Iterator[Any]:
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for one in value.values():
            yield from every(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from every(one, key)


@each
def test_panels_fill_the_grid_without_overlaps(name: str) -> None:
    dashboard = dashboards()[name]
    ids = Counter(panel["id"] for panel in dashboard["panels"])
    assert max(ids.values()) == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS, panel["title"]
        taken.update((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"]))
    assert max(taken.values()) == 1, "panels overlap"
    assert len(taken) == COLUMNS * (max(y for _, y in taken) + 1), "there are holes"


@each
def test_each_panel_says_what_it_shows(name: str) -> None:
    found = panels(dashboards()[name])
    assert max(Counter(panel["title"] for panel in found).values()) == 1
    for panel in found:
        assert 20 < len(panel["description"]) < 400 and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])])
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            assert labels <= grouped | {"instance"}, f"{panel['title']}: the legend names a label that the query does not keep"


def test_series_with_a_colour_of_their_own_exist() -> None:
    """An override matches the name from the legend: a label's value, or the legend's fixed text."""
    values = {value for family in families() for _, labels, _ in family.samples for _, value in labels}
    for dashboard in dashboards().values():
        for panel in panels(dashboard):
            legends = {target["legendFormat"] for target in panel["targets"]}
            for override in panel["fieldConfig"]["overrides"]:
                assert override["matcher"]["options"] in legends | values, panel["title"]


def test_every_metric_that_is_named_exists() -> None:
    """tests/pages compares the metrics in the README and in docs/ with the registry."""
    known = {family.name + suffix for family in families() for suffix, _, _ in family.samples}
    known |= {family.name for family in families() if family.kind != "counter"} | {rule["record"] for rule in rules("recording.yml")}
    said = [(f"panel {one.panel}", one.text) for one in expressions()]
    said += [(f"{panel['title']}, description", panel["description"]) for one in dashboards().values() for panel in panels(one)]
    said += [(rule["record"], rule["expr"]) for rule in rules("recording.yml")]
    said += [(rule["alert"], " ".join([rule["expr"], *rule["annotations"].values()])) for rule in rules("alerts.yml")]
    wrong = [f"{where}: {name}" for where, text in said for name in metric_names(text) - known]
    assert not wrong


def test_every_metric_is_shown_on_a_dashboard() -> None:
    """By itself, or by a recording rule that reads it."""
    recorded = {rule["record"]: rule["expr"] for rule in rules("recording.yml")}
    shown: set[str] = set()
    pending = {name for one in expressions() for name in metric_names(one.text)}
    while pending:
        name = pending.pop()
        if name not in shown:
            shown.add(name)
            pending |= metric_names(recorded.get(name, ""))
    hidden = {family.name for family in families() if not {family.name + suffix for suffix, _, _ in family.samples} & shown}
    assert hidden == set(NOT_SHOWN)


def test_every_alert_that_a_panel_names_exists() -> None:
    said = " ".join(panel["description"] for one in dashboards().values() for panel in panels(one))
    assert set(re.findall(r"\bRelay[A-Z]\w+", said)) <= {rule["alert"] for rule in rules("alerts.yml")}


def test_every_recorded_series_is_used() -> None:
    recorded = rules("recording.yml")
    said = [*(one.text for one in expressions()), *(rule["expr"] for rule in [*recorded, *rules("alerts.yml")])]
    assert {rule["record"] for rule in recorded} <= metric_names("\n".join(said))


def test_what_grafana_is_provisioned_with() -> None:
    folder = RULES.parent / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus" and "uid" not in source
    [provider] = yaml.safe_load((folder / "dashboards" / "relay.yml").read_text())["providers"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/")
