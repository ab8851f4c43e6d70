"""Bounded staleness with a model: whatever breaks, no reader is told what was polled longer ago than its ttl.

One target is written about all the time. Each listing has a number of its own, so that a read tells which writes it may
be of: those that had been sent by then. The clock that judges is the monotonic one of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from x2gofleet_workers.hints import HintTeller

from tests.faults.test_clock_steps import SteppedClock
from tests.processes import OwnValkey
from tests.waiting import HANG_SECONDS, SLACK_SECONDS, wait_until
from tests.wires import Wire
from x2gofleet import CacheUnavailable, FleetCache
from x2gofleet.aio import AsyncFleetCache
from x2gofleet.connection import link_from_url
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.hints import Hint
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.model import SessionList
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome, Store

pytestmark = pytest.mark.faults

TTL_SECONDS = 2.0
WRITE_SECONDS = 0.1
# How often the same listing is confirmed before another one is stored.
CONFIRMED = 4
HEALED_SECONDS = 3.0 + SLACK_SECONDS
# Redis counts in ms, and takes the time of a command as that of the beginning of its batch.
TOLERANCE_SECONDS = 0.05
STATE_TTL_MS = 60_000

ROW = "1368|alice-50-{number}_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|5ec4e7|192.0.2.17|1|2||alice|2728|3|-1|-1\n"


def number_of(found: SessionList) -> int:
    """Return the number of the listing that an answer is made of."""
    (name,) = found
    return int(name.split("-")[2].partition("_")[0])


@dataclass
class History:
    """When each listing was polled, by its number; also where Redis did not say whether it took the write."""

    polled: dict[int, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, number: int, polled_at: float) -> None:
        with self.lock:
            self.polled.setdefault(number, []).append(polled_at)

    def refused(self, number: int, polled_at: float) -> None:
        with self.lock:
            self.polled[number].remove(polled_at)

    def polled_at(self, number: int, answered_at: float) -> float:
        """Return when a listing was last polled before an answer was given; minus infinity for one that never was."""
        with self.lock:
            return max((at for at in self.polled.get(number, ()) if at <= answered_at), default=-math.inf)


class Writer:
    """A worker that polls one target: stores and confirms listings, and tells mirrors of them."""

    def __init__(self, url: str, history: History) -> None:
        self._keys, self.history = Keys(), history
        self._links = [link_from_url(url) for _ in range(2)]
        self._store = Store(self._links[0], self._keys, "w1")
        self._hints = HintTeller(self._links[1], self._keys)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lease: Lease | None = None
        self._held = 0
        self.number = 1763800000
        self.stored = 0
        """Number of the newest listing that Redis has taken."""

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(WRITE_SECONDS):
            turn += 1
            with contextlib.suppress(CacheUnavailable):
                self._publish()
                self._write(confirming=turn % CONFIRMED != 0)

    def _publish(self) -> None:
        if self._store.published_version() is None:
            kinds = frozenset({Kind.SESSIONS})
            self._store.publish(
                PublishedFleet(
                    {"ts01": PublishedServer("ts01", "ts01")},
                    {"ts01": PublishedTarget("ts01", "ts01", "server", None, kinds)},
                    {"mate": ("ts01",)},
                    "1",
                )
            )

    def _write(self, *, confirming: bool) -> None:
        if self._lease is None:
            taken = self._store.acquire("ts01", ttl_ms=60_000)
            assert isinstance(taken, Lease)
            self._lease, self._held = taken, 0
        if not (confirming and self._held):
            self.number += 1
        number = self._held if confirming and self._held else self.number
        stdout = ROW.format(number=number).encode()
        digest, ttl_ms = digest_of(Kind.SESSIONS, stdout), int(TTL_SECONDS * 1000)
        polled_at_ms = self._store.sync_clock()
        # What Redis said is a little older.
        polled_at = time.monotonic()
        self.history.wrote(number, polled_at)
        if confirming and self._held:
            outcome = self._store.confirm(
                self._lease,
                self._store.next_seq(),
                Kind.SESSIONS,
                digest=digest,
                polled_at_ms=polled_at_ms,
                ttl_ms=ttl_ms,
                state_ttl_ms=STATE_TTL_MS,
            )
        else:
            listing = Listing(Kind.SESSIONS, stdout, digest, polled_at_ms, polled_at_ms, 1, ttl_ms, STATE_TTL_MS)
            outcome = self._store.store(self._lease, self._store.next_seq(), listing)
        if outcome is Outcome.STORED:
            self._held = self.stored = number
            self._hints.stored("ts01", Kind.SESSIONS, Hint(polled_at_ms, polled_at_ms, polled_at_ms + ttl_ms, digest))
            return
        self.history.refused(number, polled_at)
        self._held = 0
        if outcome is Outcome.LOST:
            self._lease = None

    def __enter__(self) -> Self:
        self._hints.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HANG_SECONDS)
        self._hints.stop()
        self._store.close()


@dataclass
class Reads:
    """What one reader was told, and whether that could be."""

    name: str
    history: History
    tolerance: float
    oldest: float = 0.0
    newest: int = 0
    count: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def told(self, number: int, asked_at: float, claimed: float | None, answered_at: float) -> None:
        polled_at = self.history.polled_at(number, answered_at)
        age = asked_at - polled_at
        self.count += 1
        self.oldest, self.newest = max(self.oldest, age), number
        if age > TTL_SECONDS + TOLERANCE_SECONDS:
            self.problems.append(f"{self.name}: listing {number} was polled {age:.3f} s before it was asked for")
        if claimed is None or claimed + self.tolerance < answered_at - polled_at:
            self.problems.append(f"{self.name}: listing {number} is said to be {claimed} s old, it is {age:.3f} s")


def read(reads: Reads, cache: FleetCache, stop: threading.Event) -> None:
    """Ask all the time."""
    while not stop.wait(0.003):
        asked_at = time.monotonic()
        try:
            found = cache.list_sessions(profile_name="mate", username="alice")
        except CacheUnavailable:
            reads.refused += 1
            continue
        if found is not None:
            answered_at = time.monotonic()
            reads.told(number_of(found), asked_at, found.oldest_age, answered_at)


async def read_awaiting(reads: Reads, url: str, stop: threading.Event) -> None:
    """Ask all the time, awaiting, once the mirror is filled."""
    async with AsyncFleetCache.from_url(url, mirror=True) as cache:
        while not cache._mirror.now.held and not stop.is_set():
            with contextlib.suppress(CacheUnavailable):
                await cache.is_cached("mate")
            await asyncio.sleep(0.01)
        while not stop.is_set():
            await asyncio.sleep(0.003)
            asked_at = time.monotonic()
            try:
                found = await cache.list_sessions(profile_name="mate", username="alice")
            except CacheUnavailable:
                reads.refused += 1
                continue
            if found is not None:
                answered_at = time.monotonic()
                reads.told(number_of(found), asked_at, found.oldest_age, answered_at)


# Prints each answer of a filled mirror: when it was asked for, its listing, its age, when it was answered.
READER = """
import sys, time, json
from x2gofleet import CacheUnavailable, FleetCache
cache = FleetCache.from_url(sys.argv[1], mirror=True)
while not cache._mirror.now.held:
    try:
        cache.is_cached("mate")
    except CacheUnavailable:
        pass
    time.sleep(0.01)
