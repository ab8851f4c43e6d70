"""The mirror: lookups against python-x2go's own cache and HGETALL; its memory and CPU as fleets grow.

Writes a plot beside what it prints when told to: ``--plot FILE.svg``.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x2gofleet_workers.hints import HintTeller

from tests.bench.bench_lookup import ratio, valkey_on_loopback
from tests.bench.bench_parsing import sessions_stdout
from tests.bench.plot import save
from x2gofleet.cache import FleetCache
from x2gofleet.connection import client_from_url, link_from_url
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.hints import Hint
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome, Store

Row = tuple[str, str, float, str]
PYTHON_X2GO = Path("/usr/lib/python3/dist-packages/x2go/cache.py")
SIZES = (10, 100, 1000)
SESSIONS_PER_SERVER = 50
CONFIRMED_SECONDS, LOAD_SECONDS = 2.0, 5.0
MEASURED_SECONDS = 12.0
TTL_MS = 600_000

# Prints what an idle mirror costs, then what it holds once every user was asked for.
IDLE = """
import json, re, resource, sys, time
from x2gofleet import FleetCache
def kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
url, seconds = sys.argv[1], float(sys.argv[2])
direct = FleetCache.from_url(url)
direct.is_cached("all", cache_type="load")
before = kib()
cache = FleetCache.from_url(url, mirror=True)
cache.resync()
cache.is_cached("all", cache_type="sessions")
began, cpu = time.monotonic(), used()
time.sleep(seconds)
share = (used() - cpu) / (time.monotonic() - began)
held = kib() - before
for server in ["all", *direct.profiles()]:
    cache.list_sessions(profile_name=server)
rows = cache.list_sessions(profile_name="all").rows
for user in {row.username for row in rows}:
    cache.list_sessions(profile_name="all", username=user)
sessions = len(rows)
began = time.perf_counter()
for _ in range(20):
    cache.resync()
resync = (time.perf_counter() - began) / 20
print(json.dumps([sessions, share, held, kib() - before, resync]))
cache.close()
direct.close()
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a mirror of one fleet costs: share of a core while idle, KiB held, and after every user was asked for."""

    servers: int
    sessions: int
    cpu_share: float
    held_kib: int
    asked_kib: int
    resync_seconds: float


class Fleet:
    """A worker's writes about many servers: listings at first, then confirmations of sessions, and new loads."""

    def __init__(self, url: str, servers: int) -> None:
        self._names = [f"ts{number:04}" for number in range(1, servers + 1)]
        self._links = [link_from_url(url) for _ in range(2)]
        self._store = Store(self._links[0], Keys(), "bench")
        self._hints = HintTeller(self._links[1], Keys())
        self._leases: dict[str, Lease] = {}
        self._digest = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def fill(self, stdout: bytes) -> None:
        """Publish the inventory and store all listings."""
        kinds = frozenset({Kind.SESSIONS, Kind.LOAD})
        self._store.publish(
            PublishedFleet(
                {name: PublishedServer(name, name) for name in self._names},
                {name: PublishedTarget(name, name, "server", None, kinds) for name in self._names},
                {"all": tuple(self._names), "one": tuple(self._names[:1])},
                "1",
            )
        )
        self._digest = digest_of(Kind.SESSIONS, stdout)
        for name in self._names:
            lease = self._store.acquire(name, ttl_ms=TTL_MS)
            assert isinstance(lease, Lease)
            self._leases[name] = lease
            self._list(name, Kind.SESSIONS, stdout)
        self._load(0)
        self._hints.tell()

    def _list(self, name: str, kind: Kind, stdout: bytes) -> None:
        now, digest = self._store.sync_clock(), digest_of(kind, stdout)
        listing = Listing(kind, stdout, digest, now, now, 1, TTL_MS, TTL_MS)
        assert self._store.store(self._leases[name], self._store.next_seq(), listing) is Outcome.STORED
        self._hints.stored(name, kind, Hint(now, now, now + TTL_MS, digest))

    def _load(self, turn: int) -> None:
        figures = "memtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"
        for name in self._names:
            self._list(name, Kind.LOAD, f"loadavg 0.{turn % 100:02} 0.10 0.20\n{figures}".encode())

    def _confirm(self) -> None:
        for name, lease in self._leases.items():
            now = self._store.sync_clock()
            times: dict[str, Any] = {"polled_at_ms": now, "ttl_ms": TTL_MS, "state_ttl_ms": TTL_MS}
            self._store.confirm(lease, self._store.next_seq(), Kind.SESSIONS, digest=self._digest, **times)
            self._hints.stored(name, Kind.SESSIONS, Hint(now, now, now + TTL_MS, self._digest))

    def _run(self) -> None:
        turn, load_at = 0, time.monotonic() + LOAD_SECONDS
        while not self._stop.wait(CONFIRMED_SECONDS):
            self._confirm()
            if time.monotonic() >= load_at:
                load_at += LOAD_SECONDS
                turn += 1
                self._load(turn)

    def __enter__(self) -> Fleet:
        self._hints.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._hints.stop()
        self._store.close()


