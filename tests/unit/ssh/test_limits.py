"""How many connections to one address are in the making at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from x2gofleet_workers.ssh import Deadline, Endpoint
from x2gofleet_workers.ssh.limits import ATTEMPTS_PER_ADDRESS, AddressLimits

from tests.support.clocks import ManualClock
from x2gofleet.errors import DeadlineExceeded

HERE = Endpoint("ts01", 22, "root", "id", "known_hosts")
LONG_SECONDS = 20.0


def test_the_limit_is_below_what_sshd_bears() -> None:
    assert ATTEMPTS_PER_ADDRESS < 10


def test_all_logins_of_an_address_share_its_limit_and_take_turns() -> None:
    limits = AddressLimits()
    running, most, lock = [0], [0], threading.Lock()
    full, go_on = threading.Event(), threading.Event()

    def attempt(number: int) -> None:
        with limits.attempt(replace(HERE, user=f"user{number}"), Deadline(LONG_SECONDS)):
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
                if running[0] == ATTEMPTS_PER_ADDRESS:
                    full.set()
            assert go_on.wait(LONG_SECONDS)
            with lock:
                running[0] -= 1

    with ThreadPoolExecutor(40) as pool:
        attempts = [pool.submit(attempt, number) for number in range(40)]
        assert full.wait(LONG_SECONDS)
        go_on.set()
        for each in attempts:
            each.result(LONG_SECONDS)
    assert most[0] == ATTEMPTS_PER_ADDRESS


@pytest.mark.parametrize("other", [replace(HERE, host="ts02"), replace(HERE, port=2222)], ids=["host", "port"])
def test_another_address_has_a_limit_of_its_own(other: Endpoint) -> None:
    limits, clock = AddressLimits(per_address=1), ManualClock()
    with limits.attempt(HERE, Deadline(1.0, monotonic=clock)), limits.attempt(other, Deadline(1.0, monotonic=clock)):
        pass


def test_whoever_waits_in_vain_is_told_behind_whom() -> None:
    limits, clock = AddressLimits(per_address=1), ManualClock()
    with limits.attempt(HERE, Deadline(10.0, monotonic=clock)):
        late = Deadline(10.0, monotonic=clock)
        clock.now += 10.0
        with (
            pytest.raises(DeadlineExceeded, match=r"ts01 port 22: 1 other logins there took all of 10 s"),
            limits.attempt(HERE, late),
        ):
            raise AssertionError("two ran at once")
    with limits.attempt(HERE, Deadline(10.0, monotonic=clock)):
        pass


def test_an_attempt_that_fails_makes_room() -> None:
    limits, clock = AddressLimits(per_address=1), ManualClock()
    for _ in range(3):
        with pytest.raises(OSError, match="refused"), limits.attempt(HERE, Deadline(1.0, monotonic=clock)):
            raise OSError("refused")
