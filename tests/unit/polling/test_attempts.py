"""Which target connects next: turns of addresses, limits of each and of all, and attempts that wait for a server."""

from __future__ import annotations

import pytest
from x2gofleet_workers.polling.attempts import AttemptQueue

from tests.support.clocks import ManualClock

HERE, THERE, ELSEWHERE = ("ts01", 22), ("ts02", 22), ("ts03", 22)
Queue = AttemptQueue[str]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def make(clock: ManualClock, *, per_address: int = 4, at_once: int = 8, slow_seconds: float = 1.0) -> Queue:
    return AttemptQueue(per_address=per_address, at_once=at_once, slow_seconds=slow_seconds, monotonic=clock)


def start_all(queue: Queue) -> list[str]:
    """Start what may run now."""
    started = []
    while (attempt := queue.start_next()) is not None:
        started.append(attempt)
    return started


def test_attempts_run_in_their_order(clock: ManualClock) -> None:
    queue = make(clock)
    for name in ("a", "b", "c"):
        assert queue.add(name, HERE)
    assert start_all(queue) == ["a", "b", "c"]
    assert start_all(queue) == []


def test_an_attempt_waits_or_runs_once(clock: ManualClock) -> None:
    queue = make(clock)
    assert queue.add("a", HERE)
    assert not queue.add("a", HERE)
    assert start_all(queue) == ["a"]
    assert not queue.add("a", HERE)
    queue.finish("a")
    assert queue.add("a", HERE)


def test_forty_logins_of_one_address_are_four_at_once(clock: ManualClock) -> None:
    queue = make(clock, at_once=32)
    names = [f"user{number:02}" for number in range(40)]
    for name in names:
        queue.add(name, HERE)
    done: list[str] = []
    while running := start_all(queue):
        assert len(running) == 4
        for name in running:
            queue.finish(name)
        done += running
    assert done == names


def test_a_hung_address_holds_up_no_other_one(clock: ManualClock) -> None:
    queue = make(clock)
    for number in range(40):
        queue.add(f"hung{number}", HERE)
    assert len(start_all(queue)) == 4
    queue.add("well", THERE)
    assert start_all(queue) == ["well"]


def test_addresses_take_turns(clock: ManualClock) -> None:
    queue = make(clock, at_once=3)
    for name, address in (("a1", HERE), ("a2", HERE), ("a3", HERE), ("b1", THERE), ("c1", ELSEWHERE)):
        queue.add(name, address)
    assert start_all(queue) == ["a1", "b1", "c1"]
    for name in ("a1", "b1", "c1"):
        queue.finish(name)
    assert start_all(queue) == ["a2", "a3"]


def test_attempts_that_wait_for_a_server_make_room_for_others(clock: ManualClock) -> None:
    queue = make(clock, at_once=2)
    for number in range(5):
        queue.add(f"server{number}", (f"ts{number}", 22))
    assert start_all(queue) == ["server0", "server1"]
    assert queue.seconds_to_wait() == 1.0
    clock.now += 0.75
    assert start_all(queue) == []
    assert queue.seconds_to_wait() == 0.25
    clock.now += 0.25
    assert start_all(queue) == ["server2", "server3"]
    # Of those that are over, none counts any more.
    queue.finish("server2")
    assert start_all(queue) == ["server4"]
    assert queue.seconds_to_wait() is None


def test_no_wait_helps_where_only_an_address_is_full(clock: ManualClock) -> None:
    queue = make(clock, per_address=1)
    queue.add("a", HERE)
    queue.add("b", HERE)
    assert start_all(queue) == ["a"]
    assert queue.seconds_to_wait() is None
    queue.finish("a")
    assert start_all(queue) == ["b"]


def test_a_withdrawn_attempt_does_not_run_and_one_that_runs_stays(clock: ManualClock) -> None:
    queue = make(clock, per_address=1)
    for name in ("a", "b", "c"):
        queue.add(name, HERE)
    assert start_all(queue) == ["a"]
    for name in ("a", "b", "unknown"):
        queue.withdraw(name)
    queue.finish("b")
    assert start_all(queue) == []
    queue.finish("a")
    queue.finish("a")
    assert start_all(queue) == ["c"]
    queue.withdraw("c")
    queue.finish("c")
    assert (start_all(queue), queue.seconds_to_wait()) == ([], None)
