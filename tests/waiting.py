"""How tests wait: for a condition, as long as it takes; HANG_SECONDS is when they take it for a hang."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_SECONDS = 120.0
"""Far longer than anything takes on a machine that does much else. It ends a test that hangs; it measures nothing."""

SLACK_SECONDS = 30.0
"""What a busy machine may add to a promised time. Where these tests use it, a broken promise takes longer still."""

PATIENT = {"connect_timeout_seconds": 60.0, "command_timeout_seconds": 60.0}
"""How long the clients and links of tests wait that are not about time."""
LOOKUP_SECONDS = 60.0
"""``lookup_seconds`` of the readers of such tests; the most that there may be."""


def wait_until(condition: Callable[[], object], what: str = "the condition", seconds: float = HANG_SECONDS) -> float:
    """Wait until a condition is true; return how many seconds that took. Fails where it seems never to become true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"never came true within {seconds:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began
