"""A caller's own redis-py client, RESP2 or RESP3, blocking or asyncio: the answers are those of a link from a URL.

test_redis_versions.py runs this module on each version of redis-py, with and without hiredis.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.acl_users import user_of
from tests.links import AnyLink
from x2gofleet import AsyncFleetCache, CacheUnavailable, FleetCache, FleetError, Kind, SnapshotCorrupt
from x2gofleet.acl import Role
from x2gofleet.connection import Link, link_from_url, link_of
from x2gofleet.keys import Keys
from x2gofleet.requests import Operation, Request
from x2gofleet.store import Lease, Script, Store

from ..conftest import FleetBuilder  # noqa: TID252
from .reader import LOAD, AsyncOfCaller, Awaited, OfCaller, OwnValkey, StubWorker, row, session_name

PROTOCOLS: dict[str, dict[str, Any]] = {"RESP2": {"protocol": 2}, "RESP3": {"protocol": 3}, "the default": {}}
CLIENTS = {
    f"{kind}, {protocol}": (kind, options)
    for kind in ("redis.Redis", "redis.asyncio.Redis")
    for protocol, options in PROTOCOLS.items()
}
EACH_CLIENT = pytest.mark.parametrize(("kind", "options"), CLIENTS.values(), ids=CLIENTS)
EACH_PROTOCOL = pytest.mark.parametrize("options", PROTOCOLS.values(), ids=PROTOCOLS)
PATIENT_SECONDS = 10.0


def make_cache(kind: str, options: dict[str, Any], url: str, namespace: str) -> Any:
    """Return a cache over a client of a kind; an asynchronous one is awaited behind blocking methods."""
    if kind == "redis.Redis":
        client = redis.Redis.from_url(url, **options)
        return OfCaller(client, namespace=namespace, lookup_seconds=PATIENT_SECONDS)
    own = redis.asyncio.Redis.from_url(url, **options)
    return Awaited(AsyncOfCaller(own, namespace=namespace, lookup_seconds=PATIENT_SECONDS))


# Every public method, in an order in which each finds something to answer.
QUERIES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "profiles": ((), {}),
    "servers": ((), {}),
    "is_cached": (("mate",), {"username": "alice"}),
    "list_sessions": ((), {"profile_name": "mate"}),
    "find_sessions": ((), {"username": "alice"}),
    "list_desktops": ((), {"profile_name": "mate", "username": "alice"}),
    "list_mounts": ((), {"profile_name": "mate"}),
    "load": (("mate",), {}),
    "snapshots": ((), {"server": "ts01"}),
    "view": (("sessions",), {}),
    "events": ((), {}),
    "register_session": (("6c3f", "mate", "alice"), {}),
    "forget_session": (("6c3f",), {}),
    "reserve": (("ts01", "carol"), {}),
    "reservations": (("mate",), {}),
    "release": (("ts01", "carol"), {}),
    "place": (("mate", "dave"), {}),
    "update": (("mate",), {}),
    "update_all": ((), {}),
    "delete": (("kde",), {}),
    "check_cache": ((), {}),
    "resync": ((), {}),
}


def test_no_public_method_is_forgotten() -> None:
    methods = {name for name, value in vars(FleetCache).items() if not name.startswith("_") and callable(value)}
    assert methods - {"close"} == set(QUERIES)


def answers(cache: Any) -> dict[str, Any]:
    """Call every method; what is not the same in each namespace (times, fences, cursors) is masked."""
    found: dict[str, Any] = {}
    for name, (arguments, named) in QUERIES.items():
        try:
            found[name] = masked(getattr(cache, name)(*arguments, **named))
        except FleetError as exc:
            found[name] = {"failed": f"{type(exc).__name__}: {exc}"}
        if name == "register_session":
            found["list_sessions(session_uuid)"] = masked(cache.list_sessions("6c3f"))
    return found


_MASKED = re.compile(r"ms$|^ages?$|^fence$|^(id|cursor|oldest_age|asked_at)$")


def masked(value: Any) -> Any:
    if type(value) is int and value > 1_000_000_000_000:
        return "a time"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: type(each).__name__ if _MASKED.search(name) else masked(each) for name, each in fields.items()}
    if isinstance(value, dict):
        return {str(name): masked(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(each) for each in value]
    if hasattr(value, "rows"):
        return masked([value.rows, value.rejected, value.missing_servers])
    return value if isinstance(value, (str, bytes, int, float, type(None))) else repr(value)


def fill(store: Store) -> FleetBuilder:
    """Write a fleet of two servers: one with snapshots of each kind and one event more, and one that is down."""
    fleet = FleetBuilder(store)
    fleet.publish({"mate": ["ts01", "ts02"], "kde": ["ts01"]}, weights={"ts01": 2.5}, labels={"ts01": ["gpu"]})
    fleet.listing("ts01", "sessions", row("alice"))
    fleet.listing("ts01", "sessions", row("alice") + row("bob", 51, "S"))
    fleet.listing("ts01", "load", LOAD)
    fleet.listing("ts01", "mounts", f"{session_name('alice')}|192.0.2.17|/media/a\n".encode())
    fleet.listing("alice@ts01", "desktops", b"alice@:50\n")
    fleet.failure("ts02")
    fleet.store.heartbeat({"weight": 1.0}, ttl_ms=60_000)
    return fleet


@contextlib.contextmanager
def answering(url: str, keys: Keys, fleet: FleetBuilder) -> Iterator[StubWorker]:
    """A worker that stores an empty listing for each request, and drops what it is asked to check."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["operation"] == "check":
            return {"dropped": 0}
        stored = []
        if request["operation"] == "refresh" and request["target"] == "ts01":
            fleet.listing("ts01", "sessions", b"")
            stored = [["ts01", "sessions"]]
        return {"target": request["target"], "stored": stored, "error": ""}

    with StubWorker(url, keys, fleet.store.worker_id, answer) as worker:
        yield worker


