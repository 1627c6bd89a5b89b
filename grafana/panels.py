"""The words that dashboards are written in: panels, rows and variables as Grafana 10 and later read them.

In an expression `@` stands for the labels that the dashboard's variables choose, as in `rate(relay_bytes_total{@}[$__rate_interval])`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SCHEMA_VERSION = 39  # Grafana 10.1 to 11; later ones migrate it by themselves
COLUMNS = 24
CHOSEN = 'job=~"$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]
Steps = Sequence[tuple[float | None, str]]  # from which value on which colour; None: from the lowest

# One colour for one thing, on every panel.
COLOURS = {
    "ok": "green", "exit": "blue", "signal": "purple", "client": "#8e8e8e", "policy": "yellow", "upstream": "red", "relay": "dark-red",
    "to clients": "blue", "to git hosts": "orange",
    "git-upload-pack": "blue", "git-receive-pack": "orange", "git-upload-archive": "purple",
    "git-lfs-authenticate": "green", "git-lfs-transfer": "yellow", "none": "#8e8e8e",
    "leased": "blue", "idle": "green", "dialing": "yellow",
    "denied": "yellow", "not_git": "#8e8e8e", "malformed": "purple", "undecided": "red", "too_many": "orange", "ref": "blue",
    "no_auth": "#8e8e8e", "auth_failed": "yellow", "protocol": "purple", "lost": "orange", "limited": "red", "drained": "blue",
    "warm": "green", "cold": "orange",
    "hit": "green", "negative": "blue", "joined": "purple", "miss": "yellow", "stale": "red", "shared": "#8ab8ff", "no": "blue",
    "p50": "green", "p95": "yellow", "p99": "red",
    "5 minutes": "red", "1 hour": "orange", "objective": "#8e8e8e",
    "unreachable": "red", "timeout": "orange", "failed": "dark-red", "invalid": "purple", "busy": "yellow", "error": "#8e8e8e",
    "identity": "yellow", "repository": "purple", "paused": "blue", "away": "orange",
    "served": "green", "differed": "purple", "budget": "yellow", "unavailable": "red", "ended": "#8e8e8e",
    "filled": "blue", "passed": "#8e8e8e",
    "sent": "green", "dropped": "orange",
    "let in": "green", "restarts": "red", "workers": "green",
}  # fmt: skip


def query(expression: str, legend: str = "__auto", *, instant: bool = False, table: bool = False) -> Json:
    """One question to Prometheus; its refId comes with its panel."""
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expression.replace("@", CHOSEN),
        "legendFormat": legend,
        "range": not instant,
        "instant": instant,
        "format": "table" if table else "time_series",
    }


def stat(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Json],
    steps: Steps,
    *,
    width: int = 4,
    mappings: Sequence[Json] = (),
    **defaults: Any,
) -> Json:
    """The value now, coloured by `steps`, on its recent past."""
    many = len(queries) > 1 or queries[0]["instant"]
    return _panel(
        "stat",
        title,
        description,
        queries,
        width,
        {
            "colorMode": "value",
            "graphMode": "none" if many else "area",
            "justifyMode": "center",
            "orientation": "auto",
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "textMode": "value_and_name" if many else "value",
        },
        {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": _thresholds(steps), "mappings": list(mappings), **defaults},
    )


def series(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Json],
    *,
    width: int = 8,
    stacked: bool = False,
    limits: Steps = (),
    names: Iterable[str] = (),
    minimum: float | None = 0,
    **defaults: Any,
) -> Json:
    """Lines over time; `names` are the series that have a colour of their own, `limits` are drawn as dashed lines."""
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 0 if stacked else 1,  # a stacked line of zeros would cover the one below
        "fillOpacity": 70 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    fields: Json = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "thresholds": _thresholds(limits or [(None, "green")]),
        "mappings": [],
        **({"min": minimum} if minimum is not None else {}),
        **defaults,
    }
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return _panel("timeseries", title, description, queries, width, options, fields, [_coloured(name) for name in names])


def timeline(
    title: str, description: str, queries: Sequence[Json], values: Sequence[tuple[str, str, str]], *, width: int = 12, **defaults: Any
) -> Json:
    """States over time, a row for each series; `values` are (value, what it means, colour)."""
    options = {
        "showValue": "never",
        "rowHeight": 0.8,
        "mergeValues": True,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    fields = {
        "unit": "none",
        "color": {"mode": "thresholds"},
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "mappings": [mapped(*values)],
        "thresholds": _thresholds([(None, "transparent")]),
        **defaults,
    }
    return _panel("state-timeline", title, description, queries, width, options, fields)


def table(title: str, description: str, one: Json, columns: Sequence[str], *, width: int) -> Json:
    """Labels of an instant query as columns, in this order."""
    order = {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True},
            "indexByName": {name: number for number, name in enumerate(columns)},
            "renameByName": {},
        },
    }
    fields = {
        "unit": "none",
        "custom": {"align": "auto", "inspect": False},
        "mappings": [],
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds([(None, "text")]),
    }
    options = {"showHeader": True, "cellHeight": "sm"}
    return {**_panel("table", title, description, [one], width, options, fields), "transformations": [order]}


def mapped(*values: tuple[str, str, str]) -> Json:
    """Values that are shown as words: (value, word, colour)."""
    options = {value: {"text": word, "color": colour, "index": number} for number, (value, word, colour) in enumerate(values)}
    return {"type": "value", "options": options}


def variable(name: str, label: str, ask: str) -> Json:
    """A choice of several label values, all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "definition": ask,
        "query": {"query": ask, "refId": f"Variable-{name}"},
        "refresh": 2,  # when the time range changes: an instance that is gone is still found in its time
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "regex": "",
    }


