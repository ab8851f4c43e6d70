"""attempts: which target may connect next, so that neither a hung address nor a storm keeps others waiting."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Address = tuple[str, int]
AttemptT = TypeVar("AttemptT", bound=Hashable)


class AttemptQueue(Generic[AttemptT]):
    """Attempts to connect, waiting and running. Not thread-safe.

    At most ``per_address`` run for one address. At most ``at_once`` run that began less than ``slow_seconds`` ago: a
    key exchange costs CPU time, so that more at once would all be late; one that takes longer waits for a server, and
    that costs nothing. Addresses take turns.
    """

    def __init__(self, *, per_address: int, at_once: int, slow_seconds: float, monotonic: Callable[[], float]) -> None:
        self._per_address, self._at_once, self._slow_seconds = per_address, at_once, slow_seconds
        self._monotonic = monotonic
        self._waiting: OrderedDict[Address, deque[AttemptT]] = OrderedDict()
        self._addresses: dict[AttemptT, Address] = {}
        self._started: dict[AttemptT, float] = {}
        self._running: Counter[Address] = Counter()

    def add(self, attempt: AttemptT, address: Address) -> bool:
        """Have an attempt wait for its turn; return False where it waits or runs already."""
        if attempt in self._addresses:
            return False
        self._addresses[attempt] = address
        self._waiting.setdefault(address, deque()).append(attempt)
        return True

    def start_next(self) -> AttemptT | None:
        """Return the attempt that is to run now, as one that runs; None where none may."""
        if self._young() >= self._at_once:
            return None
        for address, waiting in self._waiting.items():
            if self._running[address] >= self._per_address:
                continue
            attempt = waiting.popleft()
            del self._waiting[address]
            if waiting:
                self._waiting[address] = waiting
            self._running[address] += 1
            self._started[attempt] = self._monotonic()
            return attempt
        return None

    def finish(self, attempt: AttemptT) -> None:
        """Note that a running attempt has ended."""
        if self._started.pop(attempt, None) is None:
            return
        address = self._addresses.pop(attempt)
        self._running[address] -= 1
        if not self._running[address]:
            del self._running[address]

    def withdraw(self, attempt: AttemptT) -> None:
        """Take a waiting attempt out; one that runs stays until it has ended."""
        if attempt in self._started or attempt not in self._addresses:
            return
        address = self._addresses.pop(attempt)
        waiting = self._waiting[address]
        waiting.remove(attempt)
        if not waiting:
            del self._waiting[address]

    def seconds_to_wait(self) -> float | None:
        """Return when ``start_next`` is worth another call though none ends; None where only an end helps."""
        if not self._waiting or self._young() < self._at_once:
            return None
        now = self._monotonic()
        return min(
            self._slow_seconds - (now - started)
            for started in self._started.values()
            if now - started < self._slow_seconds
        )

    def _young(self) -> int:
        now = self._monotonic()
        return sum(now - started < self._slow_seconds for started in self._started.values())