@pytest.fixture
def broker_of(redis_client: redis.Redis, valkey_url: str) -> Callable[[str], AbstractContextManager[str]]:
    """Makes a Redis user with a broker's rights in a namespace, for a block: yields the URL with its credentials."""
    return lambda namespace: user_of(redis_client, valkey_url, namespace, Role.BROKER)


def answers_of(
    made: Callable[[str], Any], redis_client: redis.Redis, valkey_url: str, keys: Keys, broker_of: Any
) -> dict[str, Any]:
    redis_client.delete(*(redis_client.keys(f"{keys.namespace}:*") or [b"none"]))
    fleet = fill(Store(redis_client, keys, "w1"))
    with broker_of(keys.namespace) as url, answering(valkey_url, keys, fleet):
        cache = made(url)
        try:
            return answers(cache)
        finally:
            cache.close()


@EACH_CLIENT
def test_every_method_answers_as_through_a_url(
    kind: str, options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, keys: Keys, broker_of: Any
) -> None:
    environment = redis_client, valkey_url, keys, broker_of
    namespace = keys.namespace
    expected = answers_of(
        lambda url: FleetCache.from_url(url, namespace=namespace, lookup_seconds=PATIENT_SECONDS), *environment
    )
    assert [answer for answer in expected.values() if isinstance(answer, dict) and "failed" in answer] == []
    assert all(
        expected[name] for name in QUERIES if not name.startswith(("forget", "delete", "check", "resync", "reg"))
    )
    assert answers_of(lambda url: make_cache(kind, options, url, namespace), *environment) == expected


@EACH_PROTOCOL
def test_a_worker_writes_as_through_a_url(
    options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, namespace: str
) -> None:
    def write(given: redis.Redis | Link, keys: Keys) -> list[Any]:
        store = Store(given, keys, "w1")
        fleet = fill(store)
        stored = store.stored("ts01", Kind.SESSIONS)
        assert stored is not None
        redis_client.rpush(keys.refresh_requests("w1"), json.dumps({"id": "1", "operation": "check"}))
        lease = fleet.lease("ts01")
        return [
            stored,
            fleet.confirmation("ts01", "sessions", stored[1]),
            store.renew([lease, Lease("ts02", "other", 1)], ttl_ms=60_000),
            isinstance(store.acquire("ts03", ttl_ms=60_000), Lease),
            store.published(),
            masked(store.describe(store.heartbeat({"weight": 2.0}, ttl_ms=60_000))),
            store.users_desktops("ts01"),
            store.take_request(wait_seconds=0.1),
            store.take_request(wait_seconds=0.1),
            store.drop_orphans({"ts01"}),
            store.release(lease),
            sorted(key.decode().removeprefix(keys.namespace) for key in redis_client.keys(f"{keys.namespace}:*")),
        ]

    link = link_from_url(valkey_url, command_timeout_seconds=PATIENT_SECONDS)
    expected = write(link, Keys(f"{namespace}:url"))
    link.close()
    with redis.Redis.from_url(valkey_url, **options) as client:
        assert write(client, Keys(f"{namespace}:own")) == expected
    assert Request.decode(expected[7]) == Request("1", Operation.CHECK)
    assert expected[9] > 0, "orphans were found by SCAN"


# Types of RESP3 as scripts return them, and every command whose reply has another shape there.
SCRIPTS = {
    "map": "{map={a=1}}",
    "set": "{set={a=true}}",
    "double": "{double=1.5}",
    "whole double": "{double=3}",
    "infinite double": "{double=math.huge}",
    "big number": "{big_number='170141183460469231731687303715884105728'}",
    "verbatim string": "{verbatim_string={format='txt', string='some text'}}",
    "booleans": "{true, false}",
    "true": "true",
    "nothing": "nil",
    "nested": "{1, {'a', {map={k={double=0.25}}}}, false}",
}


