"""The rules by promtool: they are valid, and each alert has a case in which it fires and one in which it stays silent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.grafana.expressions import rules
from tests.support.prometheus import RULES, hastened, program

HERE = Path(__file__).parent
CASES = ("alerts.yml", "alerts_week.yml")
PROMTOOL_SECONDS = 150.0

ALERTS = rules("alerts.yml")


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=PROMTOOL_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_and_the_example_configuration_are_valid() -> None:
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, sorted(RULES.glob("*.yml")))).count("SUCCESS") == 2
    assert "2 rule files found" in promtool("check", "config", str(RULES.parent / "prometheus.yml"))


@pytest.mark.parametrize("cases", CASES)
def test_alerts_fire_and_stay_silent(cases: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(HERE / cases))


@pytest.mark.parametrize("cases", CASES)
def test_promtool_evaluates_what_alerts_read_before_the_alerts(cases: str) -> None:
    """promtool evaluates unlisted groups in random order: an alert may then read the recorded value of an interval ago, or none."""
    groups = [group["name"] for file in ("recording.yml", "alerts.yml") for group in yaml.safe_load((RULES / file).read_text())["groups"]]
    assert yaml.safe_load((HERE / cases).read_text())["group_eval_order"] == groups


def test_each_alert_has_its_cases() -> None:
    """A query that expects samples lists all alerts that fire at that time; at the time of one that expects none, no alert fires."""
    fires, silent = set(), set()
    for case in [case for name in CASES for case in yaml.safe_load((HERE / name).read_text())["tests"]]:
        questions = [one for one in case["promql_expr_test"] if one["expr"].startswith("count by (alertname")]
        here = {alert for one in questions for sample in one["exp_samples"] for alert in re.findall(r'alertname="(\w+)"', sample["labels"])}
        fires |= here
        if any(not one["exp_samples"] for one in questions):
            silent |= here
    names = [alert["alert"] for alert in ALERTS]
    assert len(names) == len(set(names))
    assert fires == silent == set(names)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert re.fullmatch(r"Means: .+\nLook: .+\nDo: .+\n", alert["annotations"]["runbook"], re.DOTALL)
    assert len(alert["annotations"]["summary"]) < 80, "it is read on a telephone"


def test_rules_for_a_demo_differ_in_their_times_only() -> None:
    example = "expr: avg_over_time(a:b:rate5m[1d] offset 15m) > 5\nfor: 2m\n"
    assert hastened(example, 60) == "expr: avg_over_time(a:b:rate5m[1440s] offset 15s) > 5\nfor: 2s\n"
    text = (RULES / "alerts.yml").read_text()
    assert re.sub(r"\d+[smhdw]\b", "", hastened(text, 15)) == re.sub(r"\d+[smhdw]\b", "", text)
