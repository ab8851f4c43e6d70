"""The schema's writes on a real Valkey: every script and every outcome; what is refused changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x2gofleet_workers.embedded import EmbeddedValkey

from tests.waiting import PATIENT, wait_until
from x2gofleet.connection import client_from_url
from x2gofleet.errors import CacheUnavailable, SnapshotCorrupt
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import SCHEMA_VERSION
from x2gofleet.store import FLEET_TTL_MS, REQUEST_TTL_MS, Lease, Listing, Outcome, Store

LEASE_MS = 60_000
TTL_MS = 30_000
STATE_TTL_MS = 90_000
SESSIONS = Kind.SESSIONS

Dump = dict[str, tuple[Any, int]]


def dump(client: redis.Redis, namespace: str) -> Dump:
    """Return every key of a namespace with its content and the time of its expiry in ms."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"hash": lambda key: client.hgetall(key),
        b"string": lambda key: client.get(key),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda key: client.xrange(key),
    }
    found: Dump = {}
    for key in client.scan_iter(match=f"{namespace}:*", count=500):
        found[key.decode()] = (readers[cast(bytes, client.type(key))](key), cast(int, client.pexpiretime(key)))
    return found


class Target:
    """One target of the test's namespace, and the fields that Redis holds of it."""

    def __init__(self, client: redis.Redis, keys: Keys, name: str = "ts01") -> None:
        self.client, self.keys, self.name = client, keys, name

    def all(self) -> Dump:
        return dump(self.client, self.keys.namespace)

    def snapshot(self, kind: Kind = SESSIONS) -> dict[str, str]:
        return self._hash(self.keys.snapshot(self.name, kind))

    def state(self) -> dict[str, str]:
        return self._hash(self.keys.state(self.name))

    def lease(self) -> dict[str, str]:
        return self._hash(self.keys.lease(self.name))

    def fence(self) -> int:
        return int(cast(bytes, self.client.get(self.keys.fence(self.name))))

    def expires_at(self, kind: Kind = SESSIONS) -> int:
        return cast(int, self.client.pexpiretime(self.keys.snapshot(self.name, kind)))

    def _hash(self, key: str) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in cast(Any, self.client.hgetall(key)).items()}


@pytest.fixture
def target(redis_client: redis.Redis, keys: Keys) -> Target:
    return Target(redis_client, keys)


@pytest.fixture
def other(redis_client: redis.Redis, keys: Keys) -> Store:
    """The writes of another worker, ``w2``."""
    return Store(redis_client, keys, "w2")


def taken(store: Store, name: str = "ts01", *, ttl_ms: int = LEASE_MS) -> Lease:
    """Take a lease that is free."""
    lease = store.acquire(name, ttl_ms=ttl_ms)
    assert isinstance(lease, Lease), f"held by {lease}"
    return lease


def taken_over(store: Store, client: redis.Redis, keys: Keys, name: str = "ts01") -> Lease:
    """Take a lease as its successor does: after the old one expired."""
    client.delete(keys.lease(name))
    return taken(store, name)


def listing(store: Store, *, age_ms: int = 0, **changes: Any) -> Listing:
    """Return a listing that was read ``age_ms`` ago."""
    at = store.sync_clock() - age_ms
    made = Listing(SESSIONS, b"rows", "d1", at, at, 12, TTL_MS, STATE_TTL_MS)
    return replace(made, **changes)


def confirmed(store: Store, lease: Lease, seq: int, *, age_ms: int = 0, digest: str = "d1", **changes: Any) -> Outcome:
    options = {"polled_at_ms": store.sync_clock() - age_ms, "ttl_ms": TTL_MS, "state_ttl_ms": STATE_TTL_MS, **changes}
    return store.confirm(lease, seq, SESSIONS, digest=digest, **options)


def failed(store: Store, lease: Lease, *kinds: Kind, **changes: Any) -> Outcome:
    options: dict[str, Any] = {
        "failed_at_ms": store.sync_clock(),
        "state_ttl_ms": STATE_TTL_MS,
        "error_class": "Unreachable",
        "error_text": "no answer",
        **changes,
    }
    return store.fail(lease, kinds or (SESSIONS,), **options)


# Leases and fences


