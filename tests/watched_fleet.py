"""Workers in processes of their own, and a thread that watches as a broker would what they do to the cache."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, PATIENT, SLACK_SECONDS, wait_until
from x2gofleet import FleetCache, Snapshot
from x2gofleet.connection import client_from_url
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

LEASE_SECONDS = 6.0
TICK_SECONDS = 1.0
BUSY_SECONDS = SLACK_SECONDS
"""What a machine with two busy cores may take longer than an idle one."""


def quantile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class WorkerProcess:
    """``python -m x2gofleet_workers run``; its metrics are served on a free port."""

    def __init__(self, inventory: Path, url: str, namespace: str, worker_id: str, *more: str, log: Path) -> None:
        self.id, self.log = worker_id, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(inventory)),
                    *("--redis-url", url, "--namespace", namespace, "--worker-id", worker_id, "--metrics-port", "0"),
                    *more,
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def metrics_url(self) -> str:
        """Return where its metrics are."""
        found = re.search(r"http://\S+/metrics", self.said)
        assert found, f"{self.id} serves no metrics: {self.said}"
        return found[0]

    def metrics(self) -> dict[str, float]:
        """Return each series and its value."""
        with urllib.request.urlopen(self.metrics_url(), timeout=HANG_SECONDS) as answer:
            text = answer.read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = HANG_SECONDS) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class WorkerFleet:
    """The workers that a test starts on one inventory, and what Redis says of who owns what."""

    def __init__(self, inventory: Path, url: str, namespace: str, targets: Iterable[str]) -> None:
        self.keys, self.targets = Keys(namespace), tuple(targets)
        self.client = client_from_url(url, **PATIENT)
        self.cache = FleetCache(self.client, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)
        self.workers: dict[str, WorkerProcess] = {}
        self._place = inventory, url, namespace

    def start(self, *ids: str, more: tuple[str, ...] = ()) -> None:
        inventory, url, namespace = self._place
        for name in ids:
            log = inventory.parent / f"{namespace}-{name}.log"
            self.workers[name] = WorkerProcess(inventory, url, namespace, name, *more, log=log)

    def owners(self) -> dict[str, str]:
        """Return target -> worker by the leases there are now."""
        pipeline = self.client.pipeline(transaction=False)
        for target in self.targets:
            pipeline.hget(self.keys.lease(target), "owner")
        return {target: owner.decode() for target, owner in zip(self.targets, pipeline.execute(), strict=True) if owner}

    def owned_by(self, worker: str) -> set[str]:
        return {target for target, owner in self.owners().items() if owner == worker}

    def share(self, *workers: str) -> bool:
        """Whether these workers and no others own all targets, each its part."""
        owners = self.owners()
        return len(owners) == len(self.targets) and set(owners.values()) == set(workers)

    def polled_by_owners(self) -> bool:
        """Whether the sessions of every target were stored by whoever owns it now."""
        owners = self.owners()
        pipeline = self.client.pipeline(transaction=False)
        for target in self.targets:
            pipeline.hget(self.keys.snapshot(target, Kind.SESSIONS), "worker")
        stored = pipeline.execute()
        return len(owners) == len(self.targets) and all(
            worker is not None and worker.decode() == owners[target]
            for target, worker in zip(self.targets, stored, strict=True)
        )

    def redis_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def close(self) -> None:
        for worker in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
            worker.close()
        self.client.close()


class Watcher:
    """Reads every target's sessions each 50 ms as a broker would, while its block lasts."""

    def __init__(self, url: str, namespace: str, targets: Iterable[str], *, profile: str = "all") -> None:
        client = client_from_url(url, **PATIENT)
        self._cache = FleetCache(client, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)
        self._profile, self._targets = profile, set(targets)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._newest: dict[str, Snapshot] = {}
        self.samples = 0
        self.missing: list[tuple[float, set[str]]] = []
        self.backwards: list[tuple[Snapshot, Snapshot]] = []
        self.polled_at_ms: dict[str, list[int]] = defaultdict(list)
        self.oldest_seconds = 0.0
        self.failure: BaseException | None = None

    def _watch(self) -> None:
        try:
            while not self._over.wait(0.05):
                self._look()
        except BaseException as exc:
            self.failure = exc

    def _look(self) -> None:
        found = self._cache.snapshots(profile_name=self._profile, kind="sessions")
        self.samples += 1
        missing = self._targets - {snapshot.target for snapshot in found}
        if missing:
            self.missing.append((time.monotonic(), missing))
        for snapshot in found:
            self.oldest_seconds = max(self.oldest_seconds, snapshot.age)
            before = self._newest.get(snapshot.target)
            self._newest[snapshot.target] = snapshot
            if before is None or snapshot.polled_at_ms != before.polled_at_ms:
                self.polled_at_ms[snapshot.target].append(snapshot.polled_at_ms)
            if before is not None and (
                _order(snapshot) < _order(before) or snapshot.polled_at_ms < before.polled_at_ms
            ):
                self.backwards.append((before, snapshot))

    def gaps(self) -> dict[str, float]:
        """Return the longest time between two polls of each target, in seconds."""
        return {
            target: max((late - early for early, late in itertools.pairwise(times)), default=0) / 1000
            for target, times in self.polled_at_ms.items()
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._over.set()
        self._thread.join(HANG_SECONDS)
        self._cache.close()
        if value is None and self.failure is not None:
            raise self.failure


def _order(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.fence, snapshot.seq


def pause(worker: WorkerProcess) -> None:
    """Stop a worker's process; return when it stands still."""
    worker.signal(signal.SIGSTOP)
    state = Path(f"/proc/{worker.process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the worker is stopped")
