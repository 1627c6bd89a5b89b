"""Every metric with its labels and their closed values, as the registry declares them, for docs/metrics.md."""

from __future__ import annotations

import inspect
import re
from functools import cache
from itertools import chain
from types import ModuleType
from typing import Any

from relay import config, errors, events
from relay.observe.metrics import Metrics
from relay.observe.snapshot import Family, merge, supervision
from relay.observe.tallies import OTHER
from relay.process.switches import KINDS
from tests.pages.markdown import cell, code, table

UPSTREAM = "the names of `[upstreams.NAME]`"
ADDRESS = "the `addresses` of `[upstreams.NAME]`"
VERSION = "a version"


def metrics() -> str:
    found = families()
    parts = [
        table(
            ("metric", "type", ""),
            ([code(named(family)), family.kind, cell(family.help)] for family in found),
        ),
        f"## Labels\n\nEvery series of a closed set exists from the start; what is in no set counts as `{OTHER}`, which is else not there.",
        table(("label", "of", "values"), _labels(found)),
        "## What the values mean",
        table(("value", "of", ""), _meanings()),
        "## Buckets\n\nThe upper ends of the histograms, in seconds.",
        table(("metric", "buckets"), _buckets(found)),
    ]
    return "\n\n".join(parts)


@cache
def families() -> list[Family]:
    """All metric families of one scrape, with every kind of backend."""
    seen = [Metrics(one, VERSION).snapshot() for one in _configs()]
    return sorted(
        [*merge(seen).families, *supervision(1, 0, 0, switches={(UPSTREAM, kind): 0 for kind in KINDS})], key=lambda family: family.name
    )


def named(family: Family) -> str:
    """The name in PromQL, with the names of the labels: relay_sessions_total{service,result}."""
    labels = [name for name in _values(family) if name != "le"]
    return _name(family) + (f"{{{','.join(labels)}}}" if labels else "")


def _name(family: Family) -> str:
    return family.name + ("_total" if family.kind == "counter" else "")


def _configs() -> list[config.Config]:
    upstreams = {UPSTREAM: config.UpstreamSettings(addresses=["git.example.com:22"])}
    example = {"url": "https://authority.example.com", "urls": ["redis://redis.example.com"], "command": ["/bin/true"]}
    found = []
    for question, union in (("keys", config.AnyKeys), ("access", config.AnyAccess), ("routes", config.AnyRoutes)):
        for kind in union.__args__:
            values = {name: value for name, value in example.items() if name in kind.__struct_fields__}
            table: dict[str, Any] = {question: kind(**values)}
            found.append(config.Config(upstreams=upstreams, **table))
    return found


def _values(family: Family) -> dict[str, dict[str, None]]:
    found: dict[str, dict[str, None]] = {}
    for _, labels, _ in family.samples:
        for name, value in labels:
            found.setdefault(name, {})[value] = None
    return found


def _labels(found: list[Family]) -> list[list[str]]:
    """The rows of the labels; those of build_info, which are versions, share one row."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for family in found:
        labels = {name: tuple(values) for name, values in _values(family).items() if name != "le"}
        if family.name == "relay_build_info":
            labels = {", ".join(map(code, labels)): (VERSION,)}
        for name, values in labels.items():
            values = (ADDRESS,) if name == "address" else values
            rows.setdefault((name if "`" in name else code(name), values), []).append(code(_name(family)))
    return [
        [label, ", ".join(of), ", ".join(one if one in (UPSTREAM, ADDRESS, VERSION) else code(one) for one in values)]
        for (label, values), of in sorted(rows.items())
    ]


def _buckets(found: list[Family]) -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for family in found:
        if family.kind == "histogram":
            ends = [float(end) for end in _values(family)["le"] if end != "+Inf"]
            rows.setdefault(", ".join(f"{end:g}" for end in ends), []).append(code(family.name))
    return [[", ".join(of), ends] for ends, of in rows.items()]


_MEANT = (  # closed sets whose values have comments, and the label of each set
    (events, "ConnectionOutcome", "relay_connections_total{outcome}"),
    (events, "AuthFailure", "relay_auth_failures_total{reason}"),
    (events, "SourceKind", "relay_connections_by_source_total{source}"),
    (errors, "Why", "relay_backend_answers_total{result}"),
)


def _meanings() -> list[list[str]]:
    return [[code(value), code(of), cell(text)] for value, of, text in chain.from_iterable(_commented(*one) for one in _MEANT)]


def _commented(module: ModuleType, name: str, of: str) -> list[tuple[str, str, str]]:
    found = re.search(rf"^{name} = Literal\[\n(.*?)^\]", inspect.getsource(module), re.DOTALL | re.MULTILINE)
    assert found, f"{module.__name__} has no {name} = Literal[...], a value a line"
    return [(value, of, text) for value, text in re.findall(r'^ +"(\w+)",(?:  # (.*))?$', found[1], re.MULTILINE) if text]
