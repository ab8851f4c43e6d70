"""Two hundred simulated servers with a change a second on each, polled on notice: without and with a user who toggles.

The simulated servers and this benchmark run on one core, the worker on the other. ``--servers N --seconds S`` for a
smaller run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis
from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.polling.notices import BURST, REFILL_SECONDS
from x2gofleet_workers.simulator import RunningSimulation, running_simulation
from x2gofleet_workers.simulator.simulation import ServerHandle

from tests.bench.bench_worker import _cpu_seconds, _process, _until
from tests.e2e.realserver import free_port
from x2gofleet.connection import client_from_url
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

Row = tuple[str, str, float, str]
SERVERS = 200
SECONDS = 60.0
INTERVAL_SECONDS = 5.0
SETTLE_SECONDS = 5.0
# X2Go's own commands take some 30 ms for a change: more than any user can cause.
TOGGLES_PER_SECOND = 100.0
# Polls at the interval may be late by so much before one counts as missed.
LATE_SECONDS = 1.0
KINDS = {"S": "suspended", "R": "resumed"}


@dataclass
class Toggled:
    """A session that is suspended and resumed in turn, and when it was."""

    server: ServerHandle
    session: str
    at: dict[str, list[float]] = field(default_factory=lambda: {"S": [], "R": []})
    _running: bool = True

    def toggle(self) -> None:
        change = self.server.suspend if self._running else self.server.resume
        self._running = not self._running
        change(self.session)
        self.at["R" if self._running else "S"].append(time.time())


@dataclass(frozen=True, slots=True)
class Measured:
    """What some seconds of changes came to; ``late`` are seconds from each change to its write in Redis."""

    late: list[float]
    unseen: int
    changes: int
    toggles: int
    polls_of_toggled: int
    longest_gap_seconds: float
    missed: int
    cpu_cores: float
    redis_bytes_per_second: float
    redis_cpu_cores: float

    @property
    def p50(self) -> float:
        return statistics.median(self.late)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.late, n=100)[98]


class Scale:
    """The servers, the worker that polls them, and what is measured of both."""

    def __init__(self, simulation: RunningSimulation, client: redis.Redis, pid: int, port: int) -> None:
        self._simulation, self._client, self._pid, self._port = simulation, client, pid, port
        self._keys = Keys()
        self._all = {
            name: Toggled(server, server.start_session("carol", ready=True))
            for name, server in simulation.servers.items()
        }
        self._toggled = next(iter(self._all))

    def is_polled(self) -> bool:
        names = [self._keys.snapshot(name, Kind.SESSIONS) for name in self._all]
        return int(self._client.exists(*names)) == len(names)

    def _metric(self, *names: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        found = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return sum(float(value) for name, _, value in found if name.partition("{")[0] in names)

    def _missed(self) -> float:
        return self._metric("x2gofleet_missed_runs_total", "x2gofleet_overlapping_runs_total")

    def measure(self, seconds: float, *, toggling: bool) -> Measured:
        """Change each server once a second; with ``toggling`` the first one as fast as it can be."""
        for each in self._all.values():
            each.at = {"S": [], "R": []}
        before, cpu, missed = self._redis(), _cpu_seconds(self._pid), self._missed()
        began, wall = time.monotonic(), time.time()
        polls = self._simulation.server(self._toggled).counters.polls
        stop, toggles = threading.Event(), [0]
        thread = threading.Thread(target=self._toggle, args=(stop, toggles), daemon=True)
        if toggling:
            thread.start()
        self._change_all(began + seconds)
        stop.set()
        if toggling:
            thread.join()
        took = time.monotonic() - began
        after, cpu = self._redis(), _cpu_seconds(self._pid) - cpu
        polls = self._simulation.server(self._toggled).counters.polls - polls
        time.sleep(SETTLE_SECONDS)
        late, unseen, changes = self._late(wall)
        return Measured(
            late,
            unseen,
            changes,
            toggles[0],
            polls,
            self._longest_gap(began, began + took),
            int(self._missed() - missed + self._metric("x2gofleet_stale_targets")),
            cpu / took,
            (after["bytes"] - before["bytes"]) / took,
            (after["cpu"] - before["cpu"]) / took,
        )

    def _change_all(self, until: float) -> None:
        others = [each for name, each in self._all.items() if name != self._toggled]
        turn = 0
        next_at = time.monotonic()
        while time.monotonic() < until:
            others[turn % len(others)].toggle()
            turn += 1
            next_at += 1 / len(others)
            time.sleep(max(0.0, next_at - time.monotonic()))

    def _toggle(self, stop: threading.Event, toggles: list[int]) -> None:
        while not stop.wait(1 / TOGGLES_PER_SECOND):
            self._all[self._toggled].toggle()
            toggles[0] += 1

    def _redis(self) -> dict[str, float]:
        stats: Any = self._client.info("stats")
        cpu: Any = self._client.info("cpu")
        return {
            "bytes": stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
            "cpu": cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        }

    def _late(self, since: float) -> tuple[list[float], int, int]:
        """Return how late each change of the others was, how many were not seen at all, and how many there were.

        The id of an event is when Redis wrote it. One that was taken back before the next poll is not seen.
        """
        late: list[float] = []
        changes = 0
        for name, each in self._all.items():
            if name == self._toggled:
                continue
            changes += sum(map(len, each.at.values()))
            events: Any = self._client.xrange(self._keys.events(name), f"{int(since * 1000)}")
            for stream_id, fields in events:
                written = (int(stream_id.partition(b"-")[0]) + 1) / 1000
                for status, kind in KINDS.items():
                    place = bisect_right(each.at[status], written)
                    if fields[b"kind"] == kind.encode() and place:
                        late.append(written - each.at[status][place - 1])
        return late, changes - len(late), changes

    def _longest_gap(self, began: float, ended: float) -> float:
        """Return the longest time without a poll of a server."""
        gaps = [0.0]
        for server in self._simulation.servers.values():
            times = [began, *(at for at in server.counters.poll_times if began < at < ended), ended]
            gaps.append(max(after - before for before, after in pairwise(times)))
        return max(gaps)


@contextmanager
def scale(servers: int, interval: float) -> Iterator[Scale]:
    """Run simulated servers, a Valkey and one worker."""
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        valkey = stack.enter_context(EmbeddedValkey())
        simulation = stack.enter_context(running_simulation(servers, 5 * servers, directory=directory))
        with simulation.inventory.open("a") as file:
            file.write(f"\n[intervals]\nsessions = {interval}\nload = {interval}\nmounts = 0\n")
        port = free_port()
        run = ("run", "--inventory", str(simulation.inventory), "--redis-url", valkey.url, "--metrics-port", str(port))
        worker = stack.enter_context(_process(cpus[0], *run, log=directory / "worker.log"))
        client = stack.enter_context(client_from_url(valkey.url, command_timeout_seconds=30.0))
        made = Scale(simulation, client, worker.pid, port)
        _until(made.is_polled, f"{servers} servers are polled")
        yield made


def run(servers: int = SERVERS, seconds: float = SECONDS, interval: float = INTERVAL_SECONDS) -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement."""
    with scale(servers, interval) as measured:
        time.sleep(SETTLE_SECONDS)
        plain = measured.measure(seconds, toggling=False)
        toggled = measured.measure(seconds, toggling=True)
    base = f"without the toggling, p50 {plain.p50:.3f} s, p99 {plain.p99:.3f} s"
    what = f"{servers} servers, 1 toggled {toggled.toggles / seconds:.0f}/s: others' p50 {toggled.p50:.3f} s"
    rows: list[Row] = [
        (f"{what}, p99 {toggled.p99:.3f} s", base, toggled.p99 / plain.p99, "<= 1.5"),
        (
            f"changes of the others not seen: {toggled.unseen} of {toggled.changes}",
            f"without the toggling, {plain.unseen} of {plain.changes}",
            toggled.unseen / toggled.changes,
            "<= 0.001",
        ),
        (
            f"runs that were missed or overlapped, stale targets: {toggled.missed}",
            f"without the toggling, {plain.missed}",
            float(toggled.missed),
            "0",
        ),
        (
            f"longest time without a poll of a server {toggled.longest_gap_seconds:.2f} s",
            f"interval {interval:g} s and {LATE_SECONDS:g} s",
            toggled.longest_gap_seconds / (interval + LATE_SECONDS),
            "<= 1",
        ),
        (
            f"polls of the toggled server, {toggled.polls_of_toggled / seconds:.2f}/s",
            f"a burst of {BURST} and one each {REFILL_SECONDS:g} s, at the interval",
            toggled.polls_of_toggled / (BURST + seconds / REFILL_SECONDS + 2 * seconds / interval),
            "<= 1",
        ),
        (
            f"the worker takes {toggled.cpu_cores:.2f} of a core, Redis {toggled.redis_cpu_cores:.3f}",
            f"without the toggling, {plain.cpu_cores:.2f} and {plain.redis_cpu_cores:.3f}",
            toggled.cpu_cores / plain.cpu_cores,
            "",
        ),
        (
            f"Redis traffic {toggled.redis_bytes_per_second / 1000:.0f} kB/s",
            f"without the toggling, {plain.redis_bytes_per_second / 1000:.0f} kB/s",
            toggled.redis_bytes_per_second / plain.redis_bytes_per_second,
            "",
        ),
    ]
    return rows


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("--servers", type=int, default=SERVERS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    for what, baseline, found, goal in run(options.servers, options.seconds):
        print(f"{what:80} {found:8.3f}  {baseline:60} goal {goal}", flush=True)


if __name__ == "__main__":
    main()
