"""The readers whose contract is tested: the suite runs against each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.acl_users import user_of
from x2gofleet import FleetCache
from x2gofleet.acl import Role
from x2gofleet.aio import AsyncFleetCache

from .reader import AsyncOfCaller, Awaited, OfCaller, UpToDate

OpenCache = Callable[..., Any]
PATIENT_SECONDS = 10.0

# Anything with FleetCache's methods, made of what from_url takes. Those of DIRECT ask Redis at each call.
DIRECT: dict[str, OpenCache] = {
    "FleetCache": lambda url, namespace, **more: FleetCache.from_url(url, namespace=namespace, **more),
    "AsyncFleetCache": lambda url, namespace, **more: Awaited(
        AsyncFleetCache.from_url(url, namespace=namespace, **more)
    ),
}
# Over a client that the caller made, which speaks RESP3.
OWN_CLIENTS: dict[str, OpenCache] = {
    "redis.Redis": lambda url, namespace, **more: OfCaller(
        redis.Redis.from_url(url, protocol=3), namespace=namespace, **more
    ),
    "redis.asyncio.Redis": lambda url, namespace, **more: Awaited(
        AsyncOfCaller(redis.asyncio.Redis.from_url(url, protocol=3), namespace=namespace, **more)
    ),
}
IMPLEMENTATIONS: dict[str, OpenCache] = {
    **DIRECT,
    **OWN_CLIENTS,
    "mirror": lambda url, namespace, **more: UpToDate(
        FleetCache.from_url(url, namespace=namespace, mirror=True, **more)
    ),
    "async mirror": lambda url, namespace, **more: UpToDate(
        Awaited(AsyncFleetCache.from_url(url, namespace=namespace, mirror=True, **more))
    ),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out callers' own clients where no single Valkey is asked: they are of one server, whichever version."""

    def is_wanted(item: pytest.Item) -> bool:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        server = "cluster" if item.path.name == "test_reader_cluster.py" else parameters.get("valkey_url", "valkey-9")
        return parameters.get("open_cache") not in OWN_CLIENTS or server == "valkey-9"

    left_out = [item for item in items if not is_wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_wanted(item)]


@pytest.fixture(params=IMPLEMENTATIONS)
def open_cache(request: pytest.FixtureRequest) -> Iterator[OpenCache]:
    """Opens readers of one implementation; they are closed at the test's end."""
    opened: list[Any] = []

    def open_one(url: str, namespace: str, **more: Any) -> Any:
        opened.append(IMPLEMENTATIONS[request.param](url, namespace, **more))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def brokers_url(redis_client: redis.Redis, valkey_url: str, namespace: str) -> Iterator[str]:
    """URL with the credentials of a user that may do what brokers do in the test's namespace, and no more."""
    with user_of(redis_client, valkey_url, namespace, Role.BROKER) as url:
        yield url


@pytest.fixture
def cache(brokers_url: str, open_cache: OpenCache, namespace: str) -> Any:
    """A reader of the test's namespace; what it is asked of is not a busy machine's speed."""
    return open_cache(brokers_url, namespace, lookup_seconds=PATIENT_SECONDS)
