"""Redis dies, forgets, hangs, refuses writes or is full: the fleet fills again by itself, and polls go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.ownership import LEASE_TTL_SECONDS

from tests.processes import LiveFleet, live_fleet
from tests.waiting import SLACK_SECONDS, wait_until

pytestmark = pytest.mark.faults

SERVERS = 6
INTERVAL_SECONDS = 1.0
FULL_WITHIN_SECONDS = INTERVAL_SECONDS + SLACK_SECONDS
TTL_SECONDS = 15.0
LONGER_THAN_LEASES = LEASE_TTL_SECONDS + 1.5
LONGER_THAN_SNAPSHOTS = TTL_SECONDS + 2.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        yield made


@pytest.fixture
def running(fleet: LiveFleet) -> LiveFleet:
    """Two workers that share six servers, all of them polled."""
    fleet.valkey.start()
    start_workers(fleet)
    fleet.wait_for_shares("w1", "w2")
    return fleet


def start_workers(fleet: LiveFleet) -> None:
    inventory = fleet.write_inventory(sessions=INTERVAL_SECONDS, load=5)
    for name in ("w1", "w2"):
        fleet.start(name, inventory)


def lasts(seconds: float) -> None:
    """The fault's own duration, which is what is tested."""
    time.sleep(seconds)


def check_heal(fleet: LiveFleet, fault: str, heal: Callable[[], object]) -> None:
    """Heal, and check that readers find all again in time, that polls and requests go on, and what workers did."""
    name = fleet.simulation.server("ts01").start_session("zoe", ready=True)
    connections = sum(server.counters.connections for server in fleet.simulation.servers.values())
    heal()
    healed, healed_ms = time.monotonic(), int(time.time() * 1000)
    wait_until(lambda: fleet.is_full(since_ms=healed_ms), "every server is polled again")
    took = time.monotonic() - healed
    assert name in fleet.session_names()
    polls = fleet.polls()
    shared = wait_until(lambda: fleet.shares() == {"w1": 3, "w2": 3}, "shares are even again")
    wait_until(
        lambda: all(count >= polls[server] + 3 for server, count in fleet.polls().items()), "polls go on everywhere"
    )
    assert len(fleet.cache.update("all", timeout=10)) == SERVERS
    new = sum(server.counters.connections for server in fleet.simulation.servers.values()) - connections
    print(f"{fault}: full {took:.2f} s after the heal, shares even {shared:.2f} s later, {new} new connections")
    assert took < FULL_WITHIN_SECONDS
    assert len(fleet.workers) == 2
    fleet.check_workers()


def check_idle(fleet: LiveFleet) -> None:
    """Nothing is polled where no lease is sure."""
    polls = fleet.polls()
    lasts(1.5 * INTERVAL_SECONDS)
    assert fleet.polls() == polls


def outage_is_told(fleet: LiveFleet) -> None:
    wait_until(
        lambda: all("leases can't be renewed" in worker.said for worker in fleet.workers.values()), "both say so"
    )


@pytest.mark.parametrize("seconds", [0.0, LONGER_THAN_LEASES], ids=["shortly", "longer than leases"])
def test_killed_and_started_empty(running: LiveFleet, seconds: float) -> None:
    running.valkey.kill()
    outage_is_told(running)
    lasts(seconds)
    if seconds:
        check_idle(running)
    check_heal(running, f"kill -9, down for {seconds:g} s more", running.valkey.start)


def test_flushall(running: LiveFleet) -> None:
    check_heal(running, "FLUSHALL", running.valkey.client.flushall)


def test_script_flush(running: LiveFleet) -> None:
    fences = {name: running.valkey.client.hget(running.keys.lease(name), "fence") for name in running.owners()}
    check_heal(running, "SCRIPT FLUSH", running.valkey.client.script_flush)
    for name, fence in fences.items():
        assert running.valkey.client.hget(running.keys.lease(name), "fence") == fence, "no lease was lost"


@pytest.mark.parametrize(
    "seconds",
    [LEASE_TTL_SECONDS / 3, LONGER_THAN_LEASES, LONGER_THAN_SNAPSHOTS],
    ids=["shortly", "longer than leases", "longer than snapshots"],
)
def test_hangs(running: LiveFleet, seconds: float) -> None:
    running.valkey.signal(signal.SIGSTOP)
    lasts(seconds)
    if seconds > LEASE_TTL_SECONDS:
        check_idle(running)
    check_heal(running, f"SIGSTOP for {seconds:g} s", lambda: running.valkey.signal(signal.SIGCONT))


def test_refuses_writes(running: LiveFleet) -> None:
    client = running.valkey.client
    # A master that does not exist: nothing listens on the discard port of loopback.
    client.replicaof("127.0.0.1", "9")
    outage_is_told(running)
    assert all("Redis refuses writes" in worker.said for worker in running.workers.values())
    lasts(LONGER_THAN_LEASES)
    check_idle(running)
    check_heal(running, f"read-only for {LONGER_THAN_LEASES:g} s", lambda: client.replicaof("NO", "ONE"))


def test_full(running: LiveFleet) -> None:
    client = running.valkey.client
    client.config_set("maxmemory", "1")
    outage_is_told(running)
    assert all("Redis is at its maxmemory" in worker.said for worker in running.workers.values())
    lasts(LONGER_THAN_LEASES)
    check_heal(running, f"full for {LONGER_THAN_LEASES:g} s", lambda: client.config_set("maxmemory", "0"))


def test_absent_at_start(fleet: LiveFleet) -> None:
    start_workers(fleet)
    wait_until(lambda: all("--embedded" in worker.said for worker in fleet.workers.values()), "both tell the ways out")
    assert sum(fleet.polls().values()) == 0
    check_heal(fleet, "absent at start", fleet.valkey.start)
