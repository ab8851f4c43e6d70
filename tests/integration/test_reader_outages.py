"""Redis gone, hanging, full or a replica: readers say so at once, give no old answer, and come back by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from x2gofleet_workers.embedded import EmbeddedValkey

from tests.clocks import WaitedClock
from tests.waiting import PATIENT, wait_until
from x2gofleet import CacheUnavailable, RefreshFailed, SnapshotCorrupt
from x2gofleet.connection import Breaker, client_from_url
from x2gofleet.keys import Keys
from x2gofleet.store import Store

from ..conftest import FleetBuilder  # noqa: TID252
from .conftest import DIRECT
from .reader import CountingProxy, OwnValkey, row

pytestmark = pytest.mark.parametrize("open_cache", DIRECT, indirect=True)

CALLS: dict[str, Callable[[Any], Any]] = {
    "is_cached": lambda cache: cache.is_cached("mate"),
    "is_cached by uuid": lambda cache: cache.is_cached(session_uuid="6c3f", cache_type="sessions"),
    "list_sessions": lambda cache: cache.list_sessions("6c3f"),
    "list_sessions of a profile": lambda cache: cache.list_sessions(profile_name="mate"),
    "list_desktops": lambda cache: cache.list_desktops(profile_name="mate", username="alice"),
    "list_mounts": lambda cache: cache.list_mounts(profile_name="mate"),
    "find_sessions": lambda cache: cache.find_sessions(username="alice"),
    "load": lambda cache: cache.load("mate"),
    "snapshots": lambda cache: cache.snapshots(profile_name="mate"),
    "view": lambda cache: cache.view("sessions"),
    "servers": lambda cache: cache.servers(),
    "profiles": lambda cache: cache.profiles(),
    "update": lambda cache: cache.update("mate"),
    "update_all": lambda cache: cache.update_all(),
    "delete": lambda cache: cache.delete("mate"),
    "check_cache": lambda cache: cache.check_cache(),
    "register_session": lambda cache: cache.register_session("6c3f", "mate"),
    "forget_session": lambda cache: cache.forget_session("6c3f"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnValkey]:
    """A Valkey of this module's own; a test that hurts it heals it."""
    with OwnValkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def client(server: OwnValkey) -> Iterator[redis.Redis]:
    """A patient client."""
    made = client_from_url(server.url, **PATIENT)
    yield made
    made.close()


def fill(client: redis.Redis) -> FleetBuilder:
    client.flushall()
    fleet = FleetBuilder(Store(client, Keys("test"), "w1"))
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("alice"))
    return fleet


@pytest.fixture
def fleet(client: redis.Redis) -> FleetBuilder:
    """A fleet with a session of alice's."""
    return fill(client)


@pytest.fixture
def cache(open_cache: Callable[[str, str], Any], server: OwnValkey, fleet: FleetBuilder) -> Any:
    """A reader that has been answered already."""
    made = open_cache(server.url, "test")
    assert made.list_sessions(profile_name="mate") is not None
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WaitedClock:
    """The time of breakers: it stands still, so that one stays open. test_bounded_time.py has how long calls wait."""
    clock = WaitedClock()
    monkeypatch.setitem(Breaker.__init__.__kwdefaults__, "clock", clock)
    return clock


def refusal(call: Callable[[], Any]) -> str:
    """Call what must raise CacheUnavailable; return its text."""
    with pytest.raises(CacheUnavailable) as caught:
        call()
    return str(caught.value)


def answers(cache: Any) -> bool:
    try:
        return cache.list_sessions(profile_name="mate") is not None
    except CacheUnavailable:
        return False


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_a_redis_every_call_says_so(
    open_cache: Callable[[str, str], Any], tmp_path: Path, call: Callable[[Any], Any], clock: WaitedClock
) -> None:
    never_started = OwnValkey(tmp_path)
    cache = open_cache(never_started.url, "test")
    said = refusal(lambda: call(cache))
    assert "asking Redis" in said
    assert str(never_started.port) in said or "refused" in said
    for _ in range(3):
        assert "not tried again for 1 s" in refusal(lambda: call(cache))
    clock.advance(1.0)
    assert "not tried again" not in refusal(lambda: call(cache))


def test_a_redis_that_was_killed_and_comes_back(
    clock: WaitedClock, cache: Any, server: OwnValkey, client: redis.Redis
) -> None:
    server.kill()
    refusal(lambda: cache.list_sessions(profile_name="mate"))
    server.start()
    said = refusal(lambda: cache.list_sessions(profile_name="mate"))
    assert "not tried again" in said, "a second is waited also where Redis is back sooner"
    clock.advance(1.0)

    def not_refused() -> bool:
        try:
            # A Redis that lost everything: nothing is cached, which is another answer than unavailable.
            return cache.list_sessions(profile_name="mate") is None and cache.profiles() == ()
        except CacheUnavailable:
            return False

    wait_until(not_refused)
    fill(client)
    assert cache.list_sessions(profile_name="mate") is not None


def test_a_redis_that_hangs_is_waited_for_once_a_second(clock: WaitedClock, cache: Any, server: OwnValkey) -> None:
    server.pause()
    try:
        for _ in range(3):
            assert "did not answer in time" in refusal(lambda: cache.list_sessions(profile_name="mate"))
            for _ in range(9):
                assert "not tried again" in refusal(lambda: cache.list_sessions(profile_name="mate"))
                clock.advance(0.1)
            clock.advance(0.1)
    finally:
        server.resume()
    wait_until(lambda: answers(cache))
    assert [each.username for each in cache.list_sessions(profile_name="mate").rows] == ["alice"]


