"""What is written of polls: listings with what changed, confirmations, failures; of users under leases of their own."""

from __future__ import annotations

import logging

import pytest
from x2gofleet_workers.hints import Hints
from x2gofleet_workers.metrics import Metrics
from x2gofleet_workers.polling.context import PollContext, PollMoment
from x2gofleet_workers.polling.host_names import HostNames
from x2gofleet_workers.polling.reference import ReferenceCheck
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.proof import Proven

from tests.support.clocks import ManualClock
from tests.support.polling import START_MS, FakeOwnership, FakeRetries, FakeStore, make_target
from x2gofleet.errors import Unreachable
from x2gofleet.hints import Hint
from x2gofleet.kinds import Kind
from x2gofleet.store import Lease, Outcome

ROW = (
    b"4711|alice-50-1700000000_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|cookie|10.9.8.7|30001|30002|"
    b"2026-11-22T20:24:31|alice|60|30003|-1|-1\n"
)
LEASE = Lease("ts01", "nonce", 1)


class NotedHints(Hints):
    def __init__(self) -> None:
        self.told: list[tuple[str, Kind, Hint | None]] = []

    def stored(self, target: str, kind: Kind, hint: Hint) -> None:
        self.told.append((target, kind, hint))

    def dropped(self, target: str, kinds: object) -> None:
        self.told += [(target, kind, None) for kind in kinds]  # type: ignore[attr-defined]


class NotedMetrics(Metrics):
    def __init__(self) -> None:
        self.refused: list[Outcome] = []
        self.rejected: list[int] = []

    def write_refused(self, outcome: Outcome) -> None:
        self.refused.append(outcome)

    def rows_rejected(self, kind: Kind, count: int) -> None:
        self.rejected.append(count)


class Setup:
    def __init__(self, name: str = "ts01") -> None:
        self.clock, self.hints, self.metrics = ManualClock(), NotedHints(), NotedMetrics()
        self.store = FakeStore(self.clock)
        target = make_target(name)
        self.writer = SnapshotWriter(
            PollContext(
                target=target,
                store=self.store,  # type: ignore[arg-type]
                ownership=FakeOwnership(),  # type: ignore[arg-type]
                retries=FakeRetries(),
                metrics=self.metrics,
                hints=self.hints,
                monotonic=self.clock,
                reference=ReferenceCheck(target, monotonic=self.clock),
                host_names=HostNames(target.id, self.store, self.clock),  # type: ignore[arg-type]
            )
        )

    def moment(self) -> PollMoment:
        return PollMoment(LEASE, self.clock.now, START_MS)

    def store_sessions(self, stdout: bytes = ROW, *, signature: str = "7", **proof: object) -> Outcome:
        proven = Proven(stdout, **proof)  # type: ignore[arg-type]
        return self.writer.store(
            self.moment(), "ts01", Kind.SESSIONS, proven, duration_ms=5, signature=signature, host_name="ts01"
        )


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_listing_is_stored_told_and_remembered(setup: Setup) -> None:
    assert setup.store_sessions() is Outcome.STORED
    ((name, listing),) = setup.store.listings
    assert (name, listing.kind, listing.stdout, listing.host_name) == ("ts01", Kind.SESSIONS, ROW, "ts01")
    assert (listing.polled_at_ms, listing.duration_ms, listing.ttl_ms) == (START_MS, 5, 15_000)
    assert setup.hints.told == [("ts01", Kind.SESSIONS, Hint(START_MS, START_MS, START_MS + 15_000, listing.digest))]
    assert setup.writer.users == ("alice",)


def test_only_the_listing_of_the_signature_is_confirmed(setup: Setup) -> None:
    assert setup.writer.confirm(setup.moment(), "7") is Outcome.ABSENT
    setup.store_sessions()
    assert setup.writer.confirm(setup.moment(), "8") is Outcome.ABSENT
    assert setup.writer.confirm(setup.moment(), "7") is Outcome.STORED
    assert setup.store.confirmed == [setup.store.listings[0][1].digest]
    # Told with the time at which it was listed, which the confirmation does not change.
    assert setup.hints.told[-1][2] == Hint(START_MS, START_MS, START_MS + 15_000, setup.store.confirmed[0])


def test_what_redis_refuses_is_not_remembered(setup: Setup) -> None:
    setup.store.outcomes = [Outcome.LOST]
    assert setup.store_sessions() is Outcome.LOST
    assert setup.writer.stored_listing is None
    assert setup.hints.told == []


