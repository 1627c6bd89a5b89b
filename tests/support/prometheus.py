"""The real Prometheus, which scrapes admin addresses often, with the rules of grafana/ or a copy with shorter times.

with Prometheus(relay.admin_url) as prometheus:
    prometheus.query("sum(relay_workers)")
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.parse
from pathlib import Path
from typing import Any

from tests.support.loopback import urlopen
from tests.support.server_process import START_SECONDS, ServerProcess
from tests.support.wait import wait_until

RULES = Path(__file__).parents[2] / "grafana" / "rules"
SCRAPE_SECONDS = 1.0
HTTP_SECONDS = 60.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIMES = re.compile(r"(?<=\[)(\d+)([smhdw])(?=\])|(?<=offset )(\d+)([smhdw])|(?<=for: )(\d+)([smhdw])")

Sample = dict[str, Any]  # of Prometheus's answer: metric, and value or values


class PrometheusMissingError(RuntimeError):
    """prometheus is not installed on this machine."""


def program(name: str = "prometheus") -> str:
    found = shutil.which(name)
    if found is None:
        raise PrometheusMissingError(f"{name} is missing: install the package prometheus (make test does: apt-get install prometheus)")
    return found


def hastened(rules: str, times: float) -> str:
    """The rules with every window, offset and patience `times` shorter, in whole seconds and 2 s at least: for a demo of two minutes."""

    def shorter(match: re.Match[str]) -> str:
        number, unit = (part for part in match.groups() if part is not None)
        return f"{max(2, round(int(number) * _UNITS[unit] / times))}s"

    return _TIMES.sub(shorter, rules)


class Prometheus(ServerProcess):
    """A context manager; scrapes as job `relay`. `hasten` other than 1 shortens the times in the rules by that factor."""

    def __init__(self, *admin_urls: str, hasten: float = 1, scrape_seconds: float = SCRAPE_SECONDS) -> None:
        super().__init__("prometheus")
        self._targets = [url.removeprefix("http://") for url in admin_urls]
        self._hasten = hasten
        self._scrape_seconds = scrape_seconds
        self.port = 0

    def close(self) -> None:
        self.terminate()
        super().close()

    # -- queries

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """The samples of a vector or a scalar, now or at that time; raises AssertionError with Prometheus's error."""
        return self._samples("query", query=expression, **({"time": f"{at:.3f}"} if at is not None else {}))

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Sample]:
        return self._samples("query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}")

    def label_values(self, label: str, selector: str) -> list[str]:
        """The query of Grafana's label_values(selector, label)."""
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule it evaluates: type, name, query, annotations, health, lastError."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an API call; raises AssertionError with the error."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urlopen(url, timeout=HTTP_SECONDS) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                body = json.load(error)
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    # -- inside

    def _samples(self, path: str, **parameters: str) -> list[Sample]:
        data = self.get(path, **parameters)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        samples: list[Sample] = data["result"]
        return samples

    def start(self) -> None:
        rules = self.folder / "rules"
        rules.mkdir()
        for path in sorted(RULES.glob("*.yml")):
            text = path.read_text()
            (rules / path.name).write_text(text if self._hasten == 1 else hastened(text, self._hasten))
        pace = f"{round(self._scrape_seconds * 1000)}ms"
        config = {
            "global": {"scrape_interval": pace, "scrape_timeout": pace, "evaluation_interval": pace},
            "rule_files": [f"{rules}/*.yml"],
            "scrape_configs": [{"job_name": "relay", "static_configs": [{"targets": self._targets}]}],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._launch_on_port(self._start_on)
        wait_until(lambda: len(self.query("up == 1")) == len(self._targets), START_SECONDS, "Prometheus has scraped every relay")

    def _start_on(self, port: int) -> None:
        self.port = port
        arguments = [
            program(),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._launch(arguments, self._answers, cwd=self.folder)

    def _answers(self) -> bool:
        try:
            return bool(self.get("status/runtimeinfo"))
        except (OSError, ValueError):
            return False
