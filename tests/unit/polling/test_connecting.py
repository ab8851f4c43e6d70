"""Connecting in threads: limits hold, a hung address holds up nobody, and a lack of threads passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from x2gofleet_workers.polling.connecting import Connecting
from x2gofleet_workers.ssh import Endpoint

from tests.processes import wait_until

LONG_SECONDS = 20.0


@dataclass
class Waiting:
    """Holds what is to run later, and runs it when the test says so."""

    jobs: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)
    came: threading.Event = field(default_factory=threading.Event)

    def once(self, name: str, delay_seconds: float, run: Callable[[], None]) -> None:
        self.jobs[name] = (delay_seconds, run)
        self.came.set()

    def run(self) -> None:
        ((_, job),) = self.jobs.values()
        self.jobs.clear()
        self.came.clear()
        job()


class FakePoller:
    """Polls when it may; notes how many poll at once."""

    def __init__(self, host: str, go_on: threading.Event, running: list[str], ran: list[str]) -> None:
        self._go_on, self._running, self._ran = go_on, running, ran
        self.target: Any = self
        self.endpoint = Endpoint(host, 22, "root", "id", "known_hosts")
        self.began = threading.Event()
        self.ended = threading.Event()

    def poll_quick(self) -> None:
        self._running.append(self.endpoint.host)
        self._ran.append(self.endpoint.host)
        self.began.set()
        assert self._go_on.wait(LONG_SECONDS)
        self._running.remove(self.endpoint.host)

    def poll_slow(self) -> None:
        self.ended.set()


class Harness:
    def __init__(self) -> None:
        self.waiting = Waiting()
        self.running: list[str] = []
        self.ran: list[str] = []
        self.hung, self.well = threading.Event(), threading.Event()
        self.well.set()

    def poller(self, host: str, *, hangs: bool = False) -> Any:
        return FakePoller(host, self.hung if hangs else self.well, self.running, self.ran)

    def connecting(self, **more: Any) -> Connecting:
        return Connecting(self.waiting, max_threads=64, **more)


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.hung.set()


def test_a_hung_address_takes_four_threads_and_the_others_connect(harness: Harness) -> None:
    connecting = harness.connecting()
    hung = [harness.poller("hung", hangs=True) for _ in range(40)]
    for poller in hung:
        connecting.submit(poller)
    for poller in hung[:4]:
        assert poller.began.wait(LONG_SECONDS)
    others = [harness.poller(f"ts{number}") for number in range(20)]
    for poller in others:
        connecting.submit(poller)
        assert poller.ended.wait(LONG_SECONDS)
    assert harness.running == ["hung"] * 4
    harness.hung.set()
    for poller in hung:
        assert poller.ended.wait(LONG_SECONDS)
    connecting.stop()


def test_hung_addresses_as_many_as_may_run_hold_up_others_for_a_moment_only(harness: Harness) -> None:
    connecting = harness.connecting(at_once=2, slow_seconds=0.2)
    for number in range(2):
        connecting.submit(harness.poller(f"hung{number}", hangs=True))
    well = harness.poller("well")
    connecting.submit(well)
    assert harness.waiting.came.wait(LONG_SECONDS)
    while not well.began.wait(0.05):
        if harness.waiting.jobs:
            harness.waiting.run()
    assert well.ended.wait(LONG_SECONDS)
    connecting.stop()


def test_a_target_that_is_submitted_again_runs_once(harness: Harness) -> None:
    connecting = harness.connecting()
    poller = harness.poller("ts01", hangs=True)
    for _ in range(3):
        connecting.submit(poller)
    assert poller.began.wait(LONG_SECONDS)
    harness.hung.set()
    assert poller.ended.wait(LONG_SECONDS)
    assert harness.ran == ["ts01"]
    connecting.stop()


def test_a_target_that_is_forgotten_while_it_waits_is_not_connected(harness: Harness) -> None:
    connecting = harness.connecting()
    hung = [harness.poller("hung", hangs=True) for _ in range(5)]
    for poller in hung:
        connecting.submit(poller)
    connecting.forget(hung[4])
    harness.hung.set()
    for poller in hung[:4]:
        assert poller.ended.wait(LONG_SECONDS)
    connecting.stop()
    assert not hung[4].began.is_set()


def test_a_failure_of_one_makes_room_for_the_next(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    connecting = harness.connecting()
    broken, well = [harness.poller("ts01") for _ in range(8)], harness.poller("ts01")
    for poller in broken:
        poller.poll_slow = lambda: 1 / 0
        connecting.submit(poller)
    connecting.submit(well)
    assert well.ended.wait(LONG_SECONDS)
    # Logged by threads that may still be ending.
    wait_until(lambda: caplog.text.count("an unexpected error in a worker thread") == 8, "all failures are logged")
    connecting.stop()


def test_where_no_thread_can_be_started_it_is_tried_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, poller = harness.connecting(), harness.poller("ts01")

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(ThreadPoolExecutor, "submit", refuse)
        connecting.submit(poller)
    assert [delay for delay, _ in harness.waiting.jobs.values()] == [2.0]
    assert not poller.began.is_set()
    harness.waiting.run()
    assert poller.ended.wait(LONG_SECONDS)
    connecting.stop()


def test_after_a_stop_nothing_begins(harness: Harness) -> None:
    connecting, poller = harness.connecting(), harness.poller("ts01")
    connecting.stop()
    connecting.submit(poller)
    assert not poller.began.is_set()
    assert not harness.waiting.jobs
