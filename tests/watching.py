"""Readers that ask all the time while a Redis is broken on purpose, and judge each answer that they are given."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.processes import LiveFleet, live_fleet
from tests.waiting import wait_until
from x2gofleet.aio import AsyncFleetCache
from x2gofleet.cache import FleetCache
from x2gofleet.errors import CacheUnavailable
from x2gofleet.model import SessionList
from x2gofleet.snapshot import Snapshot

PAUSE_SECONDS = 0.01
SLOWEST_SECONDS = 2.0
# The clocks of a reader and of Redis are the same here, but are not read at the same moment.
CLOCK_SECONDS = 0.05


@dataclass
class Reader:
    """What one reader was told: times are of time.monotonic, in seconds."""

    name: str
    answered: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    oldest: float = 0.0

    def took(self, began: float) -> None:
        """Take in how long a call took."""
        self.slowest = max(self.slowest, time.monotonic() - began)

    def without_answers(self, since: float) -> float:
        """Return the longest time without an answer since then."""
        times = [since, *(at for at in self.answered if at > since)]
        return max((after - before for before, after in pairwise(times)), default=0.0)


@dataclass
class Judge:
    """Knows what every answer must hold: these sessions at least, and nothing older than the TTL."""

    names: frozenset[str]
    ttl_seconds: float

    def sessions(self, reader: Reader, found: SessionList | None) -> None:
        """Judge an answer of ``list_sessions``."""
        if found is None:
            reader.wrong.append("not cached")
            return
        lacking = self.names - set(found)
        if lacking or found.missing_servers:
            reader.wrong.append(f"{len(lacking)} sessions and the servers {found.missing_servers} are missing")
        self._age(reader, found.oldest_age or 0.0)

    def snapshots(self, reader: Reader, asked_at: float, found: Collection[Snapshot]) -> None:
        """Judge an answer of ``snapshots`` to a question of ``asked_at`` (time.time)."""
        if not found:
            reader.wrong.append("no snapshots")
        for snapshot in found:
            self._age(reader, snapshot.age)
            self._age(reader, asked_at - snapshot.polled_at_ms / 1000 - CLOCK_SECONDS)

    def _age(self, reader: Reader, seconds: float) -> None:
        reader.oldest = max(reader.oldest, seconds)
        if seconds > self.ttl_seconds:
            reader.wrong.append(f"{seconds:.2f} s old")


def _refused(reader: Reader, exc: Exception) -> None:
    if isinstance(exc, CacheUnavailable):
        reader.refused[exc.reason.value] += 1
    else:
        reader.wrong.append(f"{type(exc).__name__}: {exc}")


def _ask(reader: Reader, cache: FleetCache, judge: Judge, over: threading.Event) -> None:
    while not over.wait(PAUSE_SECONDS):
        began, asked_at = time.monotonic(), time.time()
        try:
            if len(reader.answered) % 2:
                judge.snapshots(reader, asked_at, cache.snapshots(profile_name="all", kind="sessions"))
            else:
                judge.sessions(reader, cache.list_sessions(profile_name="all"))
            reader.answered.append(time.monotonic())
        except Exception as exc:
            _refused(reader, exc)
        reader.took(began)


async def _ask_async(reader: Reader, cache: AsyncFleetCache, judge: Judge, over: threading.Event) -> None:
    while not over.is_set():
        began, asked_at = time.monotonic(), time.time()
        try:
            if len(reader.answered) % 2:
                judge.snapshots(reader, asked_at, await cache.snapshots(profile_name="all", kind="sessions"))
            else:
                judge.sessions(reader, await cache.list_sessions(profile_name="all"))
            reader.answered.append(time.monotonic())
        except Exception as exc:
            _refused(reader, exc)
        reader.took(began)
        await asyncio.sleep(PAUSE_SECONDS)


@dataclass
class Watch:
    """Readers at work; ``began`` is when, on time.monotonic."""

    readers: list[Reader]
    began: float = field(default_factory=time.monotonic)

    def answer_again(self, what: str) -> float:
        """Wait until each reader has an answer to a question of from now on; return the seconds."""
        counts = [len(reader.answered) for reader in self.readers]
        return wait_until(
            # One answer may have been under way.
            lambda: all(len(reader.answered) >= count + 2 for reader, count in zip(self.readers, counts, strict=True)),
            f"every reader is answered again after {what}",
        )

    def report(self, what: str) -> None:
        """Print what the readers met."""
        for kind in dict.fromkeys(reader.name for reader in self.readers):
            same = [reader for reader in self.readers if reader.name == kind]
            refused = sum((reader.refused for reader in same), Counter[str]())
            print(
                f"{what}: {kind}: {sum(len(reader.answered) for reader in same)} answers, longest time without one "
                f"{max(reader.without_answers(self.began) for reader in same):.2f} s, refused {dict(refused)}, slowest "
                f"call {max(reader.slowest for reader in same):.2f} s, oldest snapshot "
                f"{max(reader.oldest for reader in same):.1f} s"
            )

    def check(self) -> None:
        """Fail where an answer was wrong, or a call took longer than it may."""
        for reader in self.readers:
            assert reader.answered, f"{reader.name} was never answered: {reader.refused}"
            assert reader.wrong == [], f"{reader.name}: {Counter(reader.wrong).most_common(5)}"
            assert reader.slowest < SLOWEST_SECONDS, f"a call of {reader.name} took {reader.slowest:.2f} s"


@contextmanager
def readers_of(
    open_cache: Callable[[], FleetCache],
    open_async: Callable[[], AsyncFleetCache],
    judge: Judge,
    *,
    threads: int = 3,
    tasks: int = 3,
) -> Iterator[Watch]:
    """Have threads share a FleetCache, and tasks an AsyncFleetCache, and ask without end until the block is over."""
    over = threading.Event()
    in_threads = [Reader("FleetCache") for _ in range(threads)]
    in_tasks = [Reader("AsyncFleetCache") for _ in range(tasks)]

    async def ask_all() -> None:
        async with open_async() as shared:
            await asyncio.gather(*(_ask_async(reader, shared, judge, over) for reader in in_tasks))

    with open_cache() as cache:
        running = [threading.Thread(target=_ask, args=(reader, cache, judge, over)) for reader in in_threads]
        running.append(threading.Thread(target=lambda: asyncio.run(ask_all())))
        watch = Watch([*in_threads, *in_tasks])
        for thread in running:
            thread.start()
        try:
            yield watch
        finally:
            over.set()
            for thread in running:
                thread.join()


def check_owned(fleet: LiveFleet) -> None:
    """Check that both workers own servers: a lease whose last write was lost is taken anew within a tick."""
    wait_until(lambda: {server.owner for server in fleet.cache.servers()} == {"w1", "w2"}, "both own servers")


@contextmanager
def working_fleet(tmp_path: Path, url: str, *, servers: int, ttl_seconds: float) -> Iterator[tuple[LiveFleet, Watch]]:
    """A fleet that two workers write to ``url``, and readers of every kind at work on it."""
    with live_fleet(tmp_path, servers=servers) as fleet, FleetCache.from_url(url) as cache:
        fleet.cache = cache
        inventory = fleet.write_inventory(sessions=1, load=5)
        for name in ("w1", "w2"):
            fleet.start(name, inventory, url=url)
        wait_until(fleet.is_full, "every server is polled")
        check_owned(fleet)
        judge = Judge(frozenset(fleet.session_names()), ttl_seconds)
        assert judge.names
        with readers_of(lambda: FleetCache.from_url(url), lambda: AsyncFleetCache.from_url(url), judge) as watch:
            watch.answer_again("the start")
            yield fleet, watch
