"""fair_share: even, the same for all who compute it, and calm when a worker joins or leaves."""

from __future__ import annotations

import math
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from x2gofleet_workers.ownership import fair_share

WORKERS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True)
TARGETS = st.lists(st.text(min_size=1, max_size=12), max_size=60, unique=True)


def fleet(size: int) -> list[str]:
    return [f"ts{number:03}" for number in range(size)]


def moved(targets: list[str], before: list[str], after: list[str]) -> int:
    """Return how many targets change hands other than those whose worker left."""
    old, new = fair_share(targets, before), fair_share(targets, after)
    return sum(1 for target in targets if old[target] in after and old[target] != new[target])


@given(TARGETS, WORKERS)
def test_every_target_has_one_worker_and_shares_are_even(targets: list[str], workers: list[str]) -> None:
    share = fair_share(targets, workers)
    assert set(share) == set(targets)
    assert set(share.values()) <= set(workers)
    assert max(Counter(share.values()).values(), default=0) <= math.ceil(len(targets) / len(workers))


@given(TARGETS, WORKERS, st.randoms(use_true_random=False))
def test_order_and_repetition_of_the_question_do_not_matter(
    targets: list[str], workers: list[str], draw: random.Random
) -> None:
    asked, members = draw.sample(targets, len(targets)), draw.sample(workers, len(workers))
    assert fair_share(iter(asked), [*members, *members]) == fair_share(targets, workers)


def test_nobody_has_nothing() -> None:
    assert fair_share(["ts01"], []) == {}
    assert fair_share([], ["w1"]) == {}
    assert fair_share(["ts01", "ts02"], ["w1"]) == {"ts01": "w1", "ts02": "w1"}


def test_it_is_the_same_in_every_process_and_version() -> None:
    assert fair_share(fleet(6), ["w1", "w2", "w3"]) == {
        "ts000": "w2",
        "ts001": "w1",
        "ts002": "w3",
        "ts003": "w3",
        "ts004": "w2",
        "ts005": "w1",
    }


@given(st.integers(1, 150), st.integers(2, 9), st.integers(0, 10**6))
def test_one_that_joins_or_leaves_moves_few_targets_of_the_others(size: int, count: int, seed: int) -> None:
    targets = fleet(size)
    workers = [f"w{seed + number}" for number in range(count)]
    few = size / 3 + 4
    assert moved(targets, workers, workers[1:]) <= few
    before, after = fair_share(targets, workers), fair_share(targets, [*workers, "joined"])
    assert sum(before[target] != after[target] and after[target] != "joined" for target in targets) <= few


def test_on_the_average_little_more_moves_than_must() -> None:
    targets, must, did = fleet(120), 0, 0
    for seed in range(30):
        workers = [f"w{seed}-{number}" for number in range(6)]
        joined = [*workers, f"w{seed}-new"]
        share = fair_share(targets, joined)
        must += sum(worker == joined[-1] for worker in share.values())
        did += sum(share[target] != worker for target, worker in fair_share(targets, workers).items())
    assert did <= 2 * must, f"{did} moved where {must} had to"
