"""A whole simulated fleet: its model, its servers and its clock tick, on one event loop or in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from x2gofleet_workers.simulator.counters import Counters
from x2gofleet_workers.simulator.faults import Fault
from x2gofleet_workers.simulator.fleet import Change, FleetModel
from x2gofleet_workers.simulator.inventory_file import ListedServer, write_inventory
from x2gofleet_workers.simulator.server import SimulatedServer, new_key
from x2gofleet_workers.simulator.sessions import Session

_TICK_SECONDS = 0.1
_CALL_TIMEOUT_SECONDS = 30.0
_DESCRIPTORS_PER_SERVER = 6
_SPARE_DESCRIPTORS = 256
_Result = TypeVar("_Result")


class Simulation:
    """Simulated servers ``ts01`` ... on the running event loop.

    :param servers: how many; they listen on 127.0.0.1 with a free port each.
    :param sessions: how many sessions the fleet begins with, and stays near.
    :param seed: the same seed gives the same sessions (keys and ports differ).
    :param first_port: where given, all servers have this port, on 127.0.0.1, 127.0.0.2 ... (Linux).
    :param pace: mean seconds between changes on one server; 0: sessions change only when told to.
    :param clock: returns epoch seconds.
    """

    def __init__(
        self,
        servers: int = 3,
        sessions: int = 20,
        seed: int = 0,
        first_port: int = 0,
        *,
        pace: float = 20.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = FleetModel(servers=servers, sessions=sessions, seed=seed, clock=clock, pace=pace)
        self.running_polls = self.peak_concurrent_polls = 0
        self._clock = clock
        self._client_key = new_key()
        self._ticker: asyncio.Task[None] | None = None
        self.servers: dict[str, SimulatedServer] = {
            server_id: SimulatedServer(
                model=model,
                address=_address(index) if first_port else "127.0.0.1",
                port=first_port,
                client_key=self._client_key,
                clock=clock,
                on_poll=self._count_poll,
            )
            for index, (server_id, model) in enumerate(self.model.servers.items())
        }

    async def start(self) -> None:
        """Begin to listen on every server; OSError where a port is taken.

        Raises this process's soft limit of open files where so many servers need it.
        """
        _allow_open_files(len(self.servers) * _DESCRIPTORS_PER_SERVER + _SPARE_DESCRIPTORS)
        try:
            for server in self.servers.values():
                await server.start()
        except BaseException:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """End every connection and close every port."""
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        await asyncio.gather(*(server.stop() for server in self.servers.values()))

    def server(self, server_id: str) -> SimulatedServer:
        """Return one server; KeyError names the known ones."""
        try:
            return self.servers[server_id]
        except KeyError:
            known = f"{next(iter(self.servers))} to {list(self.servers)[-1]}"
            raise KeyError(f"no simulated server {server_id!r}; there are {known}") from None

    def write_inventory(self, path: str | Path) -> None:
        """Write a fleet.toml that polls these servers, with its key and known_hosts; call it once they have ports."""
        listed = [
            ListedServer(
                server_id=server_id,
                address=server.address,
                port=server.port,
                labels=self.model.labels[server_id],
                host_key=server.host_key.export_public_key().decode(),
            )
            for server_id, server in self.servers.items()
        ]
        write_inventory(Path(path), listed, self.client_key)

    @property
    def client_key(self) -> bytes:
        """The private key of every login, in OpenSSH's format."""
        return self._client_key.export_private_key("openssh")

    async def _tick(self) -> None:
        while True:
            self.model.tick(self._clock())
            await asyncio.sleep(_TICK_SECONDS)

    def _count_poll(self, step: int) -> None:
        self.running_polls += step
        if self.running_polls > self.peak_concurrent_polls:
            self.peak_concurrent_polls = self.running_polls


