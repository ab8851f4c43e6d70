"""Slow and many clients of a worker's HTTP port: they cost the worker a bounded number of connections, and no poll."""

from __future__ import annotations

import resource
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from x2gofleet_workers.http_server import MAX_CONNECTIONS

from tests.processes import LiveFleet, live_fleet
from tests.support.http_clients import http_clients
from tests.waiting import HANG_SECONDS, wait_until

pytestmark = pytest.mark.faults

SERVERS = 6
SLOW = 600
FAST = 50
# What the worker may need for itself beyond what it has when it stands idle.
SPARE = 60


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as running:
        running.valkey.start()
        yield running


def scrape(url: str) -> dict[str, float]:
    """Return each series of a worker's metrics and its value, as any client gets it."""
    with urllib.request.urlopen(url, timeout=HANG_SECONDS) as answer:
        text = answer.read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_slow_clients_take_neither_descriptors_nor_threads_from_polls(fleet: LiveFleet) -> None:
    worker = fleet.start("w1", fleet.write_inventory(sessions=0.5, load=0.5), "--metrics-port", "0")
    url = worker.metrics_url()
    fleet.wait_for_shares("w1")
    process = psutil.Process(worker.process.pid)
    descriptors, threads = process.num_fds(), process.num_threads()
    # As tight as a worker of a large fleet has it: 600 clients do not fit.
    most = descriptors + MAX_CONNECTIONS + SPARE
    resource.prlimit(
        process.pid, resource.RLIMIT_NOFILE, (most, resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1])
    )
    with http_clients(url, slow=SLOW, fast=FAST) as clients:
        before, seen = fleet.polls(), scrape(url)
        assert process.num_threads() <= threads + SPARE
        assert process.num_fds() <= most
        for server in fleet.simulation.servers.values():
            server.break_connections()
        made = "x2gofleet_connections_total"
        wait_until(lambda: scrape(url)[made] >= seen[made] + SERVERS, "every server is connected to again")
        wait_until(lambda: all(count > before[name] + 5 for name, count in fleet.polls().items()), "polls go on")
        found = scrape(url)
        assert process.num_threads() <= threads + SPARE
        assert process.num_fds() <= most
        counts = clients.stop()
    assert found["x2gofleet_worker_exhausted_total"] == 0
    assert counts.cut >= SLOW - MAX_CONNECTIONS
    assert counts.answered > FAST
    assert all(status.up for status in fleet.cache.servers())
    fleet.check_workers()
