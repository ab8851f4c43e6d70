"""The mirror over a real Redis: what it answers by itself, what it leaves to Redis, and how it lives in a process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.conftest import FleetBuilder
from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet import CacheUnavailable, FleetCache, RefreshFailed
from x2gofleet.connection import link_from_url
from x2gofleet.hints import hint_commands, hint_field
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.mirror import COMMAND_SECONDS, Mirror
from x2gofleet.redis_values import fields_of
from x2gofleet.store import Store

from .reader import LOAD, CountingProxy, OwnValkey, StubWorker, row, session_name

StoreListing = Callable[..., Any]
Publish = Callable[..., Any]
ALICE, BOB = session_name("alice"), session_name("bob", 51)
STDOUT = row("alice") + row("bob", 51)


class Watched:
    """A link that counts what goes over it."""

    def __init__(self, url: str, **more: Any) -> None:
        self._link = link_from_url(url, **more)
        self.exchanges = 0

    def exchange(self, *args: Any, **more: Any) -> list[Any]:
        self.exchanges += 1
        return self._link.exchange(*args, **more)

    def close(self) -> None:
        self._link.close()


class Mirrored:
    """A cache with a mirror; ``asked`` is how often its lookups went to Redis."""

    def __init__(self, url: str, namespace: str, **more: Any) -> None:
        self.direct = Watched(url)
        self.mirror = Mirror(link_from_url(url, command_timeout_seconds=COMMAND_SECONDS), Keys(namespace), **more)
        self.cache = FleetCache(self.direct, namespace=namespace, mirror=self.mirror)  # type: ignore[arg-type]

    @property
    def asked(self) -> int:
        return self.direct.exchanges


@pytest.fixture
def mirrored(valkey_url: str, namespace: str) -> Iterator[Mirrored]:
    made = Mirrored(valkey_url, namespace)
    yield made
    made.cache.close()


@pytest.fixture
def full(publish: Publish, store_listing: StoreListing) -> None:
    """Two servers with every kind, and the desktops of alice."""
    publish({"mate": ["ts01", "ts02"], "one": ["ts01"]})
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", STDOUT)
        store_listing(server, "load", LOAD)
        store_listing(server, "mounts", f"{ALICE}|192.0.2.17|/home/alice/docs\n")
        store_listing(f"alice@{server}", "desktops", "bob@:51\n")


QUESTIONS: dict[str, Callable[[FleetCache], Any]] = {
    "is_cached": lambda cache: cache.is_cached("mate", cache_type="sessions"),
    "is_cached of any kind": lambda cache: cache.is_cached("mate", username="alice"),
    "list_sessions": lambda cache: cache.list_sessions(profile_name="mate"),
    "list_sessions of a user": lambda cache: cache.list_sessions(profile_name="mate", username="bob"),
    "list_desktops": lambda cache: cache.list_desktops(profile_name="mate", username="alice"),
    "list_mounts": lambda cache: cache.list_mounts(profile_name="mate", username="alice"),
    "load": lambda cache: cache.load("mate"),
    "find_sessions": lambda cache: cache.find_sessions(username="alice"),
}


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_a_lookup_goes_to_redis_until_the_mirror_is_filled_and_then_no_more(
    mirrored: Mirrored, ask: Callable[[FleetCache], Any]
) -> None:
    expected = ask(mirrored.cache)
    assert expected
    assert mirrored.asked
    mirrored.cache.resync()
    asked = mirrored.asked
    assert [ask(mirrored.cache) for _ in range(3)] == [expected] * 3
    assert mirrored.asked == asked


@pytest.mark.usefixtures("full")
def test_callers_own_what_they_get(mirrored: Mirrored) -> None:
    mirrored.cache.resync()
    for name in ("list_desktops", "list_mounts", "load"):
        first = QUESTIONS[name](mirrored.cache)
        expected = first.copy()
        first.clear()
        again = QUESTIONS[name](mirrored.cache)
        assert again == expected
        again.clear()
        assert QUESTIONS[name](mirrored.cache) == expected


@pytest.mark.usefixtures("full")
def test_what_is_not_cached_is_asked_of_redis_each_time(mirrored: Mirrored) -> None:
    mirrored.cache.resync()
    mirrored.cache.profiles()
    for question in (
        lambda: mirrored.cache.list_sessions(profile_name="mte"),
        lambda: mirrored.cache.is_cached("mate", cache_type="desktops"),
        lambda: mirrored.cache.list_desktops(profile_name="mate", username="carol"),
    ):
        for _ in range(2):
            asked = mirrored.asked
            assert not question()
            assert mirrored.asked == asked + 1


def test_servers_that_are_down_are_known_by_their_state(
    mirrored: Mirrored, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing("ts01", "sessions", STDOUT)
    fleet.failure("ts02")
    mirrored.cache.resync()
    found = mirrored.cache.list_sessions(profile_name="mate")
    assert found is not None
    assert (list(found), found.missing_servers) == ([ALICE, BOB], ("ts02",))
    assert mirrored.asked == 0


@pytest.mark.usefixtures("full")
def test_a_change_comes_without_a_resync(
    mirrored: Mirrored, store_listing: StoreListing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2gofleet.mirror.RESYNC_SECONDS", 3600.0)
    mirrored.cache.resync()
    mirrored.cache.is_cached("one")
    wait_until(lambda: mirrored.mirror.now.questions is not None)
    synced = mirrored.mirror._synced_at
    store_listing("ts01", "sessions", row("carol"))
    wait_until(lambda: list(mirrored.cache.list_sessions(profile_name="one") or ()) == [session_name("carol")])
    assert mirrored.mirror._synced_at == synced


@pytest.mark.usefixtures("full")
def test_what_no_hint_tells_of_comes_with_each_resync(
    mirrored: Mirrored, redis_client: redis.Redis, keys: Keys, fleet: Any
) -> None:
    redis_client.delete(keys.fresh())
    mirrored.cache.resync()
    assert mirrored.cache.list_sessions(profile_name="one", username="bob") is not None
    assert mirrored.asked == 0
    fleet.tell = lambda *_, **__: None
    fleet.listing("ts01", "sessions", row("carol"))
    mirrored.cache.resync()
    found = mirrored.cache.list_sessions(profile_name="one")
    assert found is not None
    assert list(found) == [session_name("carol")]


@pytest.mark.usefixtures("full")
def test_a_stale_hint_of_a_paused_worker_is_looked_at_once(mirrored: Mirrored, fleet: Any, keys: Keys) -> None:
    mirrored.cache.resync()
    before = mirrored.mirror.now.held[keys.snapshot("ts01", Kind.SESSIONS)]
    client_time = fleet.store.sync_clock() - 5000
    stale = f"{client_time} {client_time} {client_time + 60_000} {'0' * 32}"
    fleet.store.link.exchange([("HSET", keys.fresh(), "ts01:sessions", stale)])
    mirrored.cache.resync()
    fetched = mirrored.mirror.now.held[keys.snapshot("ts01", Kind.SESSIONS)]
    assert fetched is not before
    assert fetched.digest == before.digest
    mirrored.cache.resync()
    assert mirrored.mirror.now.held[keys.snapshot("ts01", Kind.SESSIONS)] is fetched


def test_a_confirmation_moves_the_times_and_fetches_nothing(
    mirrored: Mirrored, publish: Publish, fleet: Any, keys: Keys
) -> None:
    publish({"one": ["ts01"]})
    fleet.listing("ts01", "sessions", STDOUT, age_seconds=20)
    mirrored.cache.resync()
    before = mirrored.cache.list_sessions(profile_name="one")
    assert before is not None
    assert before.oldest_age is not None
    assert before.oldest_age >= 20
    held = mirrored.mirror.now.held[keys.snapshot("ts01", Kind.SESSIONS)]
    fleet.confirmation("ts01", "sessions", STDOUT)
    mirrored.cache.resync()
    after = mirrored.cache.list_sessions(profile_name="one")
    assert after is not None
    assert after.oldest_age is not None
    assert 0 <= after.oldest_age < 10
    confirmed = mirrored.mirror.now.held[keys.snapshot("ts01", Kind.SESSIONS)]
    assert confirmed.reply is held.reply
    assert 19 < confirmed.expires - held.expires < 30
    assert mirrored.asked == 0


def test_what_expires_in_redis_expires_in_the_mirror(
    mirrored: Mirrored, publish: Publish, store_listing: StoreListing, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"one": ["ts01"]})
    store_listing("ts01", "sessions", STDOUT, ttl_seconds=0.4)
    mirrored.cache.resync()
    assert mirrored.cache.is_cached("one", cache_type="sessions")
    wait_until(lambda: not redis_client.exists(keys.snapshot("ts01", Kind.SESSIONS)))
    assert mirrored.cache.list_sessions(profile_name="one") is None
    assert not mirrored.cache.is_cached("one", cache_type="sessions")


@pytest.mark.usefixtures("full")
def test_a_mirror_of_some_profiles_leaves_the_others_to_redis(valkey_url: str, namespace: str, keys: Keys) -> None:
    made = Mirrored(valkey_url, namespace, profiles=("one",))
    with made.cache as cache:
        cache.resync()
        assert {key.partition("{")[2].partition("}")[0] for key in made.mirror.now.held} == {"ts01", "alice@ts01"}
        assert cache.list_sessions(profile_name="one") is not None
        assert made.asked == 0
        found = cache.list_sessions(profile_name="mate")
        assert found is not None
        assert len(found.rows) == 4
        assert made.asked
        asked = made.asked
        everywhere = cache.find_sessions(username="alice")
        assert everywhere is not None
        assert len(everywhere.rows) == 2
        assert made.asked > asked


def test_profiles_are_names_not_a_text(valkey_url: str) -> None:
    with pytest.raises(ValueError, match="collection of profile names"):
        FleetCache.from_url(valkey_url, mirror="mate")


@pytest.mark.usefixtures("full")
def test_a_changed_inventory_is_followed(mirrored: Mirrored, publish: Publish) -> None:
    mirrored.cache.resync()
    assert mirrored.cache.load("mate") is not None
    publish({"mate": ["ts02"]})
    mirrored.cache.resync()
    assert list(mirrored.cache.load("mate") or ()) == ["ts02"]
    assert mirrored.asked == 0
    assert all("ts01" not in key for key in mirrored.mirror.now.held)


@pytest.mark.usefixtures("full")
def test_registered_sessions_are_remembered_for_a_moment(mirrored: Mirrored) -> None:
    mirrored.cache.register_session("6c3f", "mate", "bob")
    mirrored.cache.resync()
    expected = mirrored.cache.list_sessions("6c3f")
    asked = mirrored.asked
    assert expected is not None
    assert mirrored.cache.list_sessions("6c3f") == expected
    assert mirrored.asked == asked
    mirrored.cache.register_session("6c3f", "mate", "alice")
    changed = mirrored.cache.list_sessions("6c3f")
    assert changed is not None
    assert {found.username for found in changed.rows} == {"alice"}
    mirrored.cache.list_sessions("6c3f")
    mirrored.cache.forget_session("6c3f")
    assert mirrored.cache.list_sessions("6c3f") is None


@pytest.mark.usefixtures("full")
def test_a_caller_sees_what_it_had_done(mirrored: Mirrored, valkey_url: str, keys: Keys, fleet: Any) -> None:
    """The worker's hint may come later than its answer."""
    fleet.tell = lambda *_, **__: None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        fleet.listing(request["target"], "sessions", row("carol"))
        return {"target": request["target"], "stored": [[request["target"], "sessions"]], "error": ""}

    mirrored.cache.resync()
    assert mirrored.cache.list_sessions(profile_name="one", username="carol") is not None
    for server in ("ts01", "ts02"):
        fleet.lease(server)
    with StubWorker(valkey_url, keys, "w1", answer):
        mirrored.cache.update("one")
        found = mirrored.cache.list_sessions(profile_name="one")
    assert found is not None
    assert list(found) == [session_name("carol")]


