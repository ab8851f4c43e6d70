"""Metrics and the endpoint: fixed series, each count in its place, the document, HTTP, the health check's command."""

from __future__ import annotations

import ast
import contextlib
import http.client
import inspect
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import x2gofleet_workers
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from x2gofleet_workers import cli
from x2gofleet_workers import worker as worker_module
from x2gofleet_workers.endpoint import Endpoint
from x2gofleet_workers.health import EXIT_UNKNOWN, health_url, healthcheck
from x2gofleet_workers.inventory import parse_inventory
from x2gofleet_workers.metrics import (
    NO_METRICS,
    Check,
    Condition,
    Format,
    LaneName,
    Metrics,
    MetricsError,
    Operation,
    PrometheusMetrics,
    Pulse,
    RefreshAnswer,
    Result,
    StaleReason,
    Standing,
)
from x2gofleet_workers.probe.reference import Agreement
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.errors import CacheUnavailable
from x2gofleet.extras import how_to_install
from x2gofleet.kinds import Kind
from x2gofleet.store import Outcome

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
RULES = DOCUMENT.parent / "prometheus" / "x2gofleet.rules.yml"
WORKERS = Path(x2gofleet_workers.__file__).parent
REFUSALS = [outcome for outcome in Outcome if outcome is not Outcome.STORED]
STANDING = Standing(
    conditions={"up": 2, "backing_off": 1},
    oldest_seconds=dict.fromkeys(Kind, 1.5),
    stale={(Kind.SESSIONS, "down"): 1, (Kind.MOUNTS, "late"): 2},
    missed_runs=3,
    overlapping_runs=4,
    clock_steps=5,
    inventory="abc123",
    inventory_targets=7,
    inventory_refused=True,
    inventory_outdated=False,
    redis_up=True,
    checks={"live": True, "ready": False},
    inventory_left_out=6,
)
Series = tuple[str, tuple[tuple[str, str], ...]]

