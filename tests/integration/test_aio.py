"""AsyncFleetCache beyond the contract: many tasks, cancelled ones, several event loops, a loop that never stands."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, SLACK_SECONDS
from x2gofleet import AsyncFleetCache, CacheUnavailable

from .reader import CountingProxy, OwnValkey, StubWorker, row

Publish = Callable[..., Any]
StoreListing = Callable[..., Any]

PROFILES = {f"p{number}": f"ts{number:02}" for number in range(20)}


@pytest.fixture
def profiles(publish: Publish, store_listing: StoreListing) -> dict[str, str]:
    """Profile -> its server; on each server is one session, of the user that is called as the profile."""
    publish({profile: [server] for profile, server in PROFILES.items()})
    for profile, server in PROFILES.items():
        store_listing(server, "sessions", row(profile, hostname=server))
    return PROFILES


@pytest.fixture
def opened(valkey_url: str, namespace: str) -> Callable[[], AsyncFleetCache]:
    """Opens a reader of the test's namespace."""
    return lambda: AsyncFleetCache.from_url(valkey_url, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)


async def asked(cache: AsyncFleetCache, profile: str) -> list[tuple[str, str]]:
    found = await cache.list_sessions(profile_name=profile)
    assert found is not None
    return [(each.username, each.server) for each in found.rows]


def test_many_tasks_each_get_their_own_answer(opened: Callable[[], AsyncFleetCache], profiles: dict[str, str]) -> None:
    async def ask() -> None:
        async with opened() as cache:
            wanted = list(profiles) * 20
            answers = await asyncio.gather(*(asked(cache, profile) for profile in wanted))
            assert answers == [[(profile, profiles[profile])] for profile in wanted]

    asyncio.run(ask())


def test_of_tasks_that_are_cancelled_no_answer_reaches_another(
    opened: Callable[[], AsyncFleetCache], profiles: dict[str, str]
) -> None:
    chance = random.Random(7)
    cancelled = 0

    async def ask() -> None:
        nonlocal cancelled
        async with opened() as cache:
            for _ in range(60):
                wanted = chance.sample(list(profiles), 10)
                tasks = [asyncio.create_task(asked(cache, profile)) for profile in wanted]
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
                for task in chance.sample(tasks, 5):
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                for profile, answer in zip(wanted, answers, strict=True):
                    if isinstance(answer, asyncio.CancelledError):
                        cancelled += 1
                    else:
                        assert answer == [(profile, profiles[profile])]
            assert await asked(cache, "p1") == [("p1", "ts01")]

    asyncio.run(ask())
    assert cancelled > 30


def test_an_update_may_be_cancelled_while_it_waits(
    opened: Callable[[], AsyncFleetCache],
    profiles: dict[str, str],
    valkey_url: str,
    keys: Any,
) -> None:
    async def ask() -> None:
        async with opened() as cache:
            update = asyncio.create_task(cache.update("p1", timeout=30))
            while not worker.requests:
                await asyncio.sleep(0.005)
            assert await asked(cache, "p2") == [("p2", "ts02")], "others need not wait for it"
            update.cancel()
            with pytest.raises(asyncio.CancelledError):
                await update
            for profile, server in profiles.items():
                assert await asked(cache, profile) == [(profile, server)]

    with StubWorker(valkey_url, keys, "w1", lambda request: None) as worker:
        asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cache_is_used_in_one_event_loop_after_another(
    opened: Callable[[], AsyncFleetCache], profiles: dict[str, str]
) -> None:
    cache = opened()
    for profile, server in list(profiles.items())[:3]:
        assert asyncio.run(asked(cache, profile)) == [(profile, server)]
    asyncio.run(cache.aclose())
    # Who does not close the cache before its loop ends has Python warn of the connections that the loop left open.
    gc.collect()


def test_a_closed_cache_asks_again_where_it_is_asked(
    opened: Callable[[], AsyncFleetCache], profiles: dict[str, str]
) -> None:
    async def ask() -> None:
        cache = opened()
        await cache.aclose()
        assert await asked(cache, "p3") == [("p3", "ts03")]
        await cache.aclose()
        await cache.aclose()

    asyncio.run(ask())


def test_one_question_about_the_fleet_is_one_round_trip(
    valkey_url: str, namespace: str, profiles: dict[str, str]
) -> None:
    async def ask(url: str) -> int:
        async with AsyncFleetCache.from_url(url, namespace=namespace, lookup_seconds=LOOKUP_SECONDS) as cache:
            await cache.profiles()
            await cache.find_sessions(username="p1")
            before = proxy.round_trips
            found = await cache.find_sessions(username="p4")
            assert found is not None
            assert [each.server for each in found.values()] == ["ts04"]
            return proxy.round_trips - before

    with CountingProxy(valkey_url) as proxy:
        assert asyncio.run(ask(proxy.url)) == 1
        assert proxy.connections == 1


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[OwnValkey]:
    """A Redis that accepts connections and answers nothing."""
    with OwnValkey(tmp_path) as server:
        server.pause()
        yield server


def test_a_redis_that_hangs_does_not_hold_the_event_loop(hanging: OwnValkey) -> None:
    async def ask() -> tuple[list[float], float]:
        gaps: list[float] = []
        over = asyncio.Event()

        async def tick() -> None:
            last = time.monotonic()
            while not over.is_set():
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        ticking = asyncio.create_task(tick())
        async with AsyncFleetCache.from_url(hanging.url) as cache:
            started = time.monotonic()
            calls = [cache.is_cached("mate"), cache.servers(), cache.list_sessions("6c3f")]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            took = time.monotonic() - started
            assert [type(answer) for answer in answers] == [CacheUnavailable] * 3
            with pytest.raises(CacheUnavailable, match="not tried again"):
                await cache.is_cached("mate")
        over.set()
        await ticking
        return gaps, took

    gaps, took = asyncio.run(ask())
    assert took < SLACK_SECONDS
    assert len(gaps) > 20, "the loop went round while the answers were waited for"


def test_a_cancelled_trial_leaves_the_breaker_to_the_next(hanging: OwnValkey) -> None:
    async def ask() -> None:
        async with AsyncFleetCache.from_url(hanging.url) as cache:
            with pytest.raises(CacheUnavailable):
                await cache.profiles()
            while True:
                trial = asyncio.create_task(cache.profiles())
                await asyncio.wait([trial], timeout=0.05)
                if not trial.done():
                    break
                assert "not tried again" in str(trial.exception())
            trial.cancel()
            hanging.resume()
            started = time.monotonic()
            while time.monotonic() - started < HANG_SECONDS:
                try:
                    assert await cache.profiles() == ()
                    return
                except CacheUnavailable:
                    await asyncio.sleep(0.01)
            raise AssertionError("the breaker never closed")

    asyncio.run(ask())