def test_a_lease_is_taken_held_and_released(store: Store, other: Store, target: Target) -> None:
    lease = taken(store, ttl_ms=5000)
    assert target.lease() == {"owner": "w1", "nonce": lease.nonce, "fence": str(lease.fence)}
    assert 0 < target.client.pttl(target.keys.lease("ts01")) <= 5000
    before = target.all()
    assert other.acquire("ts01", ttl_ms=60_000) == "w1"
    assert target.all() == before
    assert not other.release(Lease("ts01", "another nonce", lease.fence))
    assert target.all() == before
    assert store.release(lease)
    assert target.lease() == {}
    assert not store.release(lease)
    assert isinstance(other.acquire("ts01", ttl_ms=5000), Lease)


def test_taking_a_lease_again_with_its_nonce_is_the_same_lease(store: Store, target: Target) -> None:
    lease = taken(store, ttl_ms=5000)
    again = store.acquire("ts01", ttl_ms=50_000, nonce=lease.nonce)
    assert again == lease
    assert target.client.pttl(target.keys.lease("ts01")) > 5000
    assert target.fence() == lease.fence


def test_a_worker_that_was_restarted_waits_for_its_own_old_lease(store: Store) -> None:
    taken(store)
    assert store.acquire("ts01", ttl_ms=5000) == "w1"


def test_an_expired_lease_is_free(store: Store, other: Store) -> None:
    first = taken(store, ttl_ms=30)
    wait_until(lambda: isinstance(other.acquire("ts01", ttl_ms=LEASE_MS), Lease))
    assert store.renew([first], ttl_ms=LEASE_MS) == [False]
    assert not store.release(first)


def test_leases_are_renewed_together(store: Store, other: Store, target: Target) -> None:
    mine = [taken(store, name, ttl_ms=5000) for name in ("ts01", "ts02", "ts03")]
    taken_over(other, target.client, target.keys, "ts02")
    target.client.delete(target.keys.lease("ts03"))
    assert store.renew(mine, ttl_ms=50_000) == [True, False, False]
    assert target.client.pttl(target.keys.lease("ts01")) > 5000
    assert target.client.pttl(target.keys.lease("ts02")) > 50_000
    assert not target.client.exists(target.keys.lease("ts03"))
    assert store.renew([], ttl_ms=50_000) == []


def test_the_fence_is_the_time_of_redis_and_grows_with_each_owner(store: Store, other: Store, target: Target) -> None:
    before = store.sync_clock()
    first = taken(store)
    assert before <= first.fence <= store.sync_clock()
    fences = [first.fence]
    for owner in (other, store, other, store):
        fences.append(taken_over(owner, target.client, target.keys).fence)
        assert target.fence() == fences[-1]
    assert fences == sorted(set(fences))


def test_the_fence_grows_after_everything_was_lost(store: Store, other: Store, target: Target) -> None:
    first = taken(store)
    assert store.store(first, 1, listing(store)) is Outcome.STORED
    wait_until(lambda: store.sync_clock() > first.fence)
    target.client.delete(*target.all())
    second = taken(other)
    assert second.fence > first.fence
    before = target.all()
    assert store.store(first, 2, listing(store)) is Outcome.LOST
    assert target.all() == before


def test_the_fence_grows_where_the_clock_of_redis_is_behind_it(store: Store, other: Store, target: Target) -> None:
    ahead = store.sync_clock() + 3_600_000
    target.client.set(target.keys.fence("ts01"), ahead)
    assert taken(store).fence == ahead + 1
    assert taken_over(other, target.client, target.keys).fence == ahead + 2


# Storing


def test_a_stored_listing(store: Store, target: Target) -> None:
    lease = taken(store)
    at = store.sync_clock() - 1000
    raw = bytes(range(256))
    given_listing = Listing(SESSIONS, raw, "d1", at, at - 500, 12, TTL_MS, STATE_TTL_MS, 3, 2)
    assert store.store(lease, 7, given_listing) is Outcome.STORED
    found = cast(Any, target.client.hgetall(target.keys.snapshot("ts01", SESSIONS)))
    assert found == {
        b"stdout": raw,
        b"exit_status": b"3",
        b"polled_at": str(at).encode(),
        b"listed_at": str(at - 500).encode(),
        b"duration_ms": b"12",
        b"digest": b"d1",
        b"changed_at": str(at).encode(),
        b"fence": str(lease.fence).encode(),
        b"seq": b"7",
        b"worker": b"w1",
        b"schema": str(SCHEMA_VERSION).encode(),
        b"rejected_rows": b"2",
        b"source": b"command",
    }
    assert target.expires_at() == at + TTL_MS
    assert target.state() == {"sessions.good_at": str(at), "sessions.failures": "0", "sessions.since": str(at)}
    assert TTL_MS < target.client.pttl(target.keys.state("ts01")) <= STATE_TTL_MS


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_has_a_key_and_state_fields_of_its_own(store: Store, target: Target, kind: Kind) -> None:
    assert store.store(taken(store), 1, listing(store, kind=kind)) is Outcome.STORED
    assert target.snapshot(kind)["stdout"] == "rows"
    assert [target.snapshot(each) for each in Kind if each is not kind] == [{}, {}, {}]
    assert {name.partition(".")[0] for name in target.state()} == {kind.value}