INVENTORY = """
[defaults]
user = "root"
key_file = "id"
known_hosts = "known_hosts"
[servers.ts01]
host = "127.0.0.1"
[profiles.mate]
servers = ["ts01"]
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def metrics() -> PrometheusMetrics:
    made = PrometheusMetrics()
    made.observe(lambda: STANDING)
    return made


def scrape(metrics: PrometheusMetrics) -> dict[Series, float]:
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def changes(metrics: PrometheusMetrics, act: Callable[[], object]) -> dict[str, float]:
    """Return what an act adds to counts, as ``name{label}`` -> how much; buckets and sums of times left out."""
    before = scrape(metrics)
    act()
    return {
        name + "".join(f"{{{value}}}" for _, value in labels): value - before[name, labels]
        for (name, labels), value in scrape(metrics).items()
        if value != before[name, labels] and not name.endswith(("_bucket", "_sum"))
    }


# What is counted


def test_each_event_counts_in_its_place(metrics: PrometheusMetrics) -> None:
    def redis_call() -> None:
        with metrics.redis_call("renew"):
            pass

    acts: dict[Callable[[], object], dict[str, float]] = {
        lambda: metrics.polled(Kind.LOAD, "refused"): {"x2gofleet_polls_total{load}{refused}": 1},
        lambda: metrics.poll_ended("slow", 0.2): {"x2gofleet_poll_seconds_count{slow}": 1},
        metrics.listed: {"x2gofleet_full_listings_total": 1},
        lambda: metrics.rows_rejected(Kind.MOUNTS, 7): {"x2gofleet_rejected_rows_total{mounts}": 7},
        lambda: metrics.write_refused(Outcome.LOST): {"x2gofleet_refused_writes_total{lost}": 1},
        metrics.lease_lost: {"x2gofleet_lease_losses_total": 1},
        redis_call: {"x2gofleet_redis_seconds_count{renew}": 1},
        metrics.noticed: {"x2gofleet_notices_total": 1},
        lambda: metrics.polled_on_notice(0.2): {"x2gofleet_notice_seconds_count": 1},
        metrics.refresh_asked: {"x2gofleet_refresh_requests_total": 1},
        metrics.refresh_polled: {"x2gofleet_refresh_polls_total": 1},
        lambda: metrics.refresh_answered("failed", 3): {"x2gofleet_refresh_answers_total{failed}": 3},
        metrics.connected: {"x2gofleet_connections_total": 1},
        metrics.worker_exhausted: {"x2gofleet_worker_exhausted_total": 1},
        lambda: metrics.compared(Agreement.DIFFERS): {"x2gofleet_reference_comparisons_total{differs}": 1},
    }
    assert len(acts) == len(public(Metrics)), "an event is not tried here"
    for act, expected in acts.items():
        assert changes(metrics, act) == expected


def public(owner: type) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("_") and callable(value)}


def test_metrics_that_are_not_wanted_take_the_same_calls() -> None:
    for name, method in public(Metrics).items():
        assert inspect.signature(method) == inspect.signature(public(PrometheusMetrics)[name]), name
    NO_METRICS.polled(Kind.LOAD, "failed")
    with pytest.raises(KeyError), NO_METRICS.redis_call("store"):
        raise KeyError("an error passes through")


def test_a_poll_s_time_falls_into_its_bucket(metrics: PrometheusMetrics) -> None:
    metrics.poll_ended("quick", 0.004)
    found = scrape(metrics)
    name = "x2gofleet_poll_seconds_bucket"
    assert found[name, (("lane", "quick"), ("le", "0.0025"))] == 0
    assert found[name, (("lane", "quick"), ("le", "0.005"))] == 1
    assert found["x2gofleet_poll_seconds_sum", (("lane", "quick"),)] == pytest.approx(0.004)


def test_calls_of_redis_that_fail_are_timed_too(metrics: PrometheusMetrics) -> None:
    def fail() -> None:
        with pytest.raises(TimeoutError), metrics.redis_call("store"):
            raise TimeoutError

    assert changes(metrics, fail) == {"x2gofleet_redis_seconds_count{store}": 1}


def test_every_series_is_there_from_the_start_and_none_comes(metrics: PrometheusMetrics) -> None:
    before = set(scrape(metrics))
    for kind in Kind:
        metrics.rows_rejected(kind, 1)
        for result in get_args(Result):
            metrics.polled(kind, result)
    for lane in get_args(LaneName):
        metrics.poll_ended(lane, 100.0)
    for outcome in REFUSALS:
        metrics.write_refused(outcome)
    for operation in get_args(Operation):
        with metrics.redis_call(operation):
            pass
    for answer in get_args(RefreshAnswer):
        metrics.refresh_answered(answer, 2)
    assert set(scrape(metrics)) == before
    values: dict[str, set[str]] = {}
    for _, labels in before:
        for label, value in labels:
            values.setdefault(label, set()).add(value)
    del values["le"], values["version"], values["python"]
    kinds = {kind.value for kind in Kind}
    assert values == {
        "kind": kinds,
        "result": set(get_args(Result)),
        "lane": set(get_args(LaneName)),
        "outcome": {outcome.value for outcome in REFUSALS},
        "operation": set(get_args(Operation)),
        "condition": set(get_args(Condition)),
        "answer": set(get_args(RefreshAnswer)),
        "reason": set(get_args(StaleReason)),
        "check": set(get_args(Check)),
        "digest": {"abc123"},
        "agreement": {agreement.value for agreement in Agreement},
    }


def test_what_is_looked_up_at_each_scrape(metrics: PrometheusMetrics) -> None:
    found = scrape(metrics)
    assert found["x2gofleet_owned_targets", ()] == 3
    assert [
        found["x2gofleet_targets", (("condition", condition),)] for condition in ("up", "backing_off", "connecting")
    ] == [2, 1, 0]
    assert found["x2gofleet_oldest_snapshot_age_seconds", (("kind", "mounts"),)] == 1.5
    assert found["x2gofleet_missed_runs_total", ()] == 3
    assert found["x2gofleet_overlapping_runs_total", ()] == 4
    assert found["x2gofleet_clock_steps_total", ()] == 5
    assert found["x2gofleet_inventory_info", (("digest", "abc123"),)] == 1
    assert found["x2gofleet_inventory_targets", ()] == 7
    assert (found["x2gofleet_inventory_refused", ()], found["x2gofleet_inventory_outdated", ()]) == (1, 0)
    assert found["x2gofleet_inventory_left_out", ()] == 6
    assert found["x2gofleet_redis_up", ()] == 1
    assert {check: found["x2gofleet_health", (("check", check),)] for check in get_args(Check)} == {
        "live": 1,
        "ready": 0,
    }
    stale = {
        (kind.value, reason): found["x2gofleet_stale_targets", (("kind", kind.value), ("reason", reason))]
        for kind in Kind
        for reason in get_args(StaleReason)
    }
    assert {labels for labels, value in stale.items() if value} == {("sessions", "down"), ("mounts", "late")}
    assert stale["mounts", "late"] == 2


def test_the_start_is_told_in_the_time_of_the_machine() -> None:
    before = time.time()
    started = scrape(PrometheusMetrics())["x2gofleet_start_time_seconds", ()]
    assert before <= started <= time.time()


def test_two_workers_of_one_process_count_apart(metrics: PrometheusMetrics) -> None:
    other = PrometheusMetrics()
    assert changes(metrics, other.connected) == {}


def test_both_formats_are_well_formed_and_hold_the_same(metrics: PrometheusMetrics) -> None:
    metrics.polled(Kind.SESSIONS, "stored")
    body, content_type = metrics.exposition(Format.OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
    }
    assert found == scrape(metrics)
    assert not [name for name, _ in found if name.endswith("_created")]
    assert metrics.exposition()[1].startswith("text/plain; version=0.0.4")


# The document and the alerts


def families(metrics: PrometheusMetrics) -> Iterator[tuple[str, str, str, str]]:
    suffixes = {"counter": "_total", "info": "_info"}
    for family in metrics.registry.collect():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = family.name + suffixes.get(family.type, "")
        yield f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation


def test_the_document_lists_every_metric_as_it_is(metrics: PrometheusMetrics) -> None:
    rows = re.findall(r"^\| (`x2gofleet_.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert sorted(tuple(cell.strip() for cell in row.split(" | ")) for row in rows) == sorted(families(metrics))


def test_the_alerts_ask_for_series_that_exist(metrics: PrometheusMetrics) -> None:
    rules = RULES.read_text(encoding="utf-8")
    series = set(scrape(metrics))
    found = re.findall(r"(x2gofleet_\w+)\{([^}]*)\}", re.sub(r"\{\{.*?\}\}", "", rules))
    assert len(found) >= 16
    for name, selector in found:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', selector))
        assert labels.pop("job") == "x2gofleet", name
        assert any(name == there and labels.items() <= dict(pairs).items() for there, pairs in series), (name, labels)
    names = {name for name, _ in series}
    assert set(re.findall(r"\bx2gofleet_\w+", rules)) <= names | {name.removesuffix("_bucket") for name in names}


def test_the_document_has_each_alert_with_what_to_do() -> None:
    rules = re.split(r"^      - alert: ", RULES.read_text(encoding="utf-8"), flags=re.M)[1:]
    rows = re.findall(r"^\| `(X2Go\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert rows == [rule.partition("\n")[0] for rule in rules]
    for rule in rules:
        for part in ("expr:", "severity:", "summary:", "description:", "remedy:"):
            assert part in rule, (part, rule)


def test_the_document_names_every_value_of_the_labels() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Every metric")[2].partition("|")[0]
    values = (Result, LaneName, Condition, Operation, RefreshAnswer, StaleReason, Check)
    for value in (*Kind, *REFUSALS, *Agreement, *(value for each in values for value in get_args(each))):
        assert re.search(rf"\b{value}\b", text), value


# The package prometheus_client


def test_one_module_imports_prometheus_client() -> None:
    importers = set()
    for path in WORKERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if any(name.partition(".")[0] == "prometheus_client" for name in names):
                importers.add(path.name)
    assert importers == {"metrics.py"}


PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prometheus_client":
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
from x2gofleet_workers import cli
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.polling import TargetPoller
from x2gofleet_workers.probe.reference import Agreement
from x2gofleet_workers.worker import Worker, WorkerSettings

path, *more = sys.argv[1:]
if more:
    sys.exit(cli.main(["run", "--inventory", path, "--redis-url", "redis://127.0.0.1:1/0", *more]))
worker = Worker(load_inventory(path), WorkerSettings("redis://127.0.0.1:1/0"))
worker.start()
worker.stop()
print("ran without")
"""


