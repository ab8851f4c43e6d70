"""Twenty servers, three of them broken: the other seventeen keep their cadence, and the worker stays as it is."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, PATIENT, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.connection import client_from_url

pytestmark = pytest.mark.faults

SERVERS = 20
BROKEN = {"ts03": "tarpit", "ts09": "garbage", "ts15": "dead"}
INTERVAL_SECONDS = 0.1
DEADLINE_SECONDS = 1.0
POLLS = 200
WARM_UP_POLLS = 30


@dataclass(frozen=True)
class Footprint:
    """What a worker takes. Of its connections to Redis a pool keeps as many as were ever needed at once."""

    rss_kb: int
    threads: int
    redis_connections: int
    other_descriptors: int


def footprint(pid: int) -> Footprint:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    to_redis = len(psutil.Process(pid).net_connections("unix"))
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Footprint(int(status["VmRSS"].split()[0]), int(status["Threads"]), to_redis, descriptors - to_redis)


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """One of the test's own, on a unix socket whatever the others use."""
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def cache(valkey: EmbeddedValkey) -> Iterator[FleetCache]:
    with FleetCache(client_from_url(valkey.url, **PATIENT), lookup_seconds=LOOKUP_SECONDS) as reader:
        yield reader


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 100, directory=tmp_path) as running:
        yield running


class Worker:
    """``x2gofleet-worker run`` in a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.log = folder / "worker.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(folder / "quick.toml")),
                    *("--redis-url", url, "--worker-id", "w1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(HANG_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def worker(simulation: RunningSimulation, valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Worker]:
    text = simulation.inventory.read_text().replace("[defaults]\n", f"[defaults]\ndeadline = {DEADLINE_SECONDS}\n", 1)
    (tmp_path / "quick.toml").write_text(
        f"{text}\n[intervals]\nsessions = {INTERVAL_SECONDS}\nload = {INTERVAL_SECONDS}\nmounts = 2\n"
    )
    process = Worker(tmp_path, valkey.url)
    yield process
    process.stop()


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def gaps(times: list[float]) -> list[float]:
    return [late - early for early, late in itertools.pairwise(times)]


def test_seventeen_of_twenty_keep_their_cadence_and_nothing_grows(
    simulation: RunningSimulation, cache: FleetCache, worker: Worker, capsys: Any
) -> None:
    healthy = [name for name in simulation.servers if name not in BROKEN]
    wait_until(lambda: [each.up for each in cache.servers()] == [True] * SERVERS, "all twenty are polled")
    # Every thread that a pool may need is made once, and then kept: have all polls run at once.
    for name in healthy:
        simulation.server(name).set_fault("slow=0.5")
    slow = {name: simulation.server(name).counters.polls for name in healthy}
    wait_until(lambda: all(simulation.server(name).counters.polls >= slow[name] + 6 for name in healthy), "slow polls")
    for name in healthy:
        simulation.server(name).clear_fault()
    for name, fault in BROKEN.items():
        simulation.server(name).set_fault(fault)
    wait_until(
        lambda: {each.id for each in cache.servers() if each.up is False} == set(BROKEN), "three are seen as broken"
    )
    polls = {name: simulation.server(name).counters.polls for name in healthy}
    warm = {name: count + WARM_UP_POLLS for name, count in polls.items()}
    wait_until(lambda: all(simulation.server(name).counters.polls >= warm[name] for name in healthy), "warm")
    began, before = time.monotonic(), footprint(worker.process.pid)
    connections = {name: simulation.server(name).counters.connections for name in simulation.servers}
    ages: list[float] = []

    def polled_enough() -> bool:
        ages.extend(snapshot.age for name in healthy for snapshot in cache.snapshots(server=name, kind="sessions"))
        return all(simulation.server(name).counters.polls >= warm[name] + POLLS for name in healthy)

    wait_until(polled_enough, f"{POLLS} polls each")
    took, after = time.monotonic() - began, footprint(worker.process.pid)
    intervals = {
        name: gaps([at for at in simulation.server(name).counters.poll_times if at >= began]) for name in healthy
    }
    every = [gap for found in intervals.values() for gap in found]
    with capsys.disabled():
        print(
            f"\n{len(healthy)} healthy servers, {len(every)} polls in {took:.1f} s at {INTERVAL_SECONDS} s: "
            f"interval p50 {quantile(every, 0.5):.3f} s, p99 {quantile(every, 0.99):.3f} s, max {max(every):.3f} s; "
            f"age of what readers saw p50 {quantile(ages, 0.5):.3f} s, max {max(ages):.3f} s\n"
            f"worst server: p50 {max(quantile(found, 0.5) for found in intervals.values()):.3f} s, "
            f"fewest polls {min(len(found) for found in intervals.values())}\n"
            f"before {before}\nafter  {after}"
        )
    for name, found in intervals.items():
        assert abs(quantile(found, 0.5) - INTERVAL_SECONDS) < 0.05, f"{name}: {quantile(found, 0.5):.3f} s"
        assert max(found) < DEADLINE_SECONDS, f"{name} waited {max(found):.3f} s"
    assert max(ages) < DEADLINE_SECONDS + INTERVAL_SECONDS
    assert all(simulation.server(name).counters.connections == connections[name] for name in healthy)
    assert {each.id for each in cache.servers() if each.up} == set(healthy)
    assert after.threads <= before.threads + 4
    assert after.other_descriptors <= before.other_descriptors + 4
    assert after.redis_connections <= after.threads
    assert after.rss_kb <= before.rss_kb * 1.05 + 1024
    said = worker.log.read_text()
    assert "Traceback" not in said
    assert len(said.splitlines()) < 60, "the log grows with the polls"


def test_outages_are_retried_within_seconds_and_faults_of_the_set_up_slowly(
    simulation: RunningSimulation, cache: FleetCache, worker: Worker, capsys: Any
) -> None:
    wait_until(lambda: [each.up for each in cache.servers()] == [True] * SERVERS, "all twenty are polled")
    outages, setups = ("ts01", "ts02"), ("ts04", "ts05")
    for name in outages:
        simulation.server(name).set_fault("not-ssh")
    simulation.server("ts04").set_fault("auth")
    simulation.server("ts05").set_fault("hostkey")
    classes = {"ts01": "Unreachable", "ts02": "Unreachable", "ts04": "AuthenticationFailed", "ts05": "HostKeyMismatch"}
    wait_until(
        lambda: {each.id: each.error_class for each in cache.servers() if each.up is False} == classes, "told as such"
    )
    began = {name: simulation.server(name).counters.connections for name in classes}
    # 0.5 s x 2^n: an outage is tried about four times in 8 s, a fault of the set-up first after 8 to 12 s.
    wait_until(
        lambda: all(simulation.server(name).counters.connections >= began[name] + 3 for name in outages), "tries"
    )
    tries = {name: simulation.server(name).counters.connections - began[name] for name in classes}
    with capsys.disabled():
        print(f"\ntries while two outages were tried three times more: {tries}")
    assert all(tries[name] == 0 for name in setups)
    assert all(tries[name] <= 6 for name in outages)
    states = {each.id: each for each in cache.servers()}
    assert all(states[name].failures >= 3 for name in outages)
    assert all(states[name].failures <= 2 for name in setups)
    for name in outages:
        simulation.server(name).clear_fault()
    wait_until(lambda: all({each.id: each.up for each in cache.servers()}[name] for name in outages), "outages end")
    assert psutil.pid_exists(worker.process.pid)