def test_the_time_of_the_reply_anchors_the_clock(store: Store, other: Store) -> None:
    lease = taken(store)
    made = listing(other)
    assert store.clock.now_ms() is None
    store.store(lease, 1, made)
    now = store.clock.now_ms()
    assert now is not None
    assert made.polled_at_ms <= now <= store.sync_clock()


def test_a_write_whose_reply_was_lost_is_made_once(store: Store, target: Target) -> None:
    lease = taken(store)
    made = listing(store)
    assert store.store(lease, 1, made) is Outcome.STORED
    before = target.all()
    assert store.store(lease, 1, made) is Outcome.STORED
    assert store.store(lease, 1, replace(made, stdout=b"others", digest="d2")) is Outcome.STORED
    assert target.all() == before


def test_changed_at_moves_with_the_content_only(store: Store, other: Store, target: Target) -> None:
    lease = taken(store)
    first, second, third = (listing(store, age_ms=age) for age in (900, 600, 300))
    store.store(lease, 1, first)
    store.store(lease, 2, replace(second, stdout=b"rows, older"))
    assert target.snapshot()["stdout"] == "rows, older"
    assert target.snapshot()["changed_at"] == str(first.polled_at_ms)
    taken_lease = taken_over(other, target.client, target.keys)
    other.store(taken_lease, 1, third)
    assert target.snapshot()["changed_at"] == str(first.polled_at_ms)
    last = listing(other, digest="d2")
    other.store(taken_lease, 2, last)
    assert target.snapshot()["changed_at"] == str(last.polled_at_ms)


def test_the_newest_write_wins_and_an_older_one_changes_nothing(store: Store, other: Store, target: Target) -> None:
    lease = taken(store)
    assert store.store(lease, 5, listing(store)) is Outcome.STORED
    before = target.all()
    assert store.store(lease, 4, listing(store, stdout=b"old")) is Outcome.OLDER
    assert target.all() == before
    later = taken_over(other, target.client, target.keys)
    assert other.store(later, 1, listing(other, stdout=b"new")) is Outcome.STORED
    assert (target.snapshot()["stdout"], target.snapshot()["worker"]) == ("new", "w2")


def test_a_snapshot_of_a_higher_fence_is_not_replaced(store: Store, target: Target) -> None:
    lease = taken(store)
    store.store(lease, 1, listing(store))
    target.client.hset(target.keys.snapshot("ts01", SESSIONS), "fence", lease.fence + 1)
    before = target.all()
    assert store.store(lease, 2, listing(store)) is Outcome.OLDER
    assert target.all() == before


