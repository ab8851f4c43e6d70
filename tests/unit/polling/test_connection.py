"""The connection of a target: opened when needed, renewed when lost or old, refused once the target is given up."""

from __future__ import annotations

import pytest
from x2gofleet_workers.polling import NotOwnerError
from x2gofleet_workers.polling.connection import RECYCLE_SECONDS, TargetConnection
from x2gofleet_workers.ssh import Deadline

from tests.support.polling import FakeConnector, FakeServer, make_context
from x2gofleet.errors import ConnectionLost, Unreachable

DEADLINE = Deadline(9.0)


class Setup:
    def __init__(self) -> None:
        self.server = FakeServer()
        self.connector = FakeConnector(self.server)
        self.context, self.clock = make_context()
        self.connection = TargetConnection(self.context, self.connector)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_it_is_opened_when_first_needed_and_kept(setup: Setup) -> None:
    assert not setup.connection.is_usable
    with pytest.raises(ConnectionLost, match="no connection to ts01"):
        setup.connection.current()
    opened = setup.connection.opened(DEADLINE)
    assert setup.connection.is_usable
    assert setup.connection.opened(DEADLINE) is setup.connection.current() is opened
    assert (setup.connector.attempts, setup.context.counters.connections) == (1, 1)


def test_one_that_is_lost_is_replaced(setup: Setup) -> None:
    setup.connection.opened(DEADLINE)
    lost = setup.connector.opened[0]
    lost.alive = False
    assert not setup.connection.is_usable
    assert setup.connection.opened(DEADLINE) is setup.connector.opened[1]


def test_an_old_one_is_closed_and_replaced(setup: Setup) -> None:
    setup.connection.opened(DEADLINE)
    setup.clock.now += RECYCLE_SECONDS * 0.74
    assert setup.connection.is_usable
    setup.clock.now += RECYCLE_SECONDS * 0.27
    assert not setup.connection.is_usable
    setup.connection.opened(DEADLINE)
    assert [each.alive for each in setup.connector.opened] == [False, True]


def test_an_old_one_is_not_closed_under_a_slow_poll(setup: Setup) -> None:
    setup.connection.opened(DEADLINE)
    with setup.connection.held(), setup.connection.held():
        # It is old after 3/4 of the time or later, and held for the longest poll at most.
        setup.clock.now += RECYCLE_SECONDS
        assert setup.connection.opened(DEADLINE) is setup.connection.current()
        assert [each.alive for each in setup.connector.opened] == [True]
        setup.connector.opened[0].alive = False
        assert not setup.connection.is_usable
    setup.connection.opened(DEADLINE)
    setup.clock.now += RECYCLE_SECONDS * 1.01
    assert not setup.connection.is_usable


def test_a_failure_to_open_leaves_none(setup: Setup) -> None:
    setup.server.unavailable = Unreachable("x")
    with pytest.raises(Unreachable):
        setup.connection.opened(DEADLINE)
    assert not setup.connection.is_usable
    assert setup.context.counters.connections == 0


def test_a_dropped_one_is_closed(setup: Setup) -> None:
    setup.connection.opened(DEADLINE)
    setup.connection.drop()
    setup.connection.drop()
    assert not setup.connector.opened[0].alive
    with pytest.raises(ConnectionLost):
        setup.connection.current()


def test_after_refusal_no_poll_begins_and_a_connection_that_was_being_opened_is_closed(setup: Setup) -> None:
    setup.connection.check_open()
    setup.connection.refuse()
    assert setup.connection.is_closed
    with pytest.raises(NotOwnerError):
        setup.connection.check_open()
    with pytest.raises(ConnectionLost, match="stopping"):
        setup.connection.opened(DEADLINE)
    assert [each.alive for each in setup.connector.opened] == [False]
    assert not setup.connection.is_usable