class ServerHandle:
    """One server of a simulation that runs in another thread; every method may be called from any thread."""

    def __init__(self, running: RunningSimulation, server: SimulatedServer) -> None:
        self._running, self._server = running, server
        self.server_id, self.address, self.port = server.server_id, server.address, server.port

    def set_fault(self, fault: Fault | str | None) -> None:
        """Break the server, as in ``set_fault("slow=2")``, or repair it with None."""
        self._running.run(self._server.set_fault(fault))

    def clear_fault(self) -> None:
        """Mend the server."""
        self.set_fault(None)

    def break_connections(self) -> None:
        """End the connections there are; new ones are accepted."""
        self._running.call(self._server.break_connections)

    def kill_probes(self) -> None:
        """End the probes that run, as SIGKILL does; connections stay."""
        self._running.call(self._server.kill_probes)

    def start_session(self, username: str, session_type: str = "DMATE", **details: Any) -> str:
        """Start a session and return its name; details as for ``ServerModel.start_session``."""
        return self._running.call(lambda: self._server.model.start_session(username, session_type, **details))

    def start_shadow(self, watcher: str, watched: str, **details: Any) -> str:
        """Start a session that shows the one named ``watched``, and return its name."""
        return self._running.call(lambda: self._server.model.start_shadow(watcher, watched, **details))

    def make_ready(self, name: str) -> None:
        """End the start of a session that was started with ``starting_seconds``."""
        self._running.call(lambda: self._server.model.make_ready(name))

    def suspend(self, name: str) -> None:
        """Suspend a running session."""
        self._running.call(lambda: self._server.model.suspend(name))

    def resume(self, name: str) -> None:
        """Resume a suspended session."""
        self._running.call(lambda: self._server.model.resume(name))

    def end(self, name: str) -> None:
        """End a session."""
        self._running.call(lambda: self._server.model.end(name))

    def set_mounts(self, name: str, mounts: list[tuple[str, str]]) -> None:
        """Replace what is mounted in a session by ``(client, path)`` pairs."""
        self._running.call(lambda: self._server.model.set_mounts(name, mounts))

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All sessions now, finished ones too."""
        return self._running.call(lambda: self._server.model.sessions)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change log, oldest first."""
        return self._running.call(lambda: self._server.model.changes)

    @property
    def counters(self) -> Counters:
        """The counters as they are now."""
        return self._running.call(self._server.counters.copy)

    @property
    def fault(self) -> Fault | None:
        """What is wrong with the server now."""
        return self._running.call(lambda: self._server.fault)


class RunningSimulation:
    """A simulation in a thread of its own; made by ``running_simulation``."""

    def __init__(self, simulation: Simulation, loop: asyncio.AbstractEventLoop, inventory: Path | None) -> None:
        self._simulation, self._loop = simulation, loop
        self._inventory = inventory
        self.servers: Mapping[str, ServerHandle] = {
            server_id: ServerHandle(self, server) for server_id, server in simulation.servers.items()
        }

    @property
    def inventory(self) -> Path:
        """The fleet.toml in the directory that was given."""
        if self._inventory is None:
            raise ValueError("running_simulation was called without a directory: use write_inventory")
        return self._inventory

    @property
    def users(self) -> tuple[str, ...]:
        """The pool of users of all servers."""
        return self._simulation.model.users

    @property
    def client_key(self) -> bytes:
        """The private key of every login, in OpenSSH's format."""
        return self._simulation.client_key

    @property
    def peak_concurrent_polls(self) -> int:
        """The most polls that ran at once over all servers."""
        return self._simulation.peak_concurrent_polls

    def server(self, server_id: str) -> ServerHandle:
        """Return one server; KeyError names the known ones."""
        self._simulation.server(server_id)
        return self.servers[server_id]

    def write_inventory(self, path: str | Path) -> None:
        """Write a fleet.toml that polls these servers, with its key and known_hosts beside it."""
        self.call(lambda: self._simulation.write_inventory(path))

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run ``function`` in the simulation's thread and return its result."""

        async def called() -> _Result:
            return function()

        return self.run(called())

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine in the simulation's thread and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_SECONDS)


@contextlib.contextmanager
def running_simulation(
    servers: int = 3,
    sessions: int = 20,
    *,
    directory: str | Path | None = None,
    seed: int = 0,
    first_port: int = 0,
    pace: float = 0.0,
    clock: Callable[[], float] = time.time,
) -> Iterator[RunningSimulation]:
    """Run a simulation in a thread for as long as the block lasts.

    :param directory: where ``fleet.toml``, its key and known_hosts are written; None: nowhere.
    :param pace: as for ``Simulation``; here sessions keep still unless told otherwise.
    """
    simulation = Simulation(servers, sessions, seed, first_port, pace=pace, clock=clock)
    started: list[asyncio.AbstractEventLoop] = []
    failed: list[BaseException] = []
    is_ready, is_over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        await simulation.start()
        started.append(asyncio.get_running_loop())
        is_ready.set()
        await is_over.wait()
        await simulation.stop()

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            failed.append(exc)
        finally:
            is_ready.set()

    thread = threading.Thread(target=main, name="x2gofleet-simulation", daemon=True)
    thread.start()
    is_ready.wait()
    if not started:
        thread.join()
        raise failed[0]
    loop = started[0]
    inventory = None if directory is None else Path(directory) / "fleet.toml"
    try:
        running = RunningSimulation(simulation, loop, inventory)
        if inventory is not None:
            running.write_inventory(inventory)
        yield running
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(is_over.set)
        thread.join(_CALL_TIMEOUT_SECONDS)
    if failed:
        raise failed[0]


def _address(index: int) -> str:
    """Return the loopback address of the server with this index: 127.0.0.1, 127.0.0.2 ... 127.0.1.1 ..."""
    return f"127.0.{index // 254}.{index % 254 + 1}"


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
