"""Changes that the probe notices: readers see them long before the next poll, and they never cause too many polls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.polling.notices import BURST, REFILL_SECONDS
from x2gofleet_workers.simulator import RunningSimulation, running_simulation
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.processes import OwnValkey
from tests.waiting import LOOKUP_SECONDS, wait_until
from x2gofleet.cache import FleetCache

SERVERS = 3
# Longer than any test waits: what is seen before was noticed.
NEVER_SECONDS = 3600.0


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 9, directory=tmp_path) as simulated:
        yield simulated


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    server = OwnValkey()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def cache(valkey: OwnValkey) -> Iterator[FleetCache]:
    with FleetCache(valkey.client, lookup_seconds=LOOKUP_SECONDS) as reader:
        yield reader


Start = Callable[..., Worker]


@pytest.fixture
def start(simulation: RunningSimulation, valkey: OwnValkey, tmp_path: Path) -> Iterator[Start]:
    """Starts workers whose sessions' interval is ``sessions`` seconds."""
    workers: list[Worker] = []

    def run(name: str = "w1", *, sessions: float = NEVER_SECONDS, more: str = "") -> Worker:
        path = tmp_path / f"{name}.toml"
        table = f"[intervals]\nsessions = {sessions}\nload = {NEVER_SECONDS}\nmounts = {NEVER_SECONDS}\n"
        text = simulation.inventory.read_text().replace("[defaults]\n", f"[defaults]\n{more}\n", 1)
        path.write_text(f"{text}\n{table}")
        worker = Worker(load_inventory(path), WorkerSettings(valkey.url, worker_id=name))
        workers.append(worker)
        worker.start()
        return worker

    yield run
    for worker in workers:
        worker.stop()


def names(cache: FleetCache) -> set[str]:
    return set(cache.list_sessions(profile_name="all") or ())


def up(cache: FleetCache) -> dict[str, bool | None]:
    return {status.id: status.up for status in cache.servers()}


def test_a_change_is_seen_long_before_the_next_poll(
    start: Start, simulation: RunningSimulation, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: cache.is_cached("all", cache_type="sessions"), "all is cached")
    server = simulation.server("ts02")
    for user in ("alice", "bob", "carol"):
        name = server.start_session(user)
        wait_until(lambda name=name: name in names(cache), f"the session of {user} is seen")


def test_without_notices_a_change_waits_for_the_next_poll(
    start: Start, simulation: RunningSimulation, cache: FleetCache, valkey: OwnValkey
) -> None:
    worker = start(more="notices = false")
    wait_until(lambda: cache.is_cached("all", cache_type="sessions"), "all is cached")
    before = names(cache)
    name = simulation.server("ts02").start_session("alice")
    # A poll of each server by a reader's request changes nothing of that: it is this that brings the session.
    assert names(cache) == before
    assert [simulation.server(each).counters.notices for each in worker.fleet.servers] == [0] * SERVERS
    cache.update("all")
    assert names(cache) == before | {name}


def test_a_user_who_changes_sessions_all_the_time_causes_two_polls_a_second(
    start: Start, simulation: RunningSimulation, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: cache.is_cached("all", cache_type="sessions"), "all is cached")
    toggled, other = simulation.server("ts01"), simulation.server("ts02")
    began, polls = time.monotonic(), toggled.counters.polls - toggled.counters.references
    for number in range(400):
        toggled.start_session(f"user{number}")
    name = other.start_session("alice")
    wait_until(lambda: name in names(cache), "the session on the other server is seen")
    elapsed = time.monotonic() - began
    counters = toggled.counters
    assert counters.polls - counters.references - polls <= BURST + elapsed / REFILL_SECONDS + 1
    mine = {session.name for session in toggled.sessions}
    wait_until(lambda: mine <= names(cache), "all sessions are seen")
    assert other.counters.polls < BURST


def test_a_probe_that_is_cut_is_noticed_and_nothing_is_missed(
    start: Start, simulation: RunningSimulation, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: cache.is_cached("all", cache_type="sessions"), "all is cached")
    server = simulation.server("ts03")
    server.set_fault("dead")
    wait_until(lambda: up(cache)["ts03"] is False, "the server is seen to be down")
    name = server.start_session("alice")
    server.clear_fault()
    wait_until(lambda: name in names(cache), "the session is seen")
    assert up(cache) == {"ts01": True, "ts02": True, "ts03": True}
    later = server.start_session("bob")
    wait_until(lambda: later in names(cache), "the new probe notices too")