Write = Callable[[Store, Lease], Outcome]
WRITES: dict[str, Write] = {
    "store": lambda store, lease: store.store(lease, 9, listing(store, digest="d9")),
    "confirm": lambda store, lease: confirmed(store, lease, 9),
    "fail": lambda store, lease: failed(store, lease),
    "discard": lambda store, lease: store.discard(lease, [SESSIONS]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("how", ["wrong nonce", "wrong fence", "expired", "released", "another owner"])
def test_without_the_lease_nothing_is_written(
    store: Store, other: Store, target: Target, write: Write, how: str
) -> None:
    lease = taken(store)
    assert store.store(lease, 1, listing(store)) is Outcome.STORED
    assert failed(store, lease, Kind.MOUNTS) is Outcome.STORED
    if how == "wrong nonce":
        lease = replace(lease, nonce="0" * 16)
    elif how == "wrong fence":
        lease = replace(lease, fence=lease.fence - 1)
    elif how == "expired":
        target.client.pexpire(target.keys.lease("ts01"), 1)
        wait_until(lambda: not target.client.exists(target.keys.lease("ts01")))
    elif how == "released":
        store.release(lease)
    else:
        taken_over(other, target.client, target.keys)
    before = target.all()
    assert write(store, lease) is Outcome.LOST
    assert target.all() == before


@pytest.mark.parametrize("stored_before", [False, True])
@pytest.mark.parametrize(
    ("age_ms", "ttl_ms", "outcome"),
    [
        (-5000, TTL_MS, Outcome.FUTURE),
        (TTL_MS, TTL_MS, Outcome.EXPIRED),
        (TTL_MS + 60_000, TTL_MS, Outcome.EXPIRED),
        (0, 0, Outcome.EXPIRED),
    ],
)
def test_what_is_from_the_future_or_expired_is_not_cached(
    store: Store, target: Target, stored_before: bool, age_ms: int, ttl_ms: int, outcome: Outcome
) -> None:
    lease = taken(store)
    if stored_before:
        assert store.store(lease, 1, listing(store, age_ms=100)) is Outcome.STORED
    before = target.all()
    assert store.store(lease, 2, listing(store, age_ms=age_ms, ttl_ms=ttl_ms)) is outcome
    assert target.all() == before
    if stored_before:
        assert confirmed(store, lease, 2, age_ms=age_ms, ttl_ms=ttl_ms) is outcome
        assert target.all() == before


def test_a_snapshot_expires_at_polled_at_plus_ttl_however_late_it_was_written(store: Store, target: Target) -> None:
    lease = taken(store)
    made = listing(store, age_ms=29_900)
    assert store.store(lease, 1, made) is Outcome.STORED
    assert target.expires_at() == made.polled_at_ms + TTL_MS
    assert 0 < target.client.pttl(target.keys.snapshot("ts01", SESSIONS)) <= 100
    wait_until(lambda: target.snapshot() == {})
    assert store.sync_clock() >= made.polled_at_ms + TTL_MS
    assert target.state()["sessions.good_at"] == str(made.polled_at_ms)


# Confirming


def test_a_confirmed_snapshot_lives_on(store: Store, target: Target) -> None:
    lease = taken(store)
    first = listing(store, age_ms=20_000)
    store.store(lease, 1, first)
    before = target.snapshot()
    at = store.sync_clock() - 50
    assert confirmed(store, lease, 2, polled_at_ms=at) is Outcome.STORED
    assert target.snapshot() == {**before, "polled_at": str(at), "seq": "2"}
    assert target.expires_at() == at + TTL_MS
    assert target.state() == {
        "sessions.good_at": str(at),
        "sessions.failures": "0",
        "sessions.since": str(first.polled_at_ms),
    }


def test_a_confirmation_is_idempotent_and_ordered(store: Store, target: Target) -> None:
    lease = taken(store)
    store.store(lease, 1, listing(store, age_ms=500))
    assert confirmed(store, lease, 3) is Outcome.STORED
    before = target.all()
    assert confirmed(store, lease, 3) is Outcome.STORED
    assert target.all() == before
    assert confirmed(store, lease, 2) is Outcome.OLDER
    assert target.all() == before
    assert store.store(lease, 2, listing(store)) is Outcome.OLDER
    assert target.all() == before


@pytest.mark.parametrize("how", ["never stored", "expired", "other content", "another owner's", "discarded"])
def test_only_what_is_stored_can_be_confirmed(store: Store, other: Store, target: Target, how: str) -> None:
    lease = taken(store)
    if how != "never stored":
        store.store(lease, 1, listing(store))
    if how == "expired":
        target.client.pexpire(target.keys.snapshot("ts01", SESSIONS), 1)
        wait_until(lambda: target.snapshot() == {})
    elif how == "another owner's":
        store, lease = other, taken_over(other, target.client, target.keys)
    elif how == "discarded":
        store.discard(lease, [SESSIONS])
    before = target.all()
    assert confirmed(store, lease, 2, digest="d2" if how == "other content" else "d1") is Outcome.ABSENT
    assert target.all() == before


# States


def test_the_state_tells_good_failed_and_recovered(store: Store, target: Target) -> None:
    lease = taken(store)
    base = store.sync_clock() - 10_000
    store.store(lease, 1, listing(store, polled_at_ms=base))
    store.store(lease, 2, listing(store, polled_at_ms=base + 1000))
    good = {"sessions.good_at": str(base + 1000), "sessions.failures": "0", "sessions.since": str(base)}
    assert target.state() == good

    before = target.snapshot(), target.expires_at()
    failed(store, lease, failed_at_ms=base + 2000, error_class="Unreachable", error_text="refused")
    failed(store, lease, failed_at_ms=base + 3000, error_class="DeadlineExceeded", error_text="too slow")
    assert target.state() == {
        "sessions.good_at": str(base + 1000),
        "sessions.failed_at": str(base + 3000),
        "sessions.failures": "2",
        "sessions.since": str(base + 2000),
        "sessions.error_class": "DeadlineExceeded",
        "sessions.error_text": "too slow",
    }
    assert (target.snapshot(), target.expires_at()) == before

    assert store.store(lease, 3, listing(store, polled_at_ms=base + 4000)) is Outcome.STORED
    recovered = {
        "sessions.good_at": str(base + 4000),
        "sessions.failed_at": str(base + 3000),
        "sessions.failures": "0",
        "sessions.since": str(base + 4000),
    }
    assert target.state() == recovered
    store.store(lease, 4, listing(store, polled_at_ms=base + 5000))
    assert target.state() == {**recovered, "sessions.good_at": str(base + 5000)}


@pytest.mark.parametrize("gap", ["expired", "discarded"])
def test_since_begins_anew_where_nothing_was_stored(store: Store, target: Target, gap: str) -> None:
    lease = taken(store)
    base = store.sync_clock() - 10_000
    store.store(lease, 1, listing(store, polled_at_ms=base))
    if gap == "expired":
        target.client.pexpire(target.keys.snapshot("ts01", SESSIONS), 1)
        wait_until(lambda: target.snapshot() == {})
    else:
        store.discard(lease, [SESSIONS])
    assert store.store(lease, 2, listing(store, polled_at_ms=base + 1000)) is Outcome.STORED
    store.store(lease, 3, listing(store, polled_at_ms=base + 2000))
    good = {"sessions.good_at": str(base + 2000), "sessions.failures": "0", "sessions.since": str(base + 1000)}
    assert target.state() == good


def test_a_confirmation_recovers_too(store: Store, target: Target) -> None:
    lease = taken(store)
    base = store.sync_clock() - 10_000
    store.store(lease, 1, listing(store, polled_at_ms=base))
    failed(store, lease, failed_at_ms=base + 1000)
    assert confirmed(store, lease, 2, polled_at_ms=base + 2000) is Outcome.STORED
    recovered = {
        "sessions.good_at": str(base + 2000),
        "sessions.failed_at": str(base + 1000),
        "sessions.failures": "0",
        "sessions.since": str(base + 2000),
    }
    assert target.state() == recovered
    assert confirmed(store, lease, 3, polled_at_ms=base + 3000) is Outcome.STORED
    assert target.state() == {**recovered, "sessions.good_at": str(base + 3000)}


def test_a_failure_is_of_the_kinds_it_names_and_outlives_snapshots(store: Store, target: Target) -> None:
    lease = taken(store)
    assert failed(store, lease, Kind.SESSIONS, Kind.LOAD, state_ttl_ms=STATE_TTL_MS) is Outcome.STORED
    assert {name.partition(".")[0] for name in target.state()} == {"sessions", "load"}
    assert TTL_MS < target.client.pttl(target.keys.state("ts01")) <= STATE_TTL_MS
    assert [target.snapshot(kind) for kind in Kind] == [{}, {}, {}, {}]


def test_discard_drops_the_kinds_it_names(store: Store, target: Target) -> None:
    lease = taken(store)
    for seq, kind in enumerate(Kind):
        store.store(lease, seq, listing(store, kind=kind))
    state = target.state()
    assert store.discard(lease, [Kind.SESSIONS, Kind.LOAD]) is Outcome.STORED
    assert [bool(target.snapshot(kind)) for kind in Kind] == [False, True, True, False]
    assert target.state() == state


# Whatever happens


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "confirm", "fail", "discard", "take", "forget"]),
        st.integers(0, 1),
        st.integers(1, 4),
        st.integers(-1, 3),
        st.sampled_from(["d1", "d2"]),
    ),
    max_size=25,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(OPERATIONS)
