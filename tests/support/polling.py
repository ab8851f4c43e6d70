"""One target's polling without network or Redis: a store, an ownership, a connector and a probe that are made up.

Everything is decided by the test: what the server answers, what Redis takes, what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from x2gofleet_workers.hints import NO_HINTS
from x2gofleet_workers.inventory import Target, parse_inventory
from x2gofleet_workers.metrics import NO_METRICS, LaneName
from x2gofleet_workers.polling.context import PollContext
from x2gofleet_workers.polling.host_names import HostNames
from x2gofleet_workers.polling.poller import TargetPoller
from x2gofleet_workers.polling.reference import ReferenceCheck
from x2gofleet_workers.probe.encoding import encode_done, encode_section
from x2gofleet_workers.probe.frames import TO_PROBE, FrameDecoder
from x2gofleet_workers.probe.hello import Hello
from x2gofleet_workers.probe.protocol import (
    ErrorCode,
    Record,
    Request,
    Scope,
    Section,
    SectionError,
    SectionKind,
    SectionRequest,
    SectionStatus,
)
from x2gofleet_workers.ssh import Deadline, Endpoint, ProbeChannel

from tests.support.clocks import ManualClock
from x2gofleet.kinds import Kind
from x2gofleet.store import Lease, Listing, Outcome

INVENTORY = """
[defaults]
user = "root"
key_file = "/etc/x2gofleet/id"
known_hosts = "/etc/x2gofleet/known_hosts"
[servers.ts01]
host = "10.0.0.1"
[profiles.mate]
servers = ["ts01"]
"""
LOAD = b"loadavg 0.10 0.20 0.30\nmemtotal_kb 4000000\nmemavailable_kb 3000000\ncpus 2\ncpu_mhz 2400.0\n"
START_MS = 1_700_000_000_000


def make_target(name: str = "ts01", *, more: str = "", **intervals: float) -> Target:
    """Return a target of a small inventory; ``alice@ts01`` has scope user. ``intervals`` in seconds, 2 of sessions."""
    text = INVENTORY + '[profiles.alice]\nservers = ["ts01"]\nuser = "alice"\n[intervals]\n'
    text += "".join(f"{kind} = {seconds}\n" for kind, seconds in {"sessions": 2.0, **intervals}.items())
    return parse_inventory(text + more).targets[name]


def make_record(name: str = "alice-50-1700000000_stDMATE_dp24", user: str = "alice", **columns: bytes) -> Record:
    """Return the record of a running session."""
    plain = {
        "cut": b"",
        "session": name.encode(),
        "username": user.encode(),
        "hostname": b"ts01",
        "status": b"R",
        "display": b"50",
        "created": b"2026-11-22T20:24:30",
        "touched": b"2026-11-22T20:24:31",
        "cookie": b"00112233445566778899aabbccddeeff",
        "client": b"10.9.8.7",
        "agent_pid": b"4711",
        "graphics_port": b"30001",
        "sound_port": b"30002",
        "sshfs_port": b"30003",
        "tekictrl_port": b"-1",
        "tekidata_port": b"-1",
        "age": b"60",
        "creator": b"",
        "foreign_agent": b"",
        "state": b"",
    }
    return Record(**{**plain, **columns})


@dataclass
class FakeServer:
    """What a server answers to each section. ``signature``: of its sessions; where it is offered, they are the same.

    ``errors``: a code for each kind that can't be answered. ``stdout``: what desktops print. ``cut_after``: after so
    many sections the connection ends. ``unavailable``: raised instead of a connection.
    """

    signature: str = "1"
    records: list[Record] = field(default_factory=lambda: [make_record()])
    errors: dict[SectionKind, ErrorCode] = field(default_factory=dict)
    desktops: dict[str, bytes | ErrorCode] = field(default_factory=dict)
    cut_after: int | None = None
    unavailable: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def sections(self, request: Request) -> Iterator[Section]:
        """Yield the answer to a request."""
        for asked in request.sections:
            yield self._section(asked, request.scope)

    def _section(self, asked: SectionRequest, scope: Scope) -> Section:
        origin = {"backend": "sqlite", "host": "ts01"}
        if asked.kind in self.errors:
            return failed(asked.kind, self.errors[asked.kind])
        if scope is Scope.USER:
            return Section(kind=asked.kind, stdout=b"", exit_status=0)
        match asked.kind:
            case SectionKind.LOAD:
                return Section(kind=asked.kind, stdout=LOAD)
            case SectionKind.SESSIONS if asked.signature == self.signature:
                same = SectionStatus.SAME
                return Section(kind=asked.kind, status=same, signature=self.signature, **origin)
            case SectionKind.SESSIONS:
                records = tuple(self.records)
                return Section(kind=asked.kind, records=records, signature=self.signature, **origin)
            case SectionKind.MOUNTS:
                return Section(kind=asked.kind, **origin)
            case _:
                found = self.desktops.get(asked.user, b"")
                if isinstance(found, ErrorCode):
                    return failed(asked.kind, found, user=asked.user)
                return Section(kind=asked.kind, stdout=found, exit_status=0, user=asked.user)


def failed(kind: SectionKind, code: ErrorCode, user: str = "") -> Section:
    """Return a section that could not be answered."""
    error = SectionError(code, f"a fault: {code}")
    return Section(kind=kind, status=SectionStatus.ERROR, error=error, user=user)


class FakeBytes:
    """The probe's input and output: a request that is written is answered by the server."""

    stderr = b""

    def __init__(self, server: FakeServer) -> None:
        self._server, self._frames = server, FrameDecoder(TO_PROBE)
        self._output: list[bytes] = []
        self.closed = False

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        yield

    def send(self, data: bytes, deadline: Deadline) -> None:
        self._frames.feed(data)
        while (frame := self._frames.next_frame()) is not None:
            request = Request.decode(frame.payload)
            self._server.requests.append(request)
            sections = [encode_section(each, request.scope, frame.request) for each in self._server.sections(request)]
            end = encode_done(0, "ts01", frame.request)
            cut_after = self._server.cut_after
            self._output += sections[:cut_after] if cut_after is not None else [*sections, end]

    def receive(self, deadline: Deadline) -> bytes:
        return self._output.pop(0) if self._output else b""

    def on_input(self, call: Callable[[], None]) -> None:
        self.call = call

    def has_input(self) -> bool:
        return bool(self._output)

    def exit_status(self, deadline: Deadline) -> int:
        return 0

    def forget_stderr(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeConnection:
    """As much of SshConnection as is used."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self.alive = True
        self.probes: list[FakeBytes] = []

    def start_probe(self, command: str, deadline: Deadline, *, first_input: bytes = b"") -> ProbeChannel:
        self.probes.append(FakeBytes(self._server))
        return ProbeChannel(self.probes[-1], Hello(0, "root", "ts01"))

    def close(self) -> None:
        self.alive = False


class FakeConnector:
    """Opens connections to the server, or raises what the server says."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self.opened: list[FakeConnection] = []
        self.attempts = 0

    def open(self, endpoint: Endpoint, deadline: Deadline) -> Any:
        self.attempts += 1
        if self._server.unavailable is not None:
            raise self._server.unavailable
        self.opened.append(FakeConnection(self._server))
        return self.opened[-1]


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that was recorded in Redis."""

    kinds: tuple[Kind, ...]
    error_class: str
    state_ttl_ms: int


class FakeStore:
    """Takes every write, unless told otherwise by ``outcomes`` (the next ones) or ``error`` (raised by each call)."""

    class link:  # noqa: N801  # stands in for an instance
        one_clock = True

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.outcomes: list[Outcome] = []
        self.error: Exception | None = None
        self.synced = 0
        self.listings: list[tuple[str, Listing]] = []
        self.confirmed: list[str] = []
        self.failures: list[Failure] = []
        self.discarded: list[tuple[str, tuple[Kind, ...]]] = []
        self.host_names: list[tuple[str, str, str]] = []
        self.before: tuple[str, bytes] | None = None
        self.others: dict[str, str] = {}
        self._seq = 0

    def _outcome(self) -> Outcome:
        if self.error is not None:
            raise self.error
        return self.outcomes.pop(0) if self.outcomes else Outcome.STORED

    def now_ms(self, target: str | None = None) -> int:
        return START_MS + int(self._clock.now * 1000)

    def sync_clock(self, target: str | None = None) -> int:
        self.synced += 1
        return self.now_ms()

    def at_ms(self, target: str, moment: float) -> int:
        return START_MS + int(moment * 1000) + 1

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def recorded_host_name(self, target: str) -> str:
        return ""

    def record_host_name(self, server: str, host_name: str, database: str, *, valid_ms: int) -> tuple[str, ...]:
        self.host_names.append((server, host_name, database))
        return ()

    def stored(self, target: str, kind: Kind) -> tuple[str, bytes] | None:
        return self.before

    def store(self, lease: Lease, seq: int, listing: Listing) -> Outcome:
        outcome = self._outcome()
        if outcome is Outcome.STORED:
            self.listings.append((lease.target, listing))
            self.before = (listing.digest, listing.stdout)
        return outcome

    def confirm(self, lease: Lease, seq: int, kind: Kind, *, digest: str, **more: object) -> Outcome:
        outcome = self._outcome()
        if outcome is Outcome.STORED:
            self.confirmed.append(digest)
        return outcome

    def fail(
        self, lease: Lease, kinds: Iterable[Kind], *, error_class: str, state_ttl_ms: int, **more: object
    ) -> Outcome:
        outcome = self._outcome()
        if outcome is Outcome.STORED:
            self.failures.append(Failure(tuple(kinds), error_class, state_ttl_ms))
        return outcome

    def acquire(self, target: str, *, ttl_ms: int) -> Lease | str:
        return self.others.get(target) or Lease(target, "nonce", 7)

    def release(self, lease: Lease) -> bool:
        return True

    def discard(self, lease: Lease, kinds: Iterable[Kind]) -> Outcome:
        outcome = self._outcome()
        self.discarded.append((lease.target, tuple(kinds)))
        return outcome

    def users_desktops(self, server: str) -> tuple[str, ...]:
        return (f"alice@{server}", f"bob@{server}")

    def kinds(self) -> list[Kind]:
        """Return the kinds of the listings that were stored, in their order."""
        return [listing.kind for _, listing in self.listings]


class FakeOwnership:
    """Holds the lease of every target, until ``owned`` is False."""

    ttl_ms = 6000

    def __init__(self) -> None:
        self.owned = True
        self.fence = 1

    def lease(self, target: str) -> Lease | None:
        return Lease(target, "nonce", self.fence) if self.owned else None

    def reacquire(self, lost: Lease) -> Lease | None:
        self.fence += 1
        return self.lease(lost.target)


@dataclass
class FakeRetries:
    """Notes the retries that were asked for, as (lane, seconds)."""

    asked: list[tuple[LaneName, float]] = field(default_factory=list)

    def retry(self, target: str, lane: LaneName, delay_seconds: float) -> None:
        self.asked.append((lane, delay_seconds))


def make_context(name: str = "ts01", **more: Any) -> tuple[PollContext, ManualClock]:
    """Return what the parts of one target's polling share, all of it made up, and its clock at 1000 s."""
    clock, target = ManualClock(), make_target(name)
    store = more.get("store") or FakeStore(clock)
    context: dict[str, Any] = {
        "target": target,
        "store": store,
        "ownership": FakeOwnership(),
        "retries": FakeRetries(),
        "metrics": NO_METRICS,
        "hints": NO_HINTS,
        "monotonic": clock,
        "reference": ReferenceCheck(target, monotonic=clock),
        "host_names": HostNames(target.id, store, clock),
        **more,
    }
    return PollContext(**context), clock


class PollingSetup:
    """A poller with everything around it made up; ``clock`` is at 1000 s until the test moves it."""

    def __init__(self, target: Target | None = None, **more: Any) -> None:
        self.target = target or make_target()
        self.clock = ManualClock()
        self.server = FakeServer()
        self.store = FakeStore(self.clock)
        self.ownership = FakeOwnership()
        self.connector = FakeConnector(self.server)
        self.retries = FakeRetries()
        self.poller = TargetPoller(
            self.target,
            self.store,  # type: ignore[arg-type]
            self.ownership,  # type: ignore[arg-type]
            connector=self.connector,
            retries=self.retries,
            monotonic=self.clock,
            **more,
        )

    def asked(self) -> list[list[str]]:
        """Return the kinds of each request that reached the server."""
        return [[section.kind.value for section in request.sections] for request in self.server.requests]

    def signatures(self) -> list[str]:
        """Return the signature that each request for sessions offered."""
        sections = [section for request in self.server.requests for section in request.sections]
        return [section.signature for section in sections if section.kind is SectionKind.SESSIONS]


def attempts_until(
    poll: Callable[[], object], clock: ManualClock, retries: FakeRetries, seconds: float
) -> Sequence[float]:
    """Poll when each retry is due, for so many seconds; return when that was, counted from now."""
    began, times = clock.now, [0.0]
    poll()
    while True:
        clock.now += retries.asked[-1][1]
        if clock.now - began > seconds:
            return times
        times.append(round(clock.now - began, 3))
        poll()