def run_without_prometheus(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)


def test_without_prometheus_client_only_metrics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(INVENTORY)
    assert run_without_prometheus(path).stdout == "ran without\n"
    refused = run_without_prometheus(path, "--metrics-port", "0")
    assert refused.returncode == cli.EXIT_FAILED
    assert refused.stderr.splitlines() == [
        "x2gofleet-worker: metrics need the package prometheus_client. Leave --metrics-port (X2GOFLEET_METRICS_PORT) "
        f"out, or: {how_to_install('worker')}"
    ]


# The endpoint


class Checks:
    """What /live and /ready are told."""

    def __init__(self) -> None:
        self.live = self.ready = ""
        self.warnings: tuple[str, ...] = ()


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def endpoint(metrics: PrometheusMetrics, checks: Checks) -> Iterator[Endpoint]:
    made = Endpoint(metrics, lambda: checks.live, lambda: checks.ready, lambda: checks.warnings)
    made.start()
    yield made
    made.stop()


def ask(endpoint: Endpoint, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    place = urllib.parse.urlsplit(endpoint.url)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=HANG_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), {name.lower(): value for name, value in reply.getheaders()}
    finally:
        connection.close()


def test_paths_and_their_answers(endpoint: Endpoint, checks: Checks) -> None:
    assert ask(endpoint, "/live")[:2] == (200, "ok\n")
    assert ask(endpoint, "/ready?verbose=1")[:2] == (200, "ok\n")
    checks.ready = "Redis is\nnot  there " + "x" * 1000
    status, text, headers = ask(endpoint, "/ready")
    assert status == 503
    assert text.startswith("Redis is not there x")
    assert text.endswith("x…\n")
    assert len(text) <= 401
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert ask(endpoint, "/live")[0] == 200
    assert ask(endpoint, "/")[:2] == (404, "there are /metrics, /live and /ready\n")
    assert ask(endpoint, "/live", "HEAD")[:2] == (200, "")
    status, _, headers = ask(endpoint, "/live", "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    status, text, headers = ask(endpoint, "/metrics")
    assert status == 200
    assert "x2gofleet_owned_targets 3.0\n" in text
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert headers["server"] == "x2gofleet-worker"
    assert ask(endpoint, "/metrics", Accept="application/openmetrics-text")[1].endswith("# EOF\n")


def test_warnings_are_lines_of_ready_and_change_no_status(endpoint: Endpoint, checks: Checks) -> None:
    checks.warnings = ("fleet.toml:3:\nno \x1b[2Jserver", "another")
    assert ask(endpoint, "/ready")[:2] == (200, "ok\nwarning: fleet.toml:3: no \ufffd[2Jserver\nwarning: another\n")
    assert ask(endpoint, "/live")[:2] == (200, "ok\n")
    assert healthcheck(f"{endpoint.url}/ready") == (
        True,
        "ok\nwarning: fleet.toml:3: no \ufffd[2Jserver\nwarning: another",
    )
    checks.ready = "the worker is stopping"
    assert ask(endpoint, "/ready")[0] == 503
    assert healthcheck(f"{endpoint.url}/ready")[1].startswith("the worker is stopping\nwarning: fleet.toml:3:")


def test_a_scrape_that_fails_is_said_and_the_next_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    metrics, broken = PrometheusMetrics(), [True]

    def standing() -> Standing:
        if broken:
            raise RuntimeError("secret")
        return STANDING

    metrics.observe(standing)
    endpoint = Endpoint(metrics, str, str)
    endpoint.start()
    try:
        assert ask(endpoint, "/metrics")[:2] == (500, "the worker failed: RuntimeError\n")
        broken.clear()
        assert ask(endpoint, "/metrics")[0] == 200
    finally:
        endpoint.stop()
    assert [record.getMessage() for record in caplog.records] == ["/metrics could not be answered"]


def test_a_client_that_says_nothing_holds_nobody_up(endpoint: Endpoint) -> None:
    place = urllib.parse.urlsplit(endpoint.url)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((place.hostname or "", place.port or 0), timeout=HANG_SECONDS))
        assert ask(endpoint, "/live")[0] == 200