def test_in_any_order_what_is_refused_changes_nothing_and_the_newest_stays(
    redis_client: redis.Redis, operations: list[tuple[str, int, int, int, str]]
) -> None:
    keys = Keys(f"test-{uuid.uuid4().hex[:12]}")
    target = Target(redis_client, keys)
    stores = [Store(redis_client, keys, f"w{number}") for number in (1, 2)]
    leases: list[Lease] = [taken(stores[0]), Lease("ts01", "never held", 1)]
    try:
        for name, who, seq, age, digest in operations:
            store, lease = stores[who], leases[who]
            before, was = target.all(), target.snapshot()
            if name == "take":
                leases[who] = taken_over(store, redis_client, keys)
                continue
            if name == "forget":
                redis_client.delete(keys.snapshot("ts01", SESSIONS))
                continue
            if name == "store":
                made = listing(store, age_ms=age * TTL_MS // 2, digest=digest, stdout=digest.encode())
                outcome = store.store(lease, seq, made)
            elif name == "confirm":
                outcome = confirmed(store, lease, seq, age_ms=age * TTL_MS // 2, digest=digest)
            elif name == "fail":
                outcome = failed(store, lease)
            else:
                outcome = store.discard(lease, [SESSIONS])
            if outcome is not Outcome.STORED:
                assert target.all() == before
            elif target.lease().get("nonce") != lease.nonce:
                pytest.fail("a write without the lease was taken")
            now = target.snapshot()
            if was and now:
                assert (int(now["fence"]), int(now["seq"])) >= (int(was["fence"]), int(was["seq"]))
                assert now["digest"] == now["stdout"]
            if now:
                assert target.expires_at() == int(now["polled_at"]) + TTL_MS
        lasting = [key for key, (_, expires) in target.all().items() if expires == -1]
        assert set(lasting) <= {keys.fence("ts01")}
    finally:
        redis_client.delete(*target.all())


SCRIPTS: dict[str, Callable[[Store, Lease], Any]] = {
    "acquire": lambda store, lease: isinstance(store.acquire("ts02", ttl_ms=LEASE_MS), Lease),
    "renew": lambda store, lease: store.renew([lease, lease], ttl_ms=LEASE_MS) == [True, True],
    "release": lambda store, lease: store.release(lease),
    "store": lambda store, lease: store.store(lease, 2, listing(store)) is Outcome.STORED,
    "confirm": lambda store, lease: confirmed(store, lease, 2) is Outcome.STORED,
    "fail": lambda store, lease: failed(store, lease) is Outcome.STORED,
    "discard": lambda store, lease: store.discard(lease, [SESSIONS]) is Outcome.STORED,
}


def test_scripts_that_redis_has_forgotten_are_sent_again(own_valkey: EmbeddedValkey) -> None:
    for call in SCRIPTS.values():
        client = client_from_url(own_valkey.url)
        client.flushall()
        store = Store(client, Keys(), "w1")
        lease = taken(store)
        store.store(lease, 1, listing(store))
        client.script_flush()
        assert call(store, lease)
        client.close()


def test_a_key_of_another_type_is_reported_and_replaced(
    store: Store, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    lease = taken(store)
    key = target.keys.snapshot("ts01", SESSIONS)
    target.client.set(key, "mine", ex=60)
    assert store.store(lease, 1, listing(store)) is Outcome.STORED
    assert target.client.type(key) == b"hash"
    assert f"the key {key} held another type of value" in caplog.text


# Global keys


def fleet_of(*targets: str) -> PublishedFleet:
    servers = {name: PublishedServer(name, name) for name in targets}
    made = {name: PublishedTarget(name, name, "server", None, frozenset({SESSIONS})) for name in targets}
    return PublishedFleet(servers, made, {"mate": targets}, f"version of {len(targets)}")


def versioned(stamp: int, *targets: str) -> PublishedFleet:
    fleet = fleet_of(*targets)
    return replace(fleet, version=f"{stamp:013d}-{fleet.digest()}")


def test_the_newest_inventory_is_published_with_a_ttl(store: Store, target: Target) -> None:
    assert store.published() is None
    first, second, third = versioned(1000, "ts01"), versioned(2000, "ts01", "ts02"), versioned(3000, "ts02")
    assert store.publish(second).accepted
    assert store.published() == second
    key = target.keys.fleet()
    assert 0 < target.client.pttl(key) <= FLEET_TTL_MS
    target.client.pexpire(key, 1000)
    refused = store.publish(first)
    assert (refused.accepted, refused.version) == (False, second.version)
    assert store.published() == second
    assert target.client.pttl(key) <= 1000
    assert store.publish(third).accepted
    assert store.published() == third
    assert store.published_version() == third.version
    assert target.client.pttl(key) > FLEET_TTL_MS - 60_000
    assert store.publish(first, force=True).accepted
    assert store.published() == first


def test_the_same_inventory_of_another_time_is_no_other_one(store: Store, target: Target) -> None:
    earlier, later = versioned(1000, "ts01"), versioned(2000, "ts01")
    first = store.publish(later)
    target.client.pexpire(target.keys.fleet(), 1000)
    again = store.publish(earlier)
    assert again.accepted
    assert (again.version, again.published_at_ms) == (later.version, first.published_at_ms)
    assert target.client.pttl(target.keys.fleet()) > FLEET_TTL_MS - 60_000


def test_a_published_document_that_no_worker_wrote(store: Store, target: Target) -> None:
    target.client.hset(target.keys.fleet(), mapping={"version": "1", "document": "[]"})
    target.client.pexpire(target.keys.fleet(), 60_000)
    with pytest.raises(SnapshotCorrupt):
        store.published()


def test_dropping_targets_leaves_their_fence_and_all_others(store: Store, target: Target) -> None:
    for name in ("ts01", "ts02", "alice@ts01"):
        lease = taken(store, name)
        store.store(lease, 1, listing(store))
        store.store(lease, 2, listing(store, kind=Kind.LOAD))
    target.client.xadd(target.keys.events("ts01"), {"kind": "server_up", "at": "1"})
    before = target.all()
    assert store.drop_targets(["ts01", "ts99"]) == 5
    after = target.all()
    assert set(before) - set(after) == {
        target.keys.lease("ts01"),
        target.keys.state("ts01"),
        target.keys.events("ts01"),
        target.keys.snapshot("ts01", SESSIONS),
        target.keys.snapshot("ts01", Kind.LOAD),
    }
    assert after.items() <= before.items()


def test_orphans_are_what_no_known_target_or_server_explains(store: Store, target: Target) -> None:
    for name in ("ts01", "alice@ts01", "ts02", "bob@ts02", "carol@ts03", "dave@ts03"):
        store.store(taken(store, name), 1, listing(store))
    store.heartbeat({"host": "h"}, ttl_ms=60_000)
    store.publish(fleet_of("ts01"))
    elsewhere = Store(target.client, Keys(f"{target.keys.namespace}:b"), "w1")
    elsewhere.store(taken(elsewhere, "ts07"), 1, listing(elsewhere))
    before = target.all()
    assert store.drop_orphans({"ts01", "carol@ts03"}) == 9
    after = target.all()
    gone = {key.partition("{")[2].partition("}")[0] for key in set(before) - set(after)}
    assert gone == {"ts02", "bob@ts02", "dave@ts03"}
    assert after.items() <= before.items()
    assert store.drop_orphans({"ts01", "carol@ts03"}) == 0


def test_live_workers_are_those_whose_heart_beats(store: Store, other: Store, target: Target) -> None:
    assert store.heartbeat({"host": "a", "pid": 7}, ttl_ms=60_000) == ("w1",)
    assert set(other.heartbeat({"host": "b"}, ttl_ms=60_000)) == {"w1", "w2"}
    assert target.client.hgetall(target.keys.worker("w1")) == {b"host": b"a", b"pid": b"7"}
    for key in (target.keys.workers(), target.keys.worker("w1")):
        assert target.client.pttl(key) > 0
    other.leave()
    assert store.heartbeat({"host": "a"}, ttl_ms=60_000) == ("w1",)
    assert not target.client.exists(target.keys.worker("w2"))


def test_a_worker_that_is_heard_of_no_more_is_no_member(store: Store, other: Store, target: Target) -> None:
    other.heartbeat({"host": "b"}, ttl_ms=100)
    wait_until(lambda: store.heartbeat({"host": "a"}, ttl_ms=100) == ("w1",))
    wait_until(lambda: not target.client.exists(target.keys.worker("w2")))


def test_a_dead_worker_is_no_member_for_ever_where_the_clock_of_redis_was_set_back(
    store: Store, target: Target
) -> None:
    target.client.zadd(target.keys.workers(), {"dead": store.sync_clock() + 3_600_000})
    assert store.heartbeat({"host": "a"}, ttl_ms=6000) == ("w1",)


def test_requests_are_taken_in_turn_and_answered(store: Store, target: Target) -> None:
    queue = target.keys.refresh_requests("w1")
    for body in ('{"id": "a"}', "no json", '["a list"]', '{"id": "b"}'):
        target.client.rpush(queue, body)
    target.client.pexpire(queue, 60_000)
    taken_requests = [store.take_request(wait_seconds=0.05) for _ in range(5)]
    assert taken_requests == [b'{"id": "a"}', b"no json", b'["a list"]', b'{"id": "b"}', None]
    store.answer_all(["a"], b'{"target": "ts01", "error": ""}')
    key = target.keys.refresh_answers("a")
    assert target.client.lrange(key, 0, -1) == [b'{"target": "ts01", "error": ""}']
    assert 0 < target.client.pttl(key) <= REQUEST_TTL_MS


def test_a_worker_that_leaves_takes_its_requests_along(store: Store, target: Target) -> None:
    target.client.rpush(target.keys.refresh_requests("w1"), "{}")
    store.leave()
    assert not target.client.exists(target.keys.refresh_requests("w1"))


# A Redis that can't be written


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server whose settings the tests of this module may change."""
    with EmbeddedValkey() as valkey:
        yield valkey


@pytest.fixture
def own(own_valkey: EmbeddedValkey) -> Iterator[Store]:
    """A worker of an empty server of its own."""
    client = client_from_url(own_valkey.url, **PATIENT)
    client.flushall()
    yield Store(client, Keys(), "w1")
    client.config_set("maxmemory", "256mb")
    client.replicaof("NO", "ONE")
    client.close()


def make_full(client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")


def make_replica(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")


REFUSED: dict[str, Callable[[Store, Lease, int], Any]] = {
    "acquire": lambda store, lease, at: store.acquire("ts02", ttl_ms=LEASE_MS),
    "store again": lambda store, lease, at: store.store(lease, 2, listing(store)),
    "store another kind": lambda store, lease, at: store.store(lease, 2, listing(store, kind=Kind.MOUNTS)),
    "confirm": lambda store, lease, at: confirmed(store, lease, 2),
    "fail": lambda store, lease, at: failed(store, lease, Kind.SESSIONS, Kind.LOAD),
    "publish": lambda store, lease, at: store.publish(fleet_of("ts01", "ts02")),
    "answer": lambda store, lease, at: store.answer_all(["a"], b"{}"),
    "heartbeat": lambda store, lease, at: store.heartbeat({"host": "b"}, ttl_ms=60_000),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    ("make", "said"), [(make_full, "at its maxmemory"), (make_replica, "refuses writes")], ids=["full", "replica"]
)
def test_a_redis_that_takes_no_writes_says_why_and_holds_no_half(
    own: Store, make: Callable[[redis.Redis], None], said: str, call: Callable[[Store, Lease, int], Any]
) -> None:
    lease = taken(own)
    assert own.store(lease, 1, listing(own, age_ms=100)) is Outcome.STORED
    own.publish(fleet_of("ts01"))
    before = dump(own.link.client, "x2gofleet")
    make(own.link.client)
    with pytest.raises(CacheUnavailable, match=said):
        call(own, lease, own.sync_clock())
    assert dump(own.link.client, "x2gofleet") == before


def test_a_full_redis_still_gives_back_and_keeps_leases(own: Store) -> None:
    lease = taken(own)
    own.store(lease, 1, listing(own))
    make_full(own.link.client)
    assert own.renew([lease], ttl_ms=LEASE_MS) == [True]
    assert own.discard(lease, [SESSIONS]) is Outcome.STORED
    assert own.drop_targets(["ts01"]) == 2
    own.link.client.config_set("maxmemory", "256mb")
    assert own.store(taken(own), 1, listing(own)) is Outcome.STORED


def test_a_redis_that_is_gone_is_told_by_every_method(keys: Keys) -> None:
    with EmbeddedValkey() as valkey:
        url = valkey.url
        store = Store(client_from_url(url), keys, "w1")
        lease = taken(store)
        made = listing(store)
    calls: dict[str, Callable[[], Any]] = {
        "its time": store.sync_clock,
        "taking the lease of ts01": lambda: store.acquire("ts01", ttl_ms=LEASE_MS),
        "renewing leases": lambda: store.renew([lease], ttl_ms=LEASE_MS),
        "releasing the lease of ts01": lambda: store.release(lease),
        "storing the sessions of ts01": lambda: store.store(lease, 1, made),
        "confirming the sessions of ts01": lambda: store.confirm(
            lease, 1, SESSIONS, digest="d1", polled_at_ms=1, ttl_ms=1, state_ttl_ms=1
        ),
        "recording a failure of ts01": lambda: store.fail(
            lease, [SESSIONS], failed_at_ms=1, state_ttl_ms=1, error_class="a", error_text="b"
        ),
        "dropping ts01": lambda: store.discard(lease, [SESSIONS]),
        "publishing the inventory": lambda: store.publish(fleet_of("ts01")),
        "reading the published inventory": store.published,
        "dropping removed targets": lambda: store.drop_targets(["ts01"]),
        "looking for removed targets": lambda: store.drop_orphans({"ts01"}),
        "leaving the fleet": store.leave,
        "waiting for requests": lambda: store.take_request(wait_seconds=0.01),
        "answering a request": lambda: store.answer_all(["a"], b"{}"),
    }
    for what, call in calls.items():
        with pytest.raises(CacheUnavailable, match=what):
            call()
    with pytest.raises(CacheUnavailable):
        store.heartbeat({"host": "a"}, ttl_ms=1000)
