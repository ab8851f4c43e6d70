"""metrics: what a worker tells of its work and of its state; the only module that imports prometheus_client.

The parts of a worker report to a Metrics, which takes no notice unless one is wanted. Labels have few and fixed
values: never a name or text that a server, a user or an operator chose.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Literal, get_args

from x2gofleet.errors import FleetError
from x2gofleet.extras import how_to_install
from x2gofleet.kinds import Kind
from x2gofleet.store import Outcome
from x2gofleet_workers.probe.reference import Agreement

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

Result = Literal["stored", "confirmed", "failed", "refused", "unwritten"]
LaneName = Literal["quick", "slow"]
Operation = Literal["store", "confirm", "renew", "heartbeat", "hint"]
Condition = Literal["up", "backing_off", "connecting"]
RefreshAnswer = Literal["done", "failed", "not_owned", "refused", "busy", "unanswered"]
StaleReason = Literal["down", "failing", "late"]
Check = Literal["live", "ready"]

_POLL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REDIS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_NOT_TIMED: AbstractContextManager[object] = nullcontext()


class Format(Enum):
    """The formats of an exposition; the value is the Accept header that asks prometheus_client for it."""

    TEXT = "text/plain;version=0.0.4"
    OPENMETRICS = "application/openmetrics-text;version=1.0.0"

    @classmethod
    def of(cls, accept: str) -> Format:
        """Return the format for a client's Accept header, whatever that says."""
        for accepted in accept.split(","):
            media_type, *parameters = (part.strip() for part in accepted.split(";"))
            version = next((each[8:] for each in parameters if each.startswith("version=")), "1.0.0")
            if media_type == "application/openmetrics-text" and version == "1.0.0":
                return cls.OPENMETRICS
        return cls.TEXT


class MetricsError(FleetError):
    """Metrics are asked for and can't be given."""


class Metrics:
    """Where the parts of a worker report what they do; this one takes no notice."""

    def polled(self, kind: Kind, result: Result) -> None:
        """One kind of one target was asked for."""

    def poll_ended(self, lane: LaneName, seconds: float) -> None:
        """A poll of one lane ended, well or not."""

    def listed(self) -> None:
        """A server listed its sessions in full."""

    def rows_rejected(self, kind: Kind, count: int) -> None:
        """So many rows of a listing were left out."""

    def compared(self, agreement: Agreement) -> None:
        """The records of a server were compared with X2Go's own query."""

    def write_refused(self, outcome: Outcome) -> None:
        """Redis was asked to write, and its script refused."""

    def lease_lost(self) -> None:
        """A lease that this worker held proved to be gone."""

    def redis_call(self, operation: Operation) -> AbstractContextManager[object]:
        """Return what times the block that asks Redis."""
        return _NOT_TIMED

    def noticed(self) -> None:
        """A server said that its sessions changed."""

    def polled_on_notice(self, seconds: float) -> None:
        """Its sessions were polled, so many seconds after it said so."""

    def refresh_asked(self) -> None:
        """A reader asked for a poll."""

    def refresh_polled(self) -> None:
        """A target was polled for the readers that asked."""

    def refresh_answered(self, answer: RefreshAnswer, count: int) -> None:
        """``count`` requests to poll were answered, or could not be."""

    def connected(self) -> None:
        """An SSH connection was made."""

    def worker_exhausted(self) -> None:
        """Something could not be done, as this worker ran out of file descriptors, threads or memory."""


NO_METRICS = Metrics()


