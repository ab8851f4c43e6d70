"""Fair shares of targets, and leases that are told apart from those of a successor."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x2gofleet_workers.ownership import Ownership, fair_share

from x2gofleet.errors import CacheUnavailable
from x2gofleet.store import Lease, Member

names = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), unique=True, max_size=60)
workers = st.lists(st.text("wxyz", min_size=1, max_size=4), unique=True, min_size=1, max_size=6)


@given(names, workers)
def test_shares_are_even_whole_and_the_same_in_any_order(targets: list[str], members: list[str]) -> None:
    share = fair_share(targets, members)
    assert set(share) == set(targets)
    assert share == fair_share(list(reversed(targets)), sorted(members))
    if targets:
        assert max(Counter(share.values()).values()) <= math.ceil(len(targets) / len(members))


def test_without_workers_nobody_has_anything() -> None:
    assert fair_share(["a"], []) == {}


def test_one_joining_or_leaving_moves_few() -> None:
    targets = [f"ts{number:03}" for number in range(300)]
    three, four = ([f"w{number}" for number in range(count)] for count in (3, 4))
    moved = sum(
        owner != other
        for owner, other in zip(fair_share(targets, three).values(), fair_share(targets, four).values(), strict=True)
    )
    # A quarter must move, and a bound on each share moves some more.
    assert 75 <= moved <= 150, moved


class FakeStore:
    """The lease commands of a Store, in memory."""

    def __init__(self, worker_id: str = "w1") -> None:
        self.worker_id = worker_id
        self.leases: dict[str, Lease] = {}
        self.members = [worker_id]
        self.is_there = True
        self.loses_replies = False
        self._fences = itertools.count(1)

    def _check(self) -> None:
        if not self.is_there:
            raise CacheUnavailable("gone")

    def heartbeat(self, facts: dict[str, str | int | float], *, ttl_ms: int) -> tuple[str, ...]:
        self._check()
        return tuple(self.members)

    def describe(self, workers: Sequence[str]) -> tuple[Member, ...]:
        return tuple(Member(worker) for worker in workers)

    def acquire(self, target: str, *, ttl_ms: int, nonce: str) -> Lease | str:
        self._check()
        held = self.leases.get(target)
        if held is not None and held.nonce != nonce:
            return "somebody"
        lease = self.leases[target] = held or Lease(target, nonce, next(self._fences))
        if self.loses_replies:
            raise CacheUnavailable("no reply")
        return lease

    def renew(self, leases: list[Lease], *, ttl_ms: int) -> list[bool]:
        self._check()
        return [self.leases.get(lease.target) == lease for lease in leases]

    def release(self, lease: Lease) -> bool:
        self._check()
        if self.leases.get(lease.target) != lease:
            return False
        del self.leases[lease.target]
        return True

    def leave(self) -> None:
        self._check()
        self.members.remove(self.worker_id)


class Held:
    """An Ownership on a fake store and clock, and what it told."""

    def __init__(self, *targets: str) -> None:
        self.store, self.now, self.told = FakeStore(), 0.0, list[str]()
        self.ownership = Ownership(
            self.store,  # type: ignore[arg-type]
            lambda: targets,
            facts=dict,
            gained=lambda name: self.told.append(f"+{name}"),
            lost=lambda name: self.told.append(f"-{name}"),
            ttl_seconds=6.0,
            monotonic=lambda: self.now,
        )


def test_a_tick_takes_the_share_and_gives_back_what_is_anothers() -> None:
    held = Held("a", "b", "c", "d")
    held.ownership.tick()
    assert held.told == ["+a", "+b", "+c", "+d"]
    held.store.members.append("w2")
    held.ownership.tick()
    assert len(held.ownership.owned()) == 2
    assert len(held.store.leases) == 2
    assert [told[0] for told in held.told[4:]] == ["-", "-"]


def test_a_lease_counts_for_two_thirds_of_its_ttl() -> None:
    held = Held("a")
    held.ownership.tick()
    held.now = 3.9
    assert held.ownership.lease("a") is not None
    held.now = 4.1
    assert held.ownership.lease("a") is None
    held.ownership.tick()
    assert held.ownership.lease("a") is not None
    assert held.told == ["+a"]


def test_what_was_taken_by_another_is_dropped_by_the_next_tick() -> None:
    held = Held("a")
    held.ownership.tick()
    held.store.leases["a"] = Lease("a", "stolen", 99)
    held.now = 2.1
    held.ownership.tick()
    assert held.told == ["+a", "-a"]
    assert held.ownership.owned() == ()


def test_a_lost_lease_is_taken_again_where_nobody_has_it() -> None:
    held = Held("a")
    held.ownership.tick()
    lost = held.ownership.lease("a")
    assert lost is not None
    held.store.leases.clear()
    taken = held.ownership.reacquire(lost)
    assert taken is not None
    assert taken != lost
    assert held.ownership.lease("a") == taken
    held.now = 2.1
    held.ownership.tick()
    assert held.told == ["+a"]


def test_a_lease_lost_to_another_ends_polls_at_once_and_the_tick_tells_it() -> None:
    held = Held("a")
    held.ownership.tick()
    lost = held.ownership.lease("a")
    assert lost is not None
    held.store.leases["a"] = Lease("a", "stolen", 99)
    assert held.ownership.reacquire(lost) is None
    assert held.ownership.lease("a") is None
    assert held.told == ["+a"]
    held.ownership.tick()
    assert held.told == ["+a", "-a"]


@pytest.mark.parametrize("how", ["taken", "taken again"])
def test_a_lease_of_which_the_reply_was_lost_is_its_owners_at_the_next_try(how: str) -> None:
    held = Held("a")
    if how == "taken again":
        held.ownership.tick()
        lost = held.ownership.lease("a")
        assert lost is not None
        held.store.leases.clear()
        held.store.loses_replies = True
        with pytest.raises(CacheUnavailable):
            held.ownership.reacquire(lost)
        held.now = 2.1
    held.store.loses_replies = True
    with pytest.raises(CacheUnavailable):
        held.ownership.tick()
    assert held.store.leases
    held.store.loses_replies = False
    held.ownership.tick()
    assert held.ownership.lease("a") == held.store.leases["a"]
    held.store.leases.clear()
    held.now += 2.1
    held.ownership.tick()
    again = held.ownership.lease("a")
    assert again is not None
    assert again.fence == 2 + (how == "taken again"), "another lease has another nonce and fence"


def test_an_old_poller_can_not_lose_its_successors_lease() -> None:
    held = Held("a")
    held.ownership.tick()
    old = held.ownership.lease("a")
    assert old is not None
    held.store.leases.clear()
    held.now = 2.1
    held.ownership.tick()
    assert held.told == ["+a", "-a", "+a"]
    new = held.ownership.lease("a")
    assert new not in (None, old)
    assert held.ownership.reacquire(old) is None
    assert held.ownership.lease("a") == new
    held.ownership.tick()
    assert held.told == ["+a", "-a", "+a"]


def test_leases_that_could_not_be_renewed_are_forgotten_after_their_ttl() -> None:
    held = Held("a")
    held.ownership.tick()
    held.store.is_there = False
    held.now = 5.0
    with pytest.raises(CacheUnavailable):
        held.ownership.tick()
    held.ownership._expire()
    assert held.told == ["+a"]
    held.now = 6.1
    held.ownership._expire()
    assert held.told == ["+a", "-a"]


def test_stopping_gives_everything_back_and_never_raises() -> None:
    held = Held("a", "b")
    held.ownership.tick()
    held.ownership.stop()
    assert held.store.leases == {}
    assert held.store.members == []
    again = Held("a")
    again.ownership.tick()
    again.store.is_there = False
    again.ownership.stop()
