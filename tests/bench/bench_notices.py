"""From a change on a real X2Go server to 20 mirrors in 20 processes: with notices, and by polls alone."""

from __future__ import annotations

import json
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.bench_lookup import valkey_on_loopback
from tests.e2e.polled import PROFILE, write_inventory
from tests.e2e.postgres import PostgresServer
from tests.e2e.postgres_farm import PostgresFarm, missing_postgres
from tests.e2e.realserver import USERS, RealX2GoServer, create_empty_database
from x2gofleet.cache import FleetCache

Row = tuple[str, str, float, str]
MIRRORS = 20
CHANGES = 30
WAIT_SECONDS = 60.0
GOAL = "p99 <= 0.5 s"
POSTGRES_GOAL = "p99 <= 1.5 s"

# Prints the monotonic time, which all processes share, at which a mirror first showed each status of a session.
WATCH = """
import sys, time
from x2gofleet import FleetCache
url, name = sys.argv[1:]
cache = FleetCache.from_url(url, mirror=True)
seen = None
while True:
    found = cache.list_sessions(profile_name="mate")
    status = found[name].status if found is not None and name in found else ""
    if status != seen:
        print(time.monotonic(), status, flush=True)
        seen = status
    time.sleep(0.004)
"""


class Mirrors:
    """Processes with a mirror each, that tell when they see a session's status change."""

    def __init__(self, url: str, session: str) -> None:
        command = [sys.executable, "-c", WATCH, url, session]
        self._processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(MIRRORS)]
        self._seen: queue.Queue[tuple[str, float]] = queue.Queue()
        self._threads = [threading.Thread(target=self._read, args=(each,)) for each in self._processes]
        for thread in self._threads:
            thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            at, _, status = line.strip().partition(" ")
            self._seen.put((status, float(at)))

    def wait_for(self, status: str) -> list[float]:
        """Return when each mirror showed ``status``."""
        times: list[float] = []
        while len(times) < MIRRORS:
            seen, at = self._seen.get(timeout=WAIT_SECONDS)
            if seen == status:
                times.append(at)
        return times

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()


@contextmanager
def _real_server(directory: Path, *, postgres: bool) -> Iterator[tuple[RealX2GoServer, Path]]:
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (directory / "state").mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(PostgresServer()) if postgres else None
        server = stack.enter_context(
            RealX2GoServer(
                directory / "server", empty_database=create_empty_database(directory / "state"), hostname="ts01"
            )
        )
        server.authorize("root", key.with_suffix(".pub").read_text())
        if database is not None:
            PostgresFarm(database, {"ts01": server}, users=USERS)
        yield server, key


@contextmanager
def _worker(inventory: Path, url: str) -> Iterator[None]:
    command = [sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(inventory), "--redis-url", url]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def seconds_to_mirrors(
    interval: float, *, notices: bool, changes: int = CHANGES, postgres: bool = False
) -> list[float]:
    """Return how long after X2Go's own command had ended each mirror showed each change.

    The sessions are in SQLite, or with ``postgres`` in a PostgreSQL.
    """
    draw, found = random.Random(1), []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        server, key = stack.enter_context(_real_server(directory, postgres=postgres))
        url = stack.enter_context(valkey_on_loopback())
        session = server.insert_session("alice", 50)
        inventory = write_inventory(
            directory,
            {"ts01": server},
            key,
            login={"notices": notices},
            intervals={"sessions": interval, "load": 5, "mounts": 60},
            ttls={"mounts": 180},
        )
        stack.enter_context(_worker(inventory, url))
        with FleetCache.from_url(url) as cache:
            while not cache.is_cached(PROFILE, cache_type="sessions"):
                time.sleep(0.05)
        mirrors = Mirrors(url, session)
        stack.callback(mirrors.close)
        mirrors.wait_for("R")
        for number in range(changes):
            time.sleep(draw.uniform(0.5, 1.5))
            status = "SR"[number % 2]
            server.change_status("alice", session, status)  # type: ignore[arg-type]
            ended = time.monotonic()
            found += [at - ended for at in mirrors.wait_for(status)]
    return found


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def run() -> list[Row]:
    """Measure and return the rows."""
    plain = seconds_to_mirrors(2.0, notices=False)
    rows: list[Row] = []
    base = f"polls at 2 s alone, p50 {statistics.median(plain):.2f} s, p99 {_p99(plain):.2f} s"
    for interval in (2.0, 5.0, 10.0):
        noticed = seconds_to_mirrors(interval, notices=True)
        p50, p99 = statistics.median(noticed), _p99(noticed)
        what = f"a change in {MIRRORS} mirrors, interval {interval:g} s, p50 {p50:.2f} s, p99 {p99:.2f} s"
        rows.append((what, base, p99 / _p99(plain), GOAL))
    if missing := missing_postgres():
        raise RuntimeError(missing)
    plain, noticed = (seconds_to_mirrors(2.0, notices=notices, postgres=True) for notices in (False, True))
    p50, p99 = statistics.median(noticed), _p99(noticed)
    what = f"the same on PostgreSQL, interval 2 s, p50 {p50:.2f} s, p99 {p99:.2f} s"
    base = f"polls at 2 s alone, p50 {statistics.median(plain):.2f} s, p99 {_p99(plain):.2f} s"
    rows.append((what, base, p99 / _p99(plain), POSTGRES_GOAL))
    return rows


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