class Pulse:
    """When a loop of the worker last turned."""

    def __init__(self, name: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.name, self._monotonic = name, monotonic
        self._at = monotonic()

    def beat(self) -> None:
        """Note that the loop turns."""
        self._at = self._monotonic()

    def silent_seconds(self) -> float:
        """Return how long ago the loop turned, or was made."""
        return self._monotonic() - self._at


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker stands at one moment; ages in seconds.

    ``inventory`` is the digest of the inventory in force. ``inventory_targets`` is how many targets all workers share.
    """

    conditions: Mapping[Condition, int]
    oldest_seconds: Mapping[Kind, float]
    stale: Mapping[tuple[Kind, StaleReason], int]
    missed_runs: int
    overlapping_runs: int
    clock_steps: int
    inventory: str
    inventory_targets: int
    inventory_refused: bool
    inventory_outdated: bool
    redis_up: bool
    checks: Mapping[Check, bool]
    inventory_left_out: int = 0

    @property
    def owned(self) -> int:
        """How many targets the worker polls."""
        return sum(self.conditions.values())


class PrometheusMetrics(Metrics):
    """Counts in a registry of its own. Thread-safe. Raises MetricsError where prometheus_client is missing."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
        except ImportError as exc:
            raise MetricsError(
                "metrics need the package prometheus_client. Leave --metrics-port (X2GOFLEET_METRICS_PORT) out, or: "
                f"{how_to_install('worker')}"
            ) from exc
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"x2gofleet_{name}", text, registry=registry)

        polls = Counter(
            "x2gofleet_polls_total",
            "Answers by kind and by what came of them: stored in full, confirmed as unchanged, failed, refused by "
            "Redis's script, unwritten as Redis could not be asked.",
            ["kind", "result"],
            registry=registry,
        )
        poll_seconds = Histogram(
            "x2gofleet_poll_seconds",
            "Time of a poll from its start, connecting included, to its last write; failed polls too.",
            ["lane"],
            buckets=_POLL_BUCKETS,
            registry=registry,
        )
        rejected = Counter(
            "x2gofleet_rejected_rows_total",
            "Rows of listings that were left out as not genuine, counted anew at each full listing.",
            ["kind"],
            registry=registry,
        )
        compared = Counter(
            "x2gofleet_reference_comparisons_total",
            "Comparisons of session records with X2Go's own query: equal, differs, or inconclusive.",
            ["agreement"],
            registry=registry,
        )
        refused = Counter(
            "x2gofleet_refused_writes_total",
            "Writes that Redis's script refused: the lease is lost, what it builds on is absent or replaced, a newer "
            "one is stored (older), its time is past (expired) or to come (future).",
            ["outcome"],
            registry=registry,
        )
        redis_seconds = Histogram(
            "x2gofleet_redis_seconds",
            "Time that Redis took for an operation, timeouts and refusals included.",
            ["operation"],
            buckets=_REDIS_BUCKETS,
            registry=registry,
        )
        self._full_listings = counter("full_listings_total", "Listings of sessions that servers made in full.")
        self._lease_losses = counter(
            "lease_losses_total", "Leases that were held and proved to be gone: expired, taken over or flushed."
        )
        self._refresh_requests = counter("refresh_requests_total", "Readers' requests to poll now.")
        self._refresh_polls = counter("refresh_polls_total", "Polls that were made for readers' requests.")
        refresh_answers = Counter(
            "x2gofleet_refresh_answers_total",
            "Readers' requests to poll, by answer: done, failed, not owned by this worker any more, refused as not "
            "understood, busy as too many wait, or unanswered as Redis did not take the answer.",
            ["answer"],
            registry=registry,
        )
        self._notices = counter("notices_total", "Notices of servers that their sessions changed.")
        self._notice_seconds = Histogram(
            "x2gofleet_notice_seconds",
            "From a server's notice until the poll that it caused was done, what it brought written to Redis.",
            buckets=_POLL_BUCKETS,
            registry=registry,
        )
        self._connections = counter("connections_total", "SSH connections that were made and logged in.")
        self._exhausted = counter(
            "worker_exhausted_total",
            "Polls, connections and runs that failed as the worker ran out of file descriptors, threads or memory.",
        )
        started = Gauge(
            "x2gofleet_start_time_seconds",
            "When the worker was started, in seconds since the epoch.",
            registry=registry,
        )
        started.set(time.time())
        build = Info("x2gofleet_build", "Version of x2gofleet and of Python.", registry=registry)
        build.info({"version": metadata.version("x2gofleet"), "python": platform.python_version()})
        # Made beforehand: a series that begins at its first event shows no increase then, and polls look up no child.
        self._polls = {(kind, result): polls.labels(kind, result) for kind in Kind for result in get_args(Result)}
        self._poll_seconds = {lane: poll_seconds.labels(lane) for lane in get_args(LaneName)}
        self._rejected = {kind: rejected.labels(kind) for kind in Kind}
        self._compared = {agreement: compared.labels(agreement) for agreement in Agreement}
        refusals = [outcome for outcome in Outcome if outcome is not Outcome.STORED]
        self._refused: dict[Outcome, Counter] = {outcome: refused.labels(outcome) for outcome in refusals}
        self._refresh_answers = {answer: refresh_answers.labels(answer) for answer in get_args(RefreshAnswer)}
        self._redis_seconds = {operation: redis_seconds.labels(operation) for operation in get_args(Operation)}

    def observe(self, standing: Callable[[], Standing]) -> None:
        """Ask ``standing`` at each scrape."""
        self.registry.register(_StandingCollector(standing))

    def exposition(self, form: Format = Format.TEXT) -> tuple[bytes, str]:
        """Return all metrics in a format, and its content type."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(form.value)
        return encode(_WithoutCreated(self.registry)), content_type

    def polled(self, kind: Kind, result: Result) -> None:
        """Count an answer."""
        self._polls[kind, result].inc()

    def poll_ended(self, lane: LaneName, seconds: float) -> None:
        """Take down how long a poll took."""
        self._poll_seconds[lane].observe(seconds)

    def listed(self) -> None:
        """Count a full listing."""
        self._full_listings.inc()

    def compared(self, agreement: Agreement) -> None:
        """Count a comparison."""
        self._compared[agreement].inc()

    def rows_rejected(self, kind: Kind, count: int) -> None:
        """Count rows that were left out."""
        self._rejected[kind].inc(count)

    def write_refused(self, outcome: Outcome) -> None:
        """Count a refused write."""
        self._refused[outcome].inc()

    def lease_lost(self) -> None:
        """Count a lost lease."""
        self._lease_losses.inc()

    def redis_call(self, operation: Operation) -> AbstractContextManager[object]:
        """Take down how long the block takes, also where it raises."""
        return self._redis_seconds[operation].time()

    def noticed(self) -> None:
        """Count a notice."""
        self._notices.inc()

    def polled_on_notice(self, seconds: float) -> None:
        """Take down how long after its notice a poll was done."""
        self._notice_seconds.observe(seconds)

    def refresh_asked(self) -> None:
        """Count a request."""
        self._refresh_requests.inc()

    def refresh_polled(self) -> None:
        """Count a poll made for requests."""
        self._refresh_polls.inc()

    def refresh_answered(self, answer: RefreshAnswer, count: int) -> None:
        """Count answers to requests."""
        self._refresh_answers[answer].inc(count)

    def connected(self) -> None:
        """Count a connection."""
        self._connections.inc()

    def worker_exhausted(self) -> None:
        """Count what could not be done."""
        self._exhausted.inc()


class _StandingCollector:
    """What is not counted but looked up at each scrape. Follows prometheus_client's Collector."""

    def __init__(self, standing: Callable[[], Standing]) -> None:
        self._standing = standing

    def collect(self) -> Iterator[Metric]:
        now = self._standing()
        yield from _of_targets(now)
        yield from _of_the_schedule(now)
        yield from _of_the_inventory(now)
        yield from _of_health(now)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"x2gofleet_{name}", text, labels=labels)
    for chosen, value in values.items():
        family.add_metric(chosen, value)
    return family


