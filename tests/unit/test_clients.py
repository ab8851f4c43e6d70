"""clients: what can't be shown with a redis-py that is installed here; the rest is in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from x2gofleet import AsyncFleetCache, CacheUnavailable, FleetCache
from x2gofleet.connection import clients
from x2gofleet.connection.clients import check_client


@pytest.mark.parametrize(
    ("client", "asynchronous"), [(redis.Redis(protocol=3), False), (redis.asyncio.Redis(protocol=3), True)]
)
def test_a_hiredis_that_takes_pushes_for_replies(
    client: Any, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_client(client, asynchronous=asynchronous)
    monkeypatch.setattr(clients, "TAKES_PUSHES_FOR_REPLIES", True)
    with pytest.raises(ValueError, match=r"install hiredis 3\.2 or newer, or create it with protocol=2"):
        check_client(client, asynchronous=asynchronous)
    check_client(type(client)(protocol=2), asynchronous=asynchronous)


def broken(*_: Any, **__: Any) -> Any:
    raise KeyError("credentials")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: FleetCache(redis.Redis(redis_connect_func=broken)).profiles(),
        lambda: asyncio.run(AsyncFleetCache(redis.asyncio.Redis(redis_connect_func=broken)).profiles()),
    ],
    ids=["FleetCache", "AsyncFleetCache"],
)
def test_an_error_of_the_caller_s_own_parts_is_unavailable(
    ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken_async(*_: Any, **__: Any) -> Any:
        broken()

    monkeypatch.setattr(redis.ConnectionPool, "get_connection", broken)
    monkeypatch.setattr(redis.asyncio.ConnectionPool, "get_connection", broken_async)
    with pytest.raises(CacheUnavailable, match="the Redis client failed: KeyError: 'credentials'"):
        ask()