def commands_of(key: str) -> list[tuple[Any, ...]]:
    return [
        ("DEL", f"{key}:h", f"{key}:z", f"{key}:s", f"{key}:set", f"{key}:l"),
        ("HSET", f"{key}:h", "name", b"\xff\x00", "größe", 12),
        ("HGETALL", f"{key}:h"),
        ("HGETALL", f"{key}:none"),
        ("HMGET", f"{key}:h", "name", "absent"),
        ("HRANDFIELD", f"{key}:h", 5, "WITHVALUES"),
        ("ZADD", f"{key}:z", 1.5, "a", 3, "b", "inf", "c", 1_764_000_000_123, "d"),
        ("ZRANGE", f"{key}:z", 0, -1),
        ("ZRANGE", f"{key}:z", 0, -1, "WITHSCORES"),
        ("zrevrangebyscore", f"{key}:z", "+inf", "-inf", "WITHSCORES"),
        ("ZRANGE", f"{key}:none", 0, -1, "WITHSCORES"),
        ("ZSCORE", f"{key}:z", "a"),
        ("ZMSCORE", f"{key}:z", "a", "absent"),
        ("ZINCRBY", f"{key}:z", 0.25, "a"),
        ("ZPOPMIN", f"{key}:z"),
        ("ZPOPMAX", f"{key}:z", 2),
        ("SADD", f"{key}:set", "m"),
        ("SMEMBERS", f"{key}:set"),
        ("SISMEMBER", f"{key}:set", "m"),
        ("XADD", f"{key}:s", "1-1", "f", "v", "g", b"\xff"),
        ("XADD", f"{key}:s", "1-2", "f", "w"),
        ("XRANGE", f"{key}:s", "-", "+"),
        ("XREVRANGE", f"{key}:s", "+", "-", "COUNT", 1),
        ("XREAD", "COUNT", 10, "STREAMS", f"{key}:s", f"{key}:none", "0", "0"),
        ("XREAD", "BLOCK", 1, "STREAMS", f"{key}:s", "$"),
        ("XINFO", "STREAM", f"{key}:s"),
        ("BLPOP", f"{key}:l", 0.01),
        ("RPUSH", f"{key}:l", "x"),
        ("BLPOP", f"{key}:l", 0.01),
        ("MULTI",),
        ("HGETALL", f"{key}:h"),
        ("XREAD", "STREAMS", f"{key}:s", "0"),
        ("ZADD", f"{key}:z", 2, "e"),
        ("ZRANGE", f"{key}:z", 0, -1, "WITHSCORES"),
        ("EXEC",),
        ("MULTI",),
        ("HGETALL", f"{key}:h"),
        ("DISCARD",),
        ("HGETALL", f"{key}:h"),
        ("CONFIG", "GET", "maxmemory*"),
        ("COMMAND", "INFO", "get"),
        *(("EVAL", f"redis.setresp(3); return {text}", 0) for text in SCRIPTS.values()),
        *(("EVAL", f"return {text}", 0) for text in SCRIPTS.values()),
        ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, f"{key}:h"),
        ("EVAL", "redis.setresp(3); return redis.call('HGETALL', KEYS[1])", 1, f"{key}:h"),
        ("DEL", f"{key}:h", f"{key}:z", f"{key}:s", f"{key}:set", f"{key}:l"),
    ]


def comparable(reply: Any) -> Any:
    """Return a reply whose order of members, where it has none, does not count."""
    return sorted(map(repr, reply)) if isinstance(reply, list) and all(type(part) is bytes for part in reply) else reply


@EACH_CLIENT
def test_replies_of_every_type(kind: str, options: dict[str, Any], valkey_url: str, namespace: str) -> None:
    commands = commands_of(f"{namespace}:{{types}}")
    with AnyLink("Link", valkey_url, command_timeout_seconds=PATIENT_SECONDS) as link:
        expected = link.exchange(commands)
    with AnyLink(kind, valkey_url, **options) as link:
        found = link.exchange(commands)
    for command, reply, wanted in zip(commands, found, expected, strict=True):
        assert comparable(reply) == comparable(wanted), command
        assert type(reply) is type(wanted), command


@EACH_CLIENT
def test_a_key_is_the_same_whatever_the_client_s_encoding(
    kind: str, options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, keys: Keys
) -> None:
    cache = make_cache(kind, {**options, "encoding": "latin-1"}, valkey_url, keys.namespace)
    cache.register_session("größe", "mate", "alice")
    cache.close()
    assert redis_client.exists(keys.uuid("größe")) == 1


