"""limits: how many connections to one address may be in the making at once.

sshd drops connections at random while ten are not logged in yet (MaxStartups 10:30:100 is its default), and all
logins of one server share that number.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from x2gofleet.errors import DeadlineExceeded
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.endpoint import Endpoint

ATTEMPTS_PER_ADDRESS = 4
# A deadline that is cancelled wakes nobody who waits here.
_WAIT_SECONDS = 0.25


class AddressLimits:
    """Lets a few attempts to connect to each address run at once; the others wait. Thread-safe."""

    def __init__(self, per_address: int = ATTEMPTS_PER_ADDRESS) -> None:
        self._per_address = per_address
        self._condition = threading.Condition()
        self._running: Counter[tuple[str, int]] = Counter()

    @contextmanager
    def attempt(self, endpoint: Endpoint, deadline: Deadline) -> Iterator[None]:
        """Run the block as one of the attempts; raises DeadlineExceeded where its turn does not come in time."""
        place = (endpoint.host, endpoint.port)
        with self._condition:
            while self._running[place] >= self._per_address:
                self._condition.wait(min(_WAIT_SECONDS, self._left(endpoint, deadline)))
            self._running[place] += 1
        try:
            yield
        finally:
            with self._condition:
                self._running[place] -= 1
                if not self._running[place]:
                    del self._running[place]
                self._condition.notify_all()

    def _left(self, endpoint: Endpoint, deadline: Deadline) -> float:
        try:
            return deadline.left()
        except DeadlineExceeded as exc:
            raise DeadlineExceeded(
                f"{endpoint.address}: {self._per_address} other logins there took all of {deadline.seconds:g} s"
            ) from exc
