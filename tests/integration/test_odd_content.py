"""Odd content in every key that readers read, on a real Valkey: an answer or a FleetError, and others' stay right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis

from tests.conftest import FleetBuilder
from tests.integration.reader import LOAD, row
from tests.support.odd_replies import ASKING_CALLS, CALLS, DEEP, ODD_BYTES, Call
from x2gofleet.errors import FleetError, SnapshotCorrupt
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

pytestmark = pytest.mark.parametrize("valkey_url", ["valkey-9"], indirect=True)

OTHER_TYPES: dict[str, Callable[[redis.Redis, str], Any]] = {
    "a string": lambda client, key: client.set(key, b"\xff"),
    "a list": lambda client, key: client.rpush(key, b"x"),
    "a sorted set": lambda client, key: client.zadd(key, {b"x": 1}),
    "a stream": lambda client, key: client.xadd(key, {b"x": b"y"}),
    "a hash": lambda client, key: client.hset(key, b"\xff", b"\xff"),
}
KEY_KINDS: dict[str, Callable[[Keys], str]] = {
    "fleet": lambda keys: keys.fleet(),
    "sessions": lambda keys: keys.snapshot("ts02", Kind.SESSIONS),
    "load": lambda keys: keys.snapshot("ts02", Kind.LOAD),
    "state": lambda keys: keys.state("ts02"),
    "lease": lambda keys: keys.lease("ts02"),
    "events": lambda keys: keys.events("ts02"),
    "fresh": lambda keys: keys.fresh(),
    "changes": lambda keys: keys.changes(),
    "uuid": lambda keys: keys.uuid("6c3f"),
    "reserved": lambda keys: keys.reserved("ts02"),
    "workers": lambda keys: keys.workers(),
}


@pytest.fixture
def filled(fleet: FleetBuilder, redis_client: redis.Redis, keys: Keys) -> Iterator[redis.Redis]:
    """Two servers: ts01 is what answers are compared of, ts02 is what odd things are stored of."""
    fleet.publish({"mate": ["ts01", "ts02"], "one": ["ts01"], "two": ["ts02"]})
    for name, user in (("ts01", "alice"), ("ts02", "bob")):
        fleet.listing(name, "sessions", row(user, hostname=name))
        fleet.listing(name, "load", LOAD)
    redis_client.hset(keys.uuid("6c3f"), mapping={"profile": "mate", "username": ""})
    redis_client.zadd(keys.reserved("ts02"), {"carol": 9e15})
    redis_client.zadd(keys.workers(), {"w1": 1})
    yield redis_client
    for key in redis_client.scan_iter(f"{keys.namespace}:*"):
        redis_client.expire(key, 60)


def ask_all(cache: Any, calls: Mapping[str, Call] = CALLS) -> None:
    """Make every call; any error but a FleetError fails the test."""
    for call in calls.values():
        with contextlib.suppress(FleetError):
            call(cache)


def others(cache: Any) -> tuple[Any, ...]:
    """Return what is known of the server that nobody tampered with."""
    sessions = cache.list_sessions(profile_name="one")
    placed = cache.place("one", "dave", reserve_seconds=0)
    (status,) = (each for each in cache.servers() if each.id == "ts01")
    return (
        {each.username for each in sessions.rows},
        set(cache.load("one")),
        {(each.target, each.kind) for each in cache.snapshots(server="ts01")},
        placed.server,
        {event.session for event in cache.events(server="ts01")},
        (status.up, status.error_class, set(status.ages)),
        {each.target for each in cache.view("sessions").snapshots} & {"ts01"},
        cache.is_cached("one"),
    )


EXPECTED = (
    {"alice"},
    {"ts01"},
    {("ts01", Kind.SESSIONS), ("ts01", Kind.LOAD)},
    "ts01",
    set(),
    (True, "", {Kind.SESSIONS, Kind.LOAD}),
    {"ts01"},
    True,
)


@pytest.mark.parametrize("key_kind", KEY_KINDS)
def test_a_key_of_another_type(cache: Any, filled: redis.Redis, keys: Keys, key_kind: str) -> None:
    assert others(cache) == EXPECTED
    key = KEY_KINDS[key_kind](keys)
    for write in OTHER_TYPES.values():
        filled.delete(key)
        write(filled, key)
        filled.expire(key, 60)
        ask_all(cache)
        if key_kind != "fleet":
            assert others(cache) == EXPECTED


@pytest.mark.parametrize("odd", ODD_BYTES)
def test_fields_of_odd_bytes(cache: Any, filled: redis.Redis, keys: Keys, odd: str) -> None:
    for key in (*(KEY_KINDS[name](keys) for name in ("sessions", "load", "state", "lease")), keys.fresh()):
        before: dict[bytes, bytes] = filled.hgetall(key)  # type: ignore[assignment]
        names = {b"sessions.good_at", b"sessions.failed_at", b"sessions.since", b"host_name", *before}
        for name in names:
            filled.hset(key, name, ODD_BYTES[odd])  # type: ignore[arg-type]
        ask_all(cache, ASKING_CALLS)
        assert others(cache) == EXPECTED
        for name in names:
            filled.hdel(key, name)  # type: ignore[arg-type]
        if before:
            filled.hset(key, mapping=before)  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", ODD_BYTES)
def test_an_inventory_of_odd_bytes_is_corrupt_until_it_is_published_anew(
    cache: Any, filled: redis.Redis, fleet: FleetBuilder, keys: Keys, odd: str
) -> None:
    good: dict[bytes, bytes] = filled.hgetall(keys.fleet())  # type: ignore[assignment]
    documents = [ODD_BYTES[odd]]
    with contextlib.suppress(UnicodeDecodeError):
        text = ODD_BYTES[odd].decode()
        if DEEP not in ODD_BYTES[odd] and "{" not in text:
            documents += [good[b"document"].replace(b'"ts02"', b'"\\ud800"'), good[b"document"] + ODD_BYTES[odd] + b"x"]
    for document in documents:
        filled.hset(keys.fleet(), mapping={"version": "2", "document": document})
        for call in (cache.profiles, cache.servers, lambda: cache.list_sessions(profile_name="one")):
            with pytest.raises(SnapshotCorrupt, match="the published inventory can't be read"):
                call()
        ask_all(cache)
    filled.hset(keys.fleet(), mapping={"version": ODD_BYTES[odd], "document": good[b"document"]})
    ask_all(cache)
    fleet.publish({"mate": ["ts01", "ts02"], "one": ["ts01"], "two": ["ts02"]})
    assert others(cache) == EXPECTED


def test_each_missing_field_of_a_snapshot_is_an_error_of_its_server_alone(
    cache: Any, filled: redis.Redis, keys: Keys
) -> None:
    key = keys.snapshot("ts02", Kind.SESSIONS)
    before: dict[bytes, bytes] = filled.hgetall(key)  # type: ignore[assignment]
    for name in before.keys() - {b"source"}:
        filled.hdel(key, name)  # type: ignore[arg-type]
        with pytest.raises(SnapshotCorrupt, match="the sessions snapshot of ts02"):
            cache.list_sessions(profile_name="two")
        assert others(cache) == EXPECTED
        filled.hset(key, name, before[name])  # type: ignore[arg-type]
