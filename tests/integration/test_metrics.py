"""Metrics and health of a real worker process: scraped over HTTP, with a Valkey and servers that fail."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.processes import OwnValkey
from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, SLACK_SECONDS, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.errors import CacheUnavailable
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

SERVERS = 3
SESSIONS_SECONDS = 0.2
DEADLINE_SECONDS = 4
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("X2GOFLEET_")}

Scrape = dict[str, float]


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    server = OwnValkey()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 9, directory=tmp_path) as simulated:
        yield simulated


@pytest.fixture
def cache(valkey: OwnValkey) -> Iterator[FleetCache]:
    with FleetCache.from_url(valkey.url, lookup_seconds=LOOKUP_SECONDS) as reader:
        yield reader


class WorkerProcess:
    """``x2gofleet-worker run`` with metrics on a free port."""

    def __init__(self, inventory: Path, url: str, log: Path, *more: str) -> None:
        self._log = log
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-X", "faulthandler", "-m", "x2gofleet_workers", "run"),
                    *(
                        "--inventory",
                        str(inventory),
                        "--redis-url",
                        url,
                        "--worker-id",
                        "w1",
                        "--metrics-port",
                        "0",
                        *more,
                    ),
                ],
                stdin=subprocess.DEVNULL,
                stderr=said,
                env=ENVIRONMENT,
            )
        wait_until(lambda: self.url or self.process.poll() is not None, "the port is logged")
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        found = re.search(r"metrics and health: (http://127\.0\.0\.1:[0-9]+)/metrics, /live, /ready$", self.log, re.M)
        return found[1] if found else ""

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()

    def scrape(self) -> Scrape:
        """Return each series as ``name{label=value,...}`` -> value."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            sample.name
            + "".join(sorted(f"{{{label}={value}}}" for label, value in sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, series: str) -> float:
        return self.scrape()[series]

    def moves(self, series: str, what: str, *, by: float = 1) -> None:
        """Wait until a counter has grown."""
        before = self.value(series)
        wait_until(lambda: self.value(series) >= before + by, what)

    def conditions(self) -> tuple[float, float, float]:
        found = self.scrape()
        up, backing_off, connecting = (
            found[f"x2gofleet_targets{{condition={condition}}}"] for condition in ("up", "backing_off", "connecting")
        )
        return up, backing_off, connecting

    def is_ready(self) -> bool:
        return self.get("/ready") == (200, "ok\n")

    def healthcheck(self, path: str = "/live") -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "x2gofleet_workers", "healthcheck", "--url", self.url + path],
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
            env=ENVIRONMENT,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            # faulthandler writes where each thread stands.
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(HANG_SECONDS)
            pytest.fail(f"the worker did not end:\n{self.log}")


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(simulation: RunningSimulation, valkey: OwnValkey, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker on all servers; stopped with the test."""
    workers: list[WorkerProcess] = []

    def run(*, url: str = "", deadline_seconds: float = DEADLINE_SECONDS) -> WorkerProcess:
        path = tmp_path / "short.toml"
        text = simulation.inventory.read_text().replace("[defaults]\n", f"[defaults]\ndeadline = {deadline_seconds}\n")
        path.write_text(f"{text}\n[intervals]\nsessions = {SESSIONS_SECONDS}\nload = 0.2\nmounts = 0.5\n")
        workers.append(WorkerProcess(path, url or valkey.url, tmp_path / f"worker-{len(workers)}.log"))
        return workers[-1]

    yield run
    for worker in workers:
        if worker.process.poll() is None:
            worker.stop()


@pytest.fixture
def worker(start: Start) -> WorkerProcess:
    """A worker that has tried every server."""
    started = start()
    wait_until(started.is_ready, "the worker is ready")
    return started


def polls(kind: str, result: str) -> str:
    return f"x2gofleet_polls_total{{kind={kind}}}{{result={result}}}"


# What a healthy fleet looks like


def test_a_healthy_worker(worker: WorkerProcess, simulation: RunningSimulation, cache: FleetCache) -> None:
    worker.moves(polls("sessions", "confirmed"), "unchanged listings are confirmed", by=3 * SERVERS)
    wait_until(lambda: worker.value(polls("mounts", "stored")) >= SERVERS, "mounts are stored")
    began = time.monotonic()
    first = worker.scrape()
    assert first["x2gofleet_owned_targets"] == SERVERS
    assert worker.conditions() == (SERVERS, 0, 0)
    assert first["x2gofleet_connections_total"] == SERVERS
    assert first[polls("sessions", "stored")] == SERVERS
    assert first["x2gofleet_full_listings_total"] == SERVERS
    assert sum(server.counters.full_listings for server in simulation.servers.values()) == SERVERS
    assert first[polls("load", "stored")] > SERVERS
    for result in ("failed", "refused", "unwritten"):
        assert [first[polls(kind.value, result)] for kind in Kind] == [0] * len(Kind), result
    for series in ("rejected_rows_total{kind=sessions}", "lease_losses_total", "missed_runs_total"):
        assert first[f"x2gofleet_{series}"] == 0, series
    for operation in ("store", "confirm", "heartbeat"):
        assert first[f"x2gofleet_redis_seconds_count{{operation={operation}}}"] > 0, operation
    writes = first["x2gofleet_redis_seconds_count{operation=confirm}"]
    assert abs(writes - first[polls("sessions", "confirmed")]) <= SERVERS, "each confirmation is one call"
    worker.moves("x2gofleet_redis_seconds_count{operation=renew}", "leases are renewed")
    for kind in ("sessions", "load", "mounts"):
        age = first[f"x2gofleet_oldest_snapshot_age_seconds{{kind={kind}}}"]
        assert 0 < age < SLACK_SECONDS, kind
    assert "x2gofleet_oldest_snapshot_age_seconds{kind=desktops}" not in first
    (inventory,) = (series for series in first if series.startswith("x2gofleet_inventory_info"))
    assert inventory.removesuffix("}").rpartition("=")[2] in cache_version(cache)
    worker.moves(polls("sessions", "confirmed"), "polls go on", by=3 * SERVERS)
    second, seconds = worker.scrape(), time.monotonic() - began
    assert worker.get("/live") == (200, "ok\n")
    made = sum(second[polls("sessions", r)] - first[polls("sessions", r)] for r in ("stored", "confirmed"))
    assert made <= SERVERS * (seconds / SESSIONS_SECONDS + 2), "no poll is counted twice"
    for series, value in first.items():
        if series.split("{")[0].endswith(("_total", "_bucket", "_count")):
            assert second[series] >= value, f"{series} went back"


def cache_version(cache: FleetCache) -> str:
    (version,) = cache._link.exchange([("HGET", Keys().fleet(), "version")])
    assert isinstance(version, bytes)
    return version.decode()


def test_a_changed_session_is_a_full_listing_that_is_stored(
    worker: WorkerProcess, simulation: RunningSimulation
) -> None:
    before = worker.scrape()
    simulation.server("ts01").start_session("alice")
    wait_until(
        lambda: worker.value(polls("sessions", "stored")) > before[polls("sessions", "stored")], "the change is stored"
    )
    assert worker.value("x2gofleet_full_listings_total") > before["x2gofleet_full_listings_total"]


def test_rows_that_are_left_out_are_counted_with_each_listing(
    worker: WorkerProcess, simulation: RunningSimulation
) -> None:
    server = simulation.server("ts01")
    server.set_mounts(server.start_session("alice", ready=True), [("a|b", "/x"), ("c|d", "/y")])
    series = "x2gofleet_rejected_rows_total{kind=mounts}"
    wait_until(lambda: worker.value(series) >= 4, "two rows are counted, twice")
    assert worker.value(series) % 2 == 0
    assert worker.value("x2gofleet_rejected_rows_total{kind=sessions}") == 0


def test_readers_that_ask_at_once_share_polls(worker: WorkerProcess, cache: FleetCache) -> None:
    profile = next(iter(cache.profiles()))
    servers = len(cache.servers())
    before = worker.scrape()
    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(lambda _: cache.update(profile), range(10)))
    after = worker.scrape()
    asked, made = (
        after[series] - before[series]
        for series in ("x2gofleet_refresh_requests_total", "x2gofleet_refresh_polls_total")
    )
    assert asked >= 10
    assert 1 <= made < asked, (asked, made, servers)
    assert after["x2gofleet_refresh_answers_total{answer=done}"] == asked
    assert cache.delete(profile) is None
    assert worker.value("x2gofleet_refresh_requests_total") == after["x2gofleet_refresh_requests_total"]


# Faults of servers


def test_a_server_that_is_down_and_comes_back(worker: WorkerProcess, simulation: RunningSimulation) -> None:
    server = simulation.server("ts02")
    connections = worker.value("x2gofleet_connections_total")
    server.set_fault("dead")
    wait_until(lambda: worker.conditions() == (SERVERS - 1, 1, 0), "one server backs off")
    found = worker.scrape()
    assert found[polls("sessions", "failed")] >= 1
    assert found["x2gofleet_owned_targets"] == SERVERS
    age = "x2gofleet_oldest_snapshot_age_seconds{kind=sessions}"
    wait_until(lambda: worker.value(age) > 2.0, "its snapshot gets older than any other could")
    assert worker.is_ready(), "a server that is down is no fault of the worker's"
    worker.moves(polls("sessions", "confirmed"), "the others are polled on", by=SERVERS)
    server.clear_fault()
    wait_until(lambda: worker.conditions() == (SERVERS, 0, 0), "it is up again")
    wait_until(lambda: worker.value(age) < 2.0, "no snapshot is old")
    assert worker.value("x2gofleet_connections_total") == connections + 1
    counted = "x2gofleet_poll_seconds_count{lane=quick}"
    worker.moves(counted, "polls are timed")


def test_garbage_counts_as_failed_and_no_name_gets_into_labels(
    worker: WorkerProcess, simulation: RunningSimulation
) -> None:
    simulation.server("ts01").set_fault("garbage")
    simulation.server("ts02").set_fault("auth")
    simulation.server("ts03").set_fault("hostkey")
    wait_until(lambda: worker.value(polls("sessions", "failed")) >= 3, "garbage is refused")
    text = worker.get("/metrics")[1]
    names = {"ts01", "ts02", "ts03", "w1", "root", "127.0.0.1", "NotProven", *simulation.users}
    assert {name for name in names if re.search(rf"\b{re.escape(name)}\b", text)} == set()
    labels = set(re.findall(r"(\w+)=\"", text))
    assert labels == {
        *("kind", "result", "lane", "le", "outcome", "operation", "condition"),
        *("answer", "reason", "check", "digest", "version", "python", "agreement"),
    }


def test_a_refused_listing_fails_alone_on_its_connection(start: Start, simulation: RunningSimulation) -> None:
    simulation.server("ts01").set_fault("empty")
    worker = start()
    wait_until(worker.is_ready, "the worker is ready")
    found = worker.scrape()
    assert found[polls("sessions", "failed")] >= 1
    assert found[polls("load", "failed")] == 0
    assert found["x2gofleet_connections_total"] == SERVERS
    assert worker.conditions() == (SERVERS - 1, 1, 0)
    assert found["x2gofleet_full_listings_total"] >= SERVERS, "the server listed, and was not believed"


def test_a_slow_server_overlaps_its_runs_and_is_timed(start: Start, simulation: RunningSimulation) -> None:
    server = simulation.server("ts03")
    server.set_fault("slow=1")
    worker = start()
    wait_until(worker.is_ready, "the worker is ready")
    worker.moves("x2gofleet_overlapping_runs_total", "runs are left out while one is slow", by=2)
    quick, every = (
        "x2gofleet_poll_seconds_bucket{lane=quick}{le=0.5}",
        "x2gofleet_poll_seconds_count{lane=quick}",
    )
    wait_until(lambda: (found := worker.scrape())[quick] + 2 <= found[every], "two polls took more than 0.5 s")


def test_targets_that_were_not_tried_yet_make_it_unready(start: Start, simulation: RunningSimulation) -> None:
    simulation.server("ts01").set_fault("hang")
    worker = start(deadline_seconds=SLACK_SECONDS)
    said = f"1 of {SERVERS} owned targets were not tried yet\n"
    wait_until(lambda: worker.get("/ready") == (503, said), "one server keeps the worker waiting")
    assert worker.healthcheck("/ready") == (1, said)
    assert worker.healthcheck() == (0, "ok\n")
    wait_until(worker.is_ready, "the first try's deadline makes it a failure")
    assert worker.value(polls("sessions", "failed")) >= 1


# Faults of leases and of Redis


def test_a_stolen_lease_is_a_refused_write_and_a_loss(worker: WorkerProcess, valkey: OwnValkey) -> None:
    # One command, so that the worker can't take it again in between.
    valkey.client.hset(Keys().lease("ts01"), mapping={"owner": "thief", "nonce": "stolen"})
    valkey.client.persist(Keys().lease("ts01"))
    wait_until(lambda: worker.value("x2gofleet_lease_losses_total") == 1, "the loss is counted")
    found = worker.scrape()
    assert found["x2gofleet_refused_writes_total{outcome=lost}"] >= 1
    assert sum(found[polls(kind.value, "refused")] for kind in Kind) >= 1
    wait_until(lambda: worker.value("x2gofleet_owned_targets") == SERVERS - 1, "it polls one target less")
    assert worker.is_ready()


def test_a_flushed_redis_is_absent_lost_and_filled_again(worker: WorkerProcess, valkey: OwnValkey) -> None:
    worker.moves(polls("sessions", "confirmed"), "unchanged listings are confirmed", by=SERVERS)
    before = worker.scrape()
    valkey.client.delete(*(Keys().snapshot(f"ts0{number}", Kind.SESSIONS) for number in range(1, SERVERS + 1)))
    absent = "x2gofleet_refused_writes_total{outcome=absent}"
    wait_until(lambda: worker.value(absent) >= before[absent] + SERVERS, "what was confirmed is absent")
    stored = polls("sessions", "stored")
    wait_until(lambda: worker.value(stored) >= before[stored] + SERVERS, "it is stored again")
    assert worker.value("x2gofleet_lease_losses_total") == 0
    valkey.client.flushall()
    wait_until(lambda: worker.value("x2gofleet_lease_losses_total") == SERVERS, "each lease was lost once")
    wait_until(lambda: worker.value(stored) >= before[stored] + 2 * SERVERS, "and all is stored again")
    wait_until(worker.is_ready, "the worker is ready")


def test_without_redis_a_worker_is_alive_and_not_ready(worker: WorkerProcess, valkey: OwnValkey) -> None:
    heartbeats = "x2gofleet_redis_seconds_count{operation=heartbeat}"
    valkey.kill()
    wait_until(lambda: worker.get("/ready")[0] == 503, "the worker is not ready")
    status, text = worker.get("/ready")
    assert status == 503
    assert text.count("\n") == 1
    assert "No such file or directory" in text or "refused" in text
    assert worker.healthcheck("/ready") == (1, text)
    assert worker.healthcheck() == (0, "ok\n")
    assert worker.get("/live") == (200, "ok\n")
    for kind in ("sessions", "load"):
        wait_until(lambda kind=kind: worker.value(polls(kind, "unwritten")) >= 1, f"{kind} are polled in vain")
    worker.moves(heartbeats, "it tries on")
    wait_until(lambda: worker.value("x2gofleet_owned_targets") == 0, "leases that can't be renewed are given up")
    assert worker.value("x2gofleet_lease_losses_total") == SERVERS
    assert worker.get("/live") == (200, "ok\n")
    valkey.start()
    wait_until(worker.is_ready, "it is ready again")
    worker.moves(polls("sessions", "confirmed"), "polls go on", by=SERVERS)
    assert worker.conditions() == (SERVERS, 0, 0)


def test_a_worker_that_begins_without_redis(start: Start, valkey: OwnValkey) -> None:
    valkey.kill()
    worker = start()
    assert worker.get("/live") == (200, "ok\n")
    assert worker.get("/ready")[0] == 503
    assert worker.value("x2gofleet_owned_targets") == 0
    valkey.start()
    wait_until(worker.is_ready, "it is ready once there is a Redis")
    assert worker.value("x2gofleet_owned_targets") == SERVERS


def test_the_older_of_two_inventories_is_not_ready(start: Start, valkey: OwnValkey) -> None:
    newer = "9999999999999-ffffffff"
    worker = start()
    wait_until(worker.is_ready, "the worker is ready")
    valkey.client.hset(Keys().fleet(), "version", newer)
    said = f"another worker published a newer inventory ({newer})\n"
    wait_until(lambda: worker.get("/ready") == (503, said), "the worker knows that it is outdated")
    assert worker.healthcheck() == (0, "ok\n")


# Inventories that can't be used


REFUSED = {
    "broken TOML": lambda text: text + "[servers.ts09\n",
    "an unknown key": lambda text: text.replace("port = ", "prot = ", 1),
    "no server": lambda text: "[defaults]\n",
    "no text": lambda text: b"\xff\xfe",
    "empty": lambda text: "",
    "gone": lambda text: None,
    "a folder": lambda text: Path,
    "an import that is missing": lambda text: text + '[import]\nx2gobroker = "nowhere.conf"\n',
}


def put(path: Path, content: str | bytes | type[Path] | None) -> None:
    """Replace what is at a path by a file, a folder (Path) or nothing."""
    new = path.with_suffix(".new")
    if content is None or content is Path:
        path.unlink()
        if content is Path:
            path.mkdir()
        return
    assert isinstance(content, str | bytes)
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    if path.is_dir():
        path.rmdir()
    new.replace(path)


def test_a_refused_inventory_is_a_metric_and_a_warning_and_stops_nothing(worker: WorkerProcess, tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    good = path.read_text()
    refused = "x2gofleet_inventory_refused"
    assert worker.value(refused) == 0
    digest = next(series for series in worker.scrape() if series.startswith("x2gofleet_inventory_info"))
    for name, change in REFUSED.items():
        put(path, change(good))
        wait_until(lambda: worker.value(refused) == 1, f"{name}: the metric says so")
        status, text = worker.get("/ready")
        assert status == 200, name
        first, second = text.splitlines()
        assert first == "ok", name
        assert second.startswith("warning: the inventory file is refused, the previous inventory stays in force: "), (
            name
        )
        assert str(tmp_path) in second, name
        assert worker.healthcheck("/ready") == (0, text), name
        assert worker.get("/live") == (200, "ok\n"), name
        assert worker.scrape()[digest] == 1, name
        worker.moves(polls("sessions", "confirmed"), f"{name}: polls go on", by=SERVERS)
        put(path, good)
        wait_until(lambda: worker.value(refused) == 0, f"{name}: a good file ends it")
        assert worker.is_ready(), name
    assert "Traceback" not in worker.log


def test_a_refused_and_outdated_inventory_is_both(start: Start, valkey: OwnValkey, tmp_path: Path) -> None:
    worker = start()
    wait_until(worker.is_ready, "the worker is ready")
    valkey.client.hset(Keys().fleet(), mapping={"version": "9999999999999-abcdabcd"})
    put(tmp_path / "short.toml", "")
    outdated = "another worker published a newer inventory (9999999999999-abcdabcd)"
    wait_until(lambda: worker.value("x2gofleet_inventory_outdated") == 1, "the metric says so")
    wait_until(lambda: worker.get("/ready")[1].count("\n") == 2, "and why its own file does not help")
    status, text = worker.get("/ready")
    assert (status, text.splitlines()[0]) == (503, outdated)
    assert worker.value("x2gofleet_inventory_refused") == 1
    found = worker.scrape()
    assert (found["x2gofleet_health{check=ready}"], found["x2gofleet_health{check=live}"]) == (0, 1)


# The process


def test_the_password_of_redis_is_never_told(start: Start, valkey: OwnValkey) -> None:
    worker = start(url=f"unix://:topsecret@{valkey.folder}/v.sock")
    wait_until(lambda: "AUTH" in worker.get("/ready")[1], "Redis refuses the login")
    for path in ("/ready", "/live", "/metrics"):
        assert "topsecret" not in worker.get(path)[1]
    assert "topsecret" not in worker.log


def test_scrapes_from_many_sides_at_once(worker: WorkerProcess) -> None:
    begin = threading.Barrier(8)

    def scrape(_: int) -> float:
        begin.wait(HANG_SECONDS)
        return worker.value("x2gofleet_owned_targets")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(scrape, range(8))) == {SERVERS}


def test_a_port_that_is_taken_ends_the_worker_at_once(
    worker: WorkerProcess, simulation: RunningSimulation, valkey: OwnValkey
) -> None:
    port = worker.url.rpartition(":")[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(simulation.inventory)),
            *("--redis-url", valkey.url),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        env={**ENVIRONMENT, "X2GOFLEET_METRICS_PORT": port},
    )
    assert done.returncode == 1
    assert done.stderr == f"x2gofleet-worker: metrics can't be served on 127.0.0.1:{port}: Address already in use\n"


def test_sigterm_ends_worker_and_endpoint(worker: WorkerProcess, simulation: RunningSimulation) -> None:
    simulation.server("ts01").set_fault("hang")
    url = worker.url
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(SLACK_SECONDS) == 0
    status, said = worker.healthcheck()
    assert status == 1
    assert said.startswith(f"{url}/live does not answer")


def test_without_a_port_nothing_listens(simulation: RunningSimulation, valkey: OwnValkey, cache: FleetCache) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(simulation.inventory)),
            *("--redis-url", valkey.url),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    try:
        wait_until(lambda: is_filled(cache), "the fleet is polled")
        sockets = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir() if is_socket(path)}
        assert sockets, "its connections are seen"
        listening = {
            f"socket:[{line.split()[9]}]"
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        }
        assert sockets & listening == set()
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def is_filled(cache: FleetCache) -> bool:
    try:
        return cache.is_cached(next(iter(cache.profiles()), ""), cache_type="sessions")
    except CacheUnavailable:
        return False


def is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(path).startswith("socket:")
    return False