def test_a_taken_port_is_said(metrics: PrometheusMetrics, endpoint: Endpoint) -> None:
    port = urllib.parse.urlsplit(endpoint.url).port or 0
    with pytest.raises(MetricsError, match=rf"can't be served on 127\.0\.0\.1:{port}: Address already in use"):
        Endpoint(metrics, str, str, port=port)
    with pytest.raises(MetricsError, match=r"can't be served on 192\.0\.2\.1:0: "):
        Endpoint(metrics, str, str, address="192.0.2.1")


def test_stopped_it_answers_no_more(metrics: PrometheusMetrics) -> None:
    made = Endpoint(metrics, str, str)
    made.start()
    made.stop()
    assert healthcheck(f"{made.url}/live")[0] is False
    assert "x2gofleet-http" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}
    Endpoint(metrics, str, str).stop()


def test_ipv6(metrics: PrometheusMetrics) -> None:
    try:
        made = Endpoint(metrics, str, str, address="::1")
    except MetricsError as exc:
        pytest.skip(str(exc))
    made.start()
    try:
        assert made.url.startswith("http://[::1]:")
        assert healthcheck(f"{made.url}/live") == (True, "ok")
    finally:
        made.stop()


# The health check


def test_healthcheck_says_what_the_worker_says(
    endpoint: Endpoint, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert healthcheck(f"{endpoint.url}/live") == (True, "ok")
    checks.live = "the watch loop has stood still for 40 s"
    assert healthcheck(f"{endpoint.url}/live") == (False, checks.live)
    well, said = healthcheck(f"{endpoint.url}/nothing")
    assert (well, said) == (False, "there are /metrics, /live and /ready")


def test_healthcheck_of_what_is_no_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            client = server.accept()[0]
            with client:
                client.recv(1000)
                client.sendall(b"SSH-2.0-no\x1b[2Jworker\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        well, said = healthcheck(f"http://127.0.0.1:{port}/live")
        thread.join()
        assert not well
        assert said.endswith("does not answer as a worker does: SSH-2.0-no\ufffd[2Jworker")
    well, said = healthcheck(f"http://127.0.0.1:{port}/live")
    assert not well
    assert "Connection refused" in said
    for url in (DOCUMENT.as_uri(), "127.0.0.1:9464", ""):
        assert healthcheck(url) == (False, f"{url} is no http URL")
    assert healthcheck("http://[::1/live")[0] is False


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("", "http://127.0.0.1:9464/live"),
        ("0.0.0.0", "http://127.0.0.1:9464/live"),
        ("::", "http://[::1]:9464/live"),
        ("10.0.0.5", "http://10.0.0.5:9464/live"),
        ("fd00::5", "http://[fd00::5]:9464/live"),
    ],
)
def test_where_a_worker_of_this_machine_is_asked(address: str, url: str) -> None:
    assert health_url(address, "9464") == url


