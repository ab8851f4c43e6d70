"""What a lane remembers of failures: how many, when it tries again, what it has logged."""

from __future__ import annotations

import logging

import pytest
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.failures import KindFailures

from x2gofleet.errors import ListingFailed, Unreachable, WorkerExhausted
from x2gofleet.kinds import Kind

NOW = 1000.0


@pytest.fixture
def failures() -> KindFailures:
    return KindFailures("ts01", Backoff(interval_seconds=2.0, scope="server", jitter=lambda: 1.0))


def test_failures_in_a_row_are_counted_by_kind(failures: KindFailures) -> None:
    assert failures.record([Kind.SESSIONS], Unreachable("x"), NOW) == 2.0
    assert failures.record([Kind.SESSIONS, Kind.LOAD], Unreachable("x"), NOW + 2) == 4.0
    assert (failures.retry_at(Kind.SESSIONS), failures.retry_at(Kind.LOAD)) == (NOW + 6, NOW + 6)
    assert failures.retry_at(Kind.MOUNTS) is None
    assert failures.is_failing(Kind.LOAD)
    assert isinstance(failures.error(Kind.LOAD), Unreachable)


def test_what_the_worker_lacks_counts_as_no_failure(failures: KindFailures, caplog: pytest.LogCaptureFixture) -> None:
    lack = WorkerExhausted("no descriptors")
    for _ in range(5):
        assert failures.postpone([Kind.SESSIONS], lack, NOW) == 2.0
    assert (failures.shortage(Kind.SESSIONS), failures.retry_at(Kind.SESSIONS)) == (lack, NOW + 2)
    assert not failures.is_failing(Kind.SESSIONS)
    failures.succeeded([Kind.LOAD])
    assert (failures.shortage(Kind.SESSIONS), failures.retry_at(Kind.SESSIONS)) == (None, None)
    assert caplog.messages == []


def test_a_server_that_was_down_before_the_worker_lacked_something_backs_off_as_before(failures: KindFailures) -> None:
    for _ in range(3):
        failures.record([Kind.SESSIONS], Unreachable("x"), NOW)
    assert failures.retry_at(Kind.SESSIONS) == NOW + 8
    failures.postpone([Kind.SESSIONS], WorkerExhausted("no descriptors"), NOW + 1)
    assert failures.retry_at(Kind.SESSIONS) == NOW + 8
    assert failures.record([Kind.SESSIONS], Unreachable("x"), NOW + 8) == 16.0
    assert failures.shortage(Kind.SESSIONS) is None


def test_a_success_ends_the_failures_of_its_kind(failures: KindFailures) -> None:
    failures.record([Kind.SESSIONS, Kind.LOAD], ListingFailed("x"), NOW)
    failures.succeeded({Kind.LOAD})
    assert failures.is_failing(Kind.SESSIONS)
    assert not failures.is_failing(Kind.LOAD)
    assert failures.error(Kind.LOAD) is None
    failures.succeeded(set())
    assert failures.is_failing(Kind.SESSIONS)


def test_any_success_ends_an_outage_but_no_failure_of_its_own(failures: KindFailures) -> None:
    failures.record([Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS], Unreachable("x"), NOW)
    failures.outage([Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS])
    failures.record([Kind.MOUNTS], ListingFailed("x"), NOW)
    failures.no_outage(Kind.MOUNTS)
    failures.succeeded({Kind.LOAD})
    assert [kind for kind in Kind if failures.is_failing(kind)] == [Kind.MOUNTS]


def test_a_failure_is_logged_once_until_it_changes_or_ends(
    failures: KindFailures, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "x2gofleet_workers")
    for text in ("a", "a", "b", "b"):
        failures.record([Kind.SESSIONS], Unreachable(text), NOW)
    failures.succeeded({Kind.SESSIONS})
    failures.record([Kind.SESSIONS], Unreachable("b"), NOW)
    assert [record.getMessage() for record in caplog.records] == [
        "ts01: Unreachable: a",
        "ts01: Unreachable: b",
        "ts01: answers again",
        "ts01: Unreachable: b",
    ]
