"""Real X2Go servers polled by a worker of this process into a Redis, and a reader of what it writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import redis
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.polling import TargetPoller
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, PATIENT
from x2gofleet import FleetCache
from x2gofleet.connection import client_from_url
from x2gofleet.kinds import Kind
from x2gofleet.lookup import ServerStatus, TargetStatus
from x2gofleet.snapshot import Snapshot

from .namespace import wait_until
from .realserver import RealX2GoServer

Settings = Mapping[str, Any]

PROFILE = "mate"
INTERVALS = {"sessions": 0.5, "load": 0.5, "mounts": 0.5}
LASTING_TTLS = {"sessions": 60, "load": 60, "mounts": 60, "desktops": 60}

_numbers = itertools.count(1)


def write_inventory(
    directory: Path,
    servers: Mapping[str, RealX2GoServer],
    key_file: Path,
    *,
    login: Settings | None = None,
    per_server: Mapping[str, Settings] | None = None,
    intervals: Settings | None = None,
    ttls: Settings | None = None,
    profiles: Mapping[str, Settings] | None = None,
) -> Path:
    """Write a fleet.toml, and a known_hosts with the servers' present keys next to it; returns the first.

    servers: by fleet id. login: for [defaults], over root with `key_file`. per_server: further settings by id.
    intervals, ttls: over INTERVALS and LASTING_TTLS. profiles: instead of one profile `mate` of all servers.
    """
    known_hosts = directory / "known_hosts"
    write_known_hosts(known_hosts, servers)
    tables: dict[str, Settings] = {
        "defaults": {"user": "root", "key_file": str(key_file), "known_hosts": str(known_hosts), **(login or {})},
        "intervals": {**INTERVALS, **(intervals or {})},
        "ttls": {**LASTING_TTLS, **(ttls or {})},
    }
    for name, server in servers.items():
        place = {"host": server.host, "port": server.port}
        tables[f"servers.{json.dumps(name)}"] = {**place, **(per_server or {}).get(name, {})}
    for name, profile in (profiles or {PROFILE: {"servers": list(servers)}}).items():
        tables[f"profiles.{json.dumps(name)}"] = profile
    path = directory / "fleet.toml"
    path.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in tables.items()
        )
    )
    return path


def write_known_hosts(path: Path, servers: Mapping[str, RealX2GoServer]) -> None:
    """Write the servers' present host keys."""
    path.write_text("".join(f"{server.known_hosts_line}\n" for server in servers.values()))


class PolledFleet:
    """A running worker and a FleetCache on one namespace; use as a context manager.

    Waiting methods raise TimeoutError that says what did not come.
    """

    def __init__(self, inventory: Path, redis_url: str, namespace: str) -> None:
        self.inventory = inventory
        self.worker = Worker(load_inventory(inventory), WorkerSettings(redis_url, namespace, f"e2e-{next(_numbers)}"))
        self.cache = FleetCache.from_url(redis_url, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)
        self.redis: redis.Redis = client_from_url(redis_url, **PATIENT)

    def __enter__(self) -> Self:
        self.worker.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.worker.stop()
        self.cache.close()
        self.redis.close()

    def wait_until(self, condition: Callable[[], object], what: str, *, seconds: float = HANG_SECONDS) -> None:
        """Return once `condition()` is true."""
        wait_until(lambda: bool(condition()), what, timeout_seconds=seconds)

    def now_ms(self) -> int:
        """The time on the clock of Redis, in ms."""
        seconds, micros = self.redis.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(micros) // 1000

    def poller(self, target: str = "ts01") -> TargetPoller:
        """The worker's poller of a target; waits until the worker owns it."""
        self.wait_until(lambda: target in self.worker.pollers, f"the worker to own {target}")
        return self.worker.pollers[target]

    def snapshot(
        self, kind: Kind | str = Kind.SESSIONS, server: str = "ts01", *, username: str | None = None
    ) -> Snapshot | None:
        """The unexpired snapshot of a kind, of the server as a whole or of one user; None where there is none."""
        found = self.cache.snapshots(server=server, kind=kind, username=username)
        return next((snapshot for snapshot in found if snapshot.username == username), None)

    def next_snapshot(
        self,
        kind: Kind | str = Kind.SESSIONS,
        server: str = "ts01",
        *,
        username: str | None = None,
        seconds: float = HANG_SECONDS,
    ) -> Snapshot:
        """The first snapshot of a poll that began after this call."""
        asked_ms = self.now_ms()
        found: list[Snapshot] = []

        def has_come() -> bool:
            snapshot = self.snapshot(kind, server, username=username)
            if snapshot is not None and snapshot.polled_at_ms > asked_ms:
                found.append(snapshot)
            return bool(found)

        self.wait_until(has_come, f"the next poll of {kind} of {server}", seconds=seconds)
        return found[0]

    def next_polls(self, number: int, target: str = "ts01", *, seconds: float = HANG_SECONDS) -> None:
        """Return once that many confirmations that nothing changed were stored from now on."""
        counters = self.poller(target).counters
        goal = counters.confirmed + number
        self.wait_until(lambda: counters.confirmed >= goal, f"{number} confirmed polls of {target}", seconds=seconds)

    def status(self, server: str = "ts01") -> ServerStatus:
        """What is known of a server."""
        return next(status for status in self.cache.servers() if status.id == server)

    def target_status(self, target: str) -> TargetStatus:
        """What is known of a target."""
        return next(found for status in self.cache.servers() for found in status.targets if found.id == target)

    def wait_for_error(self, error_class: str, target: str = "ts01", *, seconds: float = HANG_SECONDS) -> TargetStatus:
        """Return the target's status once its newest failure is of `error_class`."""

        def has_come() -> bool:
            return any(t.id == target and t.error_class == error_class for s in self.cache.servers() for t in s.targets)

        try:
            self.wait_until(has_come, error_class, seconds=seconds)
        except TimeoutError as exc:
            raise TimeoutError(f"no {error_class} of {target}; known is {self.target_status(target)}") from exc
        return self.target_status(target)
