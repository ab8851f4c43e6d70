"""Slow and fast HTTP clients in a process of their own: ``python -m tests.support.http_clients URL SLOW FAST``.

Prints a line once all slow clients were connected at once or have been cut, and the counts when its stdin ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.waiting import HANG_SECONDS

BYTE_SECONDS = 1.0
FAST_SECONDS = 1.0
_AGAIN_SECONDS = 0.5
_CONNECTING_AT_ONCE = 50
_READY = "ready"


@dataclass(frozen=True)
class Counts:
    """What the clients saw: connections of slow ones that were cut, requests of fast ones that were answered or not."""

    cut: int
    answered: int
    unanswered: int


class _Clients:
    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 0
        self._connecting = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        self.counts: Counter[str] = Counter()
        self.begun = 0

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with self._connecting:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def slow(self, number: int) -> None:
        """Be one slow client after the other, of one of three kinds."""
        is_first = True
        while True:
            with contextlib.suppress(OSError):
                async with self._connection() as (reader, writer):
                    self.begun += is_first
                    is_first = False
                    await (self._silent, self._trickling, self._deaf)[number % 3](reader, writer)
            self.counts["cut"] += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def _trickling(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: w\r\nX: ")
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=BYTE_SECONDS)
        ended.result()

    async def _deaf(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: w\r\n")
        await reader.read()

    async def fast(self, number: int, of: int) -> None:
        """Request again and again, once a second."""
        await asyncio.sleep(FAST_SECONDS * number / of)
        while True:
            said = b""
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(HANG_SECONDS), self._connection() as (reader, writer):
                    writer.write(b"GET /metrics HTTP/1.1\r\nHost: w\r\n\r\n")
                    said = await reader.read()
            self.counts["answered" if said.startswith(b"HTTP/1.1 200") else "unanswered"] += 1
            await asyncio.sleep(FAST_SECONDS)


async def _main(url: str, slow: int, fast: int) -> None:
    clients = _Clients(url)
    tasks = [
        *(asyncio.create_task(clients.slow(number)) for number in range(slow)),
        *(asyncio.create_task(clients.fast(number, fast)) for number in range(fast)),
    ]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while clients.begun < slow and not ended.done():
        await asyncio.sleep(0.05)
    print(_READY, flush=True)
    await ended
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(clients.counts["cut"], clients.counts["answered"], clients.counts["unanswered"], flush=True)


class HttpClients:
    """The running clients; ``stop`` ends them and returns what they saw."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> Counts:
        """End them."""
        said, _ = self._process.communicate(timeout=HANG_SECONDS)
        return Counts(*map(int, said.split()))


@contextmanager
def http_clients(url: str, *, slow: int, fast: int) -> Iterator[HttpClients]:
    """Run clients of a worker's HTTP port; the block begins once each slow one was connected."""
    command = [sys.executable, "-m", "tests.support.http_clients", url, str(slow), str(fast)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == _READY
        yield HttpClients(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