class SlowProxy(CountingProxy):
    """Holds each reply back for as long as a command may just take."""

    QUIET_SECONDS = 0.4


def test_a_lookup_of_several_slow_commands_ends_within_a_second(
    open_cache: Callable[[str, str], Any], server: OwnValkey, cache: Any
) -> None:
    cache.register_session("6c3f", "mate")
    with SlowProxy(server.url) as proxy:
        slow = open_cache(proxy.url, "test")
        assert slow.profiles() == ("mate",), "one command may take that long"
        # It takes three: the registration, the inventory, the snapshots.
        assert "did not answer in time" in refusal(lambda: open_cache(proxy.url, "test").list_sessions("6c3f"))


def test_of_many_threads_one_waits_for_a_redis_that_hangs(clock: WaitedClock, cache: Any, server: OwnValkey) -> None:
    server.pause()
    try:
        refusal(lambda: cache.is_cached("mate"))
        clock.advance(1.0)
        trials: list[str] = []

        def ask() -> None:
            for _ in range(20):
                said = refusal(lambda: cache.is_cached("mate"))
                if "not tried again" not in said:
                    trials.append(said)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(trials) == 1
    finally:
        server.resume()
    clock.advance(1.0)
    wait_until(lambda: answers(cache))


def test_no_answer_is_taken_for_that_of_another_question(cache: Any, server: OwnValkey, fleet: FleetBuilder) -> None:
    """What a hanging Redis was asked is answered late: those replies must reach nobody."""
    fleet.publish({"mate": ["ts01"], "xfce": ["ts02"]})
    fleet.listing("ts02", "sessions", row("bob", hostname="ts02"))
    server.pause()
    try:
        refusal(lambda: cache.list_sessions(profile_name="xfce"))
    finally:
        server.resume()
    wait_until(lambda: answers(cache))
    for _ in range(3):
        assert [each.username for each in cache.list_sessions(profile_name="mate").rows] == ["alice"]
        assert [each.username for each in cache.list_sessions(profile_name="xfce").rows] == ["bob"]
        assert cache.profiles() == ("mate", "xfce")


def test_after_a_pause_of_redis_nothing_older_than_its_ttl_is_shown(
    cache: Any, server: OwnValkey, fleet: FleetBuilder
) -> None:
    fleet.listing("ts01", "sessions", row("alice"), ttl_seconds=0.3)
    server.pause()
    try:
        refusal(lambda: cache.list_sessions(profile_name="mate"))
    finally:
        server.resume()

    def reached() -> bool:
        try:
            assert cache.list_sessions(profile_name="mate") is None
        except CacheUnavailable:
            return False
        return True

    wait_until(reached)


def test_an_error_reply_is_told_each_time_and_opens_no_breaker(
    cache: Any, client: redis.Redis, server: OwnValkey
) -> None:
    server.kill()
    refusal(lambda: cache.profiles())
    server.start()
    client.set("test:fleet", "no hash", ex=60)

    def refused_by_redis() -> bool:
        try:
            cache.profiles()
        except SnapshotCorrupt as exc:
            return "WRONGTYPE" in str(exc)
        except CacheUnavailable:
            return False
        return False

    wait_until(refused_by_redis)
    for _ in range(3):
        assert refused_by_redis()
    client.delete("test:fleet")
    fill(client)
    assert answers(cache)


def test_a_replica_and_a_full_redis_answer_and_refuse_writes(open_cache: Callable[[str, str], Any]) -> None:
    with EmbeddedValkey() as valkey:
        client = client_from_url(valkey.url, **PATIENT)
        fleet = FleetBuilder(Store(client, Keys("test"), "w1"))
        fleet.publish({"mate": ["ts01"]})
        fleet.listing("ts01", "sessions", row("alice"))
        cache = open_cache(valkey.url, "test")
        states: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
            ("refuses writes", lambda: client.replicaof("127.0.0.1", "1"), lambda: client.replicaof("NO", "ONE")),
            (
                "at its maxmemory",
                lambda: client.config_set("maxmemory", "1"),
                lambda: client.config_set("maxmemory", "256mb"),
            ),
        ]
        for said, begin, end in states:
            begin()
            for _ in range(2):
                assert len(cache.list_sessions(profile_name="mate").rows) == 1
                with pytest.raises(CacheUnavailable, match=said):
                    cache.register_session("6c3f", "mate")
                with pytest.raises(CacheUnavailable, match=said):
                    cache.update("mate")
            end()
            assert cache.list_sessions("6c3f") is None
        cache.register_session("6c3f", "mate")
        assert len(cache.list_sessions("6c3f").rows) == 1
        client.close()


def test_a_password_is_never_told(open_cache: Callable[[str, str], Any], tmp_path: Path, server: OwnValkey) -> None:
    nobody = OwnValkey(tmp_path)
    urls = [nobody.url.replace("//", "//reader:s3cret@"), server.url.replace("//", "//reader:s3cret@")]
    for url in urls:
        said = refusal(open_cache(url, "test").profiles)
        assert "s3cret" not in said


def test_waiting_for_a_worker_longer_than_a_command_may_take_is_no_outage(cache: Any) -> None:
    with pytest.raises(RefreshFailed, match=r"ts01: its worker did not answer within 0\.8 s"):
        cache.update("mate", timeout=0.8)
    assert answers(cache)
