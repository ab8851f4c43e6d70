"""A fleet of real worker processes, with simulated servers and a Valkey of its own: what tests of faults share."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from x2gofleet_workers.embedded import _binary, die_with_parent
from x2gofleet_workers.ownership import fair_share
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, PATIENT, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.connection import client_from_url
from x2gofleet.errors import CacheUnavailable
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind


class OwnValkey:
    """A valkey-server on one unix socket that can be killed, stopped and started again there.

    It is empty after a start, unless it is ``lasting``: then it has all that it replied to.
    """

    def __init__(self, *, lasting: bool = False) -> None:
        self._options = ("--appendonly", "yes", "--appendfsync", "always") if lasting else ()
        self.environment: dict[str, str] = {}
        # Not below the test's own folder: a unix socket's path is at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="x2gofleet-test-"))
        self.socket = self.folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = client_from_url(self.url, **PATIENT)

    def start(self) -> None:
        """Start the server; returns once it answers."""
        self.process = subprocess.Popen(
            [
                *(str(_binary()), "--port", "0", "--unixsocket", str(self.socket), "--save", ""),
                *("--dir", str(self.folder), "--logfile", str(self.folder / "log")),
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        wait_until(self.answers, "valkey answers")

    def answers(self) -> bool:
        """Whether a PING is answered."""
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            return bool(self.client.ping())
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the server, as a crash would where no other signal is given; also one that is stopped."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(HANG_SECONDS)
            self.process = None

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        assert self.process is not None
        self.process.send_signal(number)

    def all_keys(self) -> list[str]:
        """Return every key, in order."""
        return sorted(key.decode() for key in self.client.scan_iter(count=500))

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        self.client.close()
        shutil.rmtree(self.folder)


class WorkerProcess:
    """``x2gofleet-worker run`` in a process of its own; what it says goes to a file."""

    def __init__(self, name: str, log: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        clean = {key: value for key, value in os.environ.items() if not key.startswith("X2GOFLEET_")}
        with log.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "x2gofleet_workers", "run", "--worker-id", name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**clean, **environment},
            )

    @property
    def said(self) -> str:
        """All that it logged."""
        return self.log.read_text()

    @property
    def alive(self) -> bool:
        """Whether it is still the process that was started."""
        return self.process.poll() is None

    def metrics_url(self) -> str:
        """Return where its metrics are, for a worker started with ``--metrics-port 0``."""
        wait_until(lambda: "/metrics" in self.said, "it tells where its metrics are")
        found = re.search(r"http://\S+/metrics", self.said)
        assert found is not None
        return found[0]

    def stop(self) -> None:
        """End it by SIGTERM, by SIGKILL where that does not help."""
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(HANG_SECONDS)
            finally:
                self.process.kill()
                self.process.wait()


@dataclass
class LiveFleet:
    """Simulated servers, a Valkey, a reader, and the workers that a test starts."""

    folder: Path
    valkey: OwnValkey
    simulation: RunningSimulation
    cache: FleetCache
    keys: Keys = field(default_factory=Keys)
    workers: dict[str, WorkerProcess] = field(default_factory=dict)

    def write_inventory(
        self, name: str = "fleet.toml", *, servers: Collection[str] | None = None, more: str = "", **intervals: float
    ) -> Path:
        """Write an inventory of the simulated servers (or of some) with these intervals in seconds, atomically."""
        path = self.folder / name
        text = self.inventory_text(servers=servers, more=more, **intervals)
        new = path.with_name(f"{name}.new")
        new.write_text(text)
        new.replace(path)
        return path

    def inventory_text(self, *, servers: Collection[str] | None = None, more: str = "", **intervals: float) -> str:
        """Return the text of such an inventory; its one profile is ``all``."""
        key_file, known_hosts = (self.folder / f"simulated-simulated.{kind}" for kind in ("key", "known_hosts"))
        chosen = list(servers or self.simulation.servers)
        tables = "".join(
            f'[servers.{name}]\nhost = "{server.address}"\nport = {server.port}\n'
            for name, server in self.simulation.servers.items()
            if name in chosen
        )
        times = "".join(f"{kind} = {seconds:g}\n" for kind, seconds in {"mounts": 0, **intervals}.items())
        names = ", ".join(f'"{name}"' for name in chosen)
        return (
            f'[defaults]\nuser = "root"\nkey_file = "{key_file}"\nknown_hosts = "{known_hosts}"\n'
            f"[intervals]\n{times}{tables}{more}[profiles.all]\nservers = [{names}]\n"
        )

    def start(self, name: str, inventory: Path, *arguments: str, url: str = "", **environment: str) -> WorkerProcess:
        """Start a worker; it reads and writes Redis by ``url`` where that is given."""
        options = ["--inventory", str(inventory), "--redis-url", url or self.valkey.url, *arguments]
        self.workers[name] = worker = WorkerProcess(name, self.folder / f"{name}.log", options, environment)
        return worker

    def polls(self) -> dict[str, int]:
        """Return how often each server was polled, by server id."""
        return {name: server.counters.polls for name, server in self.simulation.servers.items()}

    def owners(self) -> dict[str, str]:
        """Return the worker that owns each target, by target id; free ones are left out."""
        asked = self.valkey.client.pipeline(transaction=False)
        for name in self.simulation.servers:
            asked.hget(self.keys.lease(name), "owner")
        found = zip(self.simulation.servers, asked.execute(), strict=True)
        return {name: owner.decode() for name, owner in found if owner}

    def shares(self) -> Counter[str]:
        """Return how many targets each worker owns."""
        return Counter(self.owners().values())

    def polled_at(self, name: str, kind: Kind = Kind.SESSIONS) -> int:
        """Return when the stored snapshot was polled, ms; 0 where there is none."""
        return int(self.valkey.client.hget(self.keys.snapshot(name, kind), "polled_at") or 0)

    def is_full(self, *, since_ms: int = 0) -> bool:
        """Whether a reader finds every server, each polled after ``since_ms`` (Redis's clock)."""
        try:
            if not self.cache.is_cached("all", cache_type="sessions"):
                return False
            found = self.cache.snapshots(profile_name="all", kind="sessions")
        except CacheUnavailable:
            return False
        names = self.cache.servers()
        return len(found) == len(names) and all(snapshot.polled_at_ms >= since_ms for snapshot in found)

    def session_names(self) -> set[str]:
        """Return the names of all sessions that a reader finds."""
        return set(self.cache.list_sessions(profile_name="all") or ())

    def wait_for_shares(self, *workers: str, servers: Collection[str] = ()) -> float:
        """Wait until the servers (all where none are given) are shared as they will be, and polled by who has them."""
        wanted = fair_share(servers or self.simulation.servers, workers)
        took = wait_until(lambda: self.owners() == wanted, f"the owners are {wanted}")
        since_ms = int(time.time() * 1000)
        return took + wait_until(lambda: self.is_full(since_ms=since_ms), "the owners poll")

    def check_workers(self) -> None:
        """Fail where a worker ended or met an error that nobody expected."""
        for worker in self.workers.values():
            assert worker.alive, worker.said
            assert "Traceback" not in worker.said, worker.said


@contextmanager
def live_fleet(folder: Path, *, servers: int = 6, sessions: int = 12, lasting: bool = False) -> Iterator[LiveFleet]:
    """Run simulated servers and a Valkey that is not started yet; ends with all that was started."""
    with ExitStack() as stack:
        simulation = stack.enter_context(running_simulation(servers, sessions))
        simulation.write_inventory(folder / "simulated.toml")
        valkey = OwnValkey(lasting=lasting)
        stack.callback(valkey.close)
        client = client_from_url(valkey.url, connect_timeout_seconds=10, command_timeout_seconds=10)
        cache = stack.enter_context(FleetCache(client, lookup_seconds=LOOKUP_SECONDS))
        fleet = LiveFleet(folder, valkey, simulation, cache)
        try:
            yield fleet
        finally:
            for worker in fleet.workers.values():
                with contextlib.suppress(ProcessLookupError):
                    worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
                worker.process.wait()
