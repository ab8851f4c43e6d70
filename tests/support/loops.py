"""An event loop in a thread of its own, which ends with all that was begun on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_JOIN_SECONDS = 60.0


class LoopThread:
    """Runs coroutines for callers in other threads."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._is_over = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="event loop of a test", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        # Closed as asyncio.run closes it: tasks are cancelled, and transports that were closed say so.
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._is_over.wait())

    def run(self, work: Coroutine[Any, Any, _Result], timeout_seconds: float | None = None) -> _Result:
        """Run a coroutine in the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)

    def close(self) -> None:
        """Cancel what still runs and end the loop; a second call does nothing."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join(_JOIN_SECONDS)
        assert not self._thread.is_alive(), "the event loop did not end"