while True:
    time.sleep(0.003)
    asked_at = time.monotonic()
    try:
        found = cache.list_sessions(profile_name="mate", username="alice")
    except CacheUnavailable:
        continue
    if found is not None:
        answered_at = time.monotonic()
        age = found.oldest_age
        (name,) = found
        print(json.dumps([int(name.split("-")[2].partition("_")[0]), asked_at, age, answered_at]), flush=True)
"""


@dataclass
class Scene:
    """One Redis behind a wire, a writer, and readers of each sort."""

    valkey: OwnValkey
    wire: Wire
    writers_wire: Wire
    writer: Writer
    mirror: FleetCache
    reads: dict[str, Reads]
    process: subprocess.Popen[str]

    def follows(self) -> bool:
        """Whether the mirror by itself tells of a listing that is being written now."""
        newest = self.writer.stored
        with contextlib.suppress(CacheUnavailable):
            self.mirror.is_cached("mate")
        found = self.mirror._mirror.answer(
            "sessions", "a test's", lambda asked: asked.list_sessions(profile_name="mate", username="alice")
        )
        told = [each.newest for each in self.reads.values()]
        return found is not None and newest - min(number_of(found), *told) <= 1

    def healed(self) -> float:
        """Wait until all follow listings that were stored from now on; return the seconds that took."""
        before, began = self.writer.stored, time.monotonic()
        wait_until(lambda: self.writer.stored > before, "the worker writes again")
        wait_until(self.follows, "all follow again")
        return time.monotonic() - began

    def last(self, seconds: float) -> None:
        """Let a fault last."""
        time.sleep(seconds)


@contextlib.contextmanager
def scene(*, environment: Mapping[str, str] | None = None, tolerance: float = TOLERANCE_SECONDS) -> Iterator[Scene]:
    """Begin to write and to read; ends with checking what all readers were told.

    ``environment`` is Redis's. ``tolerance`` is by how many seconds an age may be understated.
    """
    history, stop = History(), threading.Event()
    names = ("mirror", "async mirror", "direct", "mirror in another process")
    reads = {name: Reads(name, history, tolerance) for name in names}
    with ExitStack() as stack:
        valkey = OwnValkey()
        stack.callback(valkey.close)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            valkey.start()
        wire = stack.enter_context(Wire(valkey.socket))
        writers_wire = stack.enter_context(Wire(valkey.socket))
        writer = stack.enter_context(Writer(writers_wire.url, history))
        mirror = stack.enter_context(FleetCache.from_url(wire.url, mirror=True))
        direct = stack.enter_context(FleetCache.from_url(wire.url))
        process = subprocess.Popen([sys.executable, "-c", READER, wire.url], stdout=subprocess.PIPE, text=True)
        output = process.stdout
        assert output is not None

        def follow() -> None:
            for line in output:
                number, asked_at, age, answered_at = json.loads(line)
                reads["mirror in another process"].told(number, asked_at, age, answered_at)

        threads = [
            threading.Thread(target=read, args=(reads["mirror"], mirror, stop)),
            threading.Thread(target=read, args=(reads["direct"], direct, stop)),
            threading.Thread(target=lambda: asyncio.run(read_awaiting(reads["async mirror"], wire.url, stop))),
            threading.Thread(target=follow),
        ]
        for thread in threads:
            thread.start()
        made = Scene(valkey, wire, writers_wire, writer, mirror, reads, process)
        try:
            wait_until(made.follows, "the mirror follows")
            wait_until(lambda: all(each.count > 10 for each in reads.values()), "all read")
            yield made
        finally:
            stop.set()
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()
            for thread in threads:
                thread.join(HANG_SECONDS)
            output.close()
    problems = [problem for each in reads.values() for problem in each.problems]
    assert problems == []


Fault = Callable[[Scene], None]


def kill_clients(made: Scene) -> None:
    for _ in range(10):
        made.valkey.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        made.last(0.1)


def cut(mode: str, seconds: float) -> Fault:
    def do(made: Scene) -> None:
        made.wire.set(mode)
        made.last(seconds)
        made.wire.set("")

    return do


def stop_redis(seconds: float) -> Fault:
    def do(made: Scene) -> None:
        made.valkey.signal(signal.SIGSTOP)
        made.last(seconds)
        made.valkey.signal(signal.SIGCONT)

    return do


def flush(made: Scene) -> None:
    made.valkey.client.flushall()


def restart_empty(made: Scene) -> None:
    made.valkey.kill()
    made.last(0.5)
    made.valkey.start()


def stop_reader(seconds: float) -> Fault:
    def do(made: Scene) -> None:
        made.process.send_signal(signal.SIGSTOP)
        made.last(seconds)
        made.process.send_signal(signal.SIGCONT)

    return do


FAULTS: dict[str, Fault] = {
    "CLIENT KILL": kill_clients,
    "cut, shorter than the ttl": cut("held", 1.0),
    "cut, longer than the ttl": cut("held", 3.0),
    "blackhole, shorter than the ttl": cut("swallowed", 1.0),
    "blackhole, longer than the ttl": cut("swallowed", 3.0),
    "refused": cut("refused", 1.0),
    "Redis stopped, shorter than the ttl": stop_redis(1.0),
    "Redis stopped, longer than the ttl": stop_redis(3.0),
    "FLUSHALL": flush,
    "restart, empty": restart_empty,
    "reader stopped, shorter than the ttl": stop_reader(1.0),
    "reader stopped, longer than the ttl": stop_reader(3.0),
}


def tell(capsys: pytest.CaptureFixture[str], fault: str, made: Scene, took: float) -> None:
    """Print the oldest age that was served."""
    oldest = {name: max(reads.oldest, 0.0) for name, reads in made.reads.items()}
    told = ", ".join(f"{name} {age:.2f}" for name, age in oldest.items())
    with capsys.disabled():
        print(f"\n{fault}: oldest age served (s, ttl {TTL_SECONDS:g}): {told}; fresh again {took:.2f} s after the heal")


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_older_than_its_ttl_is_told(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with scene() as made:
        FAULTS[fault](made)
        took = made.healed()
    tell(capsys, fault, made, took)
    assert took <= HEALED_SECONDS


def test_a_replica_that_is_promoted_is_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with scene() as made, contextlib.closing(OwnValkey()) as replica:
        replica.start()
        # Replication needs TCP.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made.valkey.client.config_set("port", port)
        replica.client.replicaof("127.0.0.1", port)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", "it replicates")
        made.last(0.5)
        made.valkey.kill()
        made.last(0.3)
        replica.client.execute_command("REPLICAOF", "NO", "ONE")
        for wire in (made.wire, made.writers_wire):
            wire.target = replica.socket
            wire.set("refused")
            wire.set("")
        took = made.healed()
    tell(capsys, "failover to a replica", made, took)
    assert took <= HEALED_SECONDS


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_step_of_the_clock_of_redis(seconds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who reads between the step and the next write is told an age by a clock that was set back."""
    clock = SteppedClock(tmp_path)
    with scene(environment=clock.environment, tolerance=3 * WRITE_SECONDS + 0.5) as made:
        clock.step_to(seconds)
        made.last(1.0)
        took = made.healed()
        clock.step_to(0)
        made.last(1.0)
        took = max(took, made.healed())
    tell(capsys, f"Redis's clock stepped by {seconds:+d} s and back", made, took)
    assert took <= HEALED_SECONDS