def _of_targets(now: Standing) -> Iterator[Metric]:
    yield _gauge("owned_targets", "Targets that this worker polls.", (), {(): now.owned})
    yield _gauge(
        "targets",
        "Owned targets by condition: up, backing off as the last poll of sessions failed, or connecting.",
        ("condition",),
        {(condition,): now.conditions.get(condition, 0) for condition in get_args(Condition)},
    )
    yield _gauge(
        "oldest_snapshot_age_seconds",
        "Age of the oldest last good answer of all owned targets; of one that gave none yet, the time it is owned.",
        ("kind",),
        {(kind.value,): seconds for kind, seconds in now.oldest_seconds.items()},
    )
    yield _gauge(
        "stale_targets",
        "Owned targets without a good answer for longer than the kind's ttl, so that readers get none: the server is "
        "down, polls of this kind alone are failing, or none failed and they are late.",
        ("kind", "reason"),
        {(k.value, reason): now.stale.get((k, reason), 0) for k in Kind for reason in get_args(StaleReason)},
    )


def _of_the_schedule(now: Standing) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    for name, text, value in (
        ("missed_runs", "Scheduled polls that were left out as they came too late.", now.missed_runs),
        ("overlapping_runs", "Scheduled polls that were left out as the one before still ran.", now.overlapping_runs),
        ("clock_steps", "Times that the machine's clock was set by more than 1 s.", now.clock_steps),
    ):
        yield CounterMetricFamily(f"x2gofleet_{name}", text, value=value)


def _of_the_inventory(now: Standing) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    yield InfoMetricFamily("x2gofleet_inventory", "Digest of this worker's inventory.", value={"digest": now.inventory})
    yield _gauge(
        "inventory_targets",
        "Targets of the newest inventory that this worker knows, which all workers share.",
        (),
        {(): now.inventory_targets},
    )
    yield _gauge(
        "inventory_refused",
        "1 while the inventory file can't be used and the previous inventory stays in force, else 0.",
        (),
        {(): now.inventory_refused},
    )
    yield _gauge(
        "inventory_outdated",
        "1 while another worker has published a newer inventory than this worker's, else 0.",
        (),
        {(): now.inventory_outdated},
    )
    yield _gauge(
        "inventory_left_out",
        "Imported profiles and servers of the inventory in force that are not used, as the log says.",
        (),
        {(): now.inventory_left_out},
    )


def _of_health(now: Standing) -> Iterator[Metric]:
    yield _gauge("redis_up", "1 where the worker's last heartbeat reached Redis, else 0.", (), {(): now.redis_up})
    yield _gauge(
        "health",
        "1 where the check is passed, else 0: live and ready, as /live and /ready answer.",
        ("check",),
        {(check,): now.checks[check] for check in get_args(Check)},
    )


class _WithoutCreated:
    """A registry without the time at which each series was made: as many series again, which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
