"""What clients of a worker's HTTP port cost its polls: ages of snapshots with and without them."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.simulator import running_simulation

from tests.support.http_clients import http_clients
from tests.waiting import wait_until
from tests.watched_fleet import WorkerFleet, quantile

Row = tuple[str, str, float, str]
SERVERS = 50
INTERVAL_SECONDS = 5.0
MEASURED_SECONDS = 30.0
SAMPLE_SECONDS = 0.1
SLOW = FAST = 1000


def _ages(fleet: WorkerFleet) -> list[float]:
    """Return the ages of all snapshots, sampled for a while as a reader finds them."""
    found: list[float] = []
    until = time.monotonic() + MEASURED_SECONDS
    while time.monotonic() < until:
        found += (each.age for each in fleet.cache.snapshots(profile_name="all", kind="sessions"))
        time.sleep(SAMPLE_SECONDS)
    return found


def run() -> list[Row]:
    """Return the 99th percentile of the ages with the clients, as a ratio to that without them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        valkey = stack.enter_context(EmbeddedValkey())
        simulation = stack.enter_context(running_simulation(SERVERS, 2 * SERVERS, directory=directory))
        inventory = simulation.inventory.with_name("bench.toml")
        text = simulation.inventory.read_text()
        inventory.write_text(f"{text}\n[intervals]\nsessions = {INTERVAL_SECONDS}\nload = 0\nmounts = 0\n")
        fleet = WorkerFleet(inventory, valkey.url, f"bench-{uuid.uuid4().hex[:8]}", simulation.servers)
        stack.callback(fleet.close)
        fleet.start("w1")
        wait_until(lambda: fleet.share("w1") and fleet.polled_by_owners(), "all servers are polled")
        worker = fleet.workers["w1"]
        # A target's first poll has not its phase yet.
        time.sleep(2 * INTERVAL_SECONDS)
        before = _ages(fleet)
        with http_clients(worker.metrics_url(), slow=SLOW, fast=FAST) as clients:
            during = _ages(fleet)
            counts = clients.stop()
        after = _ages(fleet)
    alone, beside = quantile(before + after, 0.99), quantile(during, 0.99)
    return [
        (
            f"age of snapshots, p99 {beside:.2f} s; {counts.cut} clients cut, {counts.answered} answers",
            f"the same without clients, {alone:.2f} s",
            beside / alone,
            "<= 1.05",
        ),
        (
            f"requests that got no answer, {counts.unanswered}",
            f"requests, {counts.answered + counts.unanswered}",
            counts.unanswered / max(1, counts.answered + counts.unanswered),
            "<= 0.05",
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
