"""The real Prometheus, scraping admin addresses at a quick pace, with the rules of grafana/ or a copy whose clock runs faster.

with Prometheus(relay.admin_url) as prometheus:
    prometheus.query("sum(relay_workers)")
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.machine import free_port
from tests.support.wait import wait_until

RULES = Path(__file__).parents[2] / "grafana" / "rules"
SCRAPE_SECONDS = 1.0
START_SECONDS = 60.0
END_SECONDS = 60.0
HTTP_SECONDS = 60.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIMES = re.compile(r"(?<=\[)(\d+)([smhdw])(?=\])|(?<=offset )(\d+)([smhdw])|(?<=for: )(\d+)([smhdw])")

Sample = dict[str, Any]  # of Prometheus's answer: metric, and value or values


class PrometheusMissingError(RuntimeError):
    """There is no prometheus on this machine."""


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


class Prometheus:
    """A context manager; scrapes as job `relay`. `hasten` other than 1 shortens the times in the rules by that factor."""

    def __init__(self, *admin_urls: str, hasten: float = 1, scrape_seconds: float = SCRAPE_SECONDS) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self._targets = [url.removeprefix("http://") for url in admin_urls]
        self._hasten = hasten
        self._scrape_seconds = scrape_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_SECONDS)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what it knows

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """The samples now or at that moment, of a vector or a scalar; raises AssertionError with what is wrong with the expression."""
        return self._samples("query", query=expression, **({"time": f"{at:.3f}"} if at is not None else {}))

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Sample]:
        return self._samples("query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}")

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana's label_values(selector, label) asks."""
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule it evaluates: type, name, query, annotations, health, lastError."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an API call; raises AssertionError with the error."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
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

    def _start(self) -> None:
        rules = self._folder / "rules"
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
        (self._folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        deadline = time.monotonic() + START_SECONDS
        while not self._listens(deadline):
            pass  # somebody else took the port meanwhile
        wait_until(lambda: len(self.query("up == 1")) == len(self._targets), START_SECONDS, "Prometheus has scraped every relay")

    def _listens(self, deadline: float) -> bool:
        """Starts it; False if the port was taken."""
        self.port = free_port()
        log = self._folder / "log"
        arguments = [
            program(),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        with log.open("wb") as file:
            process = self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self._folder)

        def answers() -> bool:
            if process.poll() is not None:
                return True
            try:
                return bool(self.get("status/runtimeinfo"))
            except (OSError, ValueError):
                return False

        wait_until(answers, max(0.0, deadline - time.monotonic()), "Prometheus answers")
        if process.poll() is None:
            return True
        text = log.read_text()
        assert "address already in use" in text, text
        return False
