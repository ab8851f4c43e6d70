"""What comes of the sections of an answer: stored, confirmed, refused, failed or unwritten, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from x2gofleet_workers.metrics import Metrics, Result
from x2gofleet_workers.polling.answers import AnswerResults
from x2gofleet_workers.polling.context import PollMoment
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.hello import Hello
from x2gofleet_workers.probe.protocol import ErrorCode, Section, SectionKind, SectionStatus
from x2gofleet_workers.probe.reference import Agreement, Comparison
from x2gofleet_workers.probe.sections import DatabaseFacts
from x2gofleet_workers.ssh import ProbeChannel

from tests.support.polling import (
    LOAD,
    START_MS,
    FakeBytes,
    FakeServer,
    FakeStore,
    failed,
    make_context,
    make_record,
)
from x2gofleet.errors import CacheUnavailable, DeadlineExceeded, HostNameChanged, ListingFailed
from x2gofleet.kinds import Kind
from x2gofleet.store import Lease, Outcome

CHANNEL = ProbeChannel(FakeBytes(FakeServer()), Hello(0, "root", "ts01"))
LISTING = Section(
    kind=SectionKind.SESSIONS, backend="sqlite", host="ts01", signature="1", records=(make_record(),), exit_status=None
)
ON_POSTGRES = replace(LISTING, backend="postgres", database=DatabaseFacts("1.2"))
SAME = Section(kind=SectionKind.SESSIONS, status=SectionStatus.SAME, backend="sqlite", host="ts01", signature="1")
LOAD_SECTION = Section(kind=SectionKind.LOAD, stdout=LOAD)


class NotedMetrics(Metrics):
    def __init__(self) -> None:
        self.results: list[tuple[Kind, Result]] = []

    def polled(self, kind: Kind, result: Result) -> None:
        self.results.append((kind, result))


class Setup:
    def __init__(self, name: str = "ts01", *users: str) -> None:
        self.metrics = NotedMetrics()
        self.context, self.clock = make_context(name, metrics=self.metrics)
        store = self.context.store
        assert isinstance(store, FakeStore)
        self.store: FakeStore = store
        self.writer = SnapshotWriter(self.context)
        self.report = PollReport()
        self.results = self.of_one_answer(*users)

    def of_one_answer(self, *users: str) -> AnswerResults:
        moment = PollMoment(Lease(self.context.target.id, "nonce", 1), self.clock.now, START_MS)
        return AnswerResults(self.context, self.writer, moment, self.report, users=users)

    def take(self, *sections: Section) -> AnswerResults:
        for section in sections:
            self.results.take(section, CHANNEL)
        return self.results


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_what_is_proven_is_stored_and_noted(setup: Setup) -> None:
    results = setup.take(LOAD_SECTION, LISTING)
    assert setup.report.stored == [("ts01", Kind.LOAD), ("ts01", Kind.SESSIONS)]
    assert setup.metrics.results == [(Kind.LOAD, "stored"), (Kind.SESSIONS, "stored")]
    assert setup.context.progress.good_at == {Kind.LOAD: setup.clock.now, Kind.SESSIONS: setup.clock.now}
    assert results.answered == {Kind.LOAD, Kind.SESSIONS}
    assert (results.failures, results.again, results.lost, results.unwritten, results.broken) == (
        {},
        [],
        False,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("name", "section", "recorded"),
    [
        ("ts01", ON_POSTGRES, [("ts01", "ts01", "1.2")]),
        ("alice@ts01", replace(ON_POSTGRES, records=(), stdout=b"", exit_status=0), []),
    ],
    ids=["proven", "of a user"],
)
def test_a_host_name_is_recorded_where_a_server_proved_its_listing(
    name: str, section: Section, recorded: list[tuple[str, str, str]]
) -> None:
    setup = Setup(name)
    setup.take(section)
    assert setup.store.host_names == recorded


def test_a_listing_that_is_not_proven_records_no_host_name(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HostNameChanged("it is called victim")

    monkeypatch.setattr("x2gofleet_workers.polling.answers.prove", refuse)
    assert set(setup.take(ON_POSTGRES).failures) == {Kind.SESSIONS}
    assert setup.store.host_names == []


def test_the_same_listing_is_confirmed(setup: Setup) -> None:
    setup.take(LISTING)
    setup.results = setup.of_one_answer()
    setup.take(SAME)
    assert setup.metrics.results[-1] == (Kind.SESSIONS, "confirmed")
    assert len(setup.store.confirmed) == 1
    assert setup.context.counters.full_listings == 1


def test_the_same_as_what_nobody_stored_is_requested_again(setup: Setup) -> None:
    assert setup.take(SAME).again == [Kind.SESSIONS]
    assert setup.metrics.results == [(Kind.SESSIONS, "refused")]
    assert setup.context.counters.refused_writes == 0


def test_a_section_that_fails_costs_no_other(setup: Setup) -> None:
    results = setup.take(failed(SectionKind.SESSIONS, ErrorCode.TIMEOUT), LOAD_SECTION)
    assert {kind: type(exc) for kind, exc in results.failures.items()} == {Kind.SESSIONS: DeadlineExceeded}
    assert setup.report.stored == [("ts01", Kind.LOAD)]


def test_records_that_are_known_to_differ_from_x2gos_own_query_are_not_stored(setup: Setup) -> None:
    for _ in range(3):
        setup.context.reference.compared(Comparison(Agreement.DIFFERS, "field 4 (status) differs", "digest"))
    results = setup.take(LISTING)
    assert {kind: type(exc) for kind, exc in results.failures.items()} == {Kind.SESSIONS: ListingFailed}
    assert not setup.store.listings


def test_nor_is_a_listing_confirmed_that_was_stored_before_the_difference_was_known(setup: Setup) -> None:
    setup.take(LISTING)
    for _ in range(3):
        setup.context.reference.compared(Comparison(Agreement.DIFFERS, "field 4 (status) differs", "digest"))
    setup.results = setup.of_one_answer()
    assert set(setup.take(SAME).failures) == {Kind.SESSIONS}
    assert not setup.store.confirmed


def test_without_redis_the_rest_of_an_answer_is_read_and_not_written(setup: Setup) -> None:
    setup.store.error = CacheUnavailable("gone")
    results = setup.take(LOAD_SECTION)
    setup.store.error = None
    setup.take(LISTING)
    assert isinstance(results.unwritten, CacheUnavailable)
    assert setup.metrics.results == [(Kind.LOAD, "unwritten"), (Kind.SESSIONS, "unwritten")]
    assert results.answered == {Kind.LOAD, Kind.SESSIONS}
    assert not setup.store.listings


@pytest.mark.parametrize(
    ("outcome", "lost", "again", "told"),
    [
        (Outcome.LOST, True, [Kind.LOAD], False),
        (Outcome.OLDER, False, [], True),
        (Outcome.FUTURE, False, [], True),
        (Outcome.EXPIRED, False, [], True),
    ],
)
def test_a_refused_write(outcome: Outcome, lost: bool, again: list[Kind], told: bool, setup: Setup) -> None:
    setup.store.outcomes = [outcome]
    results = setup.take(LOAD_SECTION)
    assert (results.lost, results.again, bool(setup.report.errors)) == (lost, again, told)
    assert setup.context.counters.refused_writes == 1
    assert setup.report.stored == []
    assert setup.context.progress.good_at == {}


@pytest.mark.parametrize(
    ("change", "recorded"),
    [
        (lambda: LISTING, "ts01"),
        (lambda: Section(kind=SectionKind.SESSIONS, backend="sqlite", host="ts01"), "ts01"),
        # Only records of other hosts: perhaps this is not the name under which the server has its sessions.
        (
            lambda: Section(kind=SectionKind.SESSIONS, backend="sqlite", host="ts01", others=2, other_hosts=("old",)),
            "",
        ),
    ],
)
def test_the_host_name_is_recorded_where_the_listing_shows_it(
    change: Callable[[], Section], recorded: str, setup: Setup
) -> None:
    setup.take(change())
    assert [listing.host_name for _, listing in setup.store.listings] == [recorded]


def test_desktops_are_of_the_users_in_the_order_of_the_request() -> None:
    setup = Setup("ts01", "alice", "bob", "carol")
    alice, carol = (Section(kind=SectionKind.DESKTOPS, stdout=b"%b@:50\n" % who, exit_status=0) for who in (b"a", b"c"))
    results = setup.take(alice, failed(SectionKind.DESKTOPS, ErrorCode.COMMAND))
    assert Kind.DESKTOPS not in results.answered
    setup.take(carol)
    assert setup.report.stored == [("alice@ts01", Kind.DESKTOPS), ("carol@ts01", Kind.DESKTOPS)]
    assert setup.report.errors[Kind.DESKTOPS].startswith("bob@ts01: ")
    assert results.failures == {}
    assert setup.context.progress.good_at == {}
