"""The readers whose contract is tested: the suite runs against each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from x2gofleet import FleetCache
from x2gofleet.aio import AsyncFleetCache

from .reader import Awaited

OpenCache = Callable[[str, str], Any]

# Anything with FleetCache's methods, made of a URL and a namespace. Those of DIRECT ask Redis at each call.
DIRECT: dict[str, OpenCache] = {
    "FleetCache": lambda url, namespace: FleetCache.from_url(url, namespace=namespace),
    "AsyncFleetCache": lambda url, namespace: Awaited(AsyncFleetCache.from_url(url, namespace=namespace)),
}
IMPLEMENTATIONS: dict[str, OpenCache] = {**DIRECT}


@pytest.fixture(params=IMPLEMENTATIONS)
def open_cache(request: pytest.FixtureRequest) -> Iterator[OpenCache]:
    """Opens readers of one implementation; they are closed at the test's end."""
    opened: list[Any] = []

    def open_one(url: str, namespace: str) -> Any:
        opened.append(IMPLEMENTATIONS[request.param](url, namespace))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def cache(open_cache: OpenCache, valkey_url: str, namespace: str) -> Any:
    """A reader of the test's namespace."""
    return open_cache(valkey_url, namespace)
