"""worker: the life of one worker: start, poll what it owns, answer requests, stop."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from x2gofleet.connection import link_from_url, redact_url
from x2gofleet.errors import CacheUnavailable, FleetError, SnapshotCorrupt
from x2gofleet.fleet import PublishedFleet
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import Member, Publication, Store
from x2gofleet_workers.hints import HintTeller
from x2gofleet_workers.inventory import Fleet, InventoryFile
from x2gofleet_workers.metrics import NO_METRICS, LaneName, Metrics, Pulse, StaleReason, Standing
from x2gofleet_workers.ownership import Ownership
from x2gofleet_workers.polling import TargetPoller, quick_kinds, slow_kinds
from x2gofleet_workers.polling.connecting import Connecting
from x2gofleet_workers.polling.notices import NoticePolls
from x2gofleet_workers.refresh import RefreshDesk
from x2gofleet_workers.schedule import Schedule
from x2gofleet_workers.shortages import Shortages
from x2gofleet_workers.ssh import SshClient
from x2gofleet_workers.ssh.faults import exhausted

_START_ONE = ". Start a Redis or Valkey there, give another --redis-url, or use --embedded"
PUBLISH_SECONDS = 60.0
REFERENCE_LOOK_SECONDS = 30.0
STALE_INVENTORY_SECONDS = 30.0
_LEAST_THREADS = 256
STOP_SECONDS = 5.0
LIVE_SECONDS = 30.0
PULSE_SECONDS = 5.0
_REDIS_CONNECT_SECONDS = 1.0
_REDIS_COMMAND_SECONDS = 2.0

# The time of the file in ms, and a digest: what InventoryFile makes.
_VERSION = re.compile(r"[0-9]{13}-[0-9a-f]{8,64}\Z")
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
    weight: float = 1.0


class Worker:
    """Polls its share of a fleet into Redis until it is stopped."""

    def __init__(self, fleet: Fleet, settings: WorkerSettings, metrics: Metrics = NO_METRICS) -> None:
        self.fleet, self.settings, self._metrics = fleet, settings, metrics
        self.shortages = Shortages(metrics)
        self._inventory = InventoryFile(fleet, lambda: self._request_store.now_ms(), self.shortages)
        self._publication: Publication | None = None
        self._newest_targets: frozenset[str] | None = None
        self._removed: set[str] = set()
        self._warned_of = ""
        self.id = settings.worker_id or default_worker_id()
        if not _WORKER_ID.match(self.id):
            raise ValueError(f"{self.id!r} is no worker id: use 1 to 80 letters, digits, '.', '_' and '-'")
        self._keys = Keys(settings.namespace)
        self._store, self._lease_store, self._request_store = (self._new_store() for _ in range(3))
        link = link_from_url(
            settings.redis_url,
            connect_timeout_seconds=_REDIS_CONNECT_SECONDS,
            command_timeout_seconds=_REDIS_COMMAND_SECONDS,
        )
        self._hints = HintTeller(link, self._keys, metrics)
        self.ownership = Ownership(
            self._lease_store,
            self._shared_targets,
            facts=self._facts,
            gained=self._gain,
            lost=self._lose,
            eligible=self._eligible,
            known=lambda target: target in self.fleet.targets,
            metrics=metrics,
        )
        # Both lanes of every target may wait for a hung server at once without another target waiting for a thread.
        self.schedule = Schedule(max_threads=max(_LEAST_THREADS, 2 * len(fleet.targets) + 4), shortages=self.shortages)
        self._notices = NoticePolls(
            self._run_noticed,
            self.schedule.once,
            pool=ThreadPoolExecutor(max(_LEAST_THREADS, len(fleet.targets)), thread_name_prefix="x2gofleet-notice"),
            metrics=metrics,
        )
        self._connecting = Connecting(
            self.schedule, max_threads=max(_LEAST_THREADS, len(fleet.targets)), shortages=self.shortages
        )
        self._desk = RefreshDesk(
            self._request_store,
            lambda name: self.pollers.get(name),
            self._known_targets,
            metrics,
            shortages=self.shortages,
        )
        self._ssh_client = SshClient()
        self._logins = _count_logins(fleet)
        self._pollers: dict[str, TargetPoller] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watch_thread: threading.Thread | None = None
        self._started_at = time.monotonic()
        self._publish_again_at = 0.0
        self._unpublished = "the inventory is not published yet"
        self._watch_pulse, self._schedule_pulse = Pulse("watch"), Pulse("schedule")

    def _new_store(self) -> Store:
        link = link_from_url(
            self.settings.redis_url,
            connect_timeout_seconds=_REDIS_CONNECT_SECONDS,
            command_timeout_seconds=_REDIS_COMMAND_SECONDS,
        )
        return Store(link, self._keys, self.id)

    def _facts(self) -> dict[str, str | int | float]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owned": len(self._pollers),
            "inventory": self._inventory.published.version,
            "weight": self.settings.weight,
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
        self.schedule.add("x2gofleet/pulse", PULSE_SECONDS, self._schedule_pulse.beat)
        self.ownership.start()
        self._desk.start()
        self._hints.start()
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
        self._connecting.stop()
        self._notices.stop()
        self._desk.stop()
        self._hints.stop()
        for store in (self._store, self._lease_store, self._request_store):
            store.close()

    def reload(self) -> None:
        """Read the inventory again soon, whether the file looks changed or not."""
        self._inventory.look_again()

    def standing(self) -> Standing:
        """Return how the worker stands now."""
        pollers = self.pollers.values()
        oldest: dict[Kind, float] = {}
        stale: Counter[tuple[Kind, StaleReason]] = Counter()
        for poller in pollers:
            for kind, seconds in poller.ages().items():
                oldest[kind] = max(seconds, oldest.get(kind, 0.0))
            stale.update(poller.stale().items())
        return Standing(
            conditions=Counter(poller.condition for poller in pollers),
            oldest_seconds=oldest,
            stale=stale,
            missed_runs=self.schedule.missed,
            overlapping_runs=self.schedule.overlapped,
            clock_steps=self.schedule.clock_steps,
            inventory=_digest(self._inventory.published.version),
            inventory_targets=len(self._shared_targets()),
            inventory_refused=bool(self._inventory.error),
            inventory_outdated=bool(self._outdated()),
            inventory_left_out=len(self._inventory.warnings),
            redis_up=self.ownership.redis_up,
            checks={"live": not self.live_problem(), "ready": not self.ready_problem()},
        )

    def live_problem(self) -> str:
        """Return which of the worker's loops stands still, "" where none does; whether Redis answers is no matter."""
        for pulse in (self.ownership.pulse, self._watch_pulse, self._desk.pulse, self._schedule_pulse):
            silent = pulse.silent_seconds()
            if silent > LIVE_SECONDS:
                return f"the {pulse.name} loop has stood still for {silent:.0f} s"
        return ""

    def ready_problem(self) -> str:
        """Return why the worker does not do its part, "" where it does."""
        if self._stopping.is_set():
            return "the worker is stopping"
        problem = self.ownership.problem or self._unpublished
        if problem:
            return problem
        pollers = self.pollers.values()
        faults = [poller.worker_fault for poller in pollers if poller.worker_fault]
        if faults:
            return f"{len(faults)} of {len(pollers)} owned targets can't be polled: {faults[0]}"
        untried = sum(not poller.tried for poller in pollers)
        return f"{untried} of {len(pollers)} owned targets were not tried yet" if untried else ""

    def warnings(self) -> tuple[str, ...]:
        """Return what an operator must know of although the worker does its part."""
        found = []
        if self._inventory.error:
            found.append(
                f"the inventory file is refused, the previous inventory stays in force: {self._inventory.error}"
            )
        if self._inventory.warnings:
            first, count = self._inventory.warnings[0], len(self._inventory.warnings)
            found.append(first if count == 1 else f"{first} (and {count - 1} more, which the log has)")
        return tuple(found)

    def _watch(self) -> None:
        """Follow the inventory file, keep it published, and follow steps of the machine's clock."""
        told = ""
        while not self._stopping.is_set():
            self._watch_pulse.beat()
            self.shortages.look()
            try:
                self.schedule.follow_clock()
                changed = self._inventory.changed()
                if changed is not None:
                    self._apply(changed)
                self._publish()
                self._drop_removed()
                told = ""
                self._unpublished = self._outdated()
            except FleetError as exc:
                lack = exhausted(exc)
                if lack is not None:
                    self.shortages.occurred(lack, "Redis can't be connected to")
                elif not told:
                    is_absent = isinstance(exc, CacheUnavailable) and exc.reason.is_absence
                    log.error(
                        "%s can't be used: %s%s; trying on",
                        redact_url(self.settings.redis_url),
                        exc,
                        ". Start a Redis or Valkey there, give another --redis-url, or use --embedded"
                        if is_absent
                        else "",
                    )
                told = str(exc)
                self._unpublished = f"the inventory can't be published: {exc}"
            except Exception as exc:
                self._unpublished = f"the inventory can't be followed: {type(exc).__name__}"
                log.exception("following the inventory and the clock failed")
            self._stopping.wait(1.0)

    def _apply(self, fleet: Fleet) -> None:
        """Take over another inventory: targets whose settings changed begin anew, removed ones are given up."""
        before, self.fleet = self.fleet, fleet
        self._logins = _count_logins(fleet)
        common = before.targets.keys() & fleet.targets.keys()
        changed = [name for name in common if before.targets[name] != fleet.targets[name]]
        log.info(
            "inventory %s: %d target(s), %d new, %d changed, %d removed",
            fleet.path,
            len(fleet.targets),
            len(fleet.targets.keys() - common),
            len(changed),
            len(before.targets.keys() - common),
        )
        self._removed |= before.targets.keys() - common
        self.ownership.restart(changed)

    def _publish(self) -> None:
        """Keep the inventory published; where a newer one is, say so."""
        mine = self._inventory.published
        known = self._publication
        current = known is not None and known.accepted and _digest(known.version) == _digest(mine.version)
        # Looked at each time: after a restart of Redis, or of a stranger's write, readers would know of no profile.
        due = time.monotonic() >= self._publish_again_at
        if current and known and not due and self._request_store.is_intact(mine, known.version):
            return
        before, damaged = None, False
        try:
            before = self._request_store.published()
            if before is not None and not _VERSION.match(before.version):
                raise SnapshotCorrupt("the version of the published inventory is none of a worker's")
            if before is not None and known and current and before.version == known.version:
                damaged = not self._request_store.is_intact(mine, before.version)
        except SnapshotCorrupt as exc:
            log.warning("%s; it is published anew", exc)
            damaged = True
        self._publication = publication = self._request_store.publish(mine, force=damaged)
        self._publish_again_at = time.monotonic() + PUBLISH_SECONDS
        if not publication.accepted:
            # Shares depend on the set of targets: one computed with another set could leave out what nobody else has.
            self._newest_targets = frozenset(before.targets) if before is not None else None
            if self._warned_of != publication.version:
                log.error(
                    "another worker published a newer inventory (%s) than %s (%s): bring this file up to date; %g s "
                    "after the newer one came, this worker polls nothing while a worker with that one lives",
                    publication.version,
                    self.fleet.path,
                    mine.version,
                    STALE_INVENTORY_SECONDS,
                )
                self._warned_of = publication.version
            return
        self._warned_of, self._newest_targets = "", None
        if before is not None and _digest(before.version) != _digest(mine.version):
            self._removed |= set(before.targets)

    def _drop_removed(self) -> None:
        """Drop the keys of removed targets: each worker does once it has let go of them, and writes no more."""
        self._removed -= self.fleet.targets.keys()
        gone = self._removed - self.pollers.keys()
        if not gone or self._publication is None or not self._publication.accepted:
            return
        self._request_store.drop_targets(gone)
        for name in gone:
            self._hints.dropped(name, Kind)
        self._removed -= gone
        log.info("no longer in the inventory, dropped: %s", ", ".join(sorted(gone)))

    def _outdated(self) -> str:
        publication = self._publication
        if publication is None or publication.accepted:
            return ""
        return f"another worker published a newer inventory ({publication.version})"

    def _shared_targets(self) -> Collection[str]:
        """Return what all workers share out: the targets of the newest inventory, also those unknown here."""
        newest = self._newest_targets
        return self.fleet.targets if newest is None else newest

    def _eligible(self, members: Sequence[Member]) -> Sequence[Member]:
        """Return the workers that share the targets: those with the newest inventory, once all had time to load it."""
        publication = self._publication
        now_ms = self._lease_store.now_ms()
        if publication is None or now_ms is None:
            return members
        if now_ms - publication.published_at_ms < STALE_INVENTORY_SECONDS * 1000:
            return members
        newest = [member for member in members if _digest(member.inventory) == _digest(publication.version)]
        return newest or members

    def _known_targets(self) -> set[str]:
        published = self._published()
        return set(published.targets) if published else set(self.fleet.targets)

    def _published(self) -> PublishedFleet | None:
        try:
            return self._request_store.published()
        except SnapshotCorrupt as exc:
            log.warning("%s", exc)
            return None

    def _gain(self, name: str) -> None:
        target = self.fleet.targets.get(name)
        if target is None:
            return
        poller = TargetPoller(
            target,
            self._store,
            self.ownership,
            connector=self._ssh_client,
            retries=self,
            logins_at_address=self._logins[target.endpoint.host, target.endpoint.port],
            metrics=self._metrics,
            shortages=self.shortages,
            hints=self._hints,
            notices=self._notices,
        )
        with self._lock:
            before = self._pollers.pop(name, None)
            self._pollers[name] = poller
        if before is not None:
            before.close()
        for lane, kinds, run in (
            ("quick", quick_kinds(target), self._run_quick),
            ("slow", slow_kinds(target), self._run_slow),
        ):
            intervals = [target.intervals[kind] for kind in kinds if target.intervals[kind] > 0]
            if intervals:
                self.schedule.add(f"{name}/{lane}", min(intervals), partial(run, poller))
        if target.scope == "server":
            self.schedule.add(f"{name}/reference", REFERENCE_LOOK_SECONDS, poller.compare_with_reference)
        self._connecting.submit(poller)

    def _lose(self, name: str) -> None:
        with self._lock:
            poller = self._pollers.pop(name, None)
        self._hints.forget(name)
        for job in ("quick", "slow", "reference", "quick/retry", "slow/retry"):
            self.schedule.remove(f"{name}/{job}")
        self.schedule.remove(self._notices.job(name))
        self._notices.forget(name)
        if poller is not None:
            self._connecting.forget(poller)
            poller.close()

    def retry(self, target: str, lane: LaneName, delay_seconds: float) -> None:
        """Have a lane of an owned target poll what is due then, whatever its interval."""
        poller = self.pollers.get(target)
        if poller is not None and not self._stopping.is_set():
            run = self._run_quick if lane == "quick" else self._run_slow
            self.schedule.once(f"{target}/{lane}/retry", delay_seconds, partial(run, poller))

    def _run_quick(self, poller: TargetPoller) -> None:
        if poller.connected:
            poller.poll_quick()
        elif poller.may_try():
            self._connecting.submit(poller)

    def _run_noticed(self, name: str) -> None:
        with self._lock:
            poller = self._pollers.get(name)
        if poller is None:
            return
        if poller.connected and poller.may_try():
            poller.poll_noticed()
        else:
            self._run_quick(poller)

    def _run_slow(self, poller: TargetPoller) -> None:
        poller.poll_slow()


def _count_logins(fleet: Fleet) -> Counter[tuple[str, int]]:
    """Return how many targets log in at each address."""
    return Counter((target.endpoint.host, target.endpoint.port) for target in fleet.targets.values())


def _digest(version: str) -> str:
    return version.rpartition("-")[2]
