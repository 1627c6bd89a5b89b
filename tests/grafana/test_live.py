"""Every expression of every panel, variable and rule, evaluated by the real Prometheus over a relay that had every event."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.grafana.expressions import Expression, dashboards, expressions, fill, rules, selectors
from tests.grafana.town import Town
from tests.support.prometheus import Prometheus, Sample
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.xdist_group("prometheus")

RATE_INTERVAL = "1m"
WAIT_SECONDS = 60.0

# True when Prometheus has scraped all events, and its last scrapes were in time: then all samples are there.
TOLD = """
    min_over_time(up[5s]) == 1
    and on () sum(rate(relay_cache_total{result="stale"}[1m])) > 0
    and on () sum(increase(relay_worker_restarts_total[5m])) > 0
    and on () sum(rate(relay_auth_failures_total{reason="undecided"}[1m])) > 0
    and on () sum(rate(relay_commands_rejected_total{reason="upstream"}[1m])) > 0
    and on () sum(rate(relay_shared_exchanges_total{result!="ok"}[1m])) > 0
    and on () job:relay_error_ratio:rate6h > 0.0144
    and on () min(relay_upstream_up) == 0
    and on () min(relay_upstream_address_up{upstream="main"}) == 0
"""

# Expressions without samples here, and why. The test evaluates each of their selectors all the same.
MEANT_EMPTY = {
    "RelayTargetDown": "the relay answers",
    "RelayNoWorkers": "it has workers",
    "RelayChangeNotTaken": "no file has a fault",
    "RelayUpstreamPaused": "nothing is paused",
    "RelayHostCertificateEnds": "it has no host certificate",
    "overview: Host certificate": "it has none",
    "RelayLoopLag": "its loop is on time",
    "RelayNoTraffic": "there is traffic",
    "RelayUpstreamPartlyDown": "one relay: it reaches an upstream or it does not",
    "RelayUpstreamHostKey": "every git host shows its pinned key",
    "RelayHostLostOften": "few sessions lose their host",
    "RelayNotHardened": "all of git-ssh-relay-native is used",
    "RelayPoolExhausted": "an average over two minutes, of which sessions have waited for seconds",
    "RelaySetupSlow": "every backend is quick until it is gone",
    "RelaySharingFails": "most exchanges of the last minutes were before the Redis went",
    "RelayAuthFailureSurge": "there is no past to compare with",
    "RelayRejectedCommandSurge": "there is no past to compare with",
    "RelayConnectionsLimited": "nobody is turned away at the door",
}


@dataclass
class Seen:
    """Prometheus's answers at the end of the load."""

    panels: list[tuple[Expression, list[Sample]]] = field(default_factory=list)
    rules: dict[str, list[Sample]] = field(default_factory=dict)
    selectors: dict[str, list[Sample]] = field(default_factory=dict)
    variables: dict[str, list[str]] = field(default_factory=dict)
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with Town() as town, Prometheus(town.relay.admin_url) as prometheus:
        yield asyncio.run(everything_happens(town, prometheus))


