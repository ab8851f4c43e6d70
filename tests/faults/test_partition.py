"""The network between one worker and Redis is cut: it stops before another takes over, writes nothing late, rejoins."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from x2gofleet_workers.ownership import LEASE_TTL_SECONDS, TICK_SECONDS

from tests.processes import LiveFleet, live_fleet, wait_until
from x2gofleet.connection import client_from_url
from x2gofleet.kinds import Kind

pytestmark = pytest.mark.faults

SERVERS = 6
INTERVAL_SECONDS = 0.5
SURE_SECONDS = LEASE_TTL_SECONDS * 2 / 3
# A poll that began just before, and a busy machine.
MARGIN_SECONDS = 0.5
REJOINED_WITHIN_SECONDS = 10.0


@dataclass(eq=False)
class Link:
    """One connection through the proxy, and what is held back in each direction."""

    client: socket.socket
    server: socket.socket
    held: dict[socket.socket, bytearray] = field(default_factory=dict)
    ended: set[socket.socket] = field(default_factory=set)

    def other(self, side: socket.socket) -> socket.socket:
        return self.server if side is self.client else self.client


class Wire:
    """A TCP proxy to a unix socket that can be cut in three ways.

    ``held``: as a network that is cut: nothing passes, and what was sent comes through after the heal. ``swallowed``:
    what is sent is lost for good, with its connection. ``refused``: connections are reset and new ones refused.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        # Bound and never listening: keeps the port while nothing listens on it.
        self._reserved = self._bound()
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._links: dict[socket.socket, Link] = {}
        self._lost: set[Link] = set()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="test-wire", daemon=True)
        self._mode = self._wanted = ""
        self._changed = threading.Event()
        self.held_writes = 0
        """Writes of snapshots that were sent while held, and delivered after the heal."""

    def _bound(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(self._reserved.getsockname() if hasattr(self, "_reserved") else ("127.0.0.1", 0))
        return sock

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._reserved.getsockname()[1]}/0"

    def set(self, mode: str) -> None:
        """Cut the wire (``held``, ``swallowed``, ``refused``) or heal it (empty); returns when it is so."""
        self._wanted = mode
        self._changed.clear()
        self._wake.send(b"x")
        assert self._changed.wait(10)

    def __enter__(self) -> Self:
        self._listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted = "over"
        self._wake.send(b"x")
        self._thread.join(10)
        for each in (self._reserved, self._wake, self._woken):
            each.close()

    def _listen(self) -> None:
        self._listener = self._bound()
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _run(self) -> None:
        while self._mode != "over":
            for key, _ in self._selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._woken:
                    self._woken.recv(64)
                    self._become(self._wanted)
                elif ready is self._listener:
                    self._accept()
                elif ready in self._links:
                    self._pass(ready)
        self._refuse()
        for link in set(self._links.values()):
            self._end(link)
        self._selector.close()

    def _become(self, mode: str) -> None:
        if mode == "refused":
            self._refuse()
            for link in set(self._links.values()):
                self._end(link)
        elif self._listener is None and mode == "":
            self._listen()
        self._mode = mode
        if mode == "":
            for link in set(self._links.values()):
                self._deliver(link)
        self._changed.set()

    def _accept(self) -> None:
        assert self._listener is not None
        client, server = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:
            client.close()
            server.close()
            return
        link = Link(client, server, {client: bytearray(), server: bytearray()})
        for side in (client, server):
            self._links[side] = link
            self._selector.register(side, selectors.EVENT_READ)

    def _pass(self, ready: socket.socket) -> None:
        link = self._links[ready]
        try:
            data = ready.recv(1 << 20)
        except OSError:
            data = b""
        if self._mode == "swallowed":
            self._lost.add(link)
        if link in self._lost:
            if not data:
                self._end(link)
            return
        if self._mode == "held":
            self.held_writes += ready is link.client and b"polled_at" not in data and data.count(b"EVALSHA")
            link.held[ready] += data
            if not data:
                # Whoever sent it has gone; what it sent is still under way.
                link.ended.add(ready)
                self._selector.unregister(ready)
            return
        if not data or not self._send(link.other(ready), data):
            self._end(link)

    def _send(self, side: socket.socket, data: bytes) -> bool:
        try:
            side.sendall(data)
        except OSError:
            return False
        return True

    def _deliver(self, link: Link) -> None:
        for side, data in link.held.items():
            self._send(link.other(side), bytes(data))
            data.clear()
        if link.ended:
            self._end(link)

    def _end(self, link: Link) -> None:
        for side in (link.client, link.server):
            self._links.pop(side, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(side)
            side.close()


@dataclass(frozen=True)
class Sample:
    """What Redis holds of one target at one time."""

    owner: str
    lease_fence: int
    fence: int
    seq: int
    polled_at: int


class Sampler:
    """Reads leases and snapshots all the time, each target's in one piece; keeps what changed."""

    def __init__(self, fleet: LiveFleet) -> None:
        self._client = client_from_url(fleet.valkey.url, connect_timeout_seconds=5, command_timeout_seconds=5)
        self._keys, self._names = fleet.keys, tuple(fleet.simulation.servers)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[str, list[tuple[float, Sample]]] = {name: [] for name in self._names}
        self.count = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            pipeline = self._client.pipeline(transaction=True)
            for name in self._names:
                pipeline.hmget(self._keys.lease(name), "owner", "fence")
                pipeline.hmget(self._keys.snapshot(name, Kind.SESSIONS), "fence", "seq", "polled_at")
            replies = pipeline.execute()
            now = time.monotonic()
            for name, lease, snapshot in zip(self._names, replies[::2], replies[1::2], strict=True):
                owner, lease_fence = (lease[0] or b"").decode(), int(lease[1] or 0)
                sample = Sample(owner, lease_fence, *(int(value or 0) for value in snapshot))
                known = self.samples[name]
                if not known or known[-1][1] != sample:
                    known.append((now, sample))
            self.count += 1
            self._stop.wait(0.005)

    def stale_writes(self) -> int:
        """Return how many snapshots were written by another than the holder of the lease."""
        stale = 0
        for samples in self.samples.values():
            before: Sample | None = None
            for _, sample in samples:
                written = before is not None and (sample.fence, sample.seq) != (before.fence, before.seq)
                stale += bool(written and sample.lease_fence and sample.fence != sample.lease_fence)
                stale += bool(before and sample.polled_at and sample.polled_at < before.polled_at)
                before = sample
        return stale

    def taken_at(self, name: str, owner: str, *, since: float) -> float:
        """Return the monotonic time at which a worker took a target: a fence is the time of Redis in ms."""
        fence = next(sample.lease_fence for at, sample in self.samples[name] if at >= since and sample.owner == owner)
        return fence / 1000 - (time.time() - time.monotonic())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._client.close()


def polls_of(url: str) -> int:
    """Return how many polls a worker made that were answered, by its metrics."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        found = re.findall(r"^x2gofleet_poll_seconds_count\S* (\S+)", reply.read().decode(), re.MULTILINE)
    assert found
    return int(sum(float(value) for value in found))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        yield made


@pytest.fixture
def wire(fleet: LiveFleet) -> Iterator[Wire]:
    with Wire(fleet.valkey.socket) as made:
        yield made


@pytest.mark.parametrize("how", ["held", "swallowed", "refused"])
def test_a_worker_that_is_cut_off(fleet: LiveFleet, wire: Wire, how: str) -> None:
    inventory = fleet.write_inventory(sessions=INTERVAL_SECONDS, load=0)
    worker = fleet.start("w1", inventory, "--metrics-port", "0", url=wire.url)
    fleet.start("w2", inventory)
    fleet.wait_for_shares("w1", "w2")
    url = worker.metrics_url()
    cut = [name for name, owner in fleet.owners().items() if owner == "w1"]
    with Sampler(fleet) as sampler:
        wait_until(lambda: all(len(found) > 3 for found in sampler.samples.values()), "writes are seen")
        at = time.monotonic()
        wire.set(how)
        took = wait_until(lambda: fleet.shares() == {"w2": SERVERS}, "the other takes over")
        polled = polls_of(url)
        polls = fleet.polls()
        wait_until(lambda: all(fleet.polls()[name] >= polls[name] + 4 for name in cut), "the other polls them")
        assert polls_of(url) == polled, "who is cut off polls nothing after the takeover"
        assert fleet.is_full()
        last, gap = 0.0, 0.0
        for name in cut:
            taken = sampler.taken_at(name, "w2", since=at)
            times = fleet.simulation.server(name).counters.poll_times
            before = [each for each in times if each <= taken]
            last = max(last, before[-1] - at)
            gap = max(gap, next(each for each in times if each > taken) - before[-1])
            assert before[-1] - at < SURE_SECONDS + MARGIN_SECONDS
        healed = time.monotonic()
        wire.set("")
        wait_until(lambda: fleet.shares() == {"w1": 3, "w2": 3}, "it is back")
        wait_until(lambda: polls_of(url) >= polled + 6, "it polls again")
        back = time.monotonic() - healed
        wait_until(fleet.is_full, "readers find all")
        assert len(fleet.cache.update("all", timeout=10)) == SERVERS
    stale = sampler.stale_writes()
    print(
        f"{how}: last poll {last:.2f} s after the cut, taken over after {took:.2f} s, longest gap {gap:.2f} s, back "
        f"{back:.2f} s after the heal, {wire.held_writes} late writes delivered, {stale} accepted "
        f"({sampler.count} samples)"
    )
    assert took < LEASE_TTL_SECONDS + TICK_SECONDS + 2.0
    assert back < REJOINED_WITHIN_SECONDS
    assert stale == 0
    assert how != "held" or wire.held_writes > 0
    fleet.check_workers()
