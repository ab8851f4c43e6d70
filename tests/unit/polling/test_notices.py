"""Polls on notice: at once while the allowance lasts, then two a second, never two of a target at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from x2gofleet_workers.metrics import Metrics
from x2gofleet_workers.polling.notices import BURST, REFILL_SECONDS, NoticePolls

from tests.support.clocks import ManualClock


class Pool(Executor):
    """Runs what is submitted when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.error: Exception | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.error is not None:
            raise self.error
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.error = RuntimeError("cannot schedule new futures after shutdown")


class Counted(Metrics):
    def __init__(self) -> None:
        self.notices = 0
        self.seconds: list[float] = []

    def noticed(self) -> None:
        self.notices += 1

    def polled_on_notice(self, seconds: float) -> None:
        self.seconds.append(seconds)


class Setup:
    """Notice polls whose clock, threads and delayed calls are the test's."""

    def __init__(self) -> None:
        self.clock, self.pool, self.metrics = ManualClock(), Pool(), Counted()
        self.polled: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.later: dict[str, tuple[float, Callable[[], None]]] = {}
        self.polls = NoticePolls(self._run, self._wait, pool=self.pool, metrics=self.metrics, monotonic=self.clock)

    def _run(self, target: str) -> None:
        self.polled.append(target)
        self.meanwhile()

    def _wait(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        assert name not in self.later, "a target waits once"
        self.later[name] = (seconds, call)

    def work(self) -> list[str]:
        """Let everything that was submitted run; return which targets were polled."""
        before = len(self.polled)
        while self.pool.waiting:
            self.pool.waiting.pop(0)()
        return self.polled[before:]

    def advance(self, seconds: float) -> list[str]:
        """Move the clock, make the calls that are due, and return which targets were polled."""
        self.clock.now += seconds
        for name, (delay, call) in list(self.later.items()):
            if delay <= seconds:
                del self.later[name]
                call()
            else:
                self.later[name] = (delay - seconds, call)
        return self.work()


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_notice_brings_a_poll_at_once(setup: Setup) -> None:
    setup.polls.noticed("ts01")
    assert (setup.work(), setup.later) == (["ts01"], {})


def test_after_a_burst_there_are_two_polls_a_second(setup: Setup) -> None:
    polled = []
    for _ in range(BURST):
        setup.polls.noticed("ts01")
        polled += setup.work()
    assert polled == ["ts01"] * BURST
    for _ in range(3):
        setup.polls.noticed("ts01")
        assert setup.work() == []
        assert setup.later["ts01/notice"][0] == pytest.approx(REFILL_SECONDS)
        assert setup.advance(REFILL_SECONDS) == ["ts01"]


def test_one_that_toggles_for_an_hour_gets_no_more_than_its_allowance(setup: Setup) -> None:
    for _ in range(36_000):
        setup.polls.noticed("ts01")
        setup.work()
        setup.advance(0.1)
    assert len(setup.polled) == pytest.approx(BURST + 3600 / REFILL_SECONDS, abs=2)
    assert setup.metrics.notices == 36_000


def test_the_allowance_comes_back_while_nothing_is_noticed_and_never_above_a_burst(setup: Setup) -> None:
    for _ in range(BURST):
        setup.polls.noticed("ts01")
        setup.work()
    setup.clock.now += 100 * REFILL_SECONDS
    polled = []
    for _ in range(BURST + 2):
        setup.polls.noticed("ts01")
        polled += setup.work()
    assert polled == ["ts01"] * BURST
    assert list(setup.later) == ["ts01/notice"]


def test_one_target_does_not_use_up_what_another_is_allowed(setup: Setup) -> None:
    for _ in range(3 * BURST):
        setup.polls.noticed("ts01")
        setup.work()
    setup.polls.noticed("ts02")
    assert setup.work() == ["ts02"]


def test_notices_that_come_before_a_poll_began_share_it(setup: Setup) -> None:
    for _ in range(5):
        setup.polls.noticed("ts01")
    assert setup.work() == ["ts01"]


def test_notices_that_come_during_a_poll_share_one_more(setup: Setup) -> None:
    def twice() -> None:
        setup.meanwhile = lambda: None
        setup.polls.noticed("ts01")
        setup.polls.noticed("ts01")

    setup.meanwhile = twice
    setup.polls.noticed("ts01")
    assert setup.work() == ["ts01", "ts01"]


def test_a_poll_that_raises_is_logged_and_the_next_notice_counts(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("unexpected")

    setup.meanwhile = fail
    setup.polls.noticed("ts01")
    with caplog.at_level(logging.ERROR):
        setup.work()
    assert "ts01: a poll on notice failed" in caplog.text
    setup.meanwhile = lambda: None
    setup.polls.noticed("ts01")
    assert setup.work() == ["ts01"]


def test_what_is_known_of_a_target_is_forgotten_with_it(setup: Setup) -> None:
    for _ in range(BURST + 1):
        setup.polls.noticed("ts01")
        setup.work()
    del setup.later["ts01/notice"]
    setup.polls.forget("ts01")
    setup.polls.noticed("ts01")
    assert setup.work() == ["ts01"]


def test_no_thread_left_is_no_end_of_notices(setup: Setup) -> None:
    setup.pool.error = RuntimeError("can't start new thread")
    setup.polls.noticed("ts01")
    setup.pool.error = None
    setup.polls.noticed("ts01")
    assert setup.work() == ["ts01"]


def test_after_the_stop_nothing_is_polled(setup: Setup) -> None:
    setup.polls.stop()
    setup.polls.noticed("ts01")
    assert (setup.work(), setup.later) == ([], {})


def test_the_time_is_counted_from_the_first_notice(setup: Setup) -> None:
    setup.polls.noticed("ts01")
    setup.clock.now += 0.25
    setup.polls.noticed("ts01")
    setup.work()
    assert setup.metrics.seconds == [0.25]
