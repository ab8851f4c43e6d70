"""worker: the life of one worker: start, poll what it owns, answer requests, stop."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from x2gofleet.connection import client_from_url, redact_url
from x2gofleet.errors import CacheUnavailable, FleetError, SnapshotCorrupt
from x2gofleet.fleet import PublishedFleet
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import Store
from x2gofleet_workers.inventory import Fleet
from x2gofleet_workers.ownership import Ownership
from x2gofleet_workers.polling import QUICK_KINDS, SLOW_KINDS, NotOwnerError, PollReport, TargetPoller
from x2gofleet_workers.schedule import Schedule

CONNECTING_THREADS = 16
REQUEST_THREADS = 16
PUBLISH_SECONDS = 60.0
STOP_SECONDS = 5.0
_REDIS_CONNECT_SECONDS = 1.0
_REDIS_COMMAND_SECONDS = 2.0
_REQUEST_WAIT_SECONDS = 1.0

_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,80}\Z")

log = logging.getLogger(__name__)


def default_worker_id() -> str:
    """Return an id that no other running worker has: host name and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Where a worker writes, and as whom."""

    redis_url: str
    namespace: str = DEFAULT_NAMESPACE
    worker_id: str = ""


class Worker:
    """Polls its share of a fleet into Redis until it is stopped."""

    def __init__(self, fleet: Fleet, settings: WorkerSettings) -> None:
        self.fleet, self.settings = fleet, settings
        self.id = settings.worker_id or default_worker_id()
        if not _WORKER_ID.match(self.id):
            raise ValueError(f"{self.id!r} is no worker id: use 1 to 80 letters, digits, '.', '_' and '-'")
        self._keys = Keys(settings.namespace)
        self._store, self._lease_store, self._request_store = (self._new_store() for _ in range(3))
        self.ownership = Ownership(
            self._lease_store, lambda: self.fleet.targets, facts=self._facts, gained=self._gain, lost=self._lose
        )
        # Both lanes of every target may wait for a hung server at once without another target waiting for a thread.
        self.schedule = Schedule(max_threads=2 * len(fleet.targets) + 4)
        self._connecting = ThreadPoolExecutor(CONNECTING_THREADS, thread_name_prefix="x2gofleet-connecting")
        self._requests = ThreadPoolExecutor(REQUEST_THREADS, thread_name_prefix="x2gofleet-request")
        self._pollers: dict[str, TargetPoller] = {}
        self._in_connecting: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._request_thread: threading.Thread | None = None
        self._watch_thread: threading.Thread | None = None
        self._started_at = time.monotonic()

    def _new_store(self) -> Store:
        client = client_from_url(
            self.settings.redis_url,
            connect_timeout_seconds=_REDIS_CONNECT_SECONDS,
            command_timeout_seconds=_REDIS_COMMAND_SECONDS,
        )
        return Store(client, self._keys, self.id)

    def _facts(self) -> dict[str, str | int | float]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owned": len(self._pollers),
            "inventory": self.fleet.published().version,
            "up_seconds": int(time.monotonic() - self._started_at),
        }

    @property
    def pollers(self) -> dict[str, TargetPoller]:
        """The pollers of the targets that are owned now, by target id."""
        with self._lock:
            return dict(self._pollers)

    def start(self) -> None:
        """Begin to own and poll; returns at once, also when Redis can't be reached yet."""
        self.schedule.start()
        self.ownership.start()
        self._request_thread = threading.Thread(target=self._serve, name="x2gofleet-requests", daemon=True)
        self._request_thread.start()
        self._watch_thread = threading.Thread(target=self._watch, name="x2gofleet-watch", daemon=True)
        self._watch_thread.start()

    def stop(self) -> None:
        """Stop polling, cut what hangs, release the leases; done within 5 s."""
        self._stopping.set()
        self.schedule.stop()
        for poller in self.pollers.values():
            poller.close()
        self.ownership.stop()
        for poller in self.pollers.values():
            # Gained while it was stopping.
            poller.close()
        self._connecting.shutdown(wait=False, cancel_futures=True)
        self._requests.shutdown(wait=False, cancel_futures=True)
        for store in (self._store, self._lease_store, self._request_store):
            store.client.close()

    def _watch(self) -> None:
        """Publish the inventory now and then, and follow steps of the machine's clock."""
        next_publication = 0.0
        told = ""
        while not self._stopping.is_set():
            self.schedule.follow_clock()
            try:
                # Also at once where Redis lost it: without it readers find nothing.
                if time.monotonic() >= next_publication or not self._request_store.is_published():
                    self._publish()
                    next_publication = time.monotonic() + PUBLISH_SECONDS
                told = ""
            except FleetError as exc:
                if not told:
                    log.error(
                        "%s can't be used: %s. Start a Redis or Valkey there, give another --redis-url, or use "
                        "--embedded; trying on",
                        redact_url(self.settings.redis_url),
                        exc,
                    )
                told = str(exc)
            self._stopping.wait(1.0)

    def _publish(self) -> None:
        published = self.fleet.published()
        before = self._published()
        self._request_store.publish(published)
        if before is not None and before.version != published.version:
            gone = set(before.targets) - set(published.targets)
            if gone:
                log.info("no longer in the inventory, dropped: %s", ", ".join(sorted(gone)))
                self._request_store.drop_targets(gone)

    def _published(self) -> PublishedFleet | None:
        try:
            return self._request_store.published()
        except SnapshotCorrupt as exc:
            log.warning("%s", exc)
            return None

    def _gain(self, name: str) -> None:
        target = self.fleet.targets[name]
        poller = TargetPoller(target, self._store, self.ownership)
        with self._lock:
            self._pollers[name] = poller
        for lane, kinds, run in (
            ("quick", QUICK_KINDS, self._run_quick),
            ("slow", SLOW_KINDS, self._run_slow),
        ):
            intervals = [target.intervals[kind] for kind in kinds if target.intervals[kind] > 0]
            if intervals:
                self.schedule.add(f"{name}/{lane}", min(intervals), _bound(run, poller))
        self._connect(poller)

    def _lose(self, name: str) -> None:
        with self._lock:
            poller = self._pollers.pop(name, None)
        for lane in ("quick", "slow"):
            self.schedule.remove(f"{name}/{lane}")
        if poller is not None:
            poller.close()

    def _run_quick(self, poller: TargetPoller) -> None:
        if poller.connected:
            poller.poll_quick()
        elif poller.may_try():
            self._connect(poller)

    def _run_slow(self, poller: TargetPoller) -> None:
        poller.poll_slow()

    def _connect(self, poller: TargetPoller) -> None:
        """Connect and poll in the pool for connecting, so that servers that are down can't fill the other one."""
        name = poller.target.id
        with self._lock:
            if name in self._in_connecting or self._stopping.is_set():
                return
            self._in_connecting.add(name)

        def run() -> None:
            try:
                poller.poll_quick()
                poller.poll_slow()
            finally:
                with self._lock:
                    self._in_connecting.discard(name)

        try:
            self._connecting.submit(run).add_done_callback(_log_failure)
        except RuntimeError:
            with self._lock:
                self._in_connecting.discard(name)

    def _serve(self) -> None:
        """Take requests from readers and answer each in a thread of its own."""
        while not self._stopping.is_set():
            try:
                request = self._request_store.take_request(wait_seconds=_REQUEST_WAIT_SECONDS)
            except CacheUnavailable:
                self._stopping.wait(1.0)
                continue
            if request is not None:
                try:
                    self._requests.submit(self._answer, request).add_done_callback(_log_failure)
                except RuntimeError:
                    return

    def _answer(self, request: dict[str, Any]) -> None:
        request_id, target = str(request.get("id", "")), str(request.get("target", ""))
        if request.get("operation") == "check":
            published = self._published()
            known = set(published.targets) if published else set(self.fleet.targets)
            dropped = self._request_store.drop_orphans(known)
            self._request_store.answer(request_id, {"target": "", "dropped": dropped})
            return
        report = PollReport()
        problem = ""
        poller = self.pollers.get(target)
        if poller is None:
            problem = "its worker does not own it any more"
        else:
            try:
                kinds = [Kind.parse(str(kind)) for kind in request.get("kinds", ())]
                username = request.get("username")
                if request.get("operation") == "delete":
                    poller.discard()
                else:
                    report = poller.refresh(kinds, str(username) if username else None)
            except NotOwnerError:
                problem = "its worker does not own it any more"
            except (CacheUnavailable, ValueError, TypeError) as exc:
                problem = str(exc)
        if report.errors:
            problem = "; ".join(dict.fromkeys(report.errors.values()))
        stored = [[name, kind.value] for name, kind in report.stored]
        self._request_store.answer(request_id, {"target": target, "stored": stored, "error": problem})


def _bound(run: Callable[[TargetPoller], None], poller: TargetPoller) -> Callable[[], None]:
    return lambda: run(poller)


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (failure := future.exception()) is not None:
        log.error("an unexpected error in a worker thread", exc_info=failure)
