"""Clocks that stand still until a test moves them."""

from __future__ import annotations


class ManualClock:
    """Stands in for ``time.monotonic``: tells ``now``, which the test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
