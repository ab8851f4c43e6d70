"""ownership: which targets this worker polls: membership, fair share, leases and their renewal.

A worker writes about a target only under its lease (store.py). Leases are renewed by a thread and a connection of
their own, so that slow polls can't lose them; a worker that can't renew stops polling before another may begin.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from x2gofleet.errors import CacheUnavailable
from x2gofleet.store import Lease, Member, Store
from x2gofleet_workers.metrics import NO_METRICS, Metrics, Pulse

LEASE_TTL_SECONDS = 6.0
TICK_SECONDS = 1.0

log = logging.getLogger(__name__)


def _score(target: str, worker: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{worker}\0{target}".encode(), digest_size=8).digest())


def fair_share(
    targets: Iterable[str], workers: Collection[str], weights: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return target -> worker: even shares of at most ceil(n/w) targets, of which a change of workers moves few.

    With ``weights`` a worker's share is bounded by its part of all weights.

    Rendezvous hashing with a bound on each worker's load: targets are served in a fixed order, each by the worker
    that scores highest for it among those with room (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded
    Loads, 2016). Every worker computes the same answer from the same members.
    """
    members = sorted(set(workers))
    if not members:
        return {}
    names = sorted(targets, key=lambda target: (_score(target, ""), target))
    parts = {worker: (weights or {}).get(worker, 1.0) for worker in members}
    total = sum(parts.values())
    room = {worker: math.ceil(len(names) * part / total) for worker, part in parts.items()}
    share: dict[str, str] = {}
    for target in names:
        chosen = max((worker for worker in members if room[worker]), key=lambda worker: _score(target, worker))
        room[chosen] -= 1
        share[target] = chosen
    return share


@dataclass(slots=True)
class _Held:
    lease: Lease
    renewed: float


