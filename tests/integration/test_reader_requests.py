"""update, update_all, delete and check_cache: what readers ask of workers, answered by a stub."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.servers import VERSIONS
from tests.waiting import HANG_SECONDS, SLACK_SECONDS
from x2gofleet import Kind, RefreshFailed, UnknownProfile
from x2gofleet.keys import Keys
from x2gofleet.requests import Answer, AnswerCode
from x2gofleet.store import Store

from .reader import LOAD, Request, StubWorker, row

pytestmark = pytest.mark.parametrize("valkey_url", VERSIONS, indirect=True, scope="session")

Publish = Callable[..., Any]
StartStub = Callable[..., StubWorker]


@pytest.fixture
def stub(valkey_url: str, keys: Keys) -> Iterator[StartStub]:
    """Starts stub workers (``w1`` owns what the fixture ``fleet`` leased); they end with the test."""
    started: list[StubWorker] = []

    def start(answer: Callable[[Request], Request | None], worker_id: str = "w1") -> StubWorker:
        started.append(StubWorker(valkey_url, keys, worker_id, answer).__enter__())
        return started[-1]

    yield start
    for each in started:
        each.__exit__()


@pytest.fixture
def obeys(fleet: Any) -> Callable[[Request], Request]:
    """Answers as a worker that stores what it is asked for."""

    def answer(request: Request) -> Request:
        stored = []
        for kind in request["kinds"]:
            if request["operation"] == "refresh":
                fleet.listing(request["target"], kind, LOAD if kind == "load" else b"")
                stored.append([request["target"], kind])
        return {"target": request["target"], "stored": stored, "error": ""}

    return answer


def test_update_returns_the_new_snapshots(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        fleet.listing(server, "sessions", row("alice"), age_seconds=5)
    worker = stub(obeys)
    found = cache.update("mate")
    assert {(each.server, each.kind, each.stdout) for each in found} == {
        ("ts01", Kind.SESSIONS, b""),
        ("ts02", Kind.SESSIONS, b""),
    }
    assert all(each.age < 5 for each in found)
    assert {each["target"] for each in worker.requests} == {"ts01", "ts02"}
    for request in worker.requests:
        assert request.keys() == {"version", "id", "operation", "target", "kinds", "username"}
        assert (request["operation"], request["kinds"], request["username"]) == ("refresh", ["sessions"], None)


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ((), ["sessions"]),
        ((True, True, True), ["sessions", "desktops", "mounts"]),
        ((False, True), ["desktops"]),
        ((False, False, True), ["mounts"]),
    ],
)
def test_update_asks_for_the_kinds_it_was_told(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any, arguments: Any, kinds: list[str]
) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")
    worker = stub(obeys)
    assert [each.kind.value for each in cache.update("mate", *arguments, username="alice")] == kinds
    assert [(each["kinds"], each["username"]) for each in worker.requests] == [(kinds, "alice")]


def test_an_update_of_nothing_asks_nobody(cache: Any, publish: Publish) -> None:
    publish({"mate": ["ts01"]})
    assert cache.update("mate", update_sessions=False) == ()


def test_a_partial_failure_tells_of_each_server_and_gives_the_rest(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any
) -> None:
    publish({"mate": ["ts01", "ts02", "ts03"]})
    for server in ("ts01", "ts02"):
        fleet.lease(server)

    def answer(request: Request) -> Request:
        if request["target"] == "ts02":
            return {"target": "ts02", "stored": [], "error": "Unreachable: connection refused"}
        answered: Request = obeys(request)
        return answered

    stub(answer)
    with pytest.raises(RefreshFailed, match=r"refresh failed for 2 server\(s\)") as caught:
        cache.update("mate")
    assert caught.value.errors == {
        "ts02": "Unreachable: connection refused",
        "ts03": "no worker owns it now; is an x2gofleet-worker running?",
    }
    assert [each.server for each in caught.value.partial] == ["ts01"]


def test_what_was_stored_before_an_error_is_partial(cache: Any, publish: Publish, fleet: Any, stub: StartStub) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")

    def answer(request: Request) -> Request:
        fleet.listing("ts01", "sessions", b"")
        return {"target": "ts01", "stored": [["ts01", "sessions"]], "error": "mounts: no such table"}

    stub(answer)
    with pytest.raises(RefreshFailed) as caught:
        cache.update("mate", update_mounts=True)
    assert caught.value.errors == {"ts01": "mounts: no such table"}
    assert [each.kind for each in caught.value.partial] == [Kind.SESSIONS]


def test_a_worker_that_does_not_answer_costs_the_timeout(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")
    worker = stub(lambda request: None)
    started = time.monotonic()
    with pytest.raises(RefreshFailed, match=r"ts01: its worker did not answer within 0\.3 s"):
        cache.update("mate", timeout=0.3)
    assert time.monotonic() - started > 0.25
    assert len(worker.requests) == 1


def test_a_dead_workers_queue_does_not_stay(
    cache: Any, publish: Publish, fleet: Any, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")
    with pytest.raises(RefreshFailed):
        cache.update("mate", timeout=0.02)
    queue = keys.refresh_requests("w1")
    assert redis_client.llen(queue) == 1
    assert 0 < redis_client.pttl(queue) <= 60_000


def test_a_late_answer_is_not_taken_for_that_of_the_next_question(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any
) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")
    let_go, late = threading.Event(), []

    def answer(request: Request) -> Request:
        if not late:
            late.append(request)
            let_go.wait(HANG_SECONDS)
            return {"target": "ts01", "stored": [], "error": "of the first question"}
        answered: Request = obeys(request)
        return answered

    stub(answer)
    with pytest.raises(RefreshFailed, match="did not answer"):
        cache.update("mate", timeout=0.05)
    let_go.set()
    (found,) = cache.update("mate")
    assert found.server == "ts01"


def test_answers_of_other_targets_and_twice_are_passed_over(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any, store: Store
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        fleet.lease(server)

    def answer(request: Request) -> Request:
        store.answer_all([request["id"]], Answer("ts09", AnswerCode.FAILED, "who is that").encode())
        answered: Request = obeys(request)
        store.answer_all([request["id"]], json.dumps(answered).encode())
        return answered

    stub(answer)
    assert sorted(each.server for each in cache.update("mate")) == ["ts01", "ts02"]


def test_a_users_target_is_not_refreshed_for_another_user(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any
) -> None:
    publish({"alice-desktop": ["alice@ts01"]})
    fleet.lease("alice@ts01")
    worker = stub(obeys)
    with pytest.raises(RefreshFailed, match="ts01: it is polled as alice, not as bob"):
        cache.update("alice-desktop", username="bob")
    assert worker.requests == []
    assert [each.username for each in cache.update("alice-desktop", username="alice")] == ["alice"]


@pytest.mark.parametrize("username", ["", "a b", "alice\npoll 0", "-x", "a:b"])
def test_what_is_no_user_name_is_never_sent_to_a_worker(
    cache: Any, publish: Publish, fleet: Any, redis_client: redis.Redis, keys: Keys, username: str
) -> None:
    publish({"mate": ["ts01"]})
    fleet.lease("ts01")
    with pytest.raises(ValueError, match="no user name"):
        cache.update("mate", update_desktops=True, username=username, timeout=0.05)
    assert not redis_client.exists(keys.refresh_requests("w1"))


def test_update_all_asks_every_profile_then_checks(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any, store: Store
) -> None:
    publish({"mate": ["ts01", "ts02"], "xfce": ["ts02", "ts03"]})
    for server in ("ts01", "ts02", "ts03"):
        fleet.lease(server)
    store.heartbeat({"host": "h"}, ttl_ms=60_000)

    def answer(request: Request) -> Request:
        if request["operation"] == "check":
            return {"target": "", "dropped": 0}
        if request["target"] == "ts01":
            return {"target": "ts01", "stored": [], "error": "refused"}
        answered: Request = obeys(request)
        return answered

    worker = stub(answer)
    with pytest.raises(RefreshFailed) as caught:
        cache.update_all()
    assert caught.value.errors == {"ts01": "refused"}
    assert sorted(each.server for each in caught.value.partial) == ["ts02", "ts03"]
    operations = [each["operation"] for each in worker.requests]
    assert operations == ["refresh"] * 4 + ["check"]


def test_update_all_tells_of_polls_also_where_the_check_fails(
    cache: Any, publish: Publish, fleet: Any, stub: StartStub, obeys: Any, store: Store
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    fleet.lease("ts01")
    store.heartbeat({"host": "h"}, ttl_ms=60_000)
    stub(lambda request: None if request["operation"] == "check" else obeys(request))
    with pytest.raises(RefreshFailed) as caught:
        cache.update_all(timeout=0.3)
    assert set(caught.value.errors) == {"ts02", "fleet"}
    assert [each.server for each in caught.value.partial] == ["ts01"]


def test_update_all_of_an_empty_fleet(cache: Any) -> None:
    assert cache.update_all() == ()


def test_delete_is_carried_out_by_the_owner(cache: Any, publish: Publish, fleet: Any, stub: StartStub) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        fleet.listing(server, "sessions", row("alice"))

    def answer(request: Request) -> Request:
        fleet.store.discard(fleet.lease(request["target"]), [Kind(kind) for kind in request["kinds"]])
        return {"target": request["target"], "stored": [], "error": ""}

    worker = stub(answer)
    assert cache.delete("mate") is None
    assert [(each["operation"], each["kinds"]) for each in worker.requests] == [
        ("delete", [kind.value for kind in Kind])
    ] * 2
    assert not cache.is_cached("mate")


def test_delete_says_what_could_not_be_deleted(cache: Any, publish: Publish, fleet: Any, stub: StartStub) -> None:
    publish({"mate": ["ts01", "ts02"]})
    fleet.lease("ts01")
    stub(lambda request: {"target": request["target"], "error": "the lease is lost"})
    with pytest.raises(RefreshFailed, match="delete failed") as caught:
        cache.delete("mate")
    assert set(caught.value.errors) == {"ts01", "ts02"}
    with pytest.raises(UnknownProfile):
        cache.delete("mte")


def test_check_cache_is_done_by_a_live_worker(
    cache: Any, valkey_url: str, redis_client: redis.Redis, keys: Keys, stub: StartStub
) -> None:
    Store(redis_client, keys, "dead").heartbeat({"host": "h"}, ttl_ms=60_000)
    Store(redis_client, keys, "w1").heartbeat({"host": "h"}, ttl_ms=60_000)
    redis_client.delete(keys.worker("dead"))
    worker = stub(lambda request: {"target": "", "dropped": 3})
    assert cache.check_cache() is None
    assert [each["operation"] for each in worker.requests] == ["check"]


def test_check_cache_without_a_live_worker_does_nothing_at_once(
    cache: Any, redis_client: redis.Redis, keys: Keys
) -> None:
    started = time.monotonic()
    cache.check_cache(timeout=HANG_SECONDS)
    # One that was killed stays listed until another strikes it off.
    Store(redis_client, keys, "dead").heartbeat({"host": "h"}, ttl_ms=60_000)
    redis_client.delete(keys.worker("dead"))
    cache.check_cache(timeout=HANG_SECONDS)
    assert time.monotonic() - started < SLACK_SECONDS
    assert not redis_client.exists(keys.refresh_requests("dead"))


def test_check_cache_says_when_no_worker_answers(cache: Any, store: Store) -> None:
    store.heartbeat({"host": "h"}, ttl_ms=60_000)
    with pytest.raises(RefreshFailed, match=r"check_cache failed.*no worker answered within 0\.05 s"):
        cache.check_cache(timeout=0.05)