@pytest.mark.usefixtures("full")
def test_what_was_deleted_is_gone_for_the_caller(mirrored: Mirrored, valkey_url: str, keys: Keys, fleet: Any) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        fleet.store.discard(fleet.lease(request["target"]), Kind)
        return {"target": request["target"], "stored": [], "error": ""}

    mirrored.cache.resync()
    assert mirrored.cache.is_cached("one", cache_type="sessions")
    fleet.lease("ts01")
    with StubWorker(valkey_url, keys, "w1", answer):
        mirrored.cache.delete("one")
        assert not mirrored.cache.is_cached("one", cache_type="sessions")
        assert mirrored.cache.list_sessions(profile_name="one") is None


@pytest.mark.usefixtures("full")
def test_a_refresh_that_fails_leaves_the_mirror_out_too(mirrored: Mirrored) -> None:
    mirrored.cache.resync()
    with pytest.raises(RefreshFailed):
        mirrored.cache.update("one", timeout=0.1)
    asked = mirrored.asked
    assert mirrored.cache.is_cached("one", cache_type="sessions")
    assert mirrored.asked == asked + 1


def test_while_redis_is_away_what_has_not_expired_is_answered_and_nothing_waits(tmp_path: Any, namespace: str) -> None:
    with OwnValkey(tmp_path) as valkey:
        link = link_from_url(valkey.url)
        fleet = FleetBuilder(Store(link, Keys(namespace), "w1"))
        fleet.publish({"one": ["ts01"]})
        fleet.listing("ts01", "sessions", STDOUT, ttl_seconds=8)
        expires = time.monotonic() + 8
        made = Mirrored(valkey.url, namespace)
        with made.cache as cache:
            cache.resync()
            assert cache.list_sessions(profile_name="one") is not None
            valkey.kill()
            wait_until(lambda: made.mirror.breaker._open_until is not None)
            while time.monotonic() < expires - 2:
                found = cache.list_sessions(profile_name="one")
                assert found is not None
                assert (found.oldest_age or 0.0) <= 8
                with pytest.raises(CacheUnavailable):
                    cache.is_cached("one", cache_type="load")

            def over() -> bool:
                try:
                    cache.list_sessions(profile_name="one")
                except CacheUnavailable:
                    return True
                return False

            wait_until(over)
            assert time.monotonic() >= expires - 0.2
        link.close()


