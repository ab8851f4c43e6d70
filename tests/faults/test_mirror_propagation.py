"""A change on a server is in the mirror of every process a moment after the listing that saw it."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests.processes import live_fleet
from tests.waiting import wait_until

MIRRORS = 20
CHANGES = 12

# Prints each set of sessions with when it was seen, in ms on the clock that Redis has too.
READER = """
import json, sys, time
from x2gofleet import CacheUnavailable, FleetCache
cache = FleetCache.from_url(sys.argv[1], mirror=True)
known = []
while True:
    try:
        found = cache.list_sessions(profile_name="all")
    except CacheUnavailable:
        found = None
    seen_at = time.time() * 1000
    names = sorted(found) if found is not None else known
    if names != known:
        print(json.dumps([seen_at, names]), flush=True)
        known = names
    time.sleep(0.005)
"""


class Reader:
    """A process with a mirror; what it says goes to a file."""

    def __init__(self, url: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as said, log.with_suffix(".err").open("wb") as complained:
            self.process = subprocess.Popen([sys.executable, "-c", READER, url], stdout=said, stderr=complained)
        self._read: IO[str] = log.open()
        self._rest = ""
        self._seen: list[tuple[float, frozenset[str]]] = []

    def when(self, name: str) -> float | None:
        """Return when it first saw a session, ms; None where it has not yet."""
        assert self.process.poll() is None, self.log.with_suffix(".err").read_text()
        *lines, self._rest = (self._rest + self._read.read()).split("\n")
        for line in lines:
            at, names = json.loads(line)
            self._seen.append((at, frozenset(names)))
        return next((at for at, names in self._seen if name in names), None)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._read.close()


@contextlib.contextmanager
def readers(url: str, folder: Path) -> Iterator[list[Reader]]:
    """Run the processes."""
    with ExitStack() as stack:
        found = []
        for number in range(MIRRORS):
            reader = Reader(url, folder / f"reader-{number}.log")
            stack.callback(reader.close)
            found.append(reader)
        yield found


def test_a_change_is_in_twenty_mirrors_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delays: list[float] = []
    with live_fleet(tmp_path, servers=3, sessions=6) as fleet:
        fleet.valkey.start()
        fleet.start("w1", fleet.write_inventory(sessions=0.5, load=5))
        wait_until(fleet.is_full, "the fleet is polled")
        with readers(fleet.valkey.url, tmp_path) as running:
            first = next(iter(fleet.session_names()))
            wait_until(lambda: all(reader.when(first) for reader in running), "every mirror is filled")
            for number in range(CHANGES):
                server_id = list(fleet.simulation.servers)[number % 3]
                name = fleet.simulation.server(server_id).start_session(f"user{number:03}", ready=True)
                wait_until(lambda name=name: all(r.when(name) for r in running), "every mirror has it")  # type: ignore[misc]
                (snapshot,) = fleet.cache.snapshots(server=server_id, kind="sessions")
                assert name in snapshot.sessions()
                listed_at = snapshot.changed_at_ms + snapshot.duration_ms
                delays += [(reader.when(name) or math.inf) - listed_at for reader in running]
        fleet.check_workers()
    delays.sort()
    assert len(delays) == MIRRORS * CHANGES
    median, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
    with capsys.disabled():
        print(
            f"\na change is in {MIRRORS} mirrors of {MIRRORS} processes: p50 {median:.0f} ms, p99 {p99:.0f} ms, "
            f"worst {delays[-1]:.0f} ms after the end of the listing ({CHANGES} changes)"
        )
