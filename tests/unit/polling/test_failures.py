"""What a lane remembers of failures: how many, when it tries again, what it has logged."""

from __future__ import annotations

import logging

import pytest
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.failures import KindFailures

from x2gofleet.errors import ListingFailed, Unreachable
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
