"""AsyncFleetCache is FleetCache's twin: the same methods, and exchanges that end by the same deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from x2gofleet.aio import AsyncFleetCache
from x2gofleet.cache import FleetCache
from x2gofleet.errors import RefreshFailed
from x2gofleet.questions import LOOKUP_SECONDS, Questions

CLOSING = {"close", "aclose"}
# What is no question to Redis.
OWN = {*CLOSING, "from_url", "resync"}


def public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


def test_the_two_caches_have_the_same_methods() -> None:
    assert [name for name in public(AsyncFleetCache) if name not in CLOSING] == [
        name for name in public(FleetCache) if name not in CLOSING
    ]
    asked = [name for name in public(FleetCache) if name not in OWN]
    assert [name for name in public(Questions) if hasattr(FleetCache, name)] == asked


@pytest.mark.parametrize("name", [name for name in public(FleetCache) if name not in CLOSING])
def test_a_method_has_its_twin_s_signature_and_docstring(name: str) -> None:
    method, twin = getattr(AsyncFleetCache, name), getattr(FleetCache, name)
    assert inspect.signature(method) == inspect.signature(twin)
    assert inspect.getdoc(method)
    if name == "from_url":
        return
    assert inspect.getdoc(method) == inspect.getdoc(twin)
    assert inspect.iscoroutinefunction(method)
    if name in OWN:
        return
    question = inspect.signature(getattr(Questions, name))
    assert question.parameters == inspect.signature(twin).parameters
    assert question.return_annotation == f"Query[{inspect.signature(twin).return_annotation}]"


class EmptyLink:
    """Answers as an empty Redis does; notes the deadline of each exchange and what it was asked."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []
        self.asked: list[str] = []

    def exchange(
        self, commands: Sequence[tuple[Any, ...]], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        self.deadlines.append(deadline)
        self.asked += [command[0] for command in commands]
        document = b'{"servers": {"ts01": {"hostname": "ts01", "labels": [], "weight": 1, "drain": false}},'
        document += b'"targets": {"ts01": {"server": "ts01", "scope": "server", "username": null, "kinds": []}},'
        document += b'"profiles": {"mate": ["ts01"]}}'
        answers: dict[str, Any] = {
            "TIME": [b"1", b"1"],
            "HGETALL": [],
            "ZREVRANGE": [],
            "EXISTS": 0,
            "HSET": 1,
            "PEXPIRE": 1,
            "DEL": 0,
        }
        replies: list[Any] = []
        for command in commands:
            if command[0] == "HMGET":
                wanted = {"version": b"1", "document": document, "profile": b"mate", "username": b""}
                replies.append([wanted.get(name) for name in command[2:]])
            elif command[0] == "HGET":
                replies.append(b"1" if command[2] == "version" else None)
            else:
                replies.append(answers[command[0]])
        return replies

    def close(self) -> None:
        self.asked.append("close")


class EmptyAsyncLink(EmptyLink):
    async def exchange(  # type: ignore[override]
        self, commands: Sequence[tuple[Any, ...]], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        return super().exchange(commands, deadline=deadline, near=near)

    async def aclose(self) -> None:
        self.close()


def asked_of(which: str, call: Callable[[Any], Any]) -> tuple[EmptyLink, float, float]:
    """Return the link that a call went over, and the monotonic times before and after it."""
    link: Any = EmptyLink() if which == "sync" else EmptyAsyncLink()
    before = time.monotonic()

    async def wait() -> Any:
        return await call(AsyncFleetCache(link))

    with contextlib.suppress(RefreshFailed):
        _ = call(FleetCache(link)) if which == "sync" else asyncio.run(wait())
    return link, before, time.monotonic()


@pytest.mark.parametrize("which", ["sync", "asyncio"])
@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.list_sessions("6c3f"),
        lambda cache: cache.is_cached("mate"),
        lambda cache: cache.servers(),
        lambda cache: cache.register_session("6c3f", "mate"),
    ],
)
def test_the_exchanges_of_a_lookup_have_one_deadline(which: str, call: Callable[[Any], Any]) -> None:
    link, before, after = asked_of(which, call)
    assert len(set(link.deadlines)) == 1
    deadline = link.deadlines[0]
    assert deadline is not None
    assert before + LOOKUP_SECONDS <= deadline <= after + LOOKUP_SECONDS


@pytest.mark.parametrize("which", ["sync", "asyncio"])
@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.update("mate", timeout=0.01),
        lambda cache: cache.update_all(timeout=0.01),
        lambda cache: cache.delete("mate", timeout=0.01),
        lambda cache: cache.check_cache(timeout=0.01),
    ],
)
def test_what_waits_for_a_worker_is_bounded_by_each_command(which: str, call: Callable[[Any], Any]) -> None:
    link, _, _ = asked_of(which, call)
    assert set(link.deadlines) == {None}


def test_closing_closes_the_link() -> None:
    link: Any = EmptyLink()
    with FleetCache(link):
        assert link.asked == []
    assert link.asked == ["close"]

    async def use() -> None:
        async with AsyncFleetCache(other):
            assert other.asked == []

    other: Any = EmptyAsyncLink()
    asyncio.run(use())
    assert other.asked == ["close"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 61])
@pytest.mark.parametrize("cls", [FleetCache, AsyncFleetCache])
def test_no_time_for_lookups_is_refused(cls: Any, seconds: float) -> None:
    with pytest.raises(ValueError, match="a lookup may take"):
        cls.from_url("redis://127.0.0.1:1/0", lookup_seconds=seconds)
