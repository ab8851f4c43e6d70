"""Workers as processes on sixty servers: even shares, calm when one joins, no gap when one leaves, dies or hangs."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.waiting import wait_until

from ..watched_fleet import (  # noqa: TID252
    BUSY_SECONDS,
    LEASE_SECONDS,
    TICK_SECONDS,
    Watcher,
    WorkerFleet,
    pause,
    quantile,
)

pytestmark = pytest.mark.faults

SERVERS = 60
INTERVAL_SECONDS = 2.0
TTL_SECONDS = 15.0
THREE = ("w1", "w2", "w3")


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 180, directory=tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture(scope="module")
def inventory(simulation: RunningSimulation) -> Path:
    text = simulation.inventory.read_text().replace("[defaults]\n", "[defaults]\ndeadline = 60\n", 1)
    path = simulation.inventory.with_name("sixty.toml")
    path.write_text(f"{text}\n[intervals]\nsessions = {INTERVAL_SECONDS}\nload = 0\nmounts = 0\n")
    return path


@pytest.fixture
def fleet(simulation: RunningSimulation, inventory: Path, valkey_url: str, namespace: str) -> Iterator[WorkerFleet]:
    running = WorkerFleet(inventory, valkey_url, namespace, simulation.servers)
    try:
        yield running
    finally:
        running.close()
        for server in simulation.servers.values():
            server.clear_fault()


@pytest.fixture
def watcher(valkey_url: str, namespace: str, simulation: RunningSimulation) -> Watcher:
    return Watcher(valkey_url, namespace, simulation.servers)


def started(fleet: WorkerFleet, *ids: str) -> float:
    """Start workers and wait until each polls its part."""
    fleet.start(*ids)
    return wait_until(
        lambda: is_even(fleet, *ids) and fleet.polled_by_owners(), "all targets are polled by their owners, evenly"
    )


def shares(fleet: WorkerFleet) -> dict[str, int]:
    return dict(sorted(Counter(fleet.owners().values()).items()))


def is_even(fleet: WorkerFleet, *workers: str) -> bool:
    even = SERVERS / len(workers)
    found = shares(fleet)
    return set(found) == set(workers) and all(abs(count - even) <= 0.2 * even for count in found.values())


def test_shares_are_even_and_a_fourth_worker_moves_few_targets(
    fleet: WorkerFleet, watcher: Watcher, capsys: Any
) -> None:
    filled = started(fleet, *THREE)
    before, of_three = fleet.owners(), shares(fleet)
    with watcher:
        wait_until(lambda: watcher.samples >= 10, "it is watched")
        fleet.start("w4")
        moved_in = wait_until(lambda: is_even(fleet, *THREE, "w4"), "four even shares")
        wait_until(fleet.polled_by_owners, "the new owners poll")
        # A whole interval more: nothing is to go missing afterwards either.
        asked = fleet.redis_ms()
        wait_until(
            lambda: all(times[-1] > asked for times in watcher.polled_at_ms.values()), "each was polled once more"
        )
    after = fleet.owners()
    moved = [target for target in fleet.targets if before[target] != after[target]]
    with capsys.disabled():
        print(
            f"\n3 workers, {SERVERS} targets, filled in {filled:.1f} s: {of_three}; with a fourth {shares(fleet)}, "
            f"{len(moved)} moved in {moved_in:.1f} s; {watcher.samples} samples, missing in {len(watcher.missing)}, "
            f"oldest age {watcher.oldest_seconds:.1f} s, longest gap {max(watcher.gaps().values()):.1f} s"
        )
    assert len(after) == SERVERS
    assert len(moved) <= SERVERS / 4 + 6
    assert sum(after[target] != "w4" for target in moved) <= 6
    assert watcher.missing == []
    assert watcher.backwards == []


def test_a_killed_workers_targets_are_taken_over_before_a_snapshot_expires(
    fleet: WorkerFleet, watcher: Watcher, capsys: Any
) -> None:
    started(fleet, *THREE)
    theirs = fleet.owned_by("w2")
    with watcher:
        wait_until(lambda: watcher.samples >= 10, "it is watched")
        fleet.workers["w2"].signal(signal.SIGKILL)
        killed = fleet.redis_ms()
        leased = wait_until(lambda: fleet.share("w1", "w3"), "the others own all")
        polled = leased + wait_until(
            lambda: all(watcher.polled_at_ms[target][-1] > killed for target in theirs), "each is polled again"
        )
    with capsys.disabled():
        print(
            f"\nkill -9 of one of three with {len(theirs)} targets: leased by others after {leased:.1f} s (lease "
            f"{LEASE_SECONDS:g} s + tick {TICK_SECONDS:g} s), all polled after {polled:.1f} s; {watcher.samples} "
            f"samples, missing in {len(watcher.missing)}, oldest age {watcher.oldest_seconds:.1f} s"
        )
    assert 0 < len(theirs) <= SERVERS / 3 * 1.2
    assert leased <= LEASE_SECONDS + TICK_SECONDS + BUSY_SECONDS
    assert watcher.missing == []
    assert watcher.oldest_seconds < TTL_SECONDS
    assert watcher.backwards == []
    assert is_even(fleet, "w1", "w3")


def test_sigterm_hands_over_within_an_interval_also_beside_a_hung_server(
    fleet: WorkerFleet, watcher: Watcher, simulation: RunningSimulation, capsys: Any
) -> None:
    started(fleet, *THREE)
    theirs = sorted(fleet.owned_by("w3"))
    hung = simulation.server(theirs[0])
    hung.set_fault("hang")
    wait_until(lambda: hung.counters.running_polls == 1, "a poll hangs")
    with watcher:
        wait_until(lambda: watcher.samples >= 10, "it is watched")
        asked = fleet.redis_ms()
        fleet.workers["w3"].signal(signal.SIGTERM)
        began = time.monotonic()
        status = fleet.workers["w3"].wait()
        exited = time.monotonic() - began
        released = exited + wait_until(lambda: fleet.share("w1", "w2"), "the others own all")
        wait_until(
            lambda: all(times[-1] > asked + 2000 * INTERVAL_SECONDS for target, times in watcher.polled_at_ms.items()
                        if target != theirs[0]),
            "each was polled after the handover and again",
        )  # fmt: skip
    gaps = [gap for target, gap in watcher.gaps().items() if target != theirs[0]]
    with capsys.disabled():
        print(
            f"\nSIGTERM with a hung server: exit {exited:.2f} s, all owned by the others after {released:.2f} s, "
            f"longest time between two polls of a target p50 {quantile(gaps, 0.5):.1f} s, max {max(gaps):.1f} s at an "
            f"interval of {INTERVAL_SECONDS:g} s; {watcher.samples} samples, missing in {len(watcher.missing)}"
        )
    assert status == 0
    assert exited < 5.0
    assert released < 5.0 + TICK_SECONDS + BUSY_SECONDS
    assert max(gaps) <= 2 * INTERVAL_SECONDS + BUSY_SECONDS
    assert watcher.missing == []
    assert watcher.backwards == []


def test_a_worker_that_stood_still_longer_than_its_lease_writes_nothing_and_rejoins(
    fleet: WorkerFleet, watcher: Watcher, simulation: RunningSimulation, capsys: Any
) -> None:
    started(fleet, *THREE)
    theirs = fleet.owned_by("w1")
    servers = [simulation.server(name) for name in sorted(theirs)]
    for server in servers:
        server.set_fault("slow=0.7")
    with watcher:
        wait_until(lambda: sum(s.counters.running_polls for s in servers) >= 4, "answers are under way")
        pause(fleet.workers["w1"])
        under_way = [server.server_id for server in servers if server.counters.running_polls]
        taken_over = wait_until(lambda: fleet.share("w2", "w3"), "the others own all")
        wait_until(fleet.polled_by_owners, "the others have polled all")
        # What the stopped worker asked for waits in its sockets; its listings would hide this session.
        names = {name: simulation.server(name).start_session("latecomer", ready=True) for name in under_way}
        seen = lambda: {s.server for s in fleet.cache.find_sessions(username="latecomer").rows}  # type: ignore[union-attr]  # noqa: E731
        wait_until(lambda: seen() == set(names), "the new sessions are seen")
        fleet.workers["w1"].signal(signal.SIGCONT)
        samples = watcher.samples
        rejoined = wait_until(lambda: is_even(fleet, *THREE), "it has its share again")
        wait_until(fleet.polled_by_owners, "it polls again")
        assert seen() == set(names)
    metrics = fleet.workers["w1"].metrics()
    refused = metrics['x2gofleet_refused_writes_total{outcome="lost"}']
    losses = metrics["x2gofleet_lease_losses_total"]
    with capsys.disabled():
        print(
            f"\nSIGSTOP of one of three with {len(theirs)} targets and {len(under_way)} answers under way: taken over "
            f"in {taken_over:.1f} s; after SIGCONT stale writes accepted {len(watcher.backwards)} (of "
            f"{watcher.samples - samples} samples), refused {refused:.0f}, leases lost {losses:.0f}, rejoined in "
            f"{rejoined:.1f} s; missing in {len(watcher.missing)} samples"
        )
    assert watcher.backwards == []
    assert watcher.missing == []
    assert refused >= 1
    assert losses == len(theirs)
    assert "the lease is lost" in fleet.workers["w1"].said
    assert "Traceback" not in fleet.workers["w1"].said


def test_a_worker_of_twice_the_weight_polls_twice_as_many(fleet: WorkerFleet, capsys: Any) -> None:
    fleet.start("w1", "w2")
    fleet.start("heavy", more=("--weight", "2"))
    wait_until(lambda: fleet.share("w1", "w2", "heavy") and shares(fleet)["heavy"] == SERVERS / 2, "heavy has half")
    with capsys.disabled():
        print(f"\nweights 1, 1 and 2: {shares(fleet)}")
    assert all(abs(shares(fleet)[light] - SERVERS / 4) <= 3 for light in ("w1", "w2"))