def test_the_command_healthcheck(
    endpoint: Endpoint, checks: Checks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("X2GOFLEET_METRICS_ADDRESS", raising=False)
    monkeypatch.setenv("X2GOFLEET_METRICS_PORT", endpoint.url.rpartition(":")[2])
    assert cli.main(["healthcheck"]) == 0
    assert capsys.readouterr().out == "ok\n"
    checks.ready = "2 of 3 owned targets were not tried yet"
    assert cli.main(["healthcheck"]) == 0
    capsys.readouterr()
    assert cli.main(["healthcheck", "--url", f"{endpoint.url}/ready"]) == cli.EXIT_FAILED
    assert capsys.readouterr().out == f"{checks.ready}\n"
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix:///nonexistent/socket")
    for port in ("0", ""):
        monkeypatch.setenv("X2GOFLEET_METRICS_PORT", port)
        assert cli.main(["healthcheck"]) == EXIT_UNKNOWN, "the heartbeat in Redis is looked for"
        assert "Set X2GOFLEET_METRICS_PORT" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["65536", "-1", "http", "1.5"])
def test_what_is_no_port_is_refused(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(["run", "--inventory", "none.toml", f"--metrics-port={port}"])
    assert refused.value.code == cli.EXIT_USAGE
    assert f"'{port}' is no port" in capsys.readouterr().err
    monkeypatch.setenv("X2GOFLEET_METRICS_PORT", port)
    with pytest.raises(SystemExit) as refused:
        cli.main(["run", "--inventory", "none.toml"])
    assert refused.value.code == cli.EXIT_USAGE


# A worker's health


def test_a_pulse_is_silent_since_its_last_beat() -> None:
    clock = Clock()
    pulse = Pulse("watch", clock)
    clock.now += 5
    assert pulse.silent_seconds() == 5
    pulse.beat()
    clock.now += 2
    assert pulse.silent_seconds() == 2


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker that was not started; nothing listens where its Redis should be."""
    made = Worker(parse_inventory(INVENTORY), WorkerSettings("redis://127.0.0.1:1/0", worker_id="w1"))
    yield made
    made.stop()


def test_each_loop_that_stands_still_is_named(worker: Worker) -> None:
    clock = Clock()
    pulses = {name: Pulse(name, clock) for name in ("ownership", "watch", "requests", "schedule")}
    worker.ownership.pulse, worker._watch_pulse = pulses["ownership"], pulses["watch"]
    worker._desk.pulse, worker._schedule_pulse = pulses["requests"], pulses["schedule"]
    for name in pulses:
        for pulse in pulses.values():
            pulse.beat()
        clock.now += worker_module.LIVE_SECONDS
        assert worker.live_problem() == ""
        for other, pulse in pulses.items():
            if other != name:
                pulse.beat()
        clock.now += 1
        assert worker.live_problem() == f"the {name} loop has stood still for 31 s"


def test_every_loop_turns_again_and_again_without_redis(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PULSE_SECONDS", 0.2)
    pulses = (worker.ownership.pulse, worker._watch_pulse, worker._desk.pulse, worker._schedule_pulse)
    worker.start()
    for _ in range(2):
        for pulse in pulses:
            pulse._at -= 1000
        wait_until(lambda: not worker.live_problem(), "every loop has turned")
    assert "Connection refused" in worker.ready_problem()


def test_steps_of_the_clock_and_runs_left_out_are_looked_up(worker: Worker) -> None:
    worker.schedule._offset -= 10
    assert worker.schedule.follow_clock()
    worker.schedule.missed, worker.schedule.overlapped = 2, 3
    standing = worker.standing()
    assert (standing.clock_steps, standing.missed_runs, standing.overlapping_runs) == (1, 2, 3)


def test_a_worker_is_not_ready_before_it_began_nor_while_it_stops(worker: Worker) -> None:
    assert worker.live_problem() == ""
    assert worker.ready_problem() == "targets are not shared out yet"
    worker.ownership.problem = ""
    assert worker.ready_problem() == "the inventory is not published yet"
    worker._unpublished = ""
    assert worker.ready_problem() == ""
    worker.stop()
    assert worker.ready_problem() == "the worker is stopping"


def test_a_refused_inventory_is_a_warning_and_no_reason_to_stop(worker: Worker) -> None:
    worker.ownership.problem = worker._unpublished = ""
    assert worker.warnings() == ()
    assert not worker.standing().inventory_refused
    worker._inventory.error = "fleet.toml:7: there is no server"
    assert worker.warnings() == (
        "the inventory file is refused, the previous inventory stays in force: fleet.toml:7: there is no server",
    )
    standing = worker.standing()
    assert standing.inventory_refused
    assert standing.checks == {"live": True, "ready": True}


def test_a_profile_that_is_left_out_is_a_warning(worker: Worker) -> None:
    worker.ownership.problem = worker._unpublished = ""
    worker._inventory.warnings = ("sessions:3: [p] host: the host is empty. The profile 'p' is left out",)
    assert worker.warnings() == worker._inventory.warnings
    assert worker.standing().inventory_left_out == 1
    worker._inventory.warnings *= 2
    (warning,) = worker.warnings()
    assert warning.endswith("'p' is left out (and 1 more, which the log has)")
    assert worker.ready_problem() == ""


def test_redis_is_up_after_a_heartbeat_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat(failure: Exception | None) -> bool:
        def tick() -> None:
            worker.ownership._stop.set()
            if failure is not None:
                raise failure

        monkeypatch.setattr(worker.ownership, "tick", tick)
        worker.ownership._stop.clear()
        worker.ownership._run()
        return worker.standing().redis_up

    assert not worker.standing().redis_up
    assert beat(None)
    assert not beat(CacheUnavailable("gone"))
    assert beat(None)
    assert beat(ValueError("of the worker itself")), "it says nothing about Redis"


def test_a_worker_that_owns_nothing(worker: Worker) -> None:
    standing = worker.standing()
    assert standing.owned == 0
    assert standing.oldest_seconds == {}
    assert standing.stale == {}
    assert standing.inventory_targets == 1
    assert standing.inventory == worker._inventory.published.version.rpartition("-")[2]