def measure(servers: int) -> Measured:
    """Return what a mirror of so many servers with 50 sessions each costs."""
    with valkey_on_loopback() as url:
        fleet = Fleet(url, servers)
        fleet.fill(sessions_stdout(SESSIONS_PER_SERVER))
        with fleet:
            command = [sys.executable, "-c", IDLE, url, str(MEASURED_SECONDS)]
            said = subprocess.run(command, capture_output=True, check=True).stdout
    sessions, share, held, asked, resync = json.loads(said)
    return Measured(servers, sessions, share, held, asked, resync)


class _Client:
    """What python-x2go's cache asks of its client: the profile of a session."""

    def __init__(self, profiles: dict[str, str]) -> None:
        self.get_session_profile_name = profiles.get


def python_x2go_cache(profile_name: str, session_uuid: str, sessions: object) -> Any:
    """Return python-x2go's own cache, loaded from its file, with one profile in it."""
    package = types.ModuleType("x2go")
    package.__path__ = []
    log: Any = types.ModuleType("x2go.log")
    log.loglevel_DEFAULT = 0
    log.X2GoLogger = lambda **_: types.SimpleNamespace()
    modules = {"x2go": package, "x2go.log": log, "x2go.x2go_exceptions": types.ModuleType("x2go.x2go_exceptions")}
    package.log, package.x2go_exceptions = log, modules["x2go.x2go_exceptions"]  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("x2go.cache", PYTHON_X2GO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(modules)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in modules:
            sys.modules.pop(name, None)
    cache = module.X2GoListSessionsCache(_Client({session_uuid: profile_name}))
    cache.x2go_listsessions_cache[profile_name] = {"sessions": sessions, "desktops": None, "mounts": {}}
    return cache


@contextmanager
def _mirror(url: str) -> Iterator[FleetCache]:
    with FleetCache.from_url(url, mirror=True) as cache:
        cache.resync()
        # The feed begins at the first lookup.
        cache.is_cached("all")
        yield cache


def _lookups(url: str) -> list[Row]:
    rows: list[Row] = []
    client, key = client_from_url(url), Keys().snapshot("ts0001", Kind.SESSIONS)

    def one_hgetall() -> object:
        return client.hgetall(key)

    with _mirror(url) as cache:

        def listed() -> object:
            return cache.list_sessions(profile_name="one", username="user7")

        def cached() -> object:
            return cache.is_cached("one", cache_type="sessions")

        assert listed()
        if PYTHON_X2GO.exists():
            theirs = python_x2go_cache("one", "6c3f", cache.list_sessions(profile_name="one"))
            assert theirs.list_sessions("6c3f")
            assert theirs.is_cached("one", cache_type="sessions")
            for what, ours, base in (
                ("mirror: list_sessions of one user", listed, lambda: theirs.list_sessions("6c3f")),
                ("mirror: is_cached", cached, lambda: theirs.is_cached("one", cache_type="sessions")),
            ):
                rows.append((what, "python-x2go's cache", ratio(ours, base, calls=2000), "<= 1.5"))
        rows.append(("mirror: list_sessions of one user", "one HGETALL", ratio(listed, one_hgetall), "<= 0.01"))
        began = time.perf_counter()
        for _ in range(100_000):
            listed()
        micros = (time.perf_counter() - began) * 10
        rows.append((f"mirror: list_sessions of one user, {micros:.2f} us", "1 us", micros, "<= 0.5"))
    client.close()
    return rows


def plot(path: Path, measured: list[Measured]) -> None:
    """Write how an idle mirror's cost grows with the fleet."""
    panels = {
        "CPU of an idle mirror, % of a core": [item.cpu_share * 100 for item in measured],
        "memory held, MiB": [item.held_kib / 1024 for item in measured],
        "a resync, ms": [item.resync_seconds * 1000 for item in measured],
    }
    sizes = [item.servers for item in measured]
    save(path, sizes, f"servers of {SESSIONS_PER_SERVER} sessions", panels)


def run(plot_file: Path | None = None) -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement."""
    with valkey_on_loopback() as url:
        fleet = Fleet(url, 10)
        fleet.fill(sessions_stdout(SESSIONS_PER_SERVER))
        with fleet:
            rows = _lookups(url)
    measured = [measure(servers) for servers in SIZES]
    if plot_file is not None:
        plot(plot_file, measured)
    for item in measured:
        goal = "<= 0.01" if item.servers <= 100 else ""
        what = f"mirror of {item.servers} servers, idle: {item.cpu_share:.2%} of a core"
        rows.append((what, "one core", item.cpu_share, goal))
        mib, asked = item.held_kib / 1024, item.asked_kib / 1024
        what = f"mirror of {item.sessions} sessions: {mib:.1f} MiB, {asked:.1f} once each user was asked for"
        rows.append((what, "30 MiB for 10000 sessions", asked / (30 * item.sessions / 10_000), "<= 1"))
        what = f"resync of {item.servers} servers, {item.resync_seconds * 1e3:.1f} ms"
        rows.append((what, f"{SIZES[0]} servers", item.resync_seconds / measured[0].resync_seconds, ""))
    return rows


def main() -> None:
    """Print the ratios."""
    plot_file = Path(sys.argv[sys.argv.index("--plot") + 1]) if "--plot" in sys.argv else None
    for what, baseline, found, goal in run(plot_file):
        print(f"{what:76} {found:8.4f}  {baseline:28} goal {goal}", flush=True)


if __name__ == "__main__":
    main()
