"""Every change of the simulated servers is told once and in order, whoever polls and however that ends."""

from __future__ import annotations

import math
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers.simulator import RunningSimulation, running_simulation
from x2gofleet_workers.simulator.simulation import ServerHandle

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet import FleetCache
from x2gofleet.events import Event, EventKind, encode_cursor

from ..watched_fleet import WorkerFleet  # noqa: TID252

pytestmark = pytest.mark.faults

SERVERS = 6
WORKERS = ("w1", "w2", "w3")


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 18, directory=tmp_path) as running:
        yield running


@pytest.fixture
def fleet(simulation: RunningSimulation, valkey_url: str, namespace: str) -> Iterator[WorkerFleet]:
    path = simulation.inventory.with_name("quick.toml")
    text = simulation.inventory.read_text().replace("[defaults]\n", "[defaults]\ndeadline = 3\n", 1)
    path.write_text(f"{text}\n[intervals]\nsessions = 0.2\nload = 1\nmounts = 0\n")
    running = WorkerFleet(path, valkey_url, namespace, simulation.servers)
    try:
        yield running
    finally:
        running.close()


Told = tuple[str, str]
"""What happened and the session it happened to, "" for the server itself."""


@dataclass
class Driver:
    """Changes one server, the next time once the last change was told."""

    server: ServerHandle
    draw: random.Random
    done: list[Told] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    starting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    suspended: list[str] = field(default_factory=list)

    def change(self) -> None:
        """Make one change and note what is to be told of it."""
        if self.starting:
            self._finish_start()
            return
        choices = [self._start]
        if self.running:
            choices += [self._suspend, self._end]
        if self.suspended:
            choices += [self._resume, self._resume]
        self.draw.choice(choices)()

    def _start(self) -> None:
        # A display of its own, so that its name is new also within the same second.
        ready = self.draw.random() < 0.5
        # It starts until that is told: a start that ends while nobody polls is told as one event.
        name = self.server.start_session(f"user{len(self.done):03}", ready=ready, starting_seconds=math.inf)
        self.done.append(("started", name))
        (self.running if ready else self.starting).append(name)

    def _finish_start(self) -> None:
        name = self.starting.pop()
        self.server.make_ready(name)
        self.running.append(name)
        self.done.append(("changed", name))

    def _suspend(self) -> None:
        name = self.running.pop(self.draw.randrange(len(self.running)))
        self.server.suspend(name)
        self.suspended.append(name)
        self.done.append(("suspended", name))

    def _resume(self) -> None:
        name = self.suspended.pop(self.draw.randrange(len(self.suspended)))
        self.server.resume(name)
        self.running.append(name)
        self.done.append(("resumed", name))

    def _end(self) -> None:
        name = self.running.pop(self.draw.randrange(len(self.running)))
        self.server.end(name)
        self.done.append(("ended", name))


class Listener:
    """Reads all events by cursor, each once, and gives each to its server's driver."""

    def __init__(self, cache: FleetCache, drivers: dict[str, Driver], *, limit: int = 1000) -> None:
        self._cache, self._drivers, self._limit = cache, drivers, limit
        self.cursor: str | None = None
        self.events: list[Event] = []

    def listen(self) -> None:
        found = self._cache.events(since=self.cursor, limit=self._limit)
        self.cursor = found.cursor
        self.events += found
        for event in found:
            self._drivers[event.server].told.append((event.kind.value, event.session))


def drive(drivers: dict[str, Driver], listener: Listener, changes: int) -> float:
    """Have every server change so many times, all at once; return how many seconds it took."""
    left = dict.fromkeys(drivers, changes)

    def all_done() -> bool:
        listener.listen()
        for name, driver in drivers.items():
            assert driver.told == driver.done[: len(driver.told)], name
            if left[name] and len(driver.told) == len(driver.done):
                driver.change()
                left[name] -= 1
        return not any(left.values()) and all(driver.told == driver.done for driver in drivers.values())

    def missing() -> dict[str, list[Told]]:
        return {name: left for name, driver in drivers.items() if (left := driver.done[len(driver.told) :])}

    try:
        return wait_until(all_done, f"{changes} changes on each server are told", 2 * HANG_SECONDS)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; not told: {missing()}") from None


def drivers_of(simulation: RunningSimulation) -> dict[str, Driver]:
    return {name: Driver(server, random.Random(name)) for name, server in simulation.servers.items()}


