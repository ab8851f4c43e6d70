"""The reader's contract on real servers of each version: what is cached, what is not, and what an answer lacks.

The tests know readers by the fixtures ``cache`` and ``open_cache`` alone, so that they hold for every implementation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import redis

from tests.servers import VERSIONS
from tests.waiting import wait_until
from x2gofleet import CacheUnavailable, Kind, SchemaMismatch, SessionList, SnapshotCorrupt, UnknownProfile
from x2gofleet.keys import Keys
from x2gofleet.snapshot import SCHEMA_VERSION, digest_of

from .reader import LOAD, row, session_name

pytestmark = pytest.mark.parametrize("valkey_url", VERSIONS, indirect=True, scope="session")

Publish = Callable[..., Any]
StoreListing = Callable[..., Any]
Ask = Callable[..., Any]

STDOUT: dict[str, bytes] = {
    "sessions": row("alice") + row("bob", 51),
    "desktops": b"alice@:50\nbob@:51\n",
    "mounts": f"{session_name('alice')}|192.0.2.17|/media/a\n{session_name('bob', 51)}|192.0.2.18|/media/b\n".encode(),
    "load": LOAD,
}

# Each way to ask a profile for a kind; the profile "mate" is polled as its servers' administrator.
LOOKUPS: dict[str, tuple[str, Ask]] = {
    "list_sessions": ("sessions", lambda cache, **who: cache.list_sessions(**{"profile_name": "mate", **who})),
    "list_desktops": (
        "desktops",
        lambda cache, **who: cache.list_desktops(**{"profile_name": "mate", "username": "alice", **who}),
    ),
    "list_mounts": ("mounts", lambda cache, **who: cache.list_mounts(**{"profile_name": "mate", **who})),
    "load": ("load", lambda cache, **who: cache.load(who.get("profile_name", "mate"))),
}
EACH_LOOKUP = pytest.mark.parametrize(("kind", "ask"), LOOKUPS.values(), ids=LOOKUPS)


def target_of(kind: str, server: str = "ts01") -> str:
    """Return where a kind of a server that is polled whole is stored, for ``alice``."""
    return f"alice@{server}" if kind == "desktops" else server


def is_cached(cache: Any, kind: str, **who: Any) -> bool:
    who = {"profile_name": "mate", "username": "alice" if kind == "desktops" else None, **who}
    found = cache.is_cached(cache_type=kind, **who)
    assert isinstance(found, bool)
    return found


def users(sessions: SessionList | None) -> list[str]:
    assert sessions is not None
    return [each.username for each in sessions.rows]


# Never fetched, empty, cached, expired


@EACH_LOOKUP
def test_before_anything_is_published_nothing_is_cached(cache: Any, kind: str, ask: Ask) -> None:
    assert ask(cache) is None
    assert not is_cached(cache, kind)
    assert not cache.is_cached(profile_name="mate")
    assert cache.find_sessions(username="alice") is None
    assert cache.snapshots(profile_name="mate") == ()
    assert cache.snapshots(server="ts01") == ()
    assert cache.profiles() == ()
    assert cache.servers() == ()


@EACH_LOOKUP
def test_what_was_never_fetched_is_not_cached(cache: Any, publish: Publish, kind: str, ask: Ask) -> None:
    publish({"mate": ["ts01"]})
    assert ask(cache) is None
    assert not is_cached(cache, kind)
    assert not cache.is_cached(profile_name="mate", username="alice")
    assert cache.find_sessions(username="alice") is None
    assert cache.snapshots(profile_name="mate", username="alice") == ()


@EACH_LOOKUP
def test_one_kind_cached_is_not_the_others(
    cache: Any, publish: Publish, store_listing: StoreListing, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01"]})
    for other in STDOUT:
        if other != kind:
            store_listing(target_of(other), other, STDOUT[other])
    assert ask(cache) is None
    assert not is_cached(cache, kind)
    assert all(is_cached(cache, other) for other in STDOUT if other != kind)
    assert cache.is_cached(profile_name="mate", username="alice")


@pytest.mark.parametrize("kind", ["sessions", "desktops", "mounts"])
def test_empty_is_cached(cache: Any, publish: Publish, store_listing: StoreListing, kind: str) -> None:
    publish({"mate": ["ts01"]})
    store_listing(target_of(kind), kind, b"")
    found = LOOKUPS[f"list_{kind}"][1](cache)
    assert found is not None
    assert len(found) == 0
    assert is_cached(cache, kind)
    assert cache.is_cached("mate", username="alice")
    (snapshot,) = cache.snapshots(profile_name="mate", kind=kind, username="alice")
    assert snapshot.stdout == b""


def test_a_cached_session_list(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    found = cache.list_sessions(profile_name="mate")
    assert isinstance(found, SessionList)
    assert isinstance(found, Mapping)
    assert list(found) == [session_name("alice"), session_name("bob", 51)]
    assert found[session_name("alice")].username == "alice"
    assert {each.server for each in found.rows} == {"ts01"}
    assert (found.missing_servers, found.rejected) == ((), ())
    assert found.oldest_age is not None
    assert 0 <= found.oldest_age < 5
    assert is_cached(cache, "sessions")


def test_cached_desktops_mounts_and_load(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        for kind in ("desktops", "mounts", "load"):
            store_listing(target_of(kind, server), kind, STDOUT[kind])
    assert cache.list_desktops(profile_name="mate", username="alice") == ["alice@:50", "bob@:51"] * 2
    assert cache.list_mounts(profile_name="mate") == ["192.0.2.17|/media/a", "192.0.2.18|/media/b"] * 2
    assert cache.list_mounts(profile_name="mate", username="bob") == ["192.0.2.18|/media/b"] * 2
    assert cache.list_mounts(profile_name="mate", username="bo") == []
    loads = cache.load("mate")
    assert list(loads) == ["ts01", "ts02"]
    assert loads["ts01"].cpus == 2


def test_mounts_are_told_apart_where_one_name_begins_with_another(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    lines = [f"{session_name(name)}|192.0.2.1|/{name}" for name in ("ann", "ann-50", "ann-50-17", "a")]
    store_listing("ts01", "mounts", "\n".join(lines) + "\n")
    for name in ("ann", "ann-50", "ann-50-17", "a"):
        assert cache.list_mounts(profile_name="mate", username=name) == [f"192.0.2.1|/{name}"]


@EACH_LOOKUP
def test_an_expired_snapshot_is_not_cached_and_never_shown_older_than_its_ttl(
    cache: Any, publish: Publish, store_listing: StoreListing, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01"]})
    ttl_seconds = 0.25
    store_listing(target_of(kind), kind, STDOUT[kind], ttl_seconds=ttl_seconds)
    assert ask(cache) is not None
    assert is_cached(cache, kind)
    seen: list[float] = []

    def gone() -> bool:
        seen.extend(each.age for each in cache.snapshots(profile_name="mate", kind=kind, username="alice"))
        return ask(cache) is None

    wait_until(gone)
    assert seen
    assert max(seen) <= ttl_seconds
    assert not is_cached(cache, kind)
    assert not cache.is_cached(profile_name="mate", username="alice")
    assert cache.snapshots(profile_name="mate", username="alice") == ()
    assert cache.find_sessions(username="alice") is None


def test_a_snapshot_that_was_old_when_it_was_written_expires_by_when_it_was_read(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "sessions", STDOUT["sessions"], age_seconds=29.8, ttl_seconds=30.0)
    found = cache.list_sessions(profile_name="mate")
    if found is not None:
        assert 29.8 <= found.oldest_age <= 30.0
    wait_until(lambda: cache.list_sessions(profile_name="mate") is None)


# How it is asked


@pytest.mark.parametrize("cache_type", ["session", "Sessions", "", "x2golistsessions"])
def test_an_invalid_cache_type_is_an_error_whatever_is_cached(cache: Any, publish: Publish, cache_type: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="known: sessions, desktops, mounts, load"):
            cache.is_cached(profile_name="mate", cache_type=cache_type)
        with pytest.raises(ValueError, match="known: sessions, desktops, mounts, load"):
            cache.is_cached(session_uuid="u", cache_type=cache_type)
        with pytest.raises(ValueError, match="unknown cache type"):
            cache.snapshots(profile_name="mate", kind=cache_type)
        publish({"mate": ["ts01"]})


def test_a_cache_type_is_a_word_or_a_kind(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "load", LOAD)
    assert cache.is_cached("mate", cache_type="load")
    assert cache.is_cached("mate", None, Kind.LOAD)
    assert not cache.is_cached("mate", cache_type=Kind.SESSIONS)
    assert cache.is_cached("mate", cache_type=None)
    assert cache.is_cached("mate")


def test_a_question_must_say_what_it_is_about(cache: Any) -> None:
    for ask in (cache.is_cached, cache.list_sessions, cache.list_desktops, cache.list_mounts, cache.snapshots):
        with pytest.raises(ValueError):
            ask()
    with pytest.raises(ValueError, match="give one of"):
        cache.snapshots(profile_name="mate", server="ts01")
    with pytest.raises(ValueError, match="no server id"):
        cache.snapshots(server="ts 01")


@EACH_LOOKUP
def test_an_unknown_profile_is_not_cached(
    cache: Any, publish: Publish, store_listing: StoreListing, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01"]})
    store_listing(target_of(kind), kind, STDOUT[kind])
    assert ask(cache, profile_name="mte") is None
    assert not is_cached(cache, kind, profile_name="mte")
    assert not cache.is_cached(profile_name="mte")
    assert cache.snapshots(profile_name="mte") == ()


def test_update_and_delete_of_an_unknown_profile_name_the_known(cache: Any, publish: Publish) -> None:
    with pytest.raises(UnknownProfile, match="no worker has published an inventory yet"):
        cache.update("mate")
    publish({"mate": ["ts01"], "xfce": ["ts02"]})
    for call in (cache.update, cache.delete):
        with pytest.raises(UnknownProfile, match="unknown profile 'mte'; known profiles: mate, xfce") as caught:
            call("mte")
        assert caught.value.known == ("mate", "xfce")


# Registered sessions


@pytest.mark.parametrize("kind", ["sessions", "desktops", "mounts"])
def test_an_unknown_uuid_is_not_cached(cache: Any, publish: Publish, store_listing: StoreListing, kind: str) -> None:
    publish({"mate": ["ts01"]})
    store_listing(target_of(kind), kind, STDOUT[kind])
    assert getattr(cache, f"list_{kind}")("6c3f") is None
    assert not cache.is_cached(session_uuid="6c3f", cache_type=kind)
    assert not cache.is_cached(session_uuid="6c3f")
    cache.forget_session("6c3f")


def test_a_uuid_registered_for_a_user_asks_for_that_user(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    for kind in ("sessions", "mounts", "desktops"):
        store_listing(target_of(kind), kind, STDOUT[kind])
    cache.register_session("6c3f", "mate", "alice")
    assert users(cache.list_sessions("6c3f")) == ["alice"]
    assert cache.list_desktops("6c3f") == ["alice@:50", "bob@:51"]
    assert cache.list_mounts("6c3f") == ["192.0.2.17|/media/a"]
    assert cache.is_cached(session_uuid="6c3f", cache_type="desktops")
    assert users(cache.list_sessions("6c3f", username="bob")) == ["bob"]


def test_a_uuid_registered_without_a_user_asks_for_all(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"], "xfce": ["ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    cache.register_session("6c3f", "mate", "alice")
    cache.register_session("6c3f", "mate")
    assert users(cache.list_sessions(session_uuid="6c3f")) == ["alice", "bob"]
    assert cache.list_desktops("6c3f") is None
    cache.register_session("6c3f", "xfce")
    assert cache.list_sessions("6c3f") is None
    cache.register_session("6c3f", "none of these")
    assert cache.list_sessions("6c3f") is None
    assert not cache.is_cached(session_uuid="6c3f")


def test_a_forgotten_uuid_is_unknown(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    cache.register_session("6c3f", "mate")
    assert cache.is_cached(session_uuid="6c3f")
    cache.forget_session("6c3f")
    assert not cache.is_cached(session_uuid="6c3f")
    assert cache.list_sessions("6c3f") is None


def test_a_registration_lasts_a_week(cache: Any, redis_client: redis.Redis, keys: Keys) -> None:
    cache.register_session("6c3f", "mate", "alice")
    week_ms = 7 * 24 * 3600 * 1000
    assert week_ms - 60_000 < redis_client.pttl(keys.uuid("6c3f")) <= week_ms
    with pytest.raises(ValueError, match="can't be empty"):
        cache.register_session("", "mate")


# Several servers


@EACH_LOOKUP
def test_an_unknown_server_makes_the_profile_not_cached(
    cache: Any, publish: Publish, store_listing: StoreListing, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing(target_of(kind), kind, STDOUT[kind])
    assert ask(cache) is None
    assert not is_cached(cache, kind)
    (snapshot,) = cache.snapshots(profile_name="mate", kind=kind, username="alice")
    assert snapshot.server == "ts01"


@EACH_LOOKUP
def test_a_server_that_is_down_is_missing(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing(target_of(kind), kind, STDOUT[kind])
    fleet.failure("ts02", kinds=[Kind.SESSIONS, Kind.LOAD])
    assert ask(cache) is not None
    assert is_cached(cache, kind)
    view = cache.view(kind, profile_name="mate", username="alice" if kind == "desktops" else None)
    assert (view.missing_servers, view.unknown_servers, view.cached) == (("ts02",), (), True)
    if kind == "sessions":
        found = ask(cache)
        assert found.missing_servers == ("ts02",)
        assert users(found) == ["alice", "bob"]
        assert cache.find_sessions(username="bob").missing_servers == ("ts02",)


@EACH_LOOKUP
def test_all_down_is_not_cached(cache: Any, publish: Publish, fleet: Any, kind: str, ask: Ask) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        fleet.failure(server, kinds=[Kind.SESSIONS, Kind.LOAD])
    assert ask(cache) is None
    assert not is_cached(cache, kind)
    assert cache.find_sessions(username="alice") is None


@EACH_LOOKUP
def test_an_unexpired_snapshot_of_a_server_that_went_down_is_included(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any, kind: str, ask: Ask
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        store_listing(target_of(kind, server), kind, STDOUT[kind], age_seconds=1)
        fleet.failure(server, kinds=[Kind.SESSIONS, Kind.LOAD])
    found = ask(cache)
    assert found is not None
    assert is_cached(cache, kind)
    assert len(cache.snapshots(profile_name="mate", kind=kind, username="alice")) == 2
    if kind == "sessions":
        assert found.missing_servers == ()
        assert {each.server for each in found.rows} == {"ts01", "ts02"}


def test_a_server_is_down_only_while_its_failure_is_recent(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    fleet.failure("ts02", state_ttl_seconds=0.2)
    assert cache.is_cached("mate", cache_type="sessions")
    wait_until(lambda: not cache.is_cached("mate", cache_type="sessions"))
    assert cache.list_sessions(profile_name="mate") is None


def test_a_server_that_recovered_and_then_was_not_polled_is_unknown(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    fleet.failure("ts02", age_seconds=5)
    store_listing("ts02", "sessions", b"", ttl_seconds=0.2)
    assert cache.list_sessions(profile_name="mate").missing_servers == ()
    wait_until(lambda: cache.list_sessions(profile_name="mate") is None)
    assert not cache.is_cached("mate", cache_type="sessions")


def test_a_kind_that_fails_by_itself_does_not_take_the_others_along(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", STDOUT["sessions"])
    store_listing("ts01", "mounts", STDOUT["mounts"])
    fleet.failure("ts02", kinds=[Kind.MOUNTS], error_class="ListingFailed", error_text="no such table: mounts")
    assert cache.list_sessions(profile_name="mate").missing_servers == ()
    assert cache.list_mounts(profile_name="mate") == ["192.0.2.17|/media/a", "192.0.2.18|/media/b"]
    status = {each.id: each for each in cache.servers()}
    assert (status["ts01"].up, status["ts02"].up) == (True, True)
    assert (status["ts02"].error_class, status["ts02"].error_text) == ("ListingFailed", "no such table: mounts")
    assert (status["ts01"].error_class, status["ts01"].error_text) == ("", "")


def test_desktops_that_failed_for_one_user_are_unknown_not_down_for_another(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", STDOUT["sessions"])
    fleet.failure("ts02", kinds=[Kind.DESKTOPS])
    store_listing("alice@ts01", "desktops", STDOUT["desktops"])
    assert cache.list_desktops(profile_name="mate", username="alice") is None


# What is listed


def test_finished_sessions_are_hidden_and_those_to_be_terminated_kept(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    stdout = b"".join(row(f"user{status}", 50 + at, status) for at, status in enumerate("RSFT"))
    store_listing("ts01", "sessions", stdout)
    assert [each.status for each in cache.list_sessions(profile_name="mate").rows] == ["R", "S", "T"]
    assert cache.list_sessions(profile_name="mate", username="userF").rows == ()
    assert cache.find_sessions(username="userF").rows == ()
    assert users(cache.find_sessions(username="userT")) == ["userT"]
    (snapshot,) = cache.snapshots(profile_name="mate", kind="sessions")
    assert snapshot.stdout == stdout
    assert len(snapshot.sessions()) == 4


def test_one_name_on_two_servers(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing("ts01", "sessions", row("alice", created="2026-11-22T20:24:31"))
    store_listing("ts02", "sessions", row("alice", hostname="ts02", created="2026-11-22T20:24:30"))
    for found in (cache.list_sessions(profile_name="mate"), cache.find_sessions(username="alice")):
        assert list(found) == [session_name("alice")]
        assert found[session_name("alice")].server == "ts01"
        assert [each.server for each in found.rows] == ["ts01", "ts02"]


def test_rows_that_are_none_are_told_and_lose_no_other(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "sessions", row("alice") + b"an error text\n" + b"\xff|\xfe\n" + row("bob", 51))
    found = cache.list_sessions(profile_name="mate")
    assert users(found) == ["alice", "bob"]
    assert [each.line_number for each in found.rejected] == [2, 3]


def test_one_user_is_asked_for_by_the_whole_name(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"]})
    names = ["al", "alice", "alice_b", "Alice", "malice", "ts01", "R", "5ec4e7"]
    store_listing("ts01", "sessions", b"".join(row(name, 50 + at) for at, name in enumerate(names)))
    for name in names:
        assert users(cache.list_sessions(profile_name="mate", username=name)) == [name]
    for name in ("", "lice", "alice|", "bob", "2728", "alice\n"):
        assert users(cache.list_sessions(profile_name="mate", username=name)) == []


def test_the_oldest_age_is_that_of_the_server_asked_longest_ago(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01", "ts02", "ts03"]})
    for server, age in (("ts01", 3), ("ts02", 20), ("ts03", 0)):
        store_listing(server, "sessions", b"", age_seconds=age)
    assert 20 <= cache.list_sessions(profile_name="mate").oldest_age < 23
    ages = {each.server: each.age for each in cache.snapshots(profile_name="mate", kind="sessions")}
    assert 3 <= ages["ts01"] < 6
    assert 0 <= ages["ts03"] < 3


def test_callers_own_what_they_get(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"]})
    for kind, stdout in STDOUT.items():
        store_listing(target_of(kind), kind, stdout)
    asked: list[Callable[[], Any]] = [
        lambda: cache.list_desktops(profile_name="mate", username="alice"),
        lambda: cache.list_mounts(profile_name="mate"),
        lambda: cache.load("mate"),
        lambda: cache.list_sessions(profile_name="mate").get_sessions(),
        lambda: cache.list_sessions(profile_name="mate")(),
    ]
    for ask in asked:
        first = ask()
        kept = first.copy()
        first.clear()
        assert ask() == kept != first
    sessions = cache.list_sessions(profile_name="mate")
    with pytest.raises(TypeError):
        sessions["a"] = None
    with pytest.raises(AttributeError):
        sessions.rows[0].status = "F"
    for immutable in (sessions.rows, cache.snapshots(server="ts01"), cache.servers(), cache.profiles()):
        assert isinstance(immutable, tuple)


# User scope


@pytest.fixture
def users_fleet(publish: Publish, store_listing: StoreListing) -> None:
    """alice polled as herself on ts01, ts02 polled whole; profiles of each, and of both."""
    publish({"alice-desktop": ["alice@ts01"], "whole": ["ts02"], "mixed": ["alice@ts01", "ts02"]})
    for kind in ("sessions", "desktops", "mounts"):
        store_listing("alice@ts01", kind, STDOUT[kind])
    store_listing("ts02", "sessions", row("alice", 60, hostname="ts02") + row("bob", 61, hostname="ts02"))


@pytest.mark.usefixtures("users_fleet")
@pytest.mark.parametrize("kind", ["sessions", "desktops", "mounts"])
def test_a_users_own_target_answers_for_that_user_alone(cache: Any, kind: str) -> None:
    ask = getattr(cache, f"list_{kind}")
    assert len(ask(profile_name="alice-desktop", username="alice")) > 0
    assert len(ask(profile_name="alice-desktop")) > 0
    assert is_cached(cache, kind, profile_name="alice-desktop", username="alice")
    assert ask(profile_name="alice-desktop", username="bob") is None
    assert not is_cached(cache, kind, profile_name="alice-desktop", username="bob")
    assert not cache.is_cached(profile_name="alice-desktop", username="bob")
    cache.register_session("6c3f", "alice-desktop", "bob")
    assert ask("6c3f") is None


@pytest.mark.usefixtures("users_fleet")
def test_a_profile_of_both_scopes(cache: Any) -> None:
    found = cache.list_sessions(profile_name="mixed", username="alice")
    assert [(each.username, each.server) for each in found.rows] == [("alice", "ts01"), ("alice", "ts02")]
    assert cache.list_sessions(profile_name="mixed", username="bob") is None
    assert cache.load("alice-desktop") is None


@pytest.mark.usefixtures("users_fleet")
def test_sessions_across_the_fleet(cache: Any) -> None:
    assert [each.server for each in cache.find_sessions(username="alice").rows] == ["ts01", "ts02"]
    assert [each.server for each in cache.find_sessions(username="bob").rows] == ["ts02"]
    assert cache.find_sessions(username="carol").rows == ()


def test_a_session_is_found_once_where_the_server_is_polled_whole_and_as_its_user(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"], "alice-desktop": ["alice@ts01"], "bob-desktop": ["bob@ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    store_listing("alice@ts01", "sessions", row("alice"))
    assert [each.server for each in cache.find_sessions(username="alice").rows] == ["ts01"]
    assert cache.find_sessions(username="bob") is None, "ts02 is unknown for bob"
    store_listing("bob@ts02", "sessions", row("bob", 70))
    assert sorted(each.server for each in cache.find_sessions(username="bob").rows) == ["ts01", "ts02"]


def test_find_sessions_follows_the_rule_of_profiles(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01"], "xfce": ["ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    assert cache.find_sessions(username="alice") is None
    fleet.failure("ts02")
    found = cache.find_sessions(username="alice")
    assert (users(found), found.missing_servers) == (["alice"], ("ts02",))


# Snapshots and statuses


def test_a_snapshot_tells_all_that_is_stored(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any
) -> None:
    publish({"mate": ["ts01"]})
    raw = row("alice") + bytes(range(1, 256)) + b"\n"
    store_listing("ts01", "sessions", raw, age_seconds=4, exit_status=3, rejected_rows=2)
    (found,) = cache.snapshots(profile_name="mate", kind="sessions")
    assert found.stdout == raw
    assert (found.target, found.server, found.username, found.kind) == ("ts01", "ts01", None, Kind.SESSIONS)
    assert (found.exit_status, found.rejected_rows, found.worker) == (3, 2, "w1")
    assert (found.schema, found.digest) == (SCHEMA_VERSION, digest_of(Kind.SESSIONS, raw))
    assert found.fence == fleet.lease("ts01").fence
    assert found.polled_at_ms == found.listed_at_ms == found.changed_at_ms
    assert 4 <= found.age < 8
    assert "5ec4e7" not in repr(found)


def test_snapshots_of_a_profile_and_of_a_server(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01", "ts02"], "alice-desktop": ["alice@ts01"], "bob-desktop": ["bob@ts01"]})
    for target in ("ts01", "ts02"):
        store_listing(target, "sessions", STDOUT["sessions"])
        store_listing(target, "load", LOAD)
    for target in ("alice@ts01", "bob@ts01"):
        store_listing(target, "sessions", b"")
        store_listing(target, "desktops", STDOUT["desktops"])

    def found(**question: Any) -> set[tuple[str, str]]:
        snapshots = cache.snapshots(**question)
        named = [(each.target, each.kind.value) for each in snapshots]
        assert len(set(named)) == len(named)
        return set(named)

    own = {(f"{user}@ts01", kind) for user in ("alice", "bob") for kind in ("sessions", "desktops")}
    assert found(profile_name="mate", kind="sessions") == {("ts01", "sessions"), ("ts02", "sessions")}
    assert found(profile_name="mate") == {(each, kind) for each in ("ts01", "ts02") for kind in ("sessions", "load")}
    assert found(server="ts01") == {("ts01", "sessions"), ("ts01", "load"), *own}
    assert found(server="ts01", kind="load") == {("ts01", "load")}
    alices = {each for each in own if each[0] == "alice@ts01"}
    assert found(server="ts01", username="alice") == {("ts01", "sessions"), ("ts01", "load"), *alices}
    assert found(server="ts01", username="carol") == {("ts01", "sessions"), ("ts01", "load")}
    assert found(server="ts09") == set()
    assert found(profile_name="alice-desktop", username="bob") == set()


def test_the_status_of_servers(
    cache: Any, publish: Publish, store_listing: StoreListing, fleet: Any, redis_client: redis.Redis
) -> None:
    publish(
        {"mate": ["ts01", "ts02", "ts03"]},
        hostnames={"ts01": "ts01.example.org"},
        labels={"ts01": ["mate", "big"]},
        drained=["ts02"],
    )
    store_listing("ts01", "sessions", STDOUT["sessions"], age_seconds=3)
    store_listing("ts01", "load", LOAD, age_seconds=1)
    store_listing("ts02", "sessions", STDOUT["sessions"], age_seconds=9)
    fleet.failure("ts02", error_class="HostKeyMismatch", error_text="another key", age_seconds=2)
    fleet.failure("ts02", error_class="HostKeyMismatch", error_text="another key", age_seconds=1)
    one, two, three = cache.servers()
    assert [each.id for each in (one, two, three)] == ["ts01", "ts02", "ts03"]

    assert (one.up, one.hostname, one.labels, one.weight, one.drained) == (
        True,
        "ts01.example.org",
        ("mate", "big"),
        1.0,
        False,
    )
    assert set(one.ages) == {Kind.SESSIONS, Kind.LOAD}
    assert 3 <= one.ages[Kind.SESSIONS] < 6
    assert 1 <= one.ages[Kind.LOAD] < 4
    assert (one.owner, one.failures, one.error_class, one.error_text) == ("w1", 0, "", "")
    assert one.read_at_ms - one.since_ms == pytest.approx(3000, abs=2900)

    assert (two.up, two.drained, two.failures) == (False, True, 2)
    assert (two.error_class, two.error_text) == ("HostKeyMismatch", "another key")
    assert 9 <= two.ages[Kind.SESSIONS] < 12
    assert 2000 <= two.read_at_ms - two.since_ms < 5000

    assert (three.up, three.since_ms, dict(three.ages), three.owner) == (None, None, {}, None)
    store_listing("ts02", "sessions", STDOUT["sessions"])
    two = cache.servers()[1]
    assert (two.up, two.failures, two.error_class, two.error_text) == (True, 0, "", "")


def test_an_unknown_server_is_so_since_its_last_poll(
    cache: Any, publish: Publish, fleet: Any, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    for name in ("ts01", "ts02"):
        fleet.listing(name, "sessions", STDOUT["sessions"], age_seconds=50)
        fleet.listing(name, "sessions", STDOUT["sessions"], age_seconds=40)
    fleet.failure("ts02", age_seconds=30)
    fleet.listing("ts02", "sessions", STDOUT["sessions"], age_seconds=20)
    redis_client.delete(*(keys.snapshot(name, Kind.SESSIONS) for name in ("ts01", "ts02")))
    one, two = cache.servers()
    assert (one.up, two.up) == (None, None)
    assert 40_000 <= one.read_at_ms - one.since_ms < 50_000
    assert 20_000 <= two.read_at_ms - two.since_ms < 30_000
    assert [each.targets[0].since_ms for each in (one, two)] == [one.since_ms, two.since_ms]
    fleet.listing("ts01", "sessions", STDOUT["sessions"], age_seconds=5)
    one = cache.servers()[0]
    assert one.up is True
    assert 5_000 <= one.read_at_ms - one.since_ms < 40_000, "it was unknown in between"


@pytest.mark.usefixtures("users_fleet")
def test_the_status_of_a_server_that_is_polled_as_its_users(cache: Any, fleet: Any) -> None:
    one, two = cache.servers()
    assert (one.id, one.up, [each.id for each in one.targets]) == ("ts01", True, ["alice@ts01"])
    assert (two.id, two.up, [each.scope for each in two.targets]) == ("ts02", True, ["server"])
    fleet.failure("alice@ts01", error_class="AuthenticationFailed", error_text="refused")
    one, two = cache.servers()
    assert (one.up, one.error_class, two.up) == (False, "AuthenticationFailed", True)


# The inventory changes


def test_a_changed_inventory_is_seen_by_the_very_next_call(
    cache: Any, publish: Publish, store_listing: StoreListing, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01"]})
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", row("alice", hostname=server))
    assert users(cache.list_sessions(profile_name="mate")) == ["alice"]
    assert cache.list_sessions(profile_name="xfce") is None

    publish({"mate": ["ts01"], "xfce": ["ts02"]})
    assert users(cache.list_sessions(profile_name="xfce")) == ["alice"]
    publish({"mate": ["ts01"]})
    assert cache.list_sessions(profile_name="xfce") is None
    publish({"mate": ["ts01", "ts02"]})
    assert users(cache.list_sessions(profile_name="mate")) == ["alice", "alice"]
    publish({"mate": ["ts01", "ts02", "ts03"]})
    assert not cache.is_cached("mate", cache_type="sessions")
    publish({"mate": ["ts02"]})
    assert cache.is_cached("mate", cache_type="sessions")
    publish({"xfce": ["ts01"]})
    assert cache.profiles() == ("xfce",)
    publish({"kde": ["ts02"]})
    assert [each.id for each in cache.servers()] == ["ts02"]
    publish({"kde": ["ts01"]})
    assert [each.server for each in cache.find_sessions(username="alice").rows] == ["ts01"]
    publish({"kde": ["ts02"]})
    assert [each.server for each in cache.snapshots(profile_name="kde")] == ["ts02"]
    publish({"gnome": ["ts01"]})
    with pytest.raises(UnknownProfile, match="known profiles: gnome"):
        cache.update("kde")
    redis_client.delete(keys.fleet())
    assert cache.list_sessions(profile_name="gnome") is None
    assert cache.profiles() == ()
    publish({"gnome": ["ts01"]})
    assert users(cache.list_sessions(profile_name="gnome")) == ["alice"]


def test_an_answer_is_of_one_inventory_also_while_it_changes(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", row("alice", hostname=server))
    publish({"mate": ["ts01"]})
    over, flips = threading.Event(), []

    def flip() -> None:
        while not over.wait(0.002):
            flips.append(publish({"mate": [("ts02", "ts01")[len(flips) % 2]]}))

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        seen: list[tuple[str, ...]] = []

        def enough() -> bool:
            try:
                seen.append(tuple(each.server for each in cache.list_sessions(profile_name="mate").rows))
            except CacheUnavailable as exc:
                # On a machine that does much else.
                if "changes faster than it can be read" not in str(exc):
                    raise
            return len(flips) > 50 and len(set(seen)) > 1

        wait_until(enough)
    finally:
        over.set()
        thread.join()
    assert set(seen) == {("ts01",), ("ts02",)}


# What a worker of this version did not write


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": str(SCHEMA_VERSION + 1)}, SchemaMismatch),
        ({"polled_at": "yesterday"}, SnapshotCorrupt),
        ({"fence": None}, SnapshotCorrupt),
        ({"stdout": None}, SnapshotCorrupt),
    ],
)
def test_a_snapshot_that_can_not_be_read_is_an_error_not_a_miss(
    cache: Any,
    publish: Publish,
    store_listing: StoreListing,
    redis_client: redis.Redis,
    keys: Keys,
    change: dict[str, str | None],
    error: type[Exception],
) -> None:
    publish({"mate": ["ts01"]})
    for kind, stdout in STDOUT.items():
        store_listing(target_of(kind), kind, stdout)
        key = keys.snapshot(target_of(kind), Kind(kind))
        for name, value in change.items():
            if value is None:
                redis_client.hdel(key, name)
            else:
                redis_client.hset(key, name, value)
    for kind, ask in LOOKUPS.values():
        with pytest.raises(error, match=f"the {kind} snapshot of {target_of(kind)}"):
            ask(cache)
    with pytest.raises(error):
        cache.find_sessions(username="alice")
    with pytest.raises(error):
        cache.snapshots(profile_name="mate")


def test_a_state_that_can_not_be_read_is_an_error(
    cache: Any, publish: Publish, store_listing: StoreListing, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01", "ts02"]})
    store_listing("ts01", "sessions", STDOUT["sessions"])
    redis_client.hset(keys.state("ts02"), "sessions.failed_at", "yesterday")
    redis_client.expire(keys.state("ts02"), 60)
    for ask in (
        lambda: cache.list_sessions(profile_name="mate"),
        lambda: cache.is_cached("mate", cache_type="sessions"),
        lambda: cache.find_sessions(username="alice"),
    ):
        with pytest.raises(SnapshotCorrupt, match="something other than an x2gofleet worker"):
            ask()
    good, bad = cache.servers()
    assert (good.id, good.up, good.error_class) == ("ts01", True, "")
    assert (bad.id, bad.up, bad.error_class) == ("ts02", None, "SnapshotCorrupt")


def test_a_registration_that_can_not_be_read_is_of_no_profile(
    cache: Any, publish: Publish, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01"]})
    redis_client.hset(keys.uuid("6c3f"), mapping={"profile": b"m\xffte", "username": b"\xff"})
    redis_client.expire(keys.uuid("6c3f"), 60)
    assert cache.list_sessions("6c3f") is None


def test_load_figures_that_no_worker_proved_are_corrupt(
    cache: Any, publish: Publish, store_listing: StoreListing
) -> None:
    publish({"mate": ["ts01"]})
    store_listing("ts01", "load", b"loadavg high\n")
    with pytest.raises(SnapshotCorrupt, match="the load snapshot of ts01"):
        cache.load("mate")


def test_an_inventory_that_can_not_be_read_is_an_error(
    cache: Any, publish: Publish, redis_client: redis.Redis, keys: Keys
) -> None:
    publish({"mate": ["ts01"]})
    assert cache.profiles() == ("mate",)
    redis_client.hset(keys.fleet(), mapping={"version": "2", "document": "{"})
    for ask in (cache.profiles, cache.servers, lambda: cache.list_sessions(profile_name="mate")):
        with pytest.raises(SnapshotCorrupt, match="published inventory"):
            ask()
    publish({"mate": ["ts01"]})
    assert cache.profiles() == ("mate",)


# Many threads, and the end


def test_many_threads_share_a_cache(cache: Any, publish: Publish, store_listing: StoreListing) -> None:
    publish({"mate": ["ts01"], "xfce": ["ts02"]})
    store_listing("ts01", "sessions", row("alice"))
    store_listing("ts02", "sessions", row("bob", hostname="ts02"))
    wrong: list[Any] = []

    def ask(profile: str, user: str) -> None:
        for _ in range(50):
            found = cache.list_sessions(profile_name=profile)
            if found is None or users(found) != [user]:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=each) for each in [("mate", "alice"), ("xfce", "bob")] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cache_is_a_context_manager(
    open_cache: Callable[[str, str], Any], valkey_url: str, namespace: str, publish: Publish
) -> None:
    publish({"mate": ["ts01"]})
    with open_cache(valkey_url, namespace) as cache:
        assert cache.profiles() == ("mate",)
    cache.close()
