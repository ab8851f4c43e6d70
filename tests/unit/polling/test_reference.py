"""When records are compared with X2Go's own query, and when a difference fails the target."""

from __future__ import annotations

import pytest
from x2gofleet_workers.polling.reference import (
    COMPARE_AGAIN_SECONDS,
    COMPARE_SECONDS,
    MAX_DIFFERENCES,
    ReferenceCheck,
)
from x2gofleet_workers.probe.reference import Agreement, Comparison

from tests.support.clocks import ManualClock
from tests.support.polling import make_target
from x2gofleet.errors import ListingFailed


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def check(clock: ManualClock) -> ReferenceCheck:
    return ReferenceCheck(make_target(), monotonic=clock)


def difference(records: str = "digest") -> Comparison:
    return Comparison(Agreement.DIFFERS, "one row differs", records)


def test_a_login_of_a_user_has_nothing_to_compare(clock: ManualClock) -> None:
    assert not ReferenceCheck(make_target("alice@ts01"), monotonic=clock).is_due()


def test_each_new_probe_is_compared_and_then_every_ten_minutes(check: ReferenceCheck, clock: ManualClock) -> None:
    assert check.is_due()
    check.compared(Comparison(Agreement.EQUAL))
    assert not check.is_due()
    clock.now += COMPARE_SECONDS
    assert check.is_due()
    check.compared(Comparison(Agreement.EQUAL))
    check.new_probe()
    assert check.is_due()


def test_what_could_not_be_compared_is_compared_again_soon(check: ReferenceCheck, clock: ManualClock) -> None:
    for note in (check.failed, lambda: check.compared(Comparison(Agreement.INCONCLUSIVE))):
        note()
        assert not check.is_due()
        clock.now += COMPARE_AGAIN_SECONDS
        assert check.is_due()
    check.require_agreement()


def test_three_differences_over_unchanged_records_fail_the_target_until_one_is_equal(check: ReferenceCheck) -> None:
    for _ in range(MAX_DIFFERENCES):
        check.require_agreement()
        assert check.is_due()
        check.compared(difference())
    with pytest.raises(ListingFailed, match="one row differs") as caught:
        check.require_agreement()
    assert 'listing = "command"' in caught.value.mend
    check.compared(Comparison(Agreement.EQUAL))
    check.require_agreement()


def test_differences_over_records_that_change_are_no_proof(check: ReferenceCheck) -> None:
    for number in range(10):
        check.compared(difference(f"digest {number}"))
    check.require_agreement()
