"""One request and its answer: which signature is offered, which time it has, what is left of an answer that breaks."""

from __future__ import annotations

import pytest
from x2gofleet_workers.polling import NotOwnerError
from x2gofleet_workers.polling.connection import TargetConnection
from x2gofleet_workers.polling.exchange import RELIST_SECONDS, Exchanges, PollOrder
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.hello import Hello
from x2gofleet_workers.ssh import Deadline, ProbeChannel

from tests.support.polling import (
    FakeBytes,
    FakeConnector,
    FakeOwnership,
    FakeServer,
    FakeStore,
    make_context,
)
from x2gofleet.errors import ConnectionLost
from x2gofleet.kinds import Kind

SESSIONS = PollOrder((Kind.SESSIONS,))


class Setup:
    def __init__(self, *, as_a_whole: bool = True) -> None:
        self.server = FakeServer()
        self.ownership = FakeOwnership()
        self.context, self.clock = make_context(ownership=self.ownership)
        store = self.context.store
        assert isinstance(store, FakeStore)
        self.store: FakeStore = store
        self.connection = TargetConnection(self.context, FakeConnector(self.server))
        self.writer = SnapshotWriter(self.context)
        self.exchanges = Exchanges(self.context, self.connection, self.writer, as_a_whole=as_a_whole)
        self.channel = self.new_channel()

    def new_channel(self) -> ProbeChannel:
        self.channel = ProbeChannel(FakeBytes(self.server), Hello(0, "root", "ts01"))
        return self.channel

    def make(self, order: PollOrder = SESSIONS) -> PollReport:
        report, lease = PollReport(), self.context.lease()
        self.results = self.exchanges.make(self.channel, order, lease, Deadline(9.0), report)
        return report

    def offered(self) -> str:
        return self.server.requests[-1].sections[-1].signature


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_stored_listing_is_offered_to_the_probe_that_made_it(setup: Setup) -> None:
    setup.make()
    assert setup.offered() == "-"
    setup.make()
    assert setup.offered() == "1"
    assert len(setup.store.confirmed) == 1
    setup.new_channel()
    setup.make()
    assert setup.offered() == "-"


def test_no_listing_is_offered_by_force_or_under_another_lease(setup: Setup) -> None:
    setup.make()
    setup.make(PollOrder((Kind.SESSIONS,), force=True))
    assert setup.offered() == "-"
    setup.make()
    assert setup.offered() == "1"
    setup.ownership.fence += 1
    setup.make()
    assert setup.offered() == "-"


def test_a_listing_is_made_anew_before_it_is_older_than_a_minute(setup: Setup) -> None:
    setup.make()
    interval = setup.context.target.intervals[Kind.SESSIONS]
    setup.clock.now += RELIST_SECONDS - interval
    setup.make()
    assert setup.offered() == "1"
    setup.clock.now += 0.1
    setup.make()
    assert setup.offered() == "-"


def test_a_forced_poll_has_the_time_of_redis_read_after_it_was_requested(setup: Setup) -> None:
    setup.make()
    assert setup.store.synced == 0
    setup.make(PollOrder((Kind.SESSIONS,), force=True))
    assert setup.store.synced == 1


def test_where_nobody_has_desktops_nothing_is_requested(setup: Setup) -> None:
    report = setup.make(PollOrder((Kind.DESKTOPS,)))
    assert (setup.server.requests, report, setup.results.broken) == ([], PollReport(), None)


@pytest.mark.parametrize(("as_a_whole", "stored"), [(True, []), (False, [("ts01", Kind.LOAD)])])
def test_of_an_answer_that_breaks_off_nothing_is_believed_or_what_came_before(
    as_a_whole: bool, stored: list[tuple[str, Kind]]
) -> None:
    setup = Setup(as_a_whole=as_a_whole)
    setup.server.cut_after = 1
    report = setup.make(PollOrder((Kind.LOAD, Kind.SESSIONS)))
    assert isinstance(setup.results.broken, ConnectionLost)
    assert report.stored == stored
    assert setup.results.answered == {kind for _, kind in stored}
    assert not setup.channel.idle


def test_an_answer_for_a_target_that_was_given_up_is_not_stored(setup: Setup) -> None:
    setup.connection.refuse()
    with pytest.raises(NotOwnerError):
        setup.make()
    assert not setup.store.listings
