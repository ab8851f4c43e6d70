"""A target's polls over made-up servers and Redis: what is due, what is requested, what follows from failures."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.connection import RECYCLE_SECONDS
from x2gofleet_workers.probe.protocol import ErrorCode, SectionKind

from tests.support.polling import PollingSetup, attempts_until, make_record, make_target
from x2gofleet.errors import (
    AuthenticationFailed,
    CacheUnavailable,
    ConnectionLost,
    HostKeyUnknown,
    Unreachable,
    WorkerExhausted,
)
from x2gofleet.kinds import Kind
from x2gofleet.requests import NOT_OWNED
from x2gofleet.store import Outcome

REFUSED = Unreachable("10.0.0.1 port 22: Connection refused")
EXHAUSTED = WorkerExhausted("this worker ran out of file descriptors; nothing is known of the server")


def steady(interval: float = 2.0) -> Backoff:
    return Backoff(interval_seconds=interval, scope="server", jitter=lambda: 1.0)


@pytest.fixture
def setup() -> PollingSetup:
    return PollingSetup(backoff=steady())


def rarely_polled() -> PollingSetup:
    return PollingSetup(make_target(sessions=60, load=60, mounts=600), backoff=steady(60.0))


# What is due


def test_the_first_poll_requests_every_quick_kind_over_one_connection(setup: PollingSetup) -> None:
    report = setup.poller.poll_quick()
    assert setup.asked() == [["load", "sessions", "mounts"]]
    assert sorted(report.stored) == [("ts01", Kind.LOAD), ("ts01", Kind.MOUNTS), ("ts01", Kind.SESSIONS)]
    assert not report.errors
    assert (setup.connector.attempts, setup.poller.connected, setup.poller.tried) == (1, True, True)
    assert setup.poller.condition == "up"


def test_each_kind_is_polled_at_its_own_interval(setup: PollingSetup) -> None:
    for _ in range(7):
        setup.poller.poll_quick()
        setup.clock.now += 2.0
    # Sessions each 2 s, load each 5 s (a tick of 4 s is early enough), mounts each 60 s.
    assert setup.asked() == [
        ["load", "sessions", "mounts"],
        ["sessions"],
        ["load", "sessions"],
        ["sessions"],
        ["load", "sessions"],
        ["sessions"],
        ["load", "sessions"],
    ]
    assert setup.connector.attempts == 1


def test_a_tick_that_comes_early_polls_and_one_that_comes_at_once_does_not(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.clock.now += 1.4
    setup.poller.poll_quick()
    assert len(setup.server.requests) == 1
    setup.clock.now += 0.1
    setup.poller.poll_quick()
    assert len(setup.server.requests) == 2


def test_an_unchanged_listing_is_confirmed_and_now_and_then_listed_in_full(setup: PollingSetup) -> None:
    for _ in range(31):
        setup.poller.poll_quick()
        setup.clock.now += 2.0
    assert setup.signatures() == ["-", *["1"] * 29, "-"]
    assert len(setup.store.confirmed) == setup.poller.counters.confirmed == 29
    assert setup.poller.counters.full_listings == 2


def test_another_lease_lists_in_full(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.ownership.fence += 1
    setup.clock.now += 2.0
    setup.poller.poll_quick()
    assert setup.signatures() == ["-", "-"]


def test_an_old_connection_is_made_anew(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.clock.now += RECYCLE_SECONDS
    assert not setup.poller.connected
    setup.poller.poll_quick()
    assert setup.connector.attempts == 2
    assert not setup.connector.opened[0].alive
    assert setup.signatures() == ["-", "-"]


def test_without_the_lease_nothing_is_polled(setup: PollingSetup) -> None:
    setup.ownership.owned = False
    report = setup.poller.poll_quick()
    assert set(report.errors.values()) == {NOT_OWNED}
    assert setup.connector.attempts == 0
    assert not setup.poller.tried


# What does not come to its end


@pytest.mark.parametrize("seconds", [60.0, 600.0, 86400.0])
def test_an_outage_is_tried_again_within_30_s_whatever_the_interval(seconds: float) -> None:
    setup = PollingSetup(make_target(sessions=seconds, load=seconds, more="[ttls]\nsessions = 600000\nload = 600000\n"))
    setup.server.unavailable = REFUSED
    times = attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 600.0)
    assert setup.connector.attempts == len(times)
    assert all(later - earlier <= 30.0 for earlier, later in itertools.pairwise(times))
    assert all(delay <= 30.0 for _, delay in setup.retries.asked)
    setup.server.unavailable = None
    setup.clock.now = 1000.0 + times[-1] + setup.retries.asked[-1][1]
    assert setup.poller.poll_quick().stored
    assert setup.poller.condition == "up"


def test_the_schedule_of_the_attempts_in_an_outage() -> None:
    setup = rarely_polled()
    setup.server.unavailable = REFUSED
    times = attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 130.0)
    assert times == [0.0, 2.0, 6.0, 14.0, 30.0, 60.0, 90.0, 120.0]
    assert {lane for lane, _ in setup.retries.asked} == {"quick"}


def test_the_schedule_of_the_attempts_of_a_refused_key() -> None:
    setup = rarely_polled()
    setup.server.unavailable = AuthenticationFailed("refused")
    times = attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 1300.0)
    assert times == [0.0, 10.0, 30.0, 70.0, 150.0, 310.0, 630.0, 1230.0]


def test_before_its_time_and_when_an_interval_ticks_in_between_nothing_is_tried(setup: PollingSetup) -> None:
    setup.server.unavailable = REFUSED
    for _ in range(2):
        setup.poller.poll_quick()
        setup.clock.now += 2.0
    assert setup.connector.attempts == 2
    assert not setup.poller.may_try()
    setup.poller.poll_quick()
    assert setup.connector.attempts == 2
    # A retry may come a little early: clocks differ.
    setup.clock.now += 1.8
    assert setup.poller.may_try()
    setup.poller.poll_quick()
    assert setup.connector.attempts == 3


def test_an_outage_is_recorded_of_every_kind_and_any_success_ends_it() -> None:
    setup = rarely_polled()
    setup.server.unavailable = REFUSED
    report = setup.poller.poll_quick()
    assert set(report.errors) == {Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS}
    (failure,) = setup.store.failures
    assert (set(failure.kinds), failure.error_class) == ({Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS}, "Unreachable")
    assert setup.poller.condition == "backing_off"
    setup.server.unavailable = None
    setup.clock.now += 2.0
    setup.poller.poll_quick()
    assert setup.asked() == [["load", "sessions", "mounts"]]
    assert setup.poller.condition == "up"
    assert [setup.poller.retry_at(kind) for kind in Kind] == [None] * 4


def test_a_connection_that_breaks_in_an_answer_is_made_anew_and_nothing_of_it_is_stored(setup: PollingSetup) -> None:
    setup.server.cut_after = 2
    report = setup.poller.poll_quick()
    assert (report.stored, setup.store.listings) == ([], [])
    assert setup.store.failures[0].error_class == "ConnectionLost"
    assert not setup.connector.opened[0].alive
    setup.server.cut_after = None
    setup.clock.now += 2.0
    assert len(setup.poller.poll_quick().stored) == 3
    assert setup.connector.attempts == 2


def test_a_kind_that_fails_by_itself_backs_off_by_itself(setup: PollingSetup) -> None:
    setup.server.errors = {SectionKind.SESSIONS: ErrorCode.LOCKED}
    polled = []
    for _ in range(6):
        report = setup.poller.poll_quick()
        polled.append(sorted(report.errors))
        setup.clock.now += 2.0
    # After 2, 4 and 6 s: sessions alone; what else is due goes on.
    assert polled == [["sessions"], ["sessions"], [], ["sessions"], [], []]
    assert setup.connector.attempts == 1
    assert {failure.kinds for failure in setup.store.failures} == {(Kind.SESSIONS,)}
    assert setup.store.kinds().count(Kind.LOAD) == 3
    assert setup.poller.condition == "backing_off"
    assert setup.poller.connected


def test_a_fault_of_the_setup_behind_a_login_backs_off_slowly(setup: PollingSetup) -> None:
    setup.server.errors = {SectionKind.SESSIONS: ErrorCode.NOT_ROOT}
    for _ in range(15):
        setup.poller.poll_quick()
        setup.clock.now += 2.0
    assert [seconds for _, seconds in setup.retries.asked] == [10.0, 20.0]
    assert {failure.error_class for failure in setup.store.failures} == {"NotPermitted"}


def test_a_failure_is_recorded_for_as_long_as_the_next_try_may_take() -> None:
    alone, shared = PollingSetup(backoff=steady()), PollingSetup(backoff=steady(), logins_at_address=40)
    for setup in (alone, shared):
        setup.server.unavailable = REFUSED
        setup.poller.poll_quick()
    # Ten turns of four logins, each up to its deadline of 10 s, are nine more than one's own.
    assert alone.store.failures[0].state_ttl_ms == (2 + 4 * 10 + 60) * 1000
    assert shared.store.failures[0].state_ttl_ms == (2 + 13 * 10 + 60) * 1000


# What this worker lacks


def test_a_worker_that_lacks_something_records_nothing_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "x2gofleet_workers")
    setup = rarely_polled()
    setup.server.unavailable = EXHAUSTED
    report = setup.poller.poll_quick()
    assert set(report.errors.values()) == {str(EXHAUSTED)}
    assert setup.store.failures == []
    assert setup.poller.worker_fault == str(EXHAUSTED)
    assert setup.poller.condition == "connecting", "the server does not back off"
    times = attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 70.0)
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 2.0, "the delay does not grow"
    (line,) = caplog.messages
    assert line.startswith(f"ts01 can't be polled: {EXHAUSTED}. Retrying until there are enough again")
    setup.server.unavailable = None
    setup.clock.now += 30.0
    setup.poller.poll_quick()
    assert (setup.poller.worker_fault, setup.poller.condition) == ("", "up")


@pytest.mark.parametrize("exc", [MemoryError(), RuntimeError("can't start new thread"), OSError(24, "Too many files")])
def test_a_lack_that_comes_as_what_it_is_is_seen_too(exc: Exception, setup: PollingSetup) -> None:
    setup.server.unavailable = exc
    report = setup.poller.poll_quick()
    assert all("this worker ran out of" in text for text in report.errors.values())
    assert setup.store.failures == []
    assert setup.retries.asked == [("quick", 2.0)]


def test_a_bug_is_no_failure_of_the_server(setup: PollingSetup) -> None:
    setup.server.unavailable = KeyError("a bug")
    with pytest.raises(KeyError):
        setup.poller.poll_quick()
    assert setup.store.failures == []


# What Redis does


def test_where_redis_is_unavailable_the_answer_is_read_to_its_end_and_the_probe_is_used_again(
    setup: PollingSetup,
) -> None:
    setup.store.error = CacheUnavailable("no answer")
    report = setup.poller.poll_quick()
    assert set(report.errors.values()) == {"no answer"}
    setup.store.error = None
    setup.clock.now += 2.0
    assert setup.poller.poll_quick().stored
    assert setup.connector.attempts == 1
    assert len(setup.connector.opened[0].probes) == 1


def test_a_snapshot_that_redis_has_lost_is_listed_at_once(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.clock.now += 2.0
    setup.store.outcomes = [Outcome.ABSENT]
    report = setup.poller.poll_quick()
    assert setup.signatures() == ["-", "1", "-"]
    assert report.stored == [("ts01", Kind.SESSIONS)]


def test_a_lease_that_was_lost_is_taken_again_and_the_poll_made_again(setup: PollingSetup) -> None:
    setup.store.outcomes = [Outcome.LOST]
    report = setup.poller.poll_quick()
    assert ("ts01", Kind.LOAD) in report.stored
    assert setup.poller.counters.refused_writes == 1
    assert setup.ownership.fence == 2


@pytest.mark.parametrize("outcome", [Outcome.OLDER, Outcome.EXPIRED, Outcome.FUTURE])
def test_a_write_that_is_refused_is_told_and_not_repeated(outcome: Outcome, setup: PollingSetup) -> None:
    setup.store.outcomes = [outcome]
    report = setup.poller.poll_quick()
    assert report.errors == {Kind.LOAD: f"the write was refused: {outcome.value}"}
    assert len(setup.server.requests) == 1


# The slow lane


def users_desktops() -> PollingSetup:
    setup = PollingSetup(make_target(desktops=30), backoff=steady())
    setup.server.records = [
        make_record(),
        make_record("bob-51-1700000000_stDMATE_dp24", "bob", display=b"51"),
    ]
    setup.server.desktops = {"alice": b"alice@:50\n", "bob": b"bob@:51\n"}
    return setup


def test_desktops_are_requested_of_each_user_with_a_session() -> None:
    setup = users_desktops()
    assert setup.poller.poll_slow().stored == []
    setup.poller.poll_quick()
    report = setup.poller.poll_slow()
    assert report.stored == [("alice@ts01", Kind.DESKTOPS), ("bob@ts01", Kind.DESKTOPS)]
    assert setup.connector.opened[0].probes[1].closed, "the probe of a slow poll ends with it"


def test_another_user_is_asked_first_each_time() -> None:
    setup = users_desktops()
    setup.poller.poll_quick()
    for _ in range(3):
        setup.poller.poll_slow()
        setup.clock.now += 40
    slow = [request for request in setup.server.requests if request.sections[0].kind is SectionKind.DESKTOPS]
    assert [[section.user for section in request.sections] for request in slow] == [
        ["alice", "bob"],
        ["bob", "alice"],
        ["alice", "bob"],
    ]


@pytest.mark.parametrize("code", [ErrorCode.COMMAND_MISSING, ErrorCode.TIMEOUT, ErrorCode.COMMAND])
def test_one_users_desktops_that_fail_are_no_failure_of_the_others(code: ErrorCode) -> None:
    setup = users_desktops()
    setup.server.desktops["alice"] = code
    setup.poller.poll_quick()
    report = setup.poller.poll_slow()
    assert report.stored == [("bob@ts01", Kind.DESKTOPS)]
    assert report.errors[Kind.DESKTOPS].startswith("alice@ts01: ")
    assert setup.store.failures == []
    assert setup.poller.retry_at(Kind.DESKTOPS) is None
    assert setup.retries.asked == []


def test_a_slow_answer_that_breaks_off_costs_only_what_had_not_come() -> None:
    setup = PollingSetup(make_target("alice@ts01", desktops=30, mounts=30), backoff=steady())
    setup.server.cut_after = None
    setup.poller.poll_quick()
    setup.server.cut_after = 1
    report = setup.poller.poll_slow()
    assert report.stored == [("alice@ts01", Kind.MOUNTS)]
    assert set(report.errors) == {Kind.DESKTOPS}
    assert [failure.kinds for failure in setup.store.failures] == [(Kind.DESKTOPS,)]
    assert setup.poller.connected, "the connection stays"
    assert setup.retries.asked == [("slow", 2.0)]


def test_after_an_outage_slow_kinds_are_polled_as_soon_as_there_is_a_connection() -> None:
    setup = PollingSetup(make_target("alice@ts01", sessions=60, desktops=3600, mounts=3600), backoff=steady())
    setup.poller.poll_quick()
    setup.poller.poll_slow()
    setup.connector.opened[0].alive = False
    setup.server.unavailable = REFUSED
    setup.clock.now += 60.0
    setup.poller.poll_quick()
    assert set(setup.store.failures[0].kinds) == {Kind.SESSIONS, Kind.DESKTOPS, Kind.MOUNTS}
    setup.server.unavailable = None
    setup.clock.now += 2.0
    setup.poller.poll_quick()
    assert {kind for _, kind in setup.poller.poll_slow().stored} == {Kind.DESKTOPS, Kind.MOUNTS}
    assert setup.poller.poll_slow().stored == []


# Whose login it is


def test_what_a_user_breaks_of_an_own_login_is_retried_within_a_minute() -> None:
    setup = PollingSetup(make_target("alice@ts01"))
    setup.server.unavailable = AuthenticationFailed("refused")
    attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 600.0)
    assert 40.0 < max(delay for _, delay in setup.retries.asked) <= 60.0


def test_a_host_key_that_nobody_knows_is_an_administrators_in_any_scope() -> None:
    setup = PollingSetup(make_target("alice@ts01"))
    setup.server.unavailable = HostKeyUnknown("not known")
    attempts_until(setup.poller.poll_quick, setup.clock, setup.retries, 3000.0)
    assert max(delay for _, delay in setup.retries.asked) > 400.0


# The end


def test_a_closed_poller_polls_no_more_and_records_nothing(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.poller.close()
    assert setup.poller.is_closed()
    assert not setup.connector.opened[0].alive
    setup.clock.now += 60.0
    assert set(setup.poller.poll_quick().errors) == {Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS}
    assert (setup.connector.attempts, setup.store.failures) == (1, [])


def test_a_poll_that_breaks_as_it_is_closed_is_no_failure(setup: PollingSetup) -> None:
    class Closing(ConnectionLost):
        def __init__(self) -> None:
            super().__init__("cut")
            setup.poller.close()

    class Unavailable:
        def open(self, *args: object) -> None:
            raise Closing

    setup.connector.open = Unavailable().open  # type: ignore[assignment]
    report = setup.poller.poll_quick()
    assert report.errors
    assert (setup.store.failures, setup.retries.asked) == ([], [])


# Notices


def test_every_request_to_the_resident_probe_asks_for_a_notice(setup: PollingSetup) -> None:
    for _ in range(4):
        setup.poller.poll_quick()
        setup.clock.now += 2.0
    setup.poller.refresh((Kind.DESKTOPS,), "alice")
    quick = [request.watch for request in setup.server.requests if request.sections[0].kind is not SectionKind.DESKTOPS]
    slow = [request.watch for request in setup.server.requests if request.sections[0].kind is SectionKind.DESKTOPS]
    assert (quick, slow) == ([True] * 4, [False])


@pytest.mark.parametrize("target", [make_target("alice@ts01"), replace(make_target(), notices=False)])
def test_no_notices_in_scope_user_nor_where_they_are_switched_off(target: Target) -> None:
    setup = PollingSetup(target, backoff=steady())
    setup.poller.poll_quick()
    assert [request.watch for request in setup.server.requests] == [False]


def test_what_the_probe_says_by_itself_is_a_notice_of_the_target() -> None:
    noticed: list[str] = []

    class Notices:
        def noticed(self, target: str) -> None:
            noticed.append(target)

    setup = PollingSetup(backoff=steady(), notices=Notices())
    setup.poller.poll_quick()
    assert noticed == []
    setup.connector.opened[0].probes[0].call()
    assert noticed == ["ts01"]


def test_a_poll_on_notice_asks_for_sessions_and_leaves_the_ticks_where_they_are(setup: PollingSetup) -> None:
    setup.poller.poll_quick()
    setup.clock.now += 1.0
    setup.server.signature, setup.server.records = "2", [make_record(), make_record("bob-51-1_stDMATE_dp24", "bob")]
    report = setup.poller.poll_noticed()
    assert report.stored == [("ts01", Kind.SESSIONS)]
    setup.clock.now += 1.0
    setup.poller.poll_quick()
    assert setup.asked()[1:] == [["sessions"], ["sessions"]]
