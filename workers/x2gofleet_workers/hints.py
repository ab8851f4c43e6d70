"""hints: tells mirrors what polls have stored, in a thread of its own: a change at once, confirmations in batches.

A poll only leaves word here, it never waits. What could not be told is kept, the newest for each snapshot, until Redis
takes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import redis

from x2gofleet.connection import Command, Link, unavailable
from x2gofleet.errors import CacheUnavailable
from x2gofleet.hints import DROPPED, Hint, hint_commands, hint_field
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import Script
from x2gofleet_workers.metrics import NO_METRICS, Metrics

BATCH_SECONDS = 0.5
SWEEP_GRACE_MS = 60_000
SPACING_SECONDS = 0.005
SWEEP_SECONDS = 60.0
STOP_SECONDS = 1.0
MOST_KEPT = 50_000
_AT_ONCE = 1000

log = logging.getLogger(__name__)


class Hints:
    """What is to be told; this one tells nobody."""

    def stored(self, target: str, kind: Kind, hint: Hint) -> None:
        """A listing was stored, or the stored one confirmed."""

    def dropped(self, target: str, kinds: Iterable[Kind]) -> None:
        """Snapshots were dropped."""

    def forget(self, target: str) -> None:
        """This worker writes about a target no more."""


NO_HINTS = Hints()


class HintTeller(Hints):
    """Tells hints over a link of its own. Thread-safe."""

    def __init__(self, link: Link, keys: Keys, metrics: Metrics = NO_METRICS) -> None:
        self._link, self._keys, self._metrics = link, keys, metrics
        self._sweeping = Script("sweep").text
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._changed: set[str] = set()
        self._news, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="x2gofleet-hints", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Tell what is left, and end; waits for 1 s at most."""
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._link.close()

    def stored(self, target: str, kind: Kind, hint: Hint) -> None:
        name = hint_field(target, kind)
        with self._lock:
            changed = self._digests.get(name) != hint.digest
            self._digests[name] = hint.digest
            # Load differs at each poll: mirrors come for it by themselves.
            self._leave_word(name, hint.encode(), changed=changed and kind is not Kind.LOAD)

    def dropped(self, target: str, kinds: Iterable[Kind]) -> None:
        with self._lock:
            for kind in kinds:
                name = hint_field(target, kind)
                self._digests.pop(name, None)
                self._leave_word(name, DROPPED, changed=True)

    def forget(self, target: str) -> None:
        with self._lock:
            for kind in Kind:
                self._digests.pop(hint_field(target, kind), None)

    def _leave_word(self, name: str, text: str, *, changed: bool) -> None:
        # Taken out first, so that the order is that of the last word, and the oldest goes where it is too much.
        self._pending.pop(name, None)
        self._pending[name] = text
        if len(self._pending) > MOST_KEPT:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            self._changed.discard(oldest)
        if changed:
            self._changed.add(name)
            self._news.set()

    def _run(self) -> None:
        sweep_at = time.monotonic() + SWEEP_SECONDS
        told = ""
        while not self._stopping.is_set():
            self._news.wait(BATCH_SECONDS)
            self._news.clear()
            try:
                self.tell()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_SECONDS
                    self.sweep()
                told = ""
            except CacheUnavailable as exc:
                if not told:
                    log.warning("mirrors can't be told what is new: %s; trying on", exc)
                told = str(exc)
                self._stopping.wait(BATCH_SECONDS)
            except Exception:
                log.exception("telling mirrors what is new failed")
                self._stopping.wait(BATCH_SECONDS)
            self._stopping.wait(SPACING_SECONDS)
        try:
            self.tell()
        except CacheUnavailable as exc:
            log.debug("the last hints could not be told: %s", exc)

    def tell(self) -> None:
        """Tell what is left to tell. Raises CacheUnavailable, and keeps it then."""
        with self._lock:
            pending, self._pending = self._pending, {}
            changed, self._changed = self._changed, set()
        rest = iter(pending.items())
        try:
            while hints := dict(islice(rest, _AT_ONCE)):
                with self._metrics.redis_call("hint"):
                    self._ask(hint_commands(self._keys, hints, [name for name in hints if name in changed]))
        except BaseException:
            with self._lock:
                self._pending = {**pending, **self._pending}
                self._changed |= changed
            raise

    def sweep(self) -> int:
        """Remove hints of snapshots that expired more than a minute ago; return how many. Raises CacheUnavailable."""
        return int(self._ask([("EVAL", self._sweeping, 1, self._keys.fresh(), SWEEP_GRACE_MS)])[0])

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return self._link.exchange(commands)
        except (redis.exceptions.RedisError, OSError) as exc:
            raise unavailable(exc, "telling mirrors what is new") from exc
