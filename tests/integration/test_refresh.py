"""Polls on demand over real worker processes: shared by all who ask, as new as promised, whoever owns the server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from x2gofleet_workers.ownership import fair_share
from x2gofleet_workers.simulator import RunningSimulation, ServerHandle, running_simulation

from tests.waiting import wait_until
from x2gofleet import FleetCache, RefreshFailed, Snapshot
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.requests import Operation, Request

from ..watched_fleet import WorkerFleet, quantile  # noqa: TID252

SLOW_SECONDS = 0.3
CALLS = 100

# A broker's process of its own, so that what it costs is not taken for what the workers or servers cost.
CALLERS = """
import json, sys, threading, time
from x2gofleet import FleetCache
from x2gofleet.connection import client_from_url

url, namespace, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
clients = [client_from_url(url, connect_timeout_seconds=10, command_timeout_seconds=10) for _ in range(calls)]
caches = [FleetCache(client, namespace=namespace) for client in clients]
for cache in caches:
    cache.profiles()
together, found = threading.Barrier(calls), []

def call(client, cache):
    together.wait()
    seconds, micros = client.time()
    began = time.monotonic()
    (snapshot,) = cache.update("all", timeout=30)
    took = time.monotonic() - began
    found.append([took, snapshot.polled_at_ms - (seconds * 1000 + micros // 1000), snapshot.seq])

threads = [threading.Thread(target=call, args=pair) for pair in zip(clients, caches)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(found))
"""

Start = Callable[..., WorkerFleet]


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(1, 6, directory=tmp_path) as running:
        yield running


@pytest.fixture
def start(simulation: RunningSimulation, valkey_url: str, namespace: str) -> Iterator[Start]:
    """Starts workers on the simulated servers; intervals in seconds. Returns once they have polled all."""
    fleets: list[WorkerFleet] = []

    def run(*ids: str, sessions: float = 60.0, load: float = 0.0) -> WorkerFleet:
        path = simulation.inventory.with_name("refresh.toml")
        ttls = "[ttls]\nsessions = 180\n" if sessions < 60 else ""
        path.write_text(
            f"{simulation.inventory.read_text()}\n[intervals]\nsessions = {sessions}\nload = {load}\nmounts = 0\n{ttls}"
        )
        fleet = WorkerFleet(path, valkey_url, namespace, simulation.servers)
        fleets.append(fleet)
        fleet.start(*ids)
        # Not before: what is owned by the first to come may still go to the next.
        lasting = fair_share(fleet.targets, ids)
        wait_until(lambda: fleet.owners() == lasting and fleet.polled_by_owners(), "all is polled")
        return fleet

    yield run
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


class Asker:
    """Calls update in threads, and notes the time of Redis before each call."""

    def __init__(self, fleet: WorkerFleet, pool: ThreadPoolExecutor) -> None:
        self._fleet, self._pool = fleet, pool

    def ask(self, timeout: float = 30.0) -> Future[tuple[int, Snapshot, float]]:
        return self._pool.submit(self._ask, timeout)

    def _ask(self, timeout: float) -> tuple[int, Snapshot, float]:
        before, began = self._fleet.redis_ms(), time.monotonic()
        (snapshot,) = self._fleet.cache.update("all", timeout=timeout)
        return before, snapshot, time.monotonic() - began


def polls_of(server: ServerHandle) -> int:
    """Return how often a server was polled, comparisons with X2Go's own query left out."""
    counters = server.counters
    return counters.polls - counters.references


def test_a_hundred_calls_at_once_cost_two_polls_at_the_most(
    simulation: RunningSimulation, start: Start, valkey_url: str, namespace: str, capsys: Any
) -> None:
    fleet, server = start("w1"), simulation.server("ts01")
    server.set_fault(f"slow={SLOW_SECONDS}")
    polls = polls_of(server)
    done = subprocess.run(
        [sys.executable, "-c", CALLERS, valkey_url, namespace, str(CALLS)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    made = polls_of(server) - polls
    took, newer_ms = [item[0] for item in found], [item[1] for item in found]
    metrics = fleet.workers["w1"].metrics()
    with capsys.disabled():
        print(
            f"\n{CALLS} update calls at once, poll time {SLOW_SECONDS} s: {made} poll(s), p50 "
            f"{quantile(took, 0.5):.3f} s, p99 {quantile(took, 0.99):.3f} s, max {max(took):.3f} s; "
            f"polled at least {min(newer_ms)} ms after the call began"
        )
    assert len(found) == CALLS
    assert 1 <= made <= 2
    assert min(newer_ms) >= 0
    assert metrics["x2gofleet_refresh_requests_total"] == CALLS
    assert metrics["x2gofleet_refresh_polls_total"] == made


def test_calls_during_a_poll_start_exactly_one_more(
    simulation: RunningSimulation, start: Start, pool: ThreadPoolExecutor
) -> None:
    fleet, server = start("w1"), simulation.server("ts01")
    server.set_fault("slow=1")
    asker, polls = Asker(fleet, pool), polls_of(server)
    first = asker.ask()
    wait_until(lambda: server.counters.running_polls == 1, "its poll runs")
    during = [asker.ask() for _ in range(8)]
    _, of_first, _ = first.result()
    answers = [each.result() for each in during]
    assert polls_of(server) == polls + 2
    assert {snapshot.seq for _, snapshot, _ in answers} != {of_first.seq}
    assert len({snapshot.seq for _, snapshot, _ in answers}) == 1
    assert all(before <= snapshot.polled_at_ms for before, snapshot, _ in answers)


def test_calls_before_a_poll_begins_share_it(
    simulation: RunningSimulation, start: Start, pool: ThreadPoolExecutor
) -> None:
    """A poll by schedule runs: who asks meanwhile, sooner or later, waits for one and the same poll."""
    fleet, server = start("w1", sessions=3.0), simulation.server("ts01")
    asker = Asker(fleet, pool)
    server.set_fault("slow=1.5")
    wait_until(lambda: server.counters.running_polls == 1, "a poll by schedule runs")
    polls, requests = polls_of(server), fleet.workers["w1"].metrics()["x2gofleet_refresh_requests_total"]
    asked = []
    for number in range(1, 6):
        asked.append(asker.ask())
        wait_until(
            lambda number=number: (  # type: ignore[misc]
                fleet.workers["w1"].metrics()["x2gofleet_refresh_requests_total"] == requests + number
            ),
            "it has come",
        )
    assert polls_of(server) == polls, "the machine is too slow for this test: all have come in time"
    answers = [each.result() for each in asked]
    assert len({snapshot.seq for _, snapshot, _ in answers}) == 1
    assert all(before <= snapshot.polled_at_ms for before, snapshot, _ in answers)


# Each of these once ended the thread that takes requests, or is like one that did.
POISON = [
    b'{"id": "\\ud800", "operation": "refresh", "target": "ts01", "kinds": ["sessions"], "username": null}',
    *(b"[" * 200_000, b'{"id": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"", b"{}", b"null"),
    *(b'{"id": "a", "operation": "refresh", "target": ' + each + b"}" for each in (b'"\\ud800"', b"[]", b"1e999")),
    b'{"id": "a", "operation": "refresh", "target": "ts01", "kinds": ["sessions"], "username": "\\ud800"}',
]


def test_no_request_and_no_flood_of_them_keeps_others_from_being_answered(
    simulation: RunningSimulation, start: Start, redis_client: redis.Redis, keys: Keys, capsys: Any
) -> None:
    fleet = start("w1")
    worker = psutil.Process(fleet.workers["w1"].process.pid)
    before = fleet.workers["w1"].metrics()
    kinds = {"sessions": (Kind.SESSIONS,), "desktops": (Kind.DESKTOPS,), "both": (Kind.SESSIONS, Kind.DESKTOPS)}
    flood = [
        Request(f"{name}{number}", Operation.REFRESH, "ts01", of, f"user{number}").encode()
        for number in range(300)
        for name, of in kinds.items()
    ]
    flood += [Request(f"t{number}", Operation.REFRESH, f"user{number}@ts01").encode() for number in range(300)]
    flood += [Request(f"c{number}", Operation.CHECK).encode() for number in range(300)]

    began = time.monotonic()
    redis_client.rpush(keys.refresh_requests("w1"), *POISON, *flood, *POISON)
    threads = [worker.num_threads()]
    (honest,) = fleet.cache.update("all", timeout=60)
    threads.append(worker.num_threads())
    wait_until(lambda: fleet.workers["w1"].metrics()["x2gofleet_refresh_requests_total"] >= 1201, "all are taken")
    threads.append(worker.num_threads())
    (last,) = fleet.cache.update("all", timeout=60)
    seconds = time.monotonic() - began
    after = fleet.workers["w1"].metrics()

    polls = after["x2gofleet_refresh_polls_total"] - before["x2gofleet_refresh_polls_total"]
    with capsys.disabled():
        print(f"\n{len(flood)} different requests: {polls:.0f} polls in {seconds:.1f} s, {max(threads)} threads")
    assert last.polled_at_ms > honest.polled_at_ms
    assert polls <= 10 * seconds + 2
    assert max(threads) < 100
    assert after['x2gofleet_refresh_answers_total{answer="busy"}'] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_where_the_owner_goes_its_successor_answers(
    simulation: RunningSimulation, start: Start, pool: ThreadPoolExecutor, number: signal.Signals, capsys: Any
) -> None:
    fleet, server = start("w1", "w2"), simulation.server("ts01")
    asker = Asker(fleet, pool)
    owner = fleet.owners()["ts01"]
    (other,) = {"w1", "w2"} - {owner}
    server.set_fault("slow=2")
    waiting = asker.ask()
    wait_until(lambda: server.counters.running_polls == 1, "its poll runs")
    fleet.workers[owner].signal(number)
    name = server.start_session("latecomer", ready=True)
    before, snapshot, took = waiting.result()
    with capsys.disabled():
        print(f"\nupdate while its owner ends by {number.name}: answered by its successor after {took:.1f} s")
    assert snapshot.worker == other
    assert snapshot.polled_at_ms >= before
    assert name in snapshot.sessions()


def test_updates_go_on_while_workers_come_and_go(tmp_path: Path, valkey_url: str, namespace: str, capsys: Any) -> None:
    with running_simulation(12, 12, directory=tmp_path) as simulation:
        path = tmp_path / "many.toml"
        path.write_text(f"{simulation.inventory.read_text()}\n[intervals]\nsessions = 60\nload = 0\nmounts = 0\n")
        fleet = WorkerFleet(path, valkey_url, namespace, simulation.servers)
        over, found, failures = threading.Event(), [], []

        def update() -> None:
            while not over.is_set():
                before, began = fleet.redis_ms(), time.monotonic()
                try:
                    snapshots = fleet.cache.update("all", timeout=20)
                except RefreshFailed as exc:
                    failures.append(exc)
                else:
                    found.append((time.monotonic() - began, len(snapshots)))
                    failures.extend(s for s in snapshots if s.polled_at_ms < before)  # type: ignore[misc]

        asker = threading.Thread(target=update)
        try:
            fleet.start("w1")
            wait_until(lambda: fleet.share("w1") and fleet.polled_by_owners(), "one polls all")
            asker.start()
            wait_until(lambda: len(found) >= 2, "it is updated")
            fleet.start("w2")
            wait_until(lambda: fleet.share("w1", "w2"), "two share")
            fleet.start("w3")
            wait_until(lambda: fleet.share("w1", "w2", "w3"), "three share")
            fleet.workers["w1"].signal(signal.SIGTERM)
            wait_until(lambda: fleet.share("w2", "w3"), "the others took over")
            count = len(found)
            wait_until(lambda: len(found) >= count + 2, "it is updated on")
        finally:
            over.set()
            if asker.is_alive():
                asker.join()
            fleet.close()
    times = [took for took, _ in found]
    with capsys.disabled():
        print(
            f"\n{len(found)} updates of 12 servers while two workers came and one went: p50 "
            f"{quantile(times, 0.5):.2f} s, max {max(times):.2f} s, failed {len(failures)}"
        )
    assert failures == []
    assert {count for _, count in found} == {12}


@pytest.mark.parametrize("fault", ["auth", "dead"])
def test_a_server_that_is_back_is_polled_at_once_where_a_refresh_is_asked_for(
    simulation: RunningSimulation, start: Start, fault: str, capsys: Any
) -> None:
    fleet, server = start("w1", sessions=0.5, load=0.5), simulation.server("ts01")
    server.set_fault(fault)
    # The next try is due in 8 s and more (auth), or in 3 s and more (dead: the fourth in a row).
    failures = {"auth": 1, "dead": 4}[fault]
    wait_until(lambda: fleet.cache.servers()[0].failures >= failures, "it is backed off from")
    with pytest.raises(RefreshFailed):
        fleet.cache.update("all")
    name = server.start_session("latecomer", ready=True)
    server.clear_fault()
    began = time.monotonic()
    (snapshot,) = fleet.cache.update("all")
    took = time.monotonic() - began
    assert name in snapshot.sessions()
    polls = server.counters.polls
    on = wait_until(lambda: server.counters.polls >= polls + 4, "it is polled on by schedule")
    load = on + wait_until(
        lambda: (
            [each.polled_at_ms > snapshot.polled_at_ms for each in fleet.cache.snapshots(server="ts01", kind="load")]
            == [True]
        ),
        "its load is polled, too",
    )
    with capsys.disabled():
        print(
            f"\nback from {fault}: refreshed in {took:.2f} s, four more polls in {on:.2f} s at 0.5 s, "
            f"load in {load:.2f} s"
        )
    (status,) = fleet.cache.servers()
    assert (status.up, status.failures) == (True, 0)


def test_hung_servers_of_one_refresh_delay_no_other(
    tmp_path: Path, valkey_url: str, namespace: str, pool: ThreadPoolExecutor
) -> None:
    with running_simulation(25, 25, directory=tmp_path) as simulation:
        path = tmp_path / "many.toml"
        path.write_text(
            f"{simulation.inventory.read_text()}\n[profiles.well]\nservers = ['ts25']\n"
            "[intervals]\nsessions = 60\nload = 0\nmounts = 0\n"
        )
        fleet = WorkerFleet(path, valkey_url, namespace, simulation.servers)
        hung = [server for name, server in simulation.servers.items() if name != "ts25"]
        try:
            fleet.start("w1")
            wait_until(fleet.polled_by_owners, "all is polled")
            for server in hung:
                server.set_fault("hang")
            asked = pool.submit(fleet.cache.update, "all")
            wait_until(lambda: all(server.counters.running_polls for server in hung), "24 polls hang")
            (snapshot,) = fleet.cache.update("well")
            assert snapshot.server == "ts25"
            assert not asked.done(), "it did not wait for those that hang"
            failure = asked.exception()
            assert isinstance(failure, RefreshFailed)
            assert set(failure.errors) == {server.server_id for server in hung}
        finally:
            fleet.close()


def test_desktops_of_a_user_delete_and_check(simulation: RunningSimulation, start: Start) -> None:
    fleet, server = start("w1", "w2"), simulation.server("ts01")
    cache: FleetCache = fleet.cache
    server.start_session("alice", ready=True, shared_with=["dave"])
    assert cache.list_desktops(profile_name="all", username="dave") is None
    (found,) = cache.update("all", update_sessions=False, update_desktops=True, username="dave")
    assert (found.target, found.kind, found.username) == ("dave@ts01", Kind.DESKTOPS, "dave")
    desktops = cache.list_desktops(profile_name="all", username="dave")
    assert desktops is not None
    assert [each.partition("@")[0] for each in desktops] == ["alice"]
    server.set_fault("dead")
    with pytest.raises(RefreshFailed, match="ts01"):
        cache.update("all", update_sessions=False, update_desktops=True, username="dave")
    assert cache.list_desktops(profile_name="all", username="dave") == desktops
    server.clear_fault()
    cache.update("all")

    # A successor knows of none of these users.
    owner = fleet.owners()["ts01"]
    (other,) = {"w1", "w2"} - {owner}
    fleet.workers[owner].signal(signal.SIGTERM)
    wait_until(lambda: fleet.share(other) and fleet.polled_by_owners(), "the other took over")
    cache.delete("all")
    assert cache.list_sessions(profile_name="all") is None
    assert cache.list_desktops(profile_name="all", username="dave") is None
    (again,) = cache.update("all")
    assert again.sessions().get_sessions()

    for key in (fleet.keys.state("ts99"), fleet.keys.snapshot("ts99", Kind.SESSIONS)):
        fleet.client.hset(key, "sessions.failures", "0")
        fleet.client.pexpire(key, 60_000)
    cache.check_cache()
    assert not fleet.client.exists(fleet.keys.state("ts99"), fleet.keys.snapshot("ts99", Kind.SESSIONS))
    assert cache.is_cached("all", cache_type="sessions")