class Ownership:
    """Holds the leases of this worker's share, and tells when one comes or goes."""

    def __init__(
        self,
        store: Store,
        targets: Callable[[], Iterable[str]],
        *,
        facts: Callable[[], dict[str, str | int | float]],
        gained: Callable[[str], None],
        lost: Callable[[str], None],
        eligible: Callable[[Sequence[Member]], Sequence[Member]] = lambda members: members,
        known: Callable[[str], bool] = lambda target: True,
        ttl_seconds: float = LEASE_TTL_SECONDS,
        tick_seconds: float = TICK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._store, self._targets, self._facts = store, targets, facts
        self._gained, self._lost, self._eligible, self._known = gained, lost, eligible, known
        self._ttl, self._tick, self._monotonic = ttl_seconds, tick_seconds, monotonic
        self._held: dict[str, _Held] = {}
        self._share: dict[str, str] = {}
        self._shared_out: tuple[set[str], dict[str, float]] = (set(), {})
        self._nonces: dict[str, str] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unavailable = ""
        self._metrics = metrics
        self.pulse = Pulse("ownership", monotonic)
        self.problem = "targets are not shared out yet"
        self.redis_up = False
        """Whether the last tick reached Redis."""

    @property
    def ttl_ms(self) -> int:
        """The leases' TTL in ms."""
        return int(self._ttl * 1000)

    def lease(self, target: str) -> Lease | None:
        """Return the lease of a target while it surely holds: up to two thirds of its TTL after the last renewal."""
        held = self._held.get(target)
        if held is None or self._monotonic() - held.renewed > self._ttl * 2 / 3:
            return None
        return held.lease

    def owned(self) -> tuple[str, ...]:
        """Return the targets whose lease this worker holds."""
        with self._lock:
            return tuple(self._held)

    def reacquire(self, lost: Lease) -> Lease | None:
        """Take a lease again that proved to be lost, where nobody else has it; None where somebody has.

        Then the target is not polled any more, and the next tick gives it up.
        """
        with self._lock:
            held = self._held.get(lost.target)
            if held is None or held.lease != lost:
                return None
            before = self._monotonic()
            taken = self._acquire(lost.target)
            if isinstance(taken, Lease):
                self._held[lost.target] = _Held(taken, before)
                self._metrics.lease_lost()
                return taken
            held.renewed = -math.inf
        return None

    def restart(self, targets: Iterable[str]) -> None:
        """Begin anew with owned targets whose settings changed; the leases stay."""
        for target in targets:
            with self._lock:
                if target in self._held:
                    self._lost(target)
                    self._gained(target)

    def start(self) -> None:
        """Begin to tick in a thread."""
        self._thread = threading.Thread(target=self._run, name="x2gofleet-ownership", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking, release all leases, leave the fleet. Never raises: what can't be released expires.

        Takes 1 s and one command's timeout at most, also where Redis hangs.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)
        try:
            for target in self.owned():
                held = self._held.pop(target, None)
                if held is not None:
                    self._store.release(held.lease)
            self._store.leave()
        except CacheUnavailable as exc:
            log.warning("leases could not be released, they expire in %g s: %s", self._ttl, exc)

    def _run(self) -> None:
        while not self._stop.is_set():
            started = self._monotonic()
            self.pulse.beat()
            try:
                self.tick()
                self.problem, self.redis_up = "", True
                if self._unavailable:
                    log.info("Redis answers again")
                    self._unavailable = ""
            except CacheUnavailable as exc:
                if not self._unavailable:
                    log.error("Redis can't be used, leases can't be renewed: %s", exc)
                self._unavailable = self.problem = str(exc)
                self.redis_up = False
                self._expire()
            except Exception as exc:
                self.problem = f"targets can't be shared out: {type(exc).__name__}"
                log.exception("the ownership tick failed")
            self._stop.wait(max(0.05, self._tick - (self._monotonic() - started)))

    def tick(self) -> None:
        """Say that this worker lives, and bring the held leases in line with its share.

        Takes new leases for as long as a tick lasts, so that those of a large share are renewed in between.
        """
        until = self._monotonic() + self._tick
        facts = self._facts()
        with self._metrics.redis_call("heartbeat"):
            members = self._store.heartbeat(facts, ttl_ms=self.ttl_ms)
        wanted = set(self._targets())
        me = self._store.worker_id
        weights = {member.id: member.weight for member in self._eligible(self._store.describe(members))}
        if (wanted, weights) != self._shared_out:
            # Sharing out 5000 targets costs tens of milliseconds: not at each tick.
            self._share, self._shared_out = fair_share(wanted, weights, weights), (wanted, weights)
        mine = {target for target, worker in self._share.items() if worker == me and self._known(target)}
        for target in self.owned():
            if target not in mine:
                self._give_back(target)
        self._renew()
        for target in sorted(mine - self._held.keys()):
            if self._stop.is_set() or self._monotonic() > until:
                break
            self._take(target)

    def _take(self, target: str) -> None:
        self.pulse.beat()
        with self._lock:
            before = self._monotonic()
            taken = self._acquire(target)
            if not isinstance(taken, Lease):
                return
            self._held[target] = _Held(taken, before)
        self._gained(target)

    def _acquire(self, target: str) -> Lease | str:
        # The same nonce until it is told: a lease of which only the reply was lost is this worker's already.
        nonce = self._nonces.setdefault(target, secrets.token_hex(8))
        taken = self._store.acquire(target, ttl_ms=self.ttl_ms, nonce=nonce)
        if isinstance(taken, Lease):
            del self._nonces[target]
        return taken

    def _give_back(self, target: str) -> None:
        with self._lock:
            held = self._held.pop(target, None)
        if held is not None:
            self._lost(target)
            self._store.release(held.lease)

    def _renew(self) -> None:
        with self._lock:
            now = self._monotonic()
            due = [held for held in self._held.values() if now - held.renewed >= self._ttl / 3]
            if not due:
                return
            with self._metrics.redis_call("renew"):
                still = self._store.renew([held.lease for held in due], ttl_ms=self.ttl_ms)
            gone = []
            for held, ok in zip(due, still, strict=True):
                if ok:
                    held.renewed = now
                else:
                    gone.append(held.lease.target)
        for target in gone:
            self._drop(target)

    def _drop(self, target: str) -> None:
        with self._lock:
            held = self._held.pop(target, None)
        if held is not None:
            log.warning("%s: the lease is lost", target)
            self._metrics.lease_lost()
            self._lost(target)

    def _expire(self) -> None:
        """Forget leases that have surely expired."""
        now = self._monotonic()
        for target, held in list(self._held.items()):
            if now - held.renewed > self._ttl:
                self._drop(target)
