"""How long is waited after failures: by their class, by whose login it is, whatever the interval."""

from __future__ import annotations

import inspect

import pytest
from x2gofleet_workers.inventory import Scope
from x2gofleet_workers.polling.backoff import Backoff

from x2gofleet import errors
from x2gofleet.errors import (
    AuthenticationFailed,
    CommandMissing,
    HostKeyMismatch,
    HostKeyUnknown,
    HostNameShared,
    ListingFailed,
    NotPermitted,
    OutageError,
    PollError,
    SetupError,
    Unreachable,
)

FAILURES = (1, 2, 3, 4, 10, 1000)
OUTAGE = [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
SETUP = [10.0, 20.0, 40.0, 80.0, 600.0, 600.0]
OF_A_USER = [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, PollError)]


def delays(exc: PollError, *, interval: float = 2.0, scope: Scope = "server", jitter: float = 1.0) -> list[float]:
    backoff = Backoff(interval_seconds=interval, scope=scope, jitter=lambda: jitter)
    return [backoff.seconds(exc, failures) for failures in FAILURES]


@pytest.mark.parametrize("interval", [2.0, 5.0, 60.0, 86400.0])
def test_outages_are_retried_within_30_s_whatever_the_interval(interval: float) -> None:
    assert delays(Unreachable("x"), interval=interval) == OUTAGE


def test_a_short_interval_begins_with_short_delays() -> None:
    assert delays(Unreachable("x"), interval=0.1) == [0.5, 1.0, 2.0, 4.0, 30.0, 30.0]


@pytest.mark.parametrize("interval", [2.0, 60.0])
def test_what_can_not_be_believed_is_retried_within_30_s(interval: float) -> None:
    assert delays(ListingFailed("x"), interval=interval) == [2.0, 4.0, 6.0, 8.0, 20.0, 30.0]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_only_faults_of_the_setup_wait_longer_than_30_s(error: type[PollError]) -> None:
    longest = max(delays(error("x")))
    assert longest == (600.0 if issubclass(error, SetupError) and error is not HostNameShared else 30.0)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_what_the_user_of_a_login_can_cause_is_retried_within_a_minute(error: type[PollError]) -> None:
    longest = max(delays(error("x"), scope="user"))
    assert longest == (600.0 if error in (SetupError, HostKeyMismatch, HostKeyUnknown) else longest)
    assert longest <= 60.0 or error in (SetupError, HostKeyMismatch, HostKeyUnknown)


@pytest.mark.parametrize("error", [AuthenticationFailed, NotPermitted, CommandMissing])
def test_the_schedule_of_a_users_own_login(error: type[PollError]) -> None:
    assert delays(error("x"), scope="user") == OF_A_USER
    assert delays(error("x"), scope="server") == SETUP


@pytest.mark.parametrize("error", [OutageError, SetupError, ListingFailed])
def test_jitter_spreads_and_never_lengthens(error: type[PollError]) -> None:
    whole = delays(error("x"))
    backoff = Backoff(interval_seconds=2.0, scope="server")
    for failures, limit in zip(FAILURES, whole, strict=True):
        drawn = {backoff.seconds(error("x"), failures) for _ in range(200)}
        assert 0.7 * limit <= min(drawn) < max(drawn) <= limit
        assert len(drawn) > 100