def test_changes_are_told_against_what_another_worker_stored(setup: Setup) -> None:
    setup.store.before = ("digest-of-another", b"")
    setup.store_sessions()
    listing = setup.store.listings[0][1]
    assert listing.replaces == "digest-of-another"
    assert [change.session for change in listing.changes] == ["alice-50-1700000000_stDMATE_dp24"]


def test_where_another_listing_is_stored_meanwhile_changes_are_computed_anew(setup: Setup) -> None:
    setup.store_sessions()
    setup.store.before = ("digest-of-another", ROW)
    setup.store.outcomes = [Outcome.REPLACED]
    assert setup.store_sessions(b"") is Outcome.STORED
    assert setup.store.listings[-1][1].replaces == "digest-of-another"


def test_it_gives_up_where_listings_keep_being_replaced(setup: Setup) -> None:
    setup.store.outcomes = [Outcome.REPLACED] * 3
    assert setup.store_sessions() is Outcome.REPLACED
    assert setup.store.listings == []


def test_a_users_desktops_are_stored_under_a_lease_of_their_own(setup: Setup) -> None:
    def store() -> Outcome:
        return setup.writer.store(setup.moment(), "alice@ts01", Kind.DESKTOPS, Proven(b"alice@:50\n"), duration_ms=5)

    assert store() is Outcome.STORED
    assert setup.store.listings[0][0] == "alice@ts01"
    setup.store.others["alice@ts01"] = "another worker"
    assert store() is Outcome.OLDER


def test_on_several_nodes_a_users_desktops_have_the_time_of_their_own_node(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore.link, "one_clock", False)
    setup.writer.store(setup.moment(), "alice@ts01", Kind.DESKTOPS, Proven(b""), duration_ms=5)
    assert setup.store.listings[0][1].polled_at_ms == START_MS + 1_000_001


def test_rows_that_are_left_out_are_counted_each_time_and_logged_once(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "x2gofleet_workers")
    for reasons in (("a row",), ("a row",), ("another row",), (), ("another row",)):
        setup.store_sessions(rejected=reasons, rejected_rows=len(reasons))
    assert caplog.messages == [
        "ts01: 1 row(s) of sessions left out: a row",
        "ts01: 1 row(s) of sessions left out: another row",
        "ts01: 1 row(s) of sessions left out: another row",
    ]
    assert setup.metrics.rejected == [1, 1, 1, 1]


def test_a_failure_is_recorded_by_its_class(setup: Setup) -> None:
    setup.writer.record_failure(LEASE, [Kind.SESSIONS, Kind.LOAD], Unreachable("nobody there"), retry_seconds=30.0)
    (failure,) = setup.store.failures
    assert (failure.kinds, failure.error_class) == ((Kind.SESSIONS, Kind.LOAD), "Unreachable")
    assert failure.state_ttl_ms == (30 + 40 + 60) * 1000


def test_a_failure_that_may_not_be_recorded_is_a_refused_write(setup: Setup) -> None:
    setup.store.outcomes = [Outcome.LOST]
    setup.writer.record_failure(LEASE, [Kind.SESSIONS], Unreachable("nobody there"), retry_seconds=1.0)
    assert setup.metrics.refused == [Outcome.LOST]


def test_desktops_of_all_users_of_a_server_are_no_kind_that_fails() -> None:
    of_server, of_user = Setup(), Setup("alice@ts01")
    for setup in (of_server, of_user):
        setup.writer.record_failure(LEASE, [Kind.DESKTOPS], Unreachable("x"), retry_seconds=1.0)
    assert [failure.kinds for failure in of_user.store.failures] == [(Kind.DESKTOPS,)]
    assert of_server.store.failures == []


def test_what_is_discarded_is_listed_in_full_next(setup: Setup) -> None:
    setup.store_sessions()
    assert setup.writer.discard() is Outcome.STORED
    assert setup.writer.stored_listing is None
    assert setup.store.discarded == [("ts01", tuple(Kind))]
    assert setup.hints.told[-4:] == [("ts01", kind, None) for kind in Kind]
    setup.writer.discard_desktops("alice@ts01")
    assert setup.store.discarded[-1] == ("alice@ts01", (Kind.DESKTOPS,))
