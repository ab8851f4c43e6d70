"""The network between one worker and Redis is cut: it stops before another takes over, writes nothing late, rejoins."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from x2gofleet_workers.ownership import LEASE_TTL_SECONDS, TICK_SECONDS

from tests.processes import LiveFleet, live_fleet
from tests.waiting import HANG_SECONDS, PATIENT, SLACK_SECONDS, wait_until
from tests.wires import Wire
from x2gofleet.connection import client_from_url
from x2gofleet.kinds import Kind

pytestmark = pytest.mark.faults

SERVERS = 6
INTERVAL_SECONDS = 0.5
# A poll that began just before, and a busy machine.
REJOINED_WITHIN_SECONDS = 10.0 + SLACK_SECONDS


@dataclass(frozen=True)
class Sample:
    """What Redis holds of one target at one time."""

    owner: str
    lease_fence: int
    fence: int
    seq: int
    polled_at: int


class Sampler:
    """Reads leases and snapshots all the time, each target's in one piece; keeps what changed."""

    def __init__(self, fleet: LiveFleet) -> None:
        self._client = client_from_url(fleet.valkey.url, **PATIENT)
        self._keys, self._names = fleet.keys, tuple(fleet.simulation.servers)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[str, list[tuple[float, Sample]]] = {name: [] for name in self._names}
        self.count = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            pipeline = self._client.pipeline(transaction=True)
            for name in self._names:
                pipeline.hmget(self._keys.lease(name), "owner", "fence")
                pipeline.hmget(self._keys.snapshot(name, Kind.SESSIONS), "fence", "seq", "polled_at")
            replies = pipeline.execute()
            now = time.monotonic()
            for name, lease, snapshot in zip(self._names, replies[::2], replies[1::2], strict=True):
                owner, lease_fence = (lease[0] or b"").decode(), int(lease[1] or 0)
                sample = Sample(owner, lease_fence, *(int(value or 0) for value in snapshot))
                known = self.samples[name]
                if not known or known[-1][1] != sample:
                    known.append((now, sample))
            self.count += 1
            self._stop.wait(0.005)

    def stale_writes(self) -> int:
        """Return how many snapshots were written by another than the holder of the lease."""
        stale = 0
        for samples in self.samples.values():
            before: Sample | None = None
            for _, sample in samples:
                written = before is not None and (sample.fence, sample.seq) != (before.fence, before.seq)
                stale += bool(written and sample.lease_fence and sample.fence != sample.lease_fence)
                stale += bool(before and sample.polled_at and sample.polled_at < before.polled_at)
                before = sample
        return stale

    def taken_at(self, name: str, owner: str, *, since: float) -> float:
        """Return the monotonic time at which a worker took a target: a fence is the time of Redis in ms."""
        fence = next(sample.lease_fence for at, sample in self.samples[name] if at >= since and sample.owner == owner)
        return fence / 1000 - (time.time() - time.monotonic())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HANG_SECONDS)
        self._client.close()


def polls_of(url: str) -> int:
    """Return how many polls a worker made that were answered, by its metrics."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        found = re.findall(r"^x2gofleet_poll_seconds_count\S* (\S+)", reply.read().decode(), re.MULTILINE)
    assert found
    return int(sum(float(value) for value in found))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        yield made


@pytest.fixture
def wire(fleet: LiveFleet) -> Iterator[Wire]:
    with Wire(fleet.valkey.socket) as made:
        yield made


@pytest.mark.parametrize("how", ["held", "swallowed", "refused"])
def test_a_worker_that_is_cut_off(fleet: LiveFleet, wire: Wire, how: str) -> None:
    inventory = fleet.write_inventory(sessions=INTERVAL_SECONDS, load=0)
    worker = fleet.start("w1", inventory, "--metrics-port", "0", url=wire.url)
    fleet.start("w2", inventory)
    fleet.wait_for_shares("w1", "w2")
    url = worker.metrics_url()
    cut = [name for name, owner in fleet.owners().items() if owner == "w1"]
    with Sampler(fleet) as sampler:
        wait_until(lambda: all(len(found) > 3 for found in sampler.samples.values()), "writes are seen")
        at = time.monotonic()
        wire.set(how)
        took = wait_until(lambda: fleet.shares() == {"w2": SERVERS}, "the other takes over")
        polled = polls_of(url)
        polls = fleet.polls()
        wait_until(lambda: all(fleet.polls()[name] >= polls[name] + 4 for name in cut), "the other polls them")
        assert polls_of(url) == polled, "who is cut off polls nothing after the takeover"
        assert fleet.is_full()
        last, gap = 0.0, 0.0
        for name in cut:
            taken = sampler.taken_at(name, "w2", since=at)
            times = fleet.simulation.server(name).counters.poll_times
            before = [each for each in times if each <= taken]
            last = max(last, before[-1] - at)
            gap = max(gap, next(each for each in times if each > taken) - before[-1])
        healed = time.monotonic()
        wire.set("")
        wait_until(lambda: fleet.shares() == {"w1": 3, "w2": 3}, "it is back")
        wait_until(lambda: polls_of(url) >= polled + 6, "it polls again")
        back = time.monotonic() - healed
        wait_until(fleet.is_full, "readers find all")
        assert len(fleet.cache.update("all", timeout=10)) == SERVERS
    stale = sampler.stale_writes()
    print(
        f"{how}: last poll {last:.2f} s after the cut, taken over after {took:.2f} s, longest gap {gap:.2f} s, back "
        f"{back:.2f} s after the heal, {wire.held_writes} late writes delivered, {stale} accepted "
        f"({sampler.count} samples)"
    )
    assert took < LEASE_TTL_SECONDS + TICK_SECONDS + SLACK_SECONDS
    assert back < REJOINED_WITHIN_SECONDS
    assert stale == 0
    assert how != "held" or wire.held_writes > 0
    fleet.check_workers()
