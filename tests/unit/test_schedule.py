"""Schedule: phases that spread, jobs that neither overlap nor pile up, and a wall clock that is stepped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.executors.pool import BasePoolExecutor
from hypothesis import given
from hypothesis import strategies as st
from x2gofleet_workers import schedule as schedule_module
from x2gofleet_workers.schedule import Schedule, phase

from tests.waiting import HANG_SECONDS, wait_until

HOUR = 3600.0


class Clocks:
    """Stands in for the module ``time``: a wall clock that can be stepped and a monotonic one that can't."""

    def __init__(self) -> None:
        self.wall, self.mono = time.time(), 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(schedule_module, "time", made)
    return made


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    made = Schedule(max_threads=4)
    made.start()
    yield made
    made.stop()


def next_run(schedule: Schedule, name: str) -> float:
    job = schedule._scheduler.get_job(name)
    assert job is not None
    return float(job.next_run_time.timestamp())


def nothing() -> None:
    """A job that does nothing."""


@given(st.text())
def test_a_phase_is_a_part_of_the_interval(name: str) -> None:
    assert 0.0 <= phase(name) < 1.0
    assert phase(name) == phase(name)


def test_phases_are_the_same_everywhere_and_spread() -> None:
    assert [round(phase(f"ts0{number}/quick"), 6) for number in (1, 2, 3)] == [0.767802, 0.829459, 0.374089]
    tenths = [int(phase(f"ts{number:03}/quick") * 10) for number in range(1000)]
    assert all(70 <= tenths.count(tenth) <= 130 for tenth in range(10))


def test_a_job_keeps_its_phase_whoever_runs_it_and_whenever_it_was_added(clocks: Clocks, schedule: Schedule) -> None:
    schedule.add("ts01/quick", 10.0, nothing)
    first = next_run(schedule, "ts01/quick")
    assert clocks.wall < first <= clocks.wall + 10.0
    assert first % 10.0 == pytest.approx(phase("ts01/quick") * 10.0, abs=1e-3)
    other = Schedule(max_threads=1)
    other.start()
    try:
        clocks.passes(33.3)
        other.add("ts01/quick", 10.0, nothing)
        assert (next_run(other, "ts01/quick") - first) % 10.0 == pytest.approx(0.0, abs=1e-3)
        # What follows the first run has the phase too.
        job = other._scheduler.get_job("ts01/quick")
        at = job.next_run_time
        later = job.trigger.get_next_fire_time(at, at)
        assert (later - at).total_seconds() == pytest.approx(10.0, abs=1e-3)
    finally:
        other.stop()


@pytest.mark.parametrize("step", [-HOUR, -1.5, 1.5, HOUR, 30 * 24 * HOUR])
def test_after_a_step_of_the_clock_jobs_run_within_an_interval_again(
    clocks: Clocks, schedule: Schedule, step: float
) -> None:
    schedule.add("ts01/quick", 5.0, nothing)
    schedule.add("ts02/quick", 5.0, nothing)
    clocks.passes(1.0)
    assert not schedule.follow_clock()
    clocks.wall += step
    clocks.passes(1.0)
    assert schedule.follow_clock()
    for name in ("ts01/quick", "ts02/quick"):
        at = next_run(schedule, name)
        assert clocks.wall < at <= clocks.wall + 5.0
        assert at % 5.0 == pytest.approx(phase(name) * 5.0, abs=1e-3)
        job = schedule._scheduler.get_job(name)
        now = datetime.fromtimestamp(at, UTC)
        assert (job.trigger.get_next_fire_time(now, now) - now).total_seconds() == pytest.approx(5.0, abs=1e-3)
    assert not schedule.follow_clock(), "told once"


def test_drift_is_no_step(clocks: Clocks, schedule: Schedule) -> None:
    schedule.add("ts01/quick", 5.0, nothing)
    for _ in range(100):
        clocks.passes(1.0)
        clocks.wall += 0.5
        assert not schedule.follow_clock()


def test_a_step_of_a_removed_job_does_not_bring_it_back(clocks: Clocks, schedule: Schedule) -> None:
    schedule.add("ts01/quick", 5.0, nothing)
    schedule.remove("ts01/quick")
    schedule.remove("ts01/quick")
    clocks.wall += HOUR
    assert schedule.follow_clock()
    assert schedule.names() == ()
    assert schedule._scheduler.get_jobs() == []


def test_a_job_that_is_removed_while_the_clock_is_followed_is_left_alone(clocks: Clocks, schedule: Schedule) -> None:
    schedule.add("kept", 2.0, lambda: None)
    schedule.add("going", 2.0, lambda: None)
    # As a thread sees it that comes between the two halves of ``remove``.
    schedule._scheduler.remove_job("going")
    clocks.wall += HOUR
    assert schedule.follow_clock()
    assert clocks.wall <= next_run(schedule, "kept") <= clocks.wall + 2.0
    schedule.remove("going")
    assert schedule.names() == ("kept",)


