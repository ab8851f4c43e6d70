"""Whatever breaks between a change that a server gives notice of and Redis: after the heal each change is told once."""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from x2gofleet_workers.ownership import LEASE_TTL_SECONDS
from x2gofleet_workers.simulator.simulation import ServerHandle

from tests.processes import LiveFleet, live_fleet
from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet import CacheUnavailable
from x2gofleet.events import Event

from .test_clock_steps import SteppedClock

pytestmark = pytest.mark.faults

SERVERS = 4
# Long, so that notices are what brings changes while nothing is broken.
INTERVAL_SECONDS = 10.0
# Beyond any fault here, steps of clocks too: what changed is told against the listing before it.
TTL_SECONDS = 3 * 3600
REDIS_GONE_SECONDS = 10.0
# Longer than workers wait for a reply, shorter than leases last that are renewed every 2 s.
REPLY_LOST_SECONDS = 2.5
HOUR = 3600
BATCHES = 5
WORKERS = ("w1", "w2")

Told = tuple[str, str]


@dataclass
class Changer:
    """Changes a server by batches; no batch touches a session of another one, so that no change hides another."""

    server: ServerHandle
    done: dict[int, list[Told]] = field(default_factory=lambda: defaultdict(list))
    _sessions: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Start what the batches will change; to be called before anybody polls."""
        for batch in range(BATCHES):
            running, suspended, ending = (
                self.server.start_session(f"{what}{batch}", ready=True) for what in ("running", "suspended", "ending")
            )
            self.server.suspend(suspended)
            self._sessions[batch] = running, suspended, ending

    def change(self, batch: int) -> None:
        """Start a session, suspend one, resume one and end one."""
        running, suspended, ending = self._sessions[batch]
        self.server.suspend(running)
        self.server.resume(suspended)
        self.server.end(ending)
        self.done[batch] += [("suspended", running), ("resumed", suspended), ("ended", ending)]
        self.start(batch)

    def start(self, batch: int) -> None:
        """Start a session."""
        name = self.server.start_session(f"new{batch}", ready=True)
        self.done[batch].append(("started", name))


class Listener:
    """Follows the events of all servers by cursor."""

    def __init__(self, fleet: LiveFleet, changers: dict[str, Changer]) -> None:
        self._fleet, self._changers = fleet, changers
        self._cursor: str | None = None
        self.events: list[Event] = []

    def told(self, server: str) -> list[Told]:
        return [(event.kind.value, event.session) for event in self.events if event.server == server and event.session]

    def of_servers(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for event in self.events:
            if not event.session:
                found[event.server].append(event.kind.value)
        return dict(found)

    def has_all(self) -> bool:
        """Whether all that was done has been told; fails where anything else was, or anything twice."""
        try:
            page = self._fleet.cache.events(since=self._cursor)
        except CacheUnavailable:
            return False
        self._cursor = page.cursor
        self.events += page
        complete = True
        for name, changer in self._changers.items():
            told, done = Counter(self.told(name)), Counter(each for batch in changer.done.values() for each in batch)
            assert not told - done, f"{name}: told, and not done or told before: {told - done}"
            complete = complete and told == done
        return complete

    def wait_for_all(self, what: str) -> None:
        try:
            wait_until(self.has_all, what)
        except AssertionError as exc:
            missing = {
                name: sorted(set().union(*changer.done.values()) - set(self.told(name)))
                for name, changer in self._changers.items()
            }
            raise AssertionError(f"{exc}; not told: {missing}") from None


@dataclass
class Scene:
    """A fleet that is polled on notice, and what breaks and heals it."""

    fleet: LiveFleet
    clock: SteppedClock
    redis_clock: SteppedClock
    changers: dict[str, Changer]

    @property
    def servers(self) -> list[ServerHandle]:
        return [changer.server for changer in self.changers.values()]

    def signal(self, number: int, *workers: str) -> None:
        for name in workers:
            self.fleet.workers[name].process.send_signal(number)

    def owned_by_the_other(self) -> None:
        wait_until(lambda: set(self.fleet.owners().values()) == {"w2"}, "the other has taken over")
        wait_until(lambda: len(self.fleet.owners()) == SERVERS, "all of them")

    def start(self, name: str) -> None:
        environment = self.clock.environment if name == "w1" else {}
        self.fleet.start(name, self.fleet.folder / "fleet.toml", **environment)


def lasts(seconds: float) -> None:
    """The fault's own duration, which is what is tested."""
    time.sleep(seconds)


