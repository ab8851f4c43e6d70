"""What is requested of a probe: which kinds are quick, in which order, for whom, and for how long."""

from __future__ import annotations

import pytest
from x2gofleet_workers.polling.sections import fitting_users, is_of_users, quick_kinds, request_for, slow_kinds
from x2gofleet_workers.probe.protocol import Listing, Scope, SectionKind, SectionRequest
from x2gofleet_workers.ssh import Deadline

from tests.support.clocks import ManualClock
from tests.support.polling import make_target
from x2gofleet.kinds import Kind


def test_each_kind_is_quick_or_slow() -> None:
    for name in ("ts01", "alice@ts01"):
        target = make_target(name)
        assert sorted((*quick_kinds(target), *slow_kinds(target))) == sorted(Kind)


def test_only_desktops_of_a_server_are_of_its_users() -> None:
    server, user = make_target(), make_target("alice@ts01")
    assert [kind for kind in Kind if is_of_users(server, kind)] == [Kind.DESKTOPS]
    assert [kind for kind in Kind if is_of_users(user, kind)] == []


def test_sections_have_an_order_in_which_users_can_not_delay_the_others() -> None:
    request = request_for(make_target(), list(Kind), Deadline(9), signature="7", users=("bob", "alice"))
    assert request is not None
    assert request.scope is Scope.SERVER
    assert request.sections == (
        SectionRequest(SectionKind.LOAD),
        SectionRequest(SectionKind.SESSIONS, "7", Listing.RECORDS),
        SectionRequest(SectionKind.MOUNTS),
        SectionRequest(SectionKind.DESKTOPS, user="bob"),
        SectionRequest(SectionKind.DESKTOPS, user="alice"),
    )


def test_where_nobody_has_a_session_there_is_nothing_to_request() -> None:
    assert request_for(make_target(), [Kind.DESKTOPS], Deadline(9)) is None
    request = request_for(make_target("alice@ts01"), [Kind.DESKTOPS], Deadline(9))
    assert request is not None
    assert (request.scope, request.sections) == (Scope.USER, (SectionRequest(SectionKind.DESKTOPS),))


@pytest.mark.parametrize(("left", "seconds"), [(0.1, 1), (2.5, 1), (10.0, 9), (2000.0, 600)])
def test_the_probe_gives_up_before_the_poll_does(left: float, seconds: int) -> None:
    request = request_for(make_target(), [Kind.LOAD], Deadline(left, monotonic=ManualClock()))
    assert request is not None
    assert request.seconds == seconds


def test_a_request_has_room_for_its_users_however_many_and_long_their_names_are() -> None:
    target = make_target("ts01")
    many = tuple(f"{'ü' * 120}{number}" for number in range(1000))
    users = fitting_users(many)
    assert users == many[: len(users)]
    assert 50 < len(users) < 1000
    kinds = (Kind.DESKTOPS, Kind.MOUNTS, Kind.SESSIONS, Kind.LOAD)
    assert request_for(target, kinds, Deadline(20), signature="9" * 64, users=users) is not None
    with pytest.raises(ValueError, match="at most"):
        request_for(target, kinds, Deadline(20), users=many)
    assert fitting_users(("alice", "bob")) == ("alice", "bob")
