"""What strangers wrote into the keys that a worker writes: the worker replaces it, and goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.integration.reader import row
from x2gofleet.fleet import PublishedFleet, PublishedServer
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome, Store

TTL_MS = 60_000
KEYS: dict[str, Callable[[Keys], str]] = {
    "lease": lambda keys: keys.lease("ts01"),
    "fence": lambda keys: keys.fence("ts01"),
    "snapshot": lambda keys: keys.snapshot("ts01", Kind.SESSIONS),
    "state": lambda keys: keys.state("ts01"),
    "events": lambda keys: keys.events("ts01"),
    "hosts": lambda keys: keys.hosts(),
    "workers": lambda keys: keys.workers(),
    "worker": lambda keys: keys.worker("w1"),
    "requests": lambda keys: keys.refresh_requests("w1"),
    "fleet": lambda keys: keys.fleet(),
}
OTHERS: dict[str, Callable[[redis.Redis, str], object]] = {
    "string": lambda client, key: client.set(key, b"\xff", ex=60),
    "set": lambda client, key: client.sadd(key, b"\xff"),
}
ODD = [b"", b"abc", b"\xff", b"-1", b"1e3", b"nan", b"inf", b"9" * 400]


def listing(store: Store, user: str) -> Listing:
    stdout, now = row(user), store.sync_clock()
    return Listing(Kind.SESSIONS, stdout, digest_of(Kind.SESSIONS, stdout), now, now, 1, TTL_MS, TTL_MS)


def work(store: Store) -> None:
    """Do all that a worker does about a target; each write has to be taken."""
    lease = store.acquire("ts01", ttl_ms=TTL_MS)
    assert isinstance(lease, Lease)
    assert store.renew([lease], ttl_ms=TTL_MS) == [True]
    assert store.fail(
        lease, [Kind.SESSIONS], failed_at_ms=store.sync_clock(), state_ttl_ms=TTL_MS, error_class="E", error_text="e"
    )
    found = listing(store, "alice")
    assert store.store(lease, store.next_seq(), found) is Outcome.STORED
    assert store.stored("ts01", Kind.SESSIONS) == (found.digest, found.stdout)
    confirmed = store.confirm(
        lease,
        store.next_seq(),
        Kind.SESSIONS,
        digest=found.digest,
        polled_at_ms=store.sync_clock(),
        ttl_ms=TTL_MS,
        state_ttl_ms=TTL_MS,
    )
    assert confirmed is Outcome.STORED
    assert store.record_host_name("ts01", "ts01", "db") == ()
    assert store.heartbeat({"host": "h"}, ttl_ms=TTL_MS) == ("w1",)
    assert [member.id for member in store.describe(["w1"])] == ["w1"]
    assert store.take_request(wait_seconds=0.01) is None
    fleet = PublishedFleet({"ts01": PublishedServer("ts01", "ts01")}, {}, {}, "0000000000001-0123456789abcdef")
    assert store.publish(fleet).accepted
    assert store.is_intact(fleet, fleet.version)
    assert store.published() == fleet
    assert store.release(lease)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_another_type_is_replaced(
    store: Store, redis_client: redis.Redis, keys: Keys, name: str, other: str
) -> None:
    work(store)
    key = KEYS[name](keys)
    redis_client.delete(key)
    OTHERS[other](redis_client, key)
    redis_client.expire(key, 60)
    work(store)


@pytest.mark.parametrize("value", ODD)
def test_numbers_that_no_worker_writes_are_replaced(
    store: Store, redis_client: redis.Redis, keys: Keys, value: bytes
) -> None:
    work(store)
    redis_client.set(keys.fence("ts01"), value)
    for name in ("fence", "seq", "digest", "changed_at", "polled_at"):
        redis_client.hset(keys.snapshot("ts01", Kind.SESSIONS), name, value)  # type: ignore[arg-type]
    for name in ("failures", "since", "good_at", "failed_at"):
        redis_client.hset(keys.state("ts01"), f"sessions.{name}", value)  # type: ignore[arg-type]
    work(store)
    found = redis_client.hget(keys.snapshot("ts01", Kind.SESSIONS), "fence")
    assert found is not None
    assert found.isdigit()
    assert len(found) < 16


def test_ids_and_texts_that_are_not_utf_8_end_nothing(store: Store, redis_client: redis.Redis, keys: Keys) -> None:
    redis_client.zadd(keys.workers(), {b"\xff\xfe": store.sync_clock()})
    redis_client.hset(keys.lease("ts01"), mapping={"owner": b"\xff", "nonce": "n", "fence": "1"})
    redis_client.expire(keys.lease("ts01"), 60)
    assert len(store.heartbeat({"host": "h"}, ttl_ms=TTL_MS)) == 2
    assert store.acquire("ts01", ttl_ms=TTL_MS) == "\ufffd"
