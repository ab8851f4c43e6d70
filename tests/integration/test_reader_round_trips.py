"""What a lookup costs: round trips, counted on the way to Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import DIRECT
from .reader import CountingProxy, row, session_name

Publish = Callable[..., Any]
StoreListing = Callable[..., Any]

SESSIONS = row("alice") + row("bob", 51)
MOUNTS = f"{session_name('alice')}|192.0.2.17|/media/a\n".encode()

pytestmark = pytest.mark.parametrize("open_cache", DIRECT, indirect=True)

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "is_cached of a kind": lambda cache: cache.is_cached("mate", cache_type="sessions"),
    "is_cached of any kind": lambda cache: cache.is_cached("mate", username="carol"),
    "list_sessions": lambda cache: cache.list_sessions(profile_name="mate"),
    "list_sessions of a user": lambda cache: cache.list_sessions(profile_name="mate", username="alice"),
    "list_desktops": lambda cache: cache.list_desktops(profile_name="mate", username="alice"),
    "list_mounts": lambda cache: cache.list_mounts(profile_name="mate"),
    "load": lambda cache: cache.load("mate"),
    "find_sessions": lambda cache: cache.find_sessions(username="alice"),
    "snapshots of a profile": lambda cache: cache.snapshots(profile_name="mate"),
    "snapshots of a server": lambda cache: cache.snapshots(server="ts01"),
    "servers": lambda cache: cache.servers(),
    "profiles": lambda cache: cache.profiles(),
    "an unknown profile": lambda cache: cache.list_sessions(profile_name="mte"),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_lookup_is_one_round_trip_however_many_servers(
    open_cache: Callable[[str, str], Any],
    valkey_url: str,
    namespace: str,
    publish: Publish,
    store_listing: StoreListing,
    question: Callable[[Any], Any],
) -> None:
    servers = [f"ts{number:02}" for number in range(1, 13)]
    publish({"mate": servers, "other": ["ts20"]})
    for server in servers:
        store_listing(server, "sessions", SESSIONS)
        store_listing(server, "mounts", MOUNTS)
    with CountingProxy(valkey_url) as proxy:
        cache = open_cache(proxy.url, namespace)
        first = question(cache)
        assert proxy.round_trips <= 2, "the first call reads the inventory too"
        for _ in range(2):
            proxy.round_trips = 0
            assert type(question(cache)) is type(first)
            assert proxy.round_trips == 1
        publish({"mate": servers[1:], "other": ["ts01"]})
        proxy.round_trips = 0
        question(cache)
        assert proxy.round_trips <= 3, "an inventory that changed is read and asked by again"
        assert proxy.connections == 1
        cache.close()


def test_a_lookup_by_uuid_is_two_round_trips(
    open_cache: Callable[[str, str], Any],
    valkey_url: str,
    namespace: str,
    publish: Publish,
    store_listing: StoreListing,
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", SESSIONS)
    with CountingProxy(valkey_url) as proxy:
        cache = open_cache(proxy.url, namespace)
        cache.register_session("6c3f", "mate", "alice")
        cache.list_sessions("6c3f")
        proxy.round_trips = 0
        assert len(cache.list_sessions("6c3f").rows) == 2
        assert proxy.round_trips == 2
        cache.close()
