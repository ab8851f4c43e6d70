"""What a worker says of a lack of its own: one line for each shortage and its end, and a count."""

from __future__ import annotations

import logging

import pytest
from x2gofleet_workers.metrics import PrometheusMetrics
from x2gofleet_workers.shortages import OVER_AFTER_SECONDS, Shortages

from tests.support.clocks import ManualClock
from x2gofleet.errors import WorkerExhausted

LACK = WorkerExhausted("this worker ran out of threads", mend="raise TasksMax=")


def test_each_shortage_is_one_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics, clock = PrometheusMetrics(), ManualClock()
    shortages = Shortages(metrics, clock)
    shortages.look()
    for number in range(5):
        shortages.occurred(LACK, f"ts{number:02} can't be polled")
        clock.now += OVER_AFTER_SECONDS - 1
        shortages.look()
    clock.now += 1
    shortages.look()
    shortages.look()
    shortages.occurred(LACK, "ts01 can't be polled")
    first, over, second = caplog.messages
    assert first.startswith("ts00 can't be polled: this worker ran out of threads. raise TasksMax=")
    assert over.endswith("again; 5 attempt(s) failed")
    assert second.startswith("ts01 can't be polled")
    assert metrics.registry.get_sample_value("x2gofleet_worker_exhausted_total") == 6