async def everything_happens(town: Town, prometheus: Prometheus) -> Seen:
    relay, newcomer = town.relay, town.newcomer()

    async def counted(name: str, **labels: str) -> bool:
        return await asyncio.to_thread(relay.metric, name, **labels) > 0

    await town.every_kind()
    for worker in relay.processes()[1:2]:
        worker.kill()
    await wait_until_async(lambda: counted("relay_worker_restarts_total"), WAIT_SECONDS)
    relay.signal(signal.SIGHUP)
    await wait_until_async(lambda: counted("relay_reloads_total", result="ok"), WAIT_SECONDS)
    await town.every_kind()

    waiting = [asyncio.get_running_loop().create_task(town.clone_archive("20")) for _ in range(8)]  # four of them get a connection
    await wait_until_async(lambda: counted("relay_upstream_waiting", upstream="archive"), WAIT_SECONDS)
    await asyncio.to_thread(town.switch, "freeze", "archive", "moving to another disk")
    (relay.folder / "packs").chmod(0o755)  # others could read the answers in it: it is not used any more
    town.mirror.stop()
    town.address_goes()
    town.authority.kill()
    town.redis.kill()
    try:
        for name, labels, act in (
            ("relay_sessions_total", {"result": "upstream"}, lambda: town.clone_mirror(1000)),
            ("relay_packs_unusable", {}, lambda: town.clone_project()),
            ("relay_auth_failures_total", {"reason": "undecided"}, lambda: town.ask(None, key=newcomer)),
            ("relay_cache_total", {"question": "access", "result": "stale"}, lambda: town.clone(1000)),
            ("relay_commands_rejected_total", {"reason": "upstream"}, lambda: town.clone(1000)),  # one waits for the archive
        ):

            async def happened(name: str = name, labels: dict[str, str] = labels, act: Any = act) -> bool:
                await act()
                return await counted(name, **labels)

            await wait_until_async(happened, WAIT_SECONDS)
        await town.every_kind()
        told = await wait_until_async(partial(asyncio.to_thread, prometheus.query, TOLD), WAIT_SECONDS, "Prometheus has seen all of it")
        return await asyncio.to_thread(ask_everything, prometheus, told[0]["value"][0])
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def ask_everything(prometheus: Prometheus, at: float) -> Seen:
    """Evaluates all expressions at one time."""
    found = Seen()
    for one in expressions():
        found.panels.append((one, prometheus.query(one.filled(RATE_INTERVAL), at)))
    every_rule = {rule.get("record") or rule["alert"]: rule["expr"] for name in ("recording.yml", "alerts.yml") for rule in rules(name)}
    for name, expression in every_rule.items():
        found.rules[name] = prometheus.query(expression, at)
    for text in [*(one.filled(RATE_INTERVAL) for one in expressions()), *every_rule.values()]:
        for selector in selectors(text) - set(found.selectors):
            found.selectors[selector] = prometheus.query(selector, at)
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                ask = fill(variable["query"]["query"], RATE_INTERVAL)
                selector, label = ask.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
                found.variables[ask] = prometheus.label_values(label, selector)
    found.evaluated = prometheus.rules()
    found.alerts = prometheus.get("alerts")["alerts"]
    return found


def is_told(sample: Sample) -> bool:
    return str(sample["value"][1]) != "NaN"


def test_every_panel_shows_something(seen: Seen) -> None:
    assert len(seen.panels) > 50
    empty = [f"{one.panel}: {one.text}" for one, samples in seen.panels if not any(map(is_told, samples)) and one.panel not in MEANT_EMPTY]
    assert not empty, "\n".join(empty)


def test_every_rule_answers(seen: Seen) -> None:
    empty = [name for name, samples in seen.rules.items() if not any(map(is_told, samples)) and name not in MEANT_EMPTY]
    assert not empty
    assert {"RelayUpstreamDown", "RelayErrorBudgetBurnFast", "RelayBackendStale", "RelayBackendFailing"} <= set(seen.rules)


def test_what_is_meant_to_be_empty_exists(seen: Seen) -> None:
    assert set(MEANT_EMPTY) <= {one.panel for one, _ in seen.panels} | set(seen.rules)


def test_every_selector_selects_something(seen: Seen) -> None:
    """Also those of alerts that do not fire: a misspelt label would keep an alert silent for ever."""
    assert len(seen.selectors) > 50
    empty = {selector for selector, samples in seen.selectors.items() if not samples}
    assert {selector for selector in empty if not selector.startswith("ALERTS{")} == set()


def test_every_variable_has_values(seen: Seen) -> None:
    assert all(seen.variables.values()), seen.variables
    assert ["archive", "main", "mirror"] in seen.variables.values()


def test_prometheus_evaluates_every_rule(seen: Seen) -> None:
    assert {rule["health"] for rule in seen.evaluated} == {"ok"}, [rule for rule in seen.evaluated if rule["health"] != "ok"]
    assert len(seen.evaluated) == len(seen.rules)


def test_an_alert_says_what_it_is_about(seen: Seen) -> None:
    """Prometheus fills in the templates as soon as an alert is pending."""
    said = {alert["labels"]["alertname"]: alert["annotations"] for alert in seen.alerts}
    assert said["RelayUpstreamDown"]["summary"] == "Git host mirror is down"
    assert said["RelayBackendStale"]["summary"].startswith("Answers about ")
    for told in said.values():
        assert "error expanding template" not in str(told) and "<no value>" not in str(told)
