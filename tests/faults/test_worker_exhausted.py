"""A real worker process without file descriptors or threads says so once, blames no server, and recovers by itself."""

from __future__ import annotations

import math
import os
import re
import resource
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import LiveFleet, WorkerProcess, live_fleet
from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.lookup import ServerStatus

pytestmark = pytest.mark.faults

SERVERS = 6
NO_THREADS = Path(__file__).parents[1] / "support" / "no_threads"
# Retries come after 2 s at most, so that each target was tried more than once.
SHORT_SECONDS = 6.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as running:
        running.valkey.start()
        yield running


class Descriptors:
    """Takes all descriptors from a worker that it has not got yet."""

    environment: dict[str, str]
    resource = "file descriptors"

    def __init__(self, folder: Path) -> None:
        self.environment = {}
        self._before = (0, 0)

    def take(self, worker: WorkerProcess) -> None:
        self._before = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (3, self._before[1]))

    def give_back(self, worker: WorkerProcess) -> None:
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, self._before)


class Threads:
    """Lets a worker start no thread."""

    resource = "threads"

    def __init__(self, folder: Path) -> None:
        self._forbidden = folder / "no-threads"
        path = os.pathsep.join(filter(None, [str(NO_THREADS), os.environ.get("PYTHONPATH", "")]))
        self.environment = {"PYTHONPATH": path, "NO_THREADS": str(self._forbidden)}

    def take(self, worker: WorkerProcess) -> None:
        self._forbidden.touch()

    def give_back(self, worker: WorkerProcess) -> None:
        self._forbidden.unlink()


def exhausted_total(worker: WorkerProcess) -> float:
    with urllib.request.urlopen(worker.metrics_url(), timeout=HANG_SECONDS) as answer:
        found = re.search(r"^x2gofleet_worker_exhausted_total (\S+)$", answer.read().decode(), re.M)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("shortage", [Descriptors, Threads])
def test_a_worker_that_can_connect_to_nobody_blames_no_server_and_recovers(
    shortage: Callable[[Path], Descriptors | Threads], fleet: LiveFleet, tmp_path: Path
) -> None:
    """It has connections to some servers, and is to take over those of a worker that ends."""
    lack = shortage(tmp_path)
    inventory = fleet.write_inventory(sessions=0.5, load=0)
    worker = fleet.start("w1", inventory, "--metrics-port", "0", **lack.environment)
    fleet.start("w2", inventory)
    fleet.wait_for_shares("w1", "w2")
    gained = {name for name, owner in fleet.owners().items() if owner == "w2"}
    before = exhausted_total(worker)

    def age(server: str) -> float:
        found = fleet.cache.snapshots(server=server, kind="sessions")
        return found[0].age if found else math.inf

    def blamed() -> list[ServerStatus]:
        return [status for status in fleet.cache.servers() if status.up is False or status.failures]

    lack.take(worker)
    fleet.workers.pop("w2").stop()
    wait_until(lambda: f"this worker ran out of {lack.resource}" in worker.said, "it says what it lacks")
    wait_until(lambda: all(age(name) > SHORT_SECONDS for name in gained), "nobody polls what it gained")
    wait_until(lambda: all(age(name) < SHORT_SECONDS for name in fleet.simulation.servers if name not in gained))
    assert blamed() == []
    lack.give_back(worker)
    wait_until(lambda: all(age(name) < SHORT_SECONDS for name in fleet.simulation.servers), "all are polled again")
    wait_until(lambda: "has the file descriptors, threads and memory it needs again" in worker.said, "it says so")
    assert blamed() == []
    assert exhausted_total(worker) >= before + len(gained)
    assert len(re.findall("ran out of", worker.said)) == 1, worker.said
    (complaint,) = re.findall(r" (?:WARNING|ERROR) .*", worker.said)
    assert "Retrying until there are enough again; no server is to blame" in complaint
    fleet.check_workers()


@pytest.mark.parametrize("shortage", [Descriptors])
def test_a_changed_inventory_that_could_not_be_read_is_read_later(
    shortage: Callable[[Path], Descriptors], fleet: LiveFleet, tmp_path: Path
) -> None:
    lack = shortage(tmp_path)
    worker = fleet.start("w1", inventory := fleet.write_inventory(sessions=0.5, load=0), "--metrics-port", "0")
    fleet.wait_for_shares("w1")
    lack.take(worker)
    fleet.write_inventory(sessions=0.6, load=0)
    wait_until(lambda: "the changed inventory" in worker.said, "it says that it can't be read")
    lack.give_back(worker)
    wait_until(lambda: f"inventory {inventory}: {SERVERS} target(s)" in worker.said, "it is in force")
    assert "refused" not in worker.said
    fleet.check_workers()
