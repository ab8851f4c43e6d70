"""A target's poller: how it stands, what readers request of it, what it drops."""

from __future__ import annotations

import errno

import pytest
from x2gofleet_workers.polling import NotOwnerError
from x2gofleet_workers.polling.reference import COMPARE_AGAIN_SECONDS
from x2gofleet_workers.probe.protocol import ErrorCode, SectionKind

from tests.support.polling import PollingSetup, make_record, make_target
from x2gofleet.errors import Unreachable
from x2gofleet.kinds import Kind
from x2gofleet.store import Outcome


def test_ages_are_of_the_kinds_that_a_target_is_polled_for_by_itself() -> None:
    setup = PollingSetup(make_target(desktops=30, load=0))
    user = PollingSetup(make_target("alice@ts01", desktops=30))
    for each in (setup, user):
        each.clock.now += 3
        each.poller.poll_quick()
        each.clock.now += 1
    assert setup.poller.ages() == {Kind.SESSIONS: 1, Kind.MOUNTS: 1}
    assert user.poller.ages() == {Kind.SESSIONS: 1, Kind.MOUNTS: 4, Kind.DESKTOPS: 4}


def test_conditions() -> None:
    setup = PollingSetup()
    assert (setup.poller.condition, setup.poller.tried) == ("connecting", False)
    setup.server.unavailable = Unreachable("x")
    setup.poller.poll_quick()
    assert (setup.poller.condition, setup.poller.tried) == ("backing_off", True)
    assert setup.poller.retry_at(Kind.SESSIONS) == setup.clock.now + setup.retries.asked[-1][1]
    setup.server.unavailable = None
    setup.clock.now += 30
    setup.poller.poll_quick()
    assert (setup.poller.condition, setup.poller.worker_fault) == ("up", "")


def test_kinds_without_a_good_answer_for_their_ttl_are_stale_by_reason() -> None:
    setup = PollingSetup()
    ttls = setup.target.ttls
    assert setup.poller.stale() == {}
    setup.clock.now += ttls[Kind.LOAD] + 1
    assert setup.poller.stale() == {Kind.SESSIONS: "late", Kind.LOAD: "late"}
    setup.server.errors = {SectionKind.MOUNTS: ErrorCode.SCHEMA}
    setup.poller.poll_quick()
    assert setup.poller.stale() == {}
    for _ in range(20):
        setup.clock.now += 10
        setup.poller.poll_quick()
    assert setup.poller.ages()[Kind.MOUNTS] > ttls[Kind.MOUNTS]
    assert setup.poller.stale() == {Kind.MOUNTS: "failing"}
    setup.server.unavailable = Unreachable("x")
    setup.connector.opened[0].alive = False
    setup.clock.now += ttls[Kind.LOAD] + 1
    setup.poller.poll_quick()
    assert setup.poller.stale() == dict.fromkeys((Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS), "down")


def test_a_refresh_lists_in_full_whatever_is_due_or_stored() -> None:
    setup = PollingSetup()
    setup.poller.poll_quick()
    began: list[int] = []
    report = setup.poller.refresh([Kind.SESSIONS], None, begins=lambda: began.append(len(setup.server.requests)))
    assert report.stored == [("ts01", Kind.SESSIONS)]
    assert (setup.signatures(), began) == (["-", "-"], [1])


def test_a_refresh_reads_the_clock_of_redis_after_it_was_requested() -> None:
    setup = PollingSetup()
    setup.poller.poll_quick()
    assert setup.store.synced == 0
    setup.poller.refresh([Kind.SESSIONS], None)
    assert setup.store.synced == 1


def test_a_refresh_tries_at_once_in_the_middle_of_a_back_off() -> None:
    setup = PollingSetup()
    setup.server.unavailable = Unreachable("x")
    setup.poller.poll_quick()
    assert set(setup.poller.refresh([Kind.SESSIONS], None).errors) == {Kind.SESSIONS}
    setup.server.unavailable = None
    assert setup.poller.refresh([Kind.SESSIONS], None).stored == [("ts01", Kind.SESSIONS)]
    assert setup.poller.condition == "up"


def test_a_refresh_of_desktops_requests_those_of_one_user_or_of_all() -> None:
    setup = PollingSetup()
    setup.server.records = [make_record(), make_record("bob-51-1700000000_stDMATE_dp24", "bob", display=b"51")]
    report = setup.poller.refresh([Kind.DESKTOPS], None)
    assert report.stored == [("alice@ts01", Kind.DESKTOPS), ("bob@ts01", Kind.DESKTOPS)]
    report = setup.poller.refresh([Kind.DESKTOPS], "carol")
    assert report.stored == [("carol@ts01", Kind.DESKTOPS)]


def test_a_refresh_that_can_not_connect_requests_no_slow_kind() -> None:
    setup = PollingSetup(make_target("alice@ts01"))
    setup.server.unavailable = Unreachable("x")
    report = setup.poller.refresh([Kind.SESSIONS, Kind.MOUNTS], None)
    assert set(report.errors) == {Kind.SESSIONS}
    assert setup.asked() == []


@pytest.mark.parametrize("name", ["", "a b", "a|b", "a\nb"])
def test_a_name_that_can_not_be_part_of_a_request_is_refused(name: str) -> None:
    setup = PollingSetup()
    with pytest.raises(ValueError):
        setup.poller.refresh([Kind.DESKTOPS], name)
    assert setup.asked() == []


def test_a_discard_drops_the_target_and_its_users_desktops() -> None:
    setup = PollingSetup()
    setup.poller.poll_quick()
    setup.poller.discard()
    assert [name for name, _ in setup.store.discarded] == ["ts01", "alice@ts01", "bob@ts01"]
    setup.clock.now += 2.0
    setup.poller.poll_quick()
    assert setup.signatures() == ["-", "-"]


def test_without_the_lease_nothing_is_discarded() -> None:
    setup = PollingSetup()
    setup.store.outcomes = [Outcome.LOST]
    with pytest.raises(NotOwnerError):
        setup.poller.discard()
    setup.ownership.owned = False
    with pytest.raises(NotOwnerError):
        setup.poller.discard()


def test_a_comparison_that_this_worker_has_no_resources_for_is_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, raised = PollingSetup(), OSError(errno.EMFILE, "Too many open files")
    setup.poller.poll_quick()

    def start(*_: object) -> None:
        raise raised

    monkeypatch.setattr("x2gofleet_workers.polling.lanes.start_probe", start)
    setup.poller.compare_with_reference()
    setup.clock.now += COMPARE_AGAIN_SECONDS
    raised = OSError(errno.EIO, "a bug is not hidden")
    with pytest.raises(OSError, match="a bug is not hidden"):
        setup.poller.compare_with_reference()


def test_records_are_compared_with_x2gos_own_query_where_there_is_a_connection() -> None:
    setup = PollingSetup()
    setup.poller.compare_with_reference()
    assert setup.asked() == []
    setup.poller.poll_quick()
    setup.poller.compare_with_reference()
    assert setup.asked()[-1] == ["reference"]