@EACH_PROTOCOL
def test_a_script_that_the_server_lacks_is_sent(
    options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, keys: Keys
) -> None:
    with redis.Redis.from_url(valkey_url, **options) as client:
        script = Script("renew")
        script.text += f"-- {keys.namespace}"
        script.sha = "0" * 40
        assert script.run(link_of(client), [((keys.lease("ts01"),), ("nonce", 1000))] * 2) == [0, 0]


@EACH_CLIENT
def test_scan_finds_every_key(
    kind: str, options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, namespace: str
) -> None:
    wanted = {f"{namespace}:k{number}".encode() for number in range(1500)}
    redis_client.mset(dict.fromkeys(wanted, ""))
    with AnyLink(kind, valkey_url, **options) as link:
        assert link.keys(f"{namespace}:k*") == wanted
    redis_client.delete(*wanted)


@EACH_CLIENT
def test_an_error_reply_is_an_error_and_the_next_call_is_answered(
    kind: str, options: dict[str, Any], redis_client: redis.Redis, valkey_url: str, keys: Keys
) -> None:
    cache = make_cache(kind, options, valkey_url, keys.namespace)
    redis_client.set(keys.fleet(), "text", ex=60)
    with pytest.raises(SnapshotCorrupt, match="WRONGTYPE"):
        cache.profiles()
    redis_client.delete(keys.fleet())
    assert cache.profiles() == ()
    cache.close()


@EACH_CLIENT
def test_a_server_that_was_restarted_is_found_again(kind: str, options: dict[str, Any], tmp_path: Any) -> None:
    with OwnValkey(tmp_path) as server:
        cache = make_cache(kind, {**options, "retry": None, "socket_timeout": 5.0}, server.url, "test")
        assert cache.profiles() == ()
        server.kill()
        with pytest.raises(CacheUnavailable):
            cache.profiles()
        server.start()
        cache._guard._breaker.succeeded() if kind == "redis.Redis" else cache._cache._guard._breaker.succeeded()
        assert cache.profiles() == ()
        cache.close()


@pytest.mark.parametrize("options", PROTOCOLS.values(), ids=PROTOCOLS)
def test_of_tasks_that_are_cancelled_no_answer_reaches_another(
    options: dict[str, Any], valkey_url: str, redis_client: redis.Redis, keys: Keys
) -> None:
    fleet = FleetBuilder(Store(redis_client, keys, "w1"))
    profiles = {f"p{number}": f"ts{number:02}" for number in range(10)}
    fleet.publish({profile: [server] for profile, server in profiles.items()})
    for profile, server in profiles.items():
        fleet.listing(server, "sessions", row(profile, hostname=server))
    chance = random.Random(7)
    cancelled = 0

    async def ask(cache: AsyncFleetCache, profile: str) -> list[str]:
        found = await cache.list_sessions(profile_name=profile)
        assert found is not None
        return [each.username for each in found.rows]

    async def run() -> None:
        nonlocal cancelled
        client = redis.asyncio.Redis.from_url(valkey_url, max_connections=64, **options)
        async with AsyncFleetCache(client, namespace=keys.namespace, lookup_seconds=PATIENT_SECONDS) as cache:
            for _ in range(40):
                tasks = {profile: asyncio.create_task(ask(cache, profile)) for profile in profiles}
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                for task in chance.sample(list(tasks.values()), 4):
                    task.cancel()
                answers = await asyncio.gather(*tasks.values(), return_exceptions=True)
                for profile, answer in zip(tasks, answers, strict=True):
                    if isinstance(answer, asyncio.CancelledError):
                        cancelled += 1
                    else:
                        assert answer == [profile]
            # Each connection was given back: the pool has no more than it makes.
            assert await asyncio.gather(*(ask(cache, profile) for profile in profiles)) == [[each] for each in profiles]

    asyncio.run(run())
    assert cancelled > 0


@pytest.mark.parametrize("kind", ["redis.Redis", "redis.asyncio.Redis"])
def test_what_the_server_pushes_is_taken_for_no_reply(
    kind: str, redis_client: redis.Redis, valkey_url: str, namespace: str
) -> None:
    """The caller tracks keys over its client's one connection: invalidations come between replies."""
    key = f"{namespace}:tracked"
    with AnyLink(kind, valkey_url, protocol=3, max_connections=1) as link:
        assert link.exchange([("CLIENT", "TRACKING", "ON")]) == [b"OK"]
        for number in range(20):
            redis_client.set(key, number, ex=60)
            assert link.exchange([("GET", key), ("ECHO", "a")]) == [b"%d" % number, b"a"]
            # Its own write is told to it, before or after the reply.
            assert link.exchange([("SET", key, "own", "EX", 60), ("GET", key), ("ECHO", "b")]) == [b"OK", b"own", b"b"]
    redis_client.delete(key)
