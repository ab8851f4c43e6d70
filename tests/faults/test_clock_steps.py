"""The machine clock of one worker is stepped by an hour: its polls keep their cadence, and ages stay right."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.processes import LiveFleet, live_fleet
from tests.waiting import wait_until
from x2gofleet import Snapshot

pytestmark = pytest.mark.faults

SERVERS = 6
INTERVAL_SECONDS = 0.5
HOUR = 3600
# A step is seen within a second; then the phase of the new time is waited for.
GAP_SECONDS = 1.0 + 2 * INTERVAL_SECONDS + 1.5
STORM_POLLS = 1.0 / INTERVAL_SECONDS + 2
AFTERWARDS_POLLS = 6


def libfaketime() -> Path:
    """Return the library that steps a process's clock, or skip."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        reason = "libfaketime is not installed: tests/e2e/setup.sh installs it (Debian: faketime)"
        if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found[0]


class SteppedClock:
    """The wall clock of one process, off by as many seconds as a file says; its monotonic clock stays true."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.environment = {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Times of files are the file system's, whatever the clock says.
            "NO_FAKE_STAT": "1",
        }
        self.step_to(0)

    def step_to(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> SteppedClock:
    return SteppedClock(tmp_path)


@pytest.fixture
def fleet(tmp_path: Path, clock: SteppedClock) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        inventory = made.write_inventory(sessions=INTERVAL_SECONDS, load=0)
        made.start("w1", inventory, **clock.environment)
        made.start("w2", inventory)
        made.wait_for_shares("w1", "w2")
        wait_until(lambda: all(each.age < 2 * INTERVAL_SECONDS for each in snapshots(made)), "cadence is even")
        yield made


def snapshots(fleet: LiveFleet) -> tuple[Snapshot, ...]:
    return fleet.cache.snapshots(profile_name="all", kind="sessions")


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_step_and_the_way_back(fleet: LiveFleet, clock: SteppedClock, seconds: int) -> None:
    owners = fleet.owners()
    fences = {name: fleet.valkey.client.hget(fleet.keys.lease(name), "fence") for name in owners}
    stepped = [name for name, worker in owners.items() if worker == "w1"]
    for offset, step in ((seconds, seconds), (0, -seconds)):
        told = fleet.workers["w1"].said.count("the clock was stepped")
        at = time.monotonic()
        clock.step_to(offset)
        oldest, youngest, samples = watched_ages(fleet, stepped)
        wait_until(lambda told=told: fleet.workers["w1"].said.count("the clock was stepped") > told, "it is told")  # type: ignore[misc]
        gaps, storm = [], []
        for name in stepped:
            times = [each for each in fleet.simulation.server(name).counters.poll_times if each > at - 1]
            gaps.append(max(after - before for before, after in pairwise(times)))
            storm.append(sum(at <= each < at + 1 for each in times))
        print(
            f"step of {step:+d} s: longest gap {max(gaps):.2f} s, most polls of a server in the second after "
            f"{max(storm)}, ages from {youngest:.3f} to {oldest:.2f} s in {samples} samples"
        )
        assert max(gaps) < GAP_SECONDS
        assert max(storm) <= STORM_POLLS
        assert 0 <= youngest <= oldest < GAP_SECONDS
        assert f"the clock was stepped by {step:.1f} s" in fleet.workers["w1"].said
    assert fleet.owners() == owners
    assert {name: fleet.valkey.client.hget(fleet.keys.lease(name), "fence") for name in owners} == fences
    assert "stepped" not in fleet.workers["w2"].said
    fleet.check_workers()


def watched_ages(fleet: LiveFleet, names: list[str]) -> tuple[float, float, int]:
    """Read until each server was polled some more; return the greatest and the least age seen, and the reads."""
    before = fleet.polls()
    ages: list[float] = []

    def polled() -> bool:
        found = snapshots(fleet)
        assert len(found) == SERVERS, "no snapshot is ever missing"
        ages.extend(snapshot.age for snapshot in found)
        now_ms = time.time() * 1000
        assert all(snapshot.polled_at_ms <= now_ms + 1 for snapshot in found)
        polls = fleet.polls()
        return all(polls[name] >= before[name] + AFTERWARDS_POLLS for name in names)

    wait_until(polled, "the servers of the worker with the stepped clock are polled on")
    return max(ages), min(ages), len(ages) // SERVERS