def dashboard(uid: str, title: str, description: str, variables: Sequence[Json], rows: Sequence[tuple[str, int, Sequence[Json]]]) -> Json:
    """`rows` are (title, height, panels); consecutive rows of one title are one, and without a title they have no heading."""
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "options": [],
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "regex": "",
    }
    link = {
        "type": "dashboards",
        "title": "Relay",
        "tags": ["git-ssh-relay"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "icon": "external link",
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["git-ssh-relay"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair on all panels: what happened at the same moment
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "refresh": "30s",
        "fiscalYearStartMonth": 0,
        "links": [link],
        "annotations": {"list": []},
        "templating": {"list": [source, *variables]},
        "panels": _laid_out(rows),
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Json],
    width: int,
    options: Json,
    fields: Json,
    overrides: Sequence[Json] = (),
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"h": 0, "w": width, "x": 0, "y": 0},
        "targets": [{**one, "refId": chr(ord("A") + number)} for number, one in enumerate(queries)],
        "options": options,
        "fieldConfig": {"defaults": fields, "overrides": list(overrides)},
    }


def _laid_out(rows: Sequence[tuple[str, int, Sequence[Json]]]) -> list[Json]:
    placed: list[Json] = []
    y, heading = 0, ""
    for title, height, panels in rows:
        if title != heading:
            place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            placed.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
            y, heading = y + 1, title
        x = 0
        for panel in panels:
            placed.append({**panel, "gridPos": {"h": height, "w": panel["gridPos"]["w"], "x": x, "y": y}})
            x += panel["gridPos"]["w"]
        assert x == COLUMNS, f"{title}: a row of panels is {COLUMNS} wide, not {x}"
        y += height
    return [{"id": number, **panel} for number, panel in enumerate(placed, 1)]


def _thresholds(steps: Steps) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def _coloured(name: str) -> Json:
    properties: list[Json] = [{"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[name]}}]
    if name == "objective":
        properties.append({"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}})
        properties.append({"id": "custom.fillOpacity", "value": 0})
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}