@pytest.mark.usefixtures("full")
def test_lookups_close_and_resync_may_meet_in_many_threads(valkey_url: str, namespace: str) -> None:
    cache = FleetCache.from_url(valkey_url, namespace=namespace, mirror=True)
    problems: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                for question in QUESTIONS.values():
                    assert question(cache)
            except BaseException as exc:
                problems.append(exc)
                return

    def sync() -> None:
        while not stop.is_set():
            try:
                cache.resync()
            except BaseException as exc:
                problems.append(exc)
                return

    threads = [threading.Thread(target=run) for run in (ask, ask, ask, ask, sync, sync)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    cache._mirror.close()
    stop.set()
    for thread in threads:
        thread.join(HANG_SECONDS)
    cache.close()
    assert problems == []


def feed_of(cache: FleetCache) -> threading.Thread:
    """Return the thread of a cache's own feed: those of earlier tests may be ending still."""
    assert isinstance(cache._mirror, Mirror)
    assert cache._mirror._feed is not None
    return cache._mirror._feed._thread


@pytest.mark.usefixtures("full")
def test_close_ends_the_feed_at_once(valkey_url: str, namespace: str) -> None:
    cache = FleetCache.from_url(valkey_url, namespace=namespace, mirror=True)
    assert cache.is_cached("one")
    feed = feed_of(cache)
    assert feed.is_alive()
    cache.close()
    feed.join(HANG_SECONDS)
    assert not feed.is_alive()


@pytest.mark.usefixtures("full")
def test_a_cache_that_nobody_uses_any_more_ends_its_feed(valkey_url: str, namespace: str) -> None:
    cache = FleetCache.from_url(valkey_url, namespace=namespace, mirror=True)
    cache.resync()
    assert cache.list_sessions(profile_name="mate") is not None
    gone, feed = weakref.ref(cache._mirror), feed_of(cache)
    del cache

    def has_ended() -> bool:
        gc.collect()
        return gone() is None and not feed.is_alive()

    wait_until(has_ended)


PREFORK = """
import json, os, sys, time
from x2gofleet import FleetCache
cache = FleetCache.from_url(sys.argv[1], namespace=sys.argv[2], mirror=True)
def filled():
    cache.is_cached("one")
    return bool(cache._mirror.now.held)
def wait(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
wait(filled)
children = []
for number in range(4):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            began_empty = not cache._mirror.now.held
            wait(filled)
            names = sorted(cache.list_sessions(profile_name="one"))
            os.write(write, json.dumps([began_empty, names]).encode())
            status = 0
        finally:
            os._exit(status)
    children.append((pid, read))
found = []
for pid, read in children:
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    found.append(json.loads(os.read(read, 65536)))
alive = cache._mirror.now.alive_until
wait(lambda: cache._mirror.now.alive_until > alive)
print(json.dumps([found, sorted(cache.list_sessions(profile_name="one"))]))
cache.close()
"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, json, sys, time
from x2gofleet import FleetCache
cache = FleetCache.from_url(sys.argv[1], namespace=sys.argv[2], mirror=True)
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
ticking = gevent.spawn(tick)
end = time.monotonic() + 20
while not cache._mirror.now.held:
    cache.is_cached("one")
    assert time.monotonic() < end
    gevent.sleep(0.01)
gevent.sleep(2.5)
jobs = [gevent.spawn(cache.list_sessions, profile_name="one", username="alice") for _ in range(50)]
gevent.joinall(jobs, timeout=20, raise_error=True)
print(json.dumps([ticks > 100, [sorted(job.value) for job in jobs]]))
cache.close()
"""

TORNADO = """
import asyncio, json, sys
import tornado.httpclient, tornado.httpserver, tornado.netutil, tornado.web
from x2gofleet import FleetCache
cache = FleetCache.from_url(sys.argv[1], namespace=sys.argv[2], mirror=True)
class Sessions(tornado.web.RequestHandler):
    def get(self):
        self.write({"sessions": sorted(cache.list_sessions(profile_name="one", username=self.get_argument("user")))})
async def main():
    (socket,) = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Sessions)]))
    server.add_socket(socket)
    cache.resync()
    client = tornado.httpclient.AsyncHTTPClient()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}/?user=alice"
    replies = await asyncio.gather(*(client.fetch(url) for _ in range(20)))
    server.stop()
    print(json.dumps([bool(cache._mirror.now.sessions), [json.loads(reply.body)["sessions"] for reply in replies]]))
asyncio.run(main())
cache.close()
"""


def run_program(program: str, *arguments: str) -> Any:
    """Run a Python program in a process of its own; return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("full")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_prefork_children_begin_with_an_empty_mirror_and_a_feed_of_their_own(valkey_url: str, namespace: str) -> None:
    children, parent = run_program(PREFORK, valkey_url, namespace)
    assert children == [[True, [ALICE, BOB]]] * 4
    assert parent == [ALICE, BOB]


@pytest.mark.usefixtures("full")
def test_under_gevent_the_feed_is_a_greenlet_and_lookups_hold_up_nobody(valkey_url: str, namespace: str) -> None:
    pytest.importorskip("gevent")
    assert run_program(GEVENT, valkey_url, namespace) == [True, [[ALICE]] * 50]


@pytest.mark.usefixtures("full")
def test_in_a_handler_of_tornado(valkey_url: str, namespace: str) -> None:
    pytest.importorskip("tornado")
    assert run_program(TORNADO, valkey_url, namespace) == [True, [[ALICE]] * 20]


@pytest.mark.usefixtures("full")
def test_an_idle_mirror_asks_seldom(valkey_url: str, namespace: str) -> None:
    with CountingProxy(valkey_url) as proxy:
        cache = FleetCache.from_url(proxy.url, namespace=namespace, mirror=True)
        cache.resync()
        cache.is_cached("one")
        proxy.round_trips = 0
        time.sleep(2)
        # A wait for changes each half second, a resync each two seconds.
        assert 2 <= proxy.round_trips <= 10
        cache.close()


class Recorded:
    """A link that notes which commands go over it."""

    def __init__(self, url: str) -> None:
        self._link = link_from_url(url, command_timeout_seconds=COMMAND_SECONDS)
        self.sent: list[tuple[Any, ...]] = []

    def exchange(self, commands: Any, **more: Any) -> list[Any]:
        self.sent += commands
        return self._link.exchange(commands, **more)

    def close(self) -> None:
        self._link.close()


def test_a_change_of_one_server_costs_a_mirror_its_snapshot_and_nothing_of_other_servers(
    valkey_url: str,
    keys: Keys,
    publish: Publish,
    store_listing: StoreListing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("x2gofleet.mirror.RESYNC_SECONDS", 3600.0)
    servers = [f"ts{number:02}" for number in range(20)]
    publish({"mate": servers})
    for server in servers:
        store_listing(server, "sessions", STDOUT)
        store_listing(server, "load", LOAD)
        store_listing(server, "mounts", "")
    link = Recorded(valkey_url)
    mirror = Mirror(link, keys)  # type: ignore[arg-type]

    def follow() -> list[tuple[Any, ...]]:
        """Wait for changes once; return what was asked for them."""
        command, _ = mirror.follow()
        link.sent.clear()
        (reply,) = link.exchange([command])
        mirror.fed(reply)
        assert link.sent.pop(0) == command
        return link.sent

    def toggled(number: int) -> None:
        store_listing("ts07", "sessions", STDOUT if number % 2 else row("alice", status="S"))

    try:
        mirror.resync()
        key = keys.snapshot("ts07", Kind.SESSIONS)
        once = [("TIME",), ("PTTL", key), ("HGETALL", key)]
        for number in range(20):
            toggled(number)
            assert follow() == once
        # Those that are told together are looked at together, and only the newest.
        for number in range(51):
            toggled(number)
        assert follow() == once
        # A confirmation, or a hint of what is held already, costs nothing more.
        name = hint_field("ts07", Kind.SESSIONS)
        told = redis_hints(link, keys)
        link.exchange(hint_commands(keys, {name: told[name.encode()].decode()}, [name]))
        assert follow() == []
    finally:
        mirror.close()


def redis_hints(link: Recorded, keys: Keys) -> dict[bytes, bytes]:
    (reply,) = link.exchange([("HGETALL", keys.fresh())])
    return fields_of(reply)