def nothing(scene: Scene) -> None:
    pass


def kill_probes(scene: Scene) -> None:
    for server in scene.servers:
        server.kill_probes()


def cut_channels(scene: Scene) -> None:
    for server in scene.servers:
        server.break_connections()


def hang(scene: Scene) -> None:
    for server in scene.servers:
        server.set_fault("hang")


def refuse(scene: Scene) -> None:
    for server in scene.servers:
        server.set_fault("dead")


def are_down(scene: Scene) -> None:
    wait_until(lambda: all(status.up is False for status in scene.fleet.cache.servers()), "all are down")


def repair(scene: Scene) -> None:
    for server in scene.servers:
        server.clear_fault()


def kill_one(scene: Scene) -> None:
    scene.signal(signal.SIGKILL, "w1")
    scene.fleet.workers.pop("w1").process.wait()


def kill_both(scene: Scene) -> None:
    scene.signal(signal.SIGKILL, *WORKERS)
    for name in WORKERS:
        scene.fleet.workers.pop(name).process.wait()


def stop_one(scene: Scene) -> None:
    scene.signal(signal.SIGSTOP, "w1")


def go_on(scene: Scene) -> None:
    scene.signal(signal.SIGCONT, "w1")


def start_one(scene: Scene) -> None:
    scene.start("w1")


def start_both(scene: Scene) -> None:
    for name in WORKERS:
        scene.start(name)


def taken_over(scene: Scene) -> None:
    scene.owned_by_the_other()


def freeze_redis(scene: Scene) -> None:
    scene.fleet.valkey.signal(signal.SIGSTOP)


def thaw_redis(scene: Scene) -> None:
    scene.fleet.valkey.signal(signal.SIGCONT)


def kill_redis(scene: Scene) -> None:
    scene.fleet.valkey.kill()


def start_redis(scene: Scene) -> None:
    scene.fleet.valkey.start()


def redis_is_gone(scene: Scene) -> None:
    lasts(REDIS_GONE_SECONDS)


def replies_are_lost(scene: Scene) -> None:
    """Writes wait in the socket until their workers give them up; Redis makes them later, as leases still hold."""
    lasts(REPLY_LOST_SECONDS)


def step_forward(scene: Scene) -> None:
    scene.clock.step_to(HOUR)


def step_back(scene: Scene) -> None:
    scene.clock.step_to(-HOUR)


def step_redis_forward(scene: Scene) -> None:
    scene.redis_clock.step_to(HOUR)


def step_redis_back(scene: Scene) -> None:
    scene.redis_clock.step_to(-HOUR)


def redis_clock_is_told(scene: Scene) -> None:
    wait_until(
        lambda: abs(int(cast(Any, scene.fleet.valkey.client.time())[0]) - time.time()) > HOUR / 2,
        "Redis's clock is another",
    )


def set_redis_right(scene: Scene) -> None:
    scene.redis_clock.step_to(0)


def step_is_seen(scene: Scene) -> None:
    wait_until(lambda: "the clock was stepped" in scene.fleet.workers["w1"].said, "the step is seen")


def set_right(scene: Scene) -> None:
    scene.clock.step_to(0)


@dataclass(frozen=True)
class Fault:
    """How something breaks, what is waited for before it heals, and how it heals; ``outages`` of each server."""

    begin: Callable[[Scene], None]
    last: Callable[[Scene], None]
    heal: Callable[[Scene], None]
    outages: int | None = 0


