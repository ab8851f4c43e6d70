"""schedule: when each owned target is polled; the only module that imports APScheduler.

One job per target for the quick kinds, one for the slow ones. Phases are spread over the interval by a hash of the
target, so that a fleet's polls don't come in bursts and a target keeps its phase whoever owns it. Retries after a
failure are jobs of their own that run once, so that they don't wait for an interval.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from x2gofleet_workers.shortages import Shortages
from x2gofleet_workers.ssh.faults import exhausted

CLOCK_STEP_SECONDS = 1.0
# A job that runs once is tried again where no thread could be started for it.
_TRY_AGAIN_SECONDS = 5.0
# One that is about to end may have set the next one up.
_INSTANCES_OF_ONE_RUN = 4

log = logging.getLogger(__name__)
logging.getLogger("apscheduler").setLevel(logging.ERROR)


def phase(name: str) -> float:
    """Return a number from 0 to 1, the same for a name wherever it is computed."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32


@dataclass(frozen=True, slots=True)
class _OneRun:
    """A job that runs once, at a monotonic time."""

    at: float
    run: Callable[[], None]


class _Executor(ThreadPoolExecutor):  # type: ignore[misc]
    """APScheduler's, which reports where no thread could be started, instead of logging a traceback for each job."""

    def __init__(self, max_threads: int, shortages: Shortages) -> None:
        super().__init__(max_threads)
        self._shortages = shortages

    def submit_job(self, job: Job, run_times: list[datetime]) -> None:
        try:
            super().submit_job(job, run_times)
        except RuntimeError as exc:
            lack = exhausted(exc)
            if lack is None:
                raise
            self._shortages.occurred(lack, f"{job.id} can't be run")


class Schedule:
    """Runs jobs, at their intervals or once, in a pool of threads that grows with need."""

    def __init__(self, *, max_threads: int, shortages: Shortages | None = None) -> None:
        self._scheduler = BackgroundScheduler(
            executors={"default": _Executor(max_threads, shortages or Shortages())},
            # A late run is made late, never left out; several late ones are made one; none overlaps itself.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        self._scheduler.add_listener(self._count, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        self._lock = threading.Lock()
        self._intervals: dict[str, float] = {}
        self._once: dict[str, _OneRun] = {}
        self._offset = time.time() - time.monotonic()
        self.missed = 0
        self.overlapped = 0
        self.clock_steps = 0

    def _count(self, event: JobEvent) -> None:
        if event.code == EVENT_JOB_MISSED:
            self.missed += 1
        else:
            self.overlapped += 1

    def start(self) -> None:
        """Begin to run jobs."""
        self._scheduler.start()

    def stop(self) -> None:
        """Run no more jobs; running ones are not waited for."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def add(self, name: str, interval_seconds: float, run: Callable[[], None]) -> None:
        """Run ``run`` every interval, at the phase of ``name``; replaces a job of that name."""
        with self._lock:
            self._intervals[name] = interval_seconds
        self._scheduler.add_job(
            run,
            _trigger(name, interval_seconds),
            id=name,
            replace_existing=True,
            next_run_time=_next_run(name, interval_seconds),
        )

    def once(self, name: str, delay_seconds: float, run: Callable[[], None]) -> None:
        """Run ``run`` once, after a delay; replaces a job of that name that has not run yet."""
        one = _OneRun(time.monotonic() + delay_seconds, run)
        with self._lock:
            self._once[name] = one
            self._scheduler.add_job(
                self._run_once,
                _until_it_ran(delay_seconds),
                args=(name, one),
                id=name,
                replace_existing=True,
                max_instances=_INSTANCES_OF_ONE_RUN,
            )

    def _run_once(self, name: str, one: _OneRun) -> None:
        with self._lock:
            if self._once.get(name) is not one:
                return
            del self._once[name]
            with suppress(JobLookupError):
                self._scheduler.remove_job(name)
        one.run()

    def seconds_until(self, name: str) -> float | None:
        """Return in how many seconds a job runs that runs once; None where none of that name waits."""
        with self._lock:
            one = self._once.get(name)
        return None if one is None else max(0.0, one.at - time.monotonic())

    def remove(self, name: str) -> None:
        """Run a job no more."""
        with self._lock:
            known = self._intervals.pop(name, None) is not None
            known = self._once.pop(name, None) is not None or known
        if known:
            with suppress(JobLookupError):
                self._scheduler.remove_job(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of all jobs that run at intervals."""
        with self._lock:
            return tuple(self._intervals)

    def follow_clock(self) -> bool:
        """Reschedule all jobs where the machine's clock was stepped; return whether it was.

        APScheduler computes with wall-clock times: a step back would stop it for as long, a step forward makes it
        enumerate every missed run.
        """
        offset = time.time() - time.monotonic()
        step = offset - self._offset
        self._offset = offset
        if abs(step) < CLOCK_STEP_SECONDS:
            return False
        self.clock_steps += 1
        log.warning("the clock was stepped by %.1f s; polls are scheduled anew", step)
        with self._lock:
            jobs, once = dict(self._intervals), dict(self._once)
        for name, interval in jobs.items():
            # It may have been removed meanwhile.
            with suppress(JobLookupError):
                self._scheduler.modify_job(
                    name, trigger=_trigger(name, interval), next_run_time=_next_run(name, interval)
                )
        for name, one in once.items():
            with suppress(JobLookupError):
                trigger = _until_it_ran(one.at - time.monotonic())
                self._scheduler.modify_job(name, trigger=trigger, next_run_time=trigger.start_date)
        return True


def _next_run(name: str, interval: float) -> datetime:
    """Return the next time that has the name's phase."""
    now = time.time()
    start = (now // interval) * interval + phase(name) * interval
    return datetime.fromtimestamp(start if start > now else start + interval, UTC)


def _until_it_ran(delay_seconds: float) -> IntervalTrigger:
    """Return a trigger for a job that removes itself when it runs.

    Not a DateTrigger: APScheduler removes such a job whether it could be handed to a thread or not.
    """
    start = datetime.fromtimestamp(time.time() + max(0.0, delay_seconds), UTC)
    return IntervalTrigger(seconds=_TRY_AGAIN_SECONDS, start_date=start, timezone=UTC)


def _trigger(name: str, interval: float) -> IntervalTrigger:
    return IntervalTrigger(
        seconds=interval, start_date=_next_run(name, interval) - timedelta(seconds=interval), timezone=UTC
    )