def test_jobs_run_and_a_replaced_one_no_more(schedule: Schedule) -> None:
    ran: list[str] = []
    schedule.add("ts01/quick", 0.05, lambda: ran.append("old"))
    wait_until(lambda: "old" in ran)
    schedule.add("ts01/quick", 0.05, lambda: ran.append("new"))
    wait_until(lambda: ran.count("new") >= 3)
    assert "old" not in ran[ran.index("new") + 1 :]
    assert schedule.names() == ("ts01/quick",)


def test_a_job_never_overlaps_itself_nor_holds_up_another(schedule: Schedule) -> None:
    let_go, running, others = threading.Event(), [], []

    def stuck() -> None:
        running.append(1)
        let_go.wait(HANG_SECONDS)

    schedule.add("ts01/quick", 0.05, stuck)
    schedule.add("ts02/quick", 0.05, lambda: others.append(1))
    wait_until(lambda: schedule.overlapped >= 3 and len(others) >= 3)
    assert len(running) == 1
    let_go.set()
    wait_until(lambda: len(running) > 1)


def test_a_late_run_is_made_late_and_once(schedule: Schedule) -> None:
    ran: list[int] = []
    schedule.add("ts01/quick", 60.0, lambda: ran.append(1))
    late = datetime.now(UTC) - timedelta(seconds=600)
    schedule._scheduler.modify_job("ts01/quick", next_run_time=late)
    wait_until(lambda: len(ran) >= 1)
    wait_until(lambda: next_run(schedule, "ts01/quick") > time.time())
    assert ran == [1], "ten missed runs were not made one"
    assert schedule.missed == 0


def test_a_job_that_runs_once_waits_for_no_interval(clocks: Clocks, schedule: Schedule) -> None:
    schedule.add("ts01/quick", HOUR, nothing)
    schedule.once("ts01/quick/retry", 30.0, nothing)
    assert next_run(schedule, "ts01/quick/retry") == pytest.approx(clocks.wall + 30.0, abs=1e-3)
    assert schedule.seconds_until("ts01/quick/retry") == 30.0
    clocks.passes(10.0)
    assert schedule.seconds_until("ts01/quick/retry") == 20.0
    assert schedule.names() == ("ts01/quick",)


def test_it_runs_once_and_a_later_one_takes_its_place(schedule: Schedule) -> None:
    ran: list[str] = []
    schedule.once("ts01/retry", HOUR, lambda: ran.append("first"))
    schedule.once("ts01/retry", 0.01, lambda: ran.append("second"))
    wait_until(lambda: bool(ran))
    assert ran == ["second"]
    assert schedule.seconds_until("ts01/retry") is None
    assert schedule._scheduler.get_jobs() == []


def test_it_may_set_up_the_next_one_while_it_still_runs(schedule: Schedule) -> None:
    ran: list[int] = []
    go_on = threading.Event()

    def again() -> None:
        ran.append(1)
        if len(ran) < 3:
            schedule.once("ts01/retry", 0.01, again)
        go_on.wait(10)

    schedule.once("ts01/retry", 0.01, again)
    wait_until(lambda: len(ran) == 3)
    go_on.set()
    assert schedule.overlapped == 0


def test_it_is_tried_again_where_no_thread_could_be_started(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "_TRY_AGAIN_SECONDS", 0.05)
    submit = BasePoolExecutor._do_submit_job
    refused: list[str] = []

    def refuse_twice(executor: BasePoolExecutor, job: Any, run_times: Any) -> None:
        if len(refused) < 2:
            refused.append(job.id)
            raise RuntimeError("can't start new thread")
        submit(executor, job, run_times)

    monkeypatch.setattr(BasePoolExecutor, "_do_submit_job", refuse_twice)
    ran: list[int] = []
    schedule.once("ts01/retry", 0.01, lambda: ran.append(1))
    wait_until(lambda: bool(ran))
    assert refused == ["ts01/retry"] * 2
    assert schedule._scheduler.get_jobs() == []
    assert ran == [1]


def test_one_that_is_removed_does_not_run(schedule: Schedule) -> None:
    ran: list[int] = []
    schedule.once("ts01/retry", 0.2, lambda: ran.append(1))
    schedule.remove("ts01/retry")
    schedule.remove("ts01/retry")
    schedule.once("ts02/retry", 0.3, lambda: ran.append(2))
    wait_until(lambda: bool(ran))
    assert ran == [2]


@pytest.mark.parametrize("step", [-HOUR, 1.5, HOUR])
def test_after_a_step_of_the_clock_it_runs_when_it_would_have(clocks: Clocks, schedule: Schedule, step: float) -> None:
    # APScheduler has the real clock, by which a time before now would be due.
    schedule._scheduler.pause()
    schedule.once("ts01/retry", 30.0, nothing)
    clocks.passes(10.0)
    clocks.wall += step
    assert schedule.follow_clock()
    assert next_run(schedule, "ts01/retry") == pytest.approx(clocks.wall + 20.0, abs=1e-3)


def test_stop_before_start_and_twice() -> None:
    made = Schedule(max_threads=1)
    made.stop()
    made.start()
    made.stop()
    made.stop()