# Of those with None, a poll may have run when it was cut, which is an outage, or not.
FAULTS = {
    "none": Fault(nothing, nothing, nothing),
    "the probe is killed": Fault(kill_probes, nothing, nothing, outages=None),
    "the probe is killed again and again": Fault(kill_probes, kill_probes, kill_probes, outages=None),
    "the channel is cut": Fault(cut_channels, nothing, nothing, outages=None),
    "the server hangs and loses notices": Fault(hang, nothing, repair, outages=None),
    "the server is down": Fault(refuse, are_down, repair, outages=1),
    "a worker is killed": Fault(kill_one, taken_over, start_one),
    "both workers are killed": Fault(kill_both, nothing, start_both),
    "a worker is stopped for a moment": Fault(stop_one, nothing, go_on, outages=None),
    "a worker is stopped until it is replaced": Fault(stop_one, taken_over, go_on),
    "Redis hangs for a moment": Fault(freeze_redis, replies_are_lost, thaw_redis),
    "Redis hangs": Fault(freeze_redis, redis_is_gone, thaw_redis),
    "Redis is gone": Fault(kill_redis, redis_is_gone, start_redis),
    "a worker's clock is set forward": Fault(step_forward, step_is_seen, set_right),
    "a worker's clock is set back": Fault(step_back, step_is_seen, set_right),
    "Redis's clock is set forward": Fault(step_redis_forward, redis_clock_is_told, set_redis_right),
    "Redis's clock is set back": Fault(step_redis_back, redis_clock_is_told, set_redis_right),
}
assert REDIS_GONE_SECONDS > LEASE_TTL_SECONDS


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with live_fleet(tmp_path, servers=SERVERS, sessions=SERVERS, lasting=True) as fleet:
        changers = {name: Changer(server) for name, server in fleet.simulation.servers.items()}
        for changer in changers.values():
            changer.prepare()
        (tmp_path / "redis").mkdir()
        redis_clock = SteppedClock(tmp_path / "redis")
        fleet.valkey.environment = redis_clock.environment
        fleet.valkey.start()
        fleet.write_inventory(
            sessions=INTERVAL_SECONDS, load=INTERVAL_SECONDS, more=f"[ttls]\nsessions = {TTL_SECONDS}\n"
        )
        made = Scene(fleet, SteppedClock(tmp_path), redis_clock, changers)
        start_both(made)
        fleet.wait_for_shares(*WORKERS)
        yield made


def change(scene: Scene, batch: int) -> None:
    for changer in scene.changers.values():
        changer.change(batch)


def check_notices(scene: Scene, listener: Listener, batch: int) -> None:
    """Start a session on each server until it was a notice, and no poll at its interval, that brought it."""
    for changer in scene.changers.values():
        noticed = False
        while not noticed:
            before = changer.server.counters.notices
            changer.start(batch)
            listener.wait_for_all("the event of a session")
            noticed = changer.server.counters.notices > before


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_change_is_told_once(scene: Scene, fault: Fault) -> None:
    fleet, listener = scene.fleet, Listener(scene.fleet, scene.changers)
    change(scene, 0)
    listener.wait_for_all("the changes before are told of")
    check_notices(scene, listener, 0)
    # On their way when it breaks, while it is broken, and as it heals.
    change(scene, 1)
    fault.begin(scene)
    change(scene, 2)
    fault.last(scene)
    fault.heal(scene)
    change(scene, 3)
    listener.wait_for_all("the changes meanwhile are told of")
    wait_until(lambda: set(fleet.owners().values()) <= set(fleet.workers), "the living own them")
    change(scene, 4)
    listener.wait_for_all("the changes afterwards are told of")
    check_notices(scene, listener, 4)
    # Listed in full again, nothing more is told.
    wait_until(lambda: fleet.cache.update("all", timeout=HANG_SECONDS), "all are listed anew")
    assert listener.has_all()
    check_order(scene, listener)
    check_outages(scene, listener, fault)
    whole = list(fleet.cache.events(limit=10_000))
    assert sorted(whole, key=lambda e: (e.target, e.order)) == sorted(
        listener.events, key=lambda e: (e.target, e.order)
    )
    assert fleet.session_names() == {
        session.name for server in scene.servers for session in server.sessions if session.status != "F"
    }
    fleet.check_workers()


def check_order(scene: Scene, listener: Listener) -> None:
    """What was told before something else was done comes before it."""
    for name, changer in scene.changers.items():
        told, done = listener.told(name), changer.done
        first, last = len(done[0]), len(done[4])
        assert Counter(told[:first]) == Counter(done[0])
        assert Counter(told[first:-last]) == Counter(done[1] + done[2] + done[3])
        assert Counter(told[-last:]) == Counter(done[4])


def check_outages(scene: Scene, listener: Listener, fault: Fault) -> None:
    """Each outage is told at both ends, and none that there was not."""
    of_servers = listener.of_servers()
    for name in scene.changers:
        told = of_servers.get(name, [])
        outages = len(told) // 2 if fault.outages is None else fault.outages
        assert told == ["server_down", "server_up"] * outages, name
