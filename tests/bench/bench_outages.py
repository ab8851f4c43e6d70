"""How soon a fleet is whole again: workers that end or are killed, a Redis that loses everything, requests all at once.

Three workers on twelve simulated servers; each figure is a ratio to the time that the design allows for it.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.simulator import running_simulation

from tests.waiting import wait_until
from tests.watched_fleet import LEASE_SECONDS, TICK_SECONDS, Watcher, WorkerFleet, quantile

Row = tuple[str, str, float, str]
SERVERS = 12
WORKERS = ("w1", "w2", "w3")
INTERVAL_SECONDS = 1.0
UPDATES = 100


@contextmanager
def _fleet() -> Iterator[tuple[WorkerFleet, str, str]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        valkey = stack.enter_context(EmbeddedValkey())
        simulation = stack.enter_context(running_simulation(SERVERS, 3 * SERVERS, directory=directory))
        inventory = simulation.inventory.with_name("bench.toml")
        text = simulation.inventory.read_text()
        inventory.write_text(f"{text}\n[intervals]\nsessions = {INTERVAL_SECONDS}\nload = 0\nmounts = 0\n")
        namespace = f"bench-{uuid.uuid4().hex[:8]}"
        fleet = WorkerFleet(inventory, valkey.url, namespace, simulation.servers)
        stack.callback(fleet.close)
        fleet.start(*WORKERS)
        wait_until(lambda: fleet.share(*WORKERS) and fleet.polled_by_owners(), "three workers poll")
        yield fleet, valkey.url, namespace


def _whole_after(fleet: WorkerFleet, since_ms: int) -> float:
    """Wait until every server was polled after a moment of Redis; return the seconds that took."""

    def whole() -> bool:
        found = fleet.cache.snapshots(profile_name="all", kind="sessions")
        return len(found) == SERVERS and all(each.polled_at_ms > since_ms for each in found)

    return wait_until(whole, "every server is polled again")


def _ended(fleet: WorkerFleet, url: str, namespace: str, worker: str, number: int) -> tuple[float, float]:
    """End a worker; return the seconds until others poll its servers, and the oldest age that was served meanwhile."""
    with Watcher(url, namespace, fleet.targets) as watcher:
        theirs, since_ms = fleet.owned_by(worker), fleet.redis_ms()
        fleet.workers[worker].signal(number)
        began = time.monotonic()
        wait_until(lambda: not fleet.owned_by(worker) and len(fleet.owners()) == SERVERS, "others own its servers")
        since_ms = max(since_ms, fleet.redis_ms() - 1)
        wait_until(
            lambda: all((times := watcher.polled_at_ms[name]) and times[-1] > since_ms for name in theirs), "polled"
        )
        took = time.monotonic() - began
    return took, watcher.oldest_seconds


def _updates(fleet: WorkerFleet) -> list[float]:
    """Have many callers request a poll of everything at once; return how long each waited."""
    together, seconds = threading.Barrier(UPDATES), list[float]()

    def call() -> None:
        together.wait()
        began = time.monotonic()
        fleet.cache.update("all", timeout=30)
        seconds.append(time.monotonic() - began)

    threads = [threading.Thread(target=call) for _ in range(UPDATES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def run() -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement."""
    with _fleet() as (fleet, url, namespace):
        waited = sorted(_updates(fleet))
        began = fleet.redis_ms()
        fleet.client.flushall()
        refilled = _whole_after(fleet, began)
        wait_until(lambda: fleet.share(*WORKERS), "the shares are as before")
        ended, age_ended = _ended(fleet, url, namespace, "w1", signal.SIGTERM)
        killed, age_killed = _ended(fleet, url, namespace, "w2", signal.SIGKILL)
    lease = LEASE_SECONDS + TICK_SECONDS
    interval = f"the interval, {INTERVAL_SECONDS:g} s"
    return [
        (
            f"{UPDATES} requests at once for {SERVERS} servers, p50 {quantile(waited, 0.5):.2f} s, "
            f"p99 {quantile(waited, 0.99):.2f} s",
            interval,
            quantile(waited, 0.99) / INTERVAL_SECONDS,
            "p99 <= 1",
        ),
        (f"full again after FLUSHALL, {refilled:.2f} s", interval, refilled / INTERVAL_SECONDS, "<= 2"),
        (
            f"taken over after SIGTERM, {ended:.2f} s, oldest age {age_ended:.1f} s",
            f"a tick and an interval, {TICK_SECONDS + INTERVAL_SECONDS:g} s",
            ended / (TICK_SECONDS + INTERVAL_SECONDS),
            "<= 1",
        ),
        (
            f"taken over after kill -9, {killed:.2f} s, oldest age {age_killed:.1f} s",
            f"lease, tick and interval, {lease + INTERVAL_SECONDS:g} s",
            killed / (lease + INTERVAL_SECONDS),
            "<= 1",
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
