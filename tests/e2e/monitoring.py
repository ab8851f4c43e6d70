"""Debian's Prometheus with the alert rules of docs/prometheus, in which minutes are made seconds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers.embedded import die_with_parent

from tests.processes import wait_until
from tests.topologies import free_port

DOCUMENTS = Path(__file__).parents[2] / "docs" / "prometheus"
RULES = DOCUMENTS / "x2gofleet.rules.yml"
FASTER = 40
"""How many times shorter the rules' durations are made, so that 5 minutes are 7.5 s."""
ALERT_SECONDS = 180.0
_HTTP_SECONDS = 20.0
_CONFIGURATION = """
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 500ms}
rule_files: [rules-*.yml]
scrape_configs:
  - job_name: x2gofleet
    file_sd_configs: [{files: [workers.json], refresh_interval: 1s}]
"""


def require_prometheus() -> None:
    """Skip the test where Debian's prometheus is missing; fail it there with X2GOFLEET_REQUIRE_E2E=1."""
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    lacking = "prometheus and promtool are not installed; run: bash tests/e2e/setup.sh"
    if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
        pytest.fail(f"X2GOFLEET_REQUIRE_E2E=1, but {lacking}", pytrace=False)
    pytest.skip(lacking)


def faster(rules: str, times: int = FASTER) -> str:
    """Return alert rules whose every duration in minutes is so many times shorter."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * 60_000 // times}ms{found[3]}"

    return re.sub(r"(\bfor: |\[)(\d+)m(\b|\])", shorter, rules)


class PrometheusProcess:
    """A Prometheus on loopback that scrapes workers by their metrics' URL and evaluates the rules twice a second."""

    def __init__(self, folder: Path, rules: Mapping[str, str]) -> None:
        folder.mkdir()
        self._folder, self._log = folder, folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        (folder / "prometheus.yml").write_text(_CONFIGURATION)
        for name, text in rules.items():
            (folder / f"rules-{name}.yml").write_text(text)
        self.scrape()

    def scrape(self, *urls: str) -> None:
        """Scrape these from now on, and no others."""
        new = self._folder / "workers.json.new"
        new.write_text(json.dumps([{"targets": [urllib.parse.urlsplit(url).netloc for url in urls]}]))
        new.replace(self._folder / "workers.json")

    def start(self) -> None:
        """Start it; returns once it answers, on another port where the first one proves to be taken."""
        for _ in range(10):
            address = f"127.0.0.1:{free_port()}"
            self._url = f"http://{address}"
            with self._log.open("ab") as log:
                self._process = process = subprocess.Popen(
                    [
                        *("prometheus", f"--config.file={self._folder / 'prometheus.yml'}"),
                        *(f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address={address}"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,
                )
            wait_until(lambda: self._answers() or process.poll() is not None, "Prometheus answers", ALERT_SECONDS)  # noqa: B023
            if process.poll() is None:
                return
            assert "address already in use" in self._log.read_text(), self._log.read_text()
        raise AssertionError("ten ports were taken by others")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def firing(self) -> dict[str, Mapping[str, Any]]:
        """Return the alerts that fire now, by name; of several with one name, one."""
        found = self._get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found if alert["state"] == "firing"}

    def fired_since(self, moment: float) -> set[str]:
        """Return the names of all alerts that fired since a moment of Prometheus's clock, or fire now."""
        milliseconds = math.ceil((self.now() - moment) * 1000) + 1
        query = f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{milliseconds}ms]))'
        found = self._get("/api/v1/query", query=query)["result"]
        return {series["metric"]["alertname"] for series in found} | self.firing().keys()

    def now(self) -> float:
        """Return the time of Prometheus's clock, in seconds since the epoch."""
        return self.value("time()")

    def value(self, expression: str) -> float:
        """Return what a query gives now; 0 where it finds nothing."""
        reply = self._get("/api/v1/query", query=expression)
        found = (
            reply["result"][1] if reply["resultType"] == "scalar" else [each["value"][1] for each in reply["result"]]
        )
        return float(found if isinstance(found, str) else (found or [0.0])[0])

    def rules(self) -> list[Mapping[str, Any]]:
        """Return all rules as Prometheus read them."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def evaluations(self) -> int:
        """Return how often the rules of docs/prometheus were evaluated."""
        counted = re.findall(
            r'^prometheus_rule_group_iterations_total{.*;x2gofleet"} (\S+)', self._text("/metrics"), re.M
        )
        return int(float(counted[0])) if counted else 0

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return "Ready" in self._text("/-/ready")
        return False

    def _text(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=_HTTP_SECONDS) as reply:
            text: str = reply.read().decode()
            return text

    def _get(self, path: str, match: str = "", **parameters: str) -> Any:
        query = urllib.parse.urlencode({**({"match[]": match} if match else {}), **parameters})
        return json.loads(self._text(f"{path}?{query}"))["data"]


@contextmanager
def prometheus(folder: Path, urls: Iterable[str], rules: Mapping[str, str]) -> Iterator[PrometheusProcess]:
    """Run a Prometheus that has read all of these workers once; ``rules`` are texts of rule files by name."""
    process = PrometheusProcess(folder, rules)
    chosen = list(urls)
    process.scrape(*chosen)
    try:
        process.start()
        seen = "count(x2gofleet_build_info)"
        wait_until(lambda: process.value(seen) == len(chosen), "the workers are scraped", ALERT_SECONDS)
        yield process
    finally:
        process.stop()