def test_each_change_is_told_once_and_in_order_also_over_a_term_and_a_kill(
    simulation: RunningSimulation, fleet: WorkerFleet, capsys: Any
) -> None:
    fleet.start(*WORKERS)
    wait_until(lambda: fleet.share(*WORKERS) and fleet.polled_by_owners(), "three workers poll")
    drivers = drivers_of(simulation)
    listener = Listener(fleet.cache, drivers)
    listener.listen()
    assert listener.events == [], "sessions that were there at first are not told of"
    took = [drive(drivers, listener, 6)]
    for worker, number, left in (("w1", signal.SIGTERM, ("w2", "w3")), ("w2", signal.SIGKILL, ("w3",))):
        theirs = fleet.owned_by(worker)
        assert theirs
        # Some of these are seen by the one that goes, some by the one that comes, some by both.
        for driver in drivers.values():
            driver.change()
        fleet.workers[worker].signal(number)
        took.append(drive(drivers, listener, 6))
        wait_until(lambda left=left: fleet.share(*left), "the others took over")  # type: ignore[misc]
    # Confirmed and listed in full again, nothing more is told.
    asked = fleet.redis_ms()
    fleet.cache.update("all")
    wait_until(
        lambda: all(
            each.polled_at_ms > asked + 1000 for each in fleet.cache.snapshots(profile_name="all", kind="load")
        ),
        "polled on",
    )
    listener.listen()
    counts: dict[str, int] = defaultdict(int)
    for event in listener.events:
        counts[event.kind.value] += 1
    with capsys.disabled():
        print(
            f"\n{SERVERS} servers, {len(listener.events)} events of {sum(len(d.done) for d in drivers.values())} "
            f"changes, {dict(counts)}; undisturbed {took[0]:.1f} s, over SIGTERM {took[1]:.1f} s, over kill -9 "
            f"{took[2]:.1f} s"
        )
    for name, driver in drivers.items():
        assert driver.told == driver.done, name
    assert len({(event.target, event.id) for event in listener.events}) == len(listener.events)
    assert set(counts) >= {"started", "suspended", "resumed", "ended", "changed"}
    assert not any(kind.startswith("server") for kind in counts)
    cookies = {session.cookie for server in simulation.servers.values() for session in server.sessions} - {""}
    stream = b"".join(repr(fleet.client.xrange(fleet.keys.events(name))).encode() for name in fleet.targets)
    assert stream
    assert cookies
    assert not [cookie for cookie in cookies if cookie.encode() in stream or cookie in repr(listener.events)]
    _pages_hold_the_same(fleet.cache, listener)


def _pages_hold_the_same(cache: FleetCache, listener: Listener) -> None:
    """Whatever the size of a page, all pages hold all events, each server's in order."""
    by_server: dict[str, list[Event]] = defaultdict(list)
    for event in listener.events:
        by_server[event.server].append(event)
    for limit in (1, 7, 1000):
        cursor, pages, found = None, 0, defaultdict(list)
        while page := cache.events(since=cursor, limit=limit):
            cursor, pages = page.cursor, pages + 1
            for server in by_server:
                assert sum(event.server == server for event in page) <= limit
            for event in page:
                found[event.server].append(event)
        assert found == by_server
        assert pages == max(-(-len(events) // limit) for events in by_server.values())
        assert cache.events(since=cursor).cursor == cursor
    whole = cache.events()
    assert [(event.id, event.target) for event in whole] == sorted(
        ((event.id, event.target) for event in whole), key=lambda item: [int(part) for part in item[0].split("-")]
    )
    for server, events in by_server.items():
        alone = cache.events(server=server)
        assert list(alone) == events
        # Its cursor tells nothing of the other servers: theirs are all still to come.
        rest = cache.events(since=alone.cursor)
        assert len(rest) == len(whole) - len(events)
        assert server not in {event.server for event in rest}
    assert list(cache.events(server="ts99")) == []
    with pytest.raises(ValueError, match="cursor"):
        cache.events(since="nonsense")
    middle = whole[len(whole) // 2]
    after = cache.events(since=encode_cursor({middle.target: middle.id}), server=middle.server)
    assert list(after) == by_server[middle.server][by_server[middle.server].index(middle) + 1 :]


def test_an_outage_is_told_once_at_each_end_also_where_the_owner_changes_in_it(
    simulation: RunningSimulation, fleet: WorkerFleet, capsys: Any
) -> None:
    fleet.start("w1", "w2")
    wait_until(lambda: fleet.share("w1", "w2") and fleet.polled_by_owners(), "two workers poll")
    own, other = sorted(fleet.owned_by("w1"))[:2], sorted(fleet.owned_by("w2"))[0]
    faults = dict(zip((*own, other), ("dead", "hang", "garbage"), strict=True))
    simulation.server(own[1]).start_session("alice", ready=True)
    wait_until(lambda: len(fleet.cache.events()) == 1, "the session is told")
    for name, fault in faults.items():
        simulation.server(name).set_fault(fault)
    # What hangs fails at the deadline of 3 s.
    down = lambda: {each.id for each in fleet.cache.servers() if each.up is False}  # noqa: E731
    wait_until(lambda: down() == set(faults), "three are down")
    fleet.workers["w1"].signal(signal.SIGTERM)
    wait_until(lambda: fleet.share("w2"), "the other took over")
    failures = {each.id: each.failures for each in fleet.cache.servers()}
    wait_until(
        lambda: all(each.failures >= failures[each.id] + 2 for each in fleet.cache.servers() if each.id == own[0]),
        "it is tried again by the other",
    )
    # Missed while the server was down: told once it answers, behind its server_up.
    name = simulation.server(own[0]).start_session("bob", ready=True)
    for server in faults:
        simulation.server(server).clear_fault()
    began = time.monotonic()
    wait_until(lambda: not down(), "all are up")
    up = time.monotonic() - began
    wait_until(lambda: fleet.cache.find_sessions(username="bob"), "it is listed")
    told: dict[str, list[Told]] = defaultdict(list)
    for event in fleet.cache.events():
        told[event.server].append((event.kind.value, event.session))
    with capsys.disabled():
        print(f"\nthree outages, up again {up:.1f} s after they ended: {dict(told)}")
    outage = [("server_down", ""), ("server_up", "")]
    assert told.pop(own[0]) == [*outage, ("started", name)]
    first, *rest = told.pop(own[1])
    assert (first[0], rest) == ("started", outage)
    assert told.pop(other) == outage
    assert not told
    texts = {event.server: event.text for event in fleet.cache.events() if event.kind is EventKind.SERVER_DOWN}
    assert all(texts[name] for name in faults)
    assert texts[own[0]].startswith(("ConnectionLost", "Unreachable"))
