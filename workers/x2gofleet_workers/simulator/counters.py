"""What a simulated server counts, so that a test can assert how often and how hard it was polled."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

_POLL_TIMES_KEPT = 1024


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the server started; bytes are those of polls and commands, without SSH's own."""

    connections: int = 0
    open_connections: int = 0
    probe_channels: int = 0
    commands: int = 0
    polls: int = 0
    full_listings: int = 0
    same_answers: int = 0
    references: int = 0
    notices: int = 0
    error_answers: int = 0
    garbage_answers: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    running_polls: int = 0
    peak_concurrent_polls: int = 0
    poll_times: deque[float] = field(default_factory=lambda: deque(maxlen=_POLL_TIMES_KEPT))
    """Monotonic seconds of the newest polls."""

    def copy(self) -> Counters:
        """Return the figures as they are now."""
        return replace(self, poll_times=self.poll_times.copy())
