"""What is not a usable client is refused at construction; the message says what to change, and that works."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from redis.cache import CacheConfig
from redis.sentinel import Sentinel

from tests.topologies import SERVICE, cluster, sentinel_group
from x2gofleet import AsyncFleetCache, FleetCache
from x2gofleet.connection import async_link_from_url, link_from_url, link_of
from x2gofleet.keys import Keys
from x2gofleet.store import Store

from ..conftest import FleetBuilder  # noqa: TID252

Caches = type[FleetCache] | type[AsyncFleetCache]
BLOCKING, ASYNC = FleetCache, AsyncFleetCache
# Advice for anything that has none of its own.
ANY = "pass redis.Redis(host=HOST, port=PORT), or use FleetCache.from_url(URL)"
ANY_ASYNC = "pass redis.asyncio.Redis(host=HOST, port=PORT), or use AsyncFleetCache.from_url(URL)"


@dataclass(frozen=True)
class Refused:
    """``given`` to ``cache`` is refused with ``advice`` in the message; ``apply`` makes a cache as it says."""

    cache: Caches
    given: Callable[[str], Any]
    error: type[Exception]
    came: str
    advice: str
    apply: Callable[[str, str], Any]


def from_url(cache: Caches) -> Callable[[str, str], Any]:
    return lambda url, namespace: cache.from_url(url, namespace=namespace)


def over(cache: Caches, client: Callable[[str], Any]) -> Callable[[str, str], Any]:
    return lambda url, namespace: cache(client(url), namespace=namespace)


def own(url: str) -> redis.Redis:
    return redis.Redis.from_url(url)


def own_async(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url)


REFUSED = {
    "decode_responses": Refused(
        BLOCKING,
        lambda url: redis.Redis.from_url(url, decode_responses=True),
        ValueError,
        "redis.Redis client returns text",
        "create it with decode_responses=False",
        over(BLOCKING, lambda url: redis.Redis.from_url(url, decode_responses=False)),
    ),
    "decode_responses of a pool": Refused(
        BLOCKING,
        lambda url: redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, decode_responses=True)),
        ValueError,
        "returns text",
        "or use FleetCache.from_url(URL)",
        from_url(BLOCKING),
    ),
    "decode_responses, asyncio": Refused(
        ASYNC,
        lambda url: redis.asyncio.Redis.from_url(url, decode_responses=True),
        ValueError,
        "redis.asyncio.Redis client returns text",
        "create it with decode_responses=False",
        over(ASYNC, lambda url: redis.asyncio.Redis.from_url(url, decode_responses=False)),
    ),
    "a client-side cache": Refused(
        BLOCKING,
        lambda url: redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig()),
        ValueError,
        "answers from a cache of its own",
        "create it without cache_config= and cache=",
        over(BLOCKING, lambda url: redis.Redis.from_url(url, protocol=3)),
    ),
    "None": Refused(BLOCKING, lambda url: None, TypeError, "got None", ANY, over(BLOCKING, own)),
    "None, asyncio": Refused(ASYNC, lambda url: None, TypeError, "got None", ANY_ASYNC, over(ASYNC, own_async)),
    "a URL": Refused(BLOCKING, str, TypeError, "got str", "for a URL use FleetCache.from_url(URL)", from_url(BLOCKING)),
    "a URL, asyncio": Refused(
        ASYNC, str, TypeError, "got str", "for a URL use AsyncFleetCache.from_url(URL)", from_url(ASYNC)
    ),
    "a pipeline": Refused(
        BLOCKING,
        lambda url: own(url).pipeline(),
        TypeError,
        "redis.client.Pipeline",
        "pass the client that it was made from",
        over(BLOCKING, own),
    ),
    "a pipeline, asyncio": Refused(
        ASYNC,
        lambda url: own_async(url).pipeline(),
        TypeError,
        "redis.asyncio.client.Pipeline",
        "pass the client that it was made from",
        over(ASYNC, own_async),
    ),
    "an asyncio client": Refused(
        BLOCKING,
        own_async,
        TypeError,
        "redis.asyncio.client.Redis",
        "use AsyncFleetCache for it",
        over(ASYNC, own_async),
    ),
    "a blocking client": Refused(
        ASYNC, own, TypeError, "redis.client.Redis", "use FleetCache for it", over(BLOCKING, own)
    ),
    "an asyncio link": Refused(
        BLOCKING,
        async_link_from_url,
        TypeError,
        "AsyncNodeLink",
        "use AsyncFleetCache",
        over(ASYNC, async_link_from_url),
    ),
    "a blocking link": Refused(
        ASYNC, link_from_url, TypeError, "NodeLink", "use FleetCache for it", over(BLOCKING, link_from_url)
    ),
    "a pool": Refused(
        BLOCKING,
        redis.ConnectionPool.from_url,
        TypeError,
        "redis.connection.ConnectionPool",
        "pass redis.Redis(connection_pool=POOL)",
        over(BLOCKING, lambda url: redis.Redis(connection_pool=redis.ConnectionPool.from_url(url))),
    ),
    "a pool, asyncio": Refused(
        ASYNC,
        redis.asyncio.ConnectionPool.from_url,
        TypeError,
        "redis.asyncio.connection.ConnectionPool",
        "pass redis.asyncio.Redis(connection_pool=POOL)",
        over(ASYNC, lambda url: redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool.from_url(url))),
    ),
    "an asyncio pool in a blocking client": Refused(
        BLOCKING,
        lambda url: redis.Redis(connection_pool=redis.asyncio.ConnectionPool.from_url(url)),
        TypeError,
        "a connection pool of the other kind",
        "create it with a redis.ConnectionPool",
        over(BLOCKING, lambda url: redis.Redis(connection_pool=redis.ConnectionPool.from_url(url))),
    ),
    "a blocking pool in an asyncio client": Refused(
        ASYNC,
        lambda url: redis.asyncio.Redis(connection_pool=redis.ConnectionPool.from_url(url)),
        TypeError,
        "a connection pool of the other kind",
        "create it with a redis.asyncio.ConnectionPool",
        over(ASYNC, lambda url: redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool.from_url(url))),
    ),
    "valkey-py": Refused(
        BLOCKING,
        valkey.Valkey.from_url,
        TypeError,
        "got valkey.client.Valkey",
        "redis-py connects to",
        over(BLOCKING, own),
    ),
    "valkey-py, asyncio": Refused(
        ASYNC,
        valkey.asyncio.Valkey.from_url,
        TypeError,
        "got valkey.asyncio.client.Valkey",
        ANY_ASYNC,
        over(ASYNC, own_async),
    ),
    "a class": Refused(BLOCKING, lambda url: redis.Redis, TypeError, "got the class Redis", ANY, over(BLOCKING, own)),
    "a cache": Refused(
        BLOCKING,
        lambda url: FleetCache.from_url(url),
        TypeError,
        "got x2gofleet.cache.FleetCache",
        ANY,
        from_url(BLOCKING),
    ),
    "a dict": Refused(BLOCKING, lambda url: {"url": url}, TypeError, "got dict", ANY, from_url(BLOCKING)),
}


def profiles_of(cache: Any) -> tuple[str, ...]:
    if isinstance(cache, FleetCache):
        with cache:
            return cache.profiles()

    async def ask() -> tuple[str, ...]:
        async with cache:
            found: tuple[str, ...] = await cache.profiles()
        if hasattr(cache._link, "client"):
            # A pool that the caller made is the caller's to close.
            await cache._link.client.connection_pool.disconnect()
        return found

    return asyncio.run(ask())


@pytest.fixture
def published(redis_client: redis.Redis, keys: Keys) -> None:
    FleetBuilder(Store(redis_client, keys, "w1")).publish({"mate": ["ts01"]})


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_is_refused_and_the_advice_works(refused: Refused, valkey_url: str, namespace: str) -> None:
    with pytest.raises(refused.error) as caught:
        refused.cache(refused.given(valkey_url), namespace=namespace)
    said = str(caught.value)
    assert refused.came in said
    assert refused.advice in said
    assert valkey_url not in said, "a URL may have a password"
    assert profiles_of(refused.apply(valkey_url, namespace)) == ("mate",)


def test_a_cluster_s_client() -> None:
    with cluster(primaries=1, replicas=0) as whole:
        host, port = whole.nodes[0].address
        url = f"redis+cluster://{host}:{port}"
        client = redis.RedisCluster(host=host, port=port)
        with pytest.raises(TypeError, match=re.escape("use FleetCache.from_url('redis+cluster://HOST:PORT')")):
            FleetCache(client)  # type: ignore[arg-type]
        client.close()
        with pytest.raises(TypeError, match=re.escape("use AsyncFleetCache.from_url('redis+cluster://HOST:PORT')")):
            AsyncFleetCache(redis.asyncio.RedisCluster(host=host, port=port))  # type: ignore[arg-type]
        for cache in (FleetCache, AsyncFleetCache):
            assert profiles_of(cache.from_url(url)) == ()


def test_sentinels() -> None:
    with sentinel_group() as group:
        FleetBuilder(Store(group.master.client, Keys(), "w1")).publish({"mate": ["ts01"]})
        hosts = [sentinel.address for sentinel in group.sentinels]
        url = f"redis+sentinel://{hosts[0][0]}:{hosts[0][1]}/{SERVICE}"
        said = re.escape("pass master_for(MASTER) of it, or use")
        sentinel = Sentinel(hosts, protocol=3)
        with pytest.raises(TypeError, match=f"{said} FleetCache"):
            FleetCache(sentinel)  # type: ignore[arg-type]
        assert profiles_of(FleetCache(sentinel.master_for(SERVICE))) == ("mate",)
        assert profiles_of(FleetCache.from_url(url)) == ("mate",)
        asynchronous = redis.asyncio.Sentinel(hosts, protocol=3)
        with pytest.raises(TypeError, match=f"{said} AsyncFleetCache"):
            AsyncFleetCache(asynchronous)  # type: ignore[arg-type]

        async def ask() -> tuple[str, ...]:
            own = redis.asyncio.Sentinel(hosts, protocol=3)
            async with AsyncFleetCache(own.master_for(SERVICE)) as cache:
                found = await cache.profiles()
            for each in own.sentinels:
                await each.aclose()
            return found

        assert asyncio.run(ask()) == ("mate",)
        for each in sentinel.sentinels:
            each.close()


def test_fakeredis_is_a_client_of_redis_py() -> None:
    for protocol in (2, 3):
        fake = fakeredis.FakeRedis(protocol=protocol)
        fake.hset("h", mapping={"a": "1"})
        assert link_of(fake).exchange([("HGETALL", "h")]) == [[b"a", b"1"]]
        assert FleetCache(fake).profiles() == ()
    assert profiles_of(AsyncFleetCache(fakeredis.FakeAsyncRedis(protocol=3))) == ()
