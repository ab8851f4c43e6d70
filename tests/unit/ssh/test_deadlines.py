"""Deadlines: time that runs out on an injected clock, and sockets that are shut down when it has."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from x2gofleet_workers.ssh.deadlines import Deadline, DeadlineWatch, shut

from tests.support.clocks import ManualClock
from x2gofleet.errors import DeadlineExceeded

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.settimeout(10.0)
    yield ours, theirs
    ours.close()
    theirs.close()


def is_shut(pair: Pair) -> bool:
    """Whether the other side reads the end; without waiting."""
    pair[1].setblocking(False)
    try:
        return pair[1].recv(1) == b""
    except BlockingIOError:
        return False


def test_time_runs_out(clock: ManualClock) -> None:
    deadline = Deadline(10.0, monotonic=clock)
    clock.now += 9.0
    assert (deadline.left(), deadline.passed()) == (1.0, False)
    clock.now += 1.0
    assert deadline.passed()
    with pytest.raises(DeadlineExceeded, match="no complete answer within 10 s"):
        deadline.left()


def test_a_cancelled_deadline_has_passed_and_shuts_its_socket_down(clock: ManualClock, pair: Pair) -> None:
    deadline = Deadline(10.0, monotonic=clock)
    assert not deadline.is_watching
    deadline.watch(pair[0])
    assert deadline.is_watching
    deadline.cancel()
    assert deadline.passed()
    assert is_shut(pair)


def test_a_socket_that_comes_after_the_cancellation_is_shut_down(clock: ManualClock, pair: Pair) -> None:
    deadline = Deadline(10.0, monotonic=clock)
    deadline.cancel()
    deadline.watch(pair[0])
    assert is_shut(pair)


def test_shutting_down_what_is_closed_is_no_error(pair: Pair) -> None:
    pair[0].close()
    shut(pair[0])


def test_a_block_that_outlasts_its_deadline_finds_its_socket_shut_down(clock: ManualClock, pair: Pair) -> None:
    watch = DeadlineWatch(monotonic=clock)
    with watch.guarded(pair[0], Deadline(10.0, monotonic=clock), grace_seconds=0.5):
        clock.now += 10.0
        assert watch.cut_passed() == 0.5
        assert not is_shut(pair)
        clock.now += 0.5
        assert watch.cut_passed() is None
        assert is_shut(pair)


def test_a_block_that_ends_in_time_leaves_its_socket_alone(clock: ManualClock, pair: Pair) -> None:
    watch = DeadlineWatch(monotonic=clock)
    with watch.guarded(pair[0], Deadline(10.0, monotonic=clock)):
        pass
    clock.now += 20.0
    assert watch.cut_passed() is None
    assert not is_shut(pair)


def test_the_next_of_several_deadlines_is_waited_for(clock: ManualClock, pair: Pair) -> None:
    watch = DeadlineWatch(monotonic=clock)
    late, early = (Deadline(seconds, monotonic=clock) for seconds in (10.0, 3.0))
    with watch.guarded(pair[0], late), watch.guarded(pair[1], early):
        assert watch.cut_passed() == 3.0
    with watch.guarded(pair[0], late):
        assert watch.cut_passed() == 10.0


def test_the_thread_wakes_a_reader_at_the_deadline(pair: Pair) -> None:
    watch = DeadlineWatch()
    with watch.guarded(pair[0], Deadline(0.05)):
        assert pair[0].recv(1) == b""


def test_where_no_thread_can_be_started_nothing_is_left_behind(
    clock: ManualClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = DeadlineWatch(monotonic=clock)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError), watch.guarded(pair[0], Deadline(1.0, monotonic=clock)):
            raise AssertionError("the block ran")
    clock.now += 5.0
    assert watch.cut_passed() is None
    assert not is_shut(pair)
    with watch.guarded(pair[0], Deadline(1.0, monotonic=clock)):
        assert watch.cut_passed() == 1.0
