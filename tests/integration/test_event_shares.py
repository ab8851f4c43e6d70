"""The events of a server whose users change sessions as fast as they can: nobody's displace those of others."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from typing import Any, cast

import pytest
import redis

from tests.conftest import FleetBuilder
from tests.servers import VERSIONS
from x2gofleet import FleetCache
from x2gofleet.events import Change, Event, EventKind
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import EVENTS_KEPT, Listing, Outcome, Script, Store

TOGGLES = 5000
USERS = [f"user{number:02}" for number in range(50)]
OF_EACH = 4
LIVE, SLACK = 250, 250
MOST = EVENTS_KEPT + LIVE + SLACK
EACH_VERSION = pytest.mark.parametrize("valkey_url", VERSIONS, indirect=True)

# What workers of earlier versions did: the oldest entries go, whoever they are about.
BY_AGE = """
local function add_events(key, entries, kept, ttl_ms)
  for _, entry in ipairs(entries) do redis.call('XADD', key, 'MAXLEN', '~', kept, '*', unpack(entry)) end
  if #entries > 0 then redis.call('PEXPIRE', key, ttl_ms) end
end
"""


class Server:
    """Stores listings of ts01 that nobody reads, with events."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.store = Store(client, keys, "w1")
        FleetBuilder(self.store).publish({"mate": ["ts01"]})
        lease = self.store.acquire("ts01", ttl_ms=600_000)
        assert not isinstance(lease, str)
        self.lease = lease
        self._digests = itertools.count()

    def tell(self, *changes: Change, store: Store | None = None) -> None:
        """Store a listing with what changed."""
        store = store or self.store
        at = self.store.now_ms() or self.store.sync_clock()
        listing = Listing(
            Kind.SESSIONS, b"", f"d{next(self._digests)}", at, at, 1, 60_000, 60_000, changes=tuple(changes)
        )
        assert store.store(self.lease, self.store.next_seq(), listing) is Outcome.STORED

    def of_earlier_version(self) -> Store:
        """Return the writes of a worker of an earlier version."""
        store = Store(self.client, self.keys, "w0")
        store._seq = self.store._seq
        for name in ("store", "confirm", "fail"):
            script = Script(name)
            script.text = BY_AGE + script.text
            script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()
            setattr(store, f"_{name}", script)
        return store

    def length(self) -> int:
        return cast(int, self.client.xlen(self.keys.events("ts01")))


@pytest.fixture
def server(redis_client: redis.Redis, keys: Keys) -> Server:
    return Server(redis_client, keys)


@pytest.fixture
def cache(redis_client: redis.Redis, namespace: str) -> FleetCache:
    return FleetCache(redis_client, namespace=namespace, lookup_seconds=60.0)


def change(user: str, number: int) -> Change:
    kind, status = (EventKind.SUSPENDED, "S") if number % 2 == 0 else (EventKind.RESUMED, "R")
    return Change(kind, f"{user}-{number}", user, status)


def read_all(cache: FleetCache, cursor: str | None = None) -> list[Event]:
    found: list[Event] = []
    while page := cache.events(since=cursor):
        cursor = page.cursor
        found += page
    return found


def sessions_by_user(events: list[Event]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for event in events:
        found[event.username].append(event.session)
    return found


def toggle_among_others(server: Server, store: Store | None = None) -> dict[str, list[str]]:
    """Have mallory change a session so many times, the others now and then; return what was told of the others."""
    every = TOGGLES // (len(USERS) * OF_EACH)
    others = ((user, number) for number in range(OF_EACH) for user in USERS)
    for number in range(TOGGLES):
        server.tell(change("mallory", number), store=store)
        if number % every == 0 and (other := next(others, None)) is not None:
            server.tell(change(*other), store=store)
        if number % 500 == 0:
            assert server.length() <= MOST
    return {user: [change(user, number).session for number in range(OF_EACH)] for user in USERS}


@EACH_VERSION
def test_one_user_who_toggles_displaces_nobody_elses_events(server: Server, cache: FleetCache) -> None:
    told = toggle_among_others(server)
    found = read_all(cache)
    by_user = sessions_by_user(found)
    hers = by_user.pop("mallory")
    assert by_user == told
    assert hers == [change("mallory", number).session for number in range(TOGGLES - len(hers), TOGGLES)]
    assert EVENTS_KEPT <= len(found) <= MOST
    assert [event.order for event in found] == sorted({event.order for event in found})
    marks = [(event.username, event.session, event.left_out) for event in found if event.left_out]
    assert marks == [("mallory", hers[0], TOGGLES - len(hers))]
    assert all(event.missed_since(None) == event.left_out for event in found)


def test_the_same_toggling_displaced_them_in_earlier_versions(server: Server, cache: FleetCache) -> None:
    told = toggle_among_others(server, server.of_earlier_version())
    found = sessions_by_user(read_all(cache))
    lost = sum(len(sessions) for sessions in told.values()) - sum(len(found[user]) for user in USERS)
    assert lost >= len(USERS)


def test_who_follows_sees_all_and_who_comes_late_knows_what_is_missing(server: Server, cache: FleetCache) -> None:
    for number, user in enumerate(USERS * 30):
        server.tell(change(user, number))
    live, late, seen = cache.events(limit=2 * EVENTS_KEPT).cursor, cache.events(limit=2 * EVENTS_KEPT).cursor, []
    for number in range(1500):
        server.tell(change("mallory", number))
        if number % 10 == 9:
            found = cache.events(since=live)
            assert [event.missed_since(live) for event in found] == [0] * len(found)
            live = found.cursor
            seen += found
    assert [event.session for event in seen] == [change("mallory", number).session for number in range(1500)]
    rest = read_all(cache, late)
    assert {event.username for event in rest} == {"mallory"}
    assert [event.missed_since(late) for event in rest] == [1500 - len(rest)] + [0] * (len(rest) - 1)
    assert [event.missed_since(live) for event in rest] == [0] * len(rest)
    # By shares: with fifty others who all had many, hers is a fraction.
    counts = Counter(event.username for event in read_all(cache))
    assert min(counts[user] for user in USERS) >= EVENTS_KEPT // (len(USERS) + 1)


def test_who_follows_sees_all_of_a_user_with_many_sessions_whatever_her_share(
    server: Server, cache: FleetCache
) -> None:
    sessions, rounds = 100, 30
    for number, user in enumerate(USERS * 30):
        server.tell(change(user, number))
    cursor, seen = cache.events(limit=2 * MOST).cursor, []
    for turn in range(rounds):
        server.tell(*(change("mallory", turn * sessions + number) for number in range(sessions)))
        # Twice as seldom as the server is polled.
        if turn % 2:
            found = cache.events(since=cursor, limit=2 * MOST)
            assert [event.missed_since(cursor) for event in found] == [0] * len(found)
            cursor = found.cursor
            seen += found
    assert [event.session for event in seen] == [
        change("mallory", number).session for number in range(sessions * rounds)
    ]
    counts = Counter(event.username for event in read_all(cache))
    assert min(counts[user] for user in USERS) >= EVENTS_KEPT // (len(USERS) + 1)
    assert server.length() <= MOST


def test_the_events_of_the_server_itself_stay(server: Server, cache: FleetCache) -> None:
    fleet = FleetBuilder(server.store)
    fleet._leases["ts01"] = server.lease
    for number in range(3 * EVENTS_KEPT):
        if number % EVENTS_KEPT == 0:
            fleet.failure("ts01")
        server.tell(change("mallory", number))
    kinds = [event.kind for event in read_all(cache) if event.username == ""]
    assert kinds == [EventKind.SERVER_DOWN, EventKind.SERVER_UP] * 3


def test_a_server_that_goes_up_and_down_all_the_time_displaces_nobodys_events(
    server: Server, cache: FleetCache
) -> None:
    fleet = FleetBuilder(server.store)
    fleet._leases["ts01"], fleet._seq = server.lease, 1000
    server.tell(change("alice", 0), change("bob", 1))
    digest = cast(Any, server.client.hget(server.keys.snapshot("ts01", Kind.SESSIONS), "digest")).decode()
    for _ in range(EVENTS_KEPT):
        assert fleet.failure("ts01") is Outcome.STORED
        outcome = server.store.confirm(
            server.lease,
            server.store.next_seq(),
            Kind.SESSIONS,
            digest=digest,
            polled_at_ms=server.store.sync_clock(),
            ttl_ms=60_000,
            state_ttl_ms=60_000,
        )
        assert outcome is Outcome.STORED
    found = read_all(cache)
    assert [event.username for event in found if event.username] == ["alice", "bob"]
    assert found[2].left_out == 2 * EVENTS_KEPT - (len(found) - 2)
    assert server.length() <= MOST


def test_of_more_users_than_there_is_room_for_the_oldest_go_and_that_is_told(server: Server, cache: FleetCache) -> None:
    users = [f"invented{number}" for number in range(2500)]
    for start in range(0, 2500, 100):
        server.tell(*(change(user, 0) for user in users[start : start + 100]))
    found = read_all(cache)
    assert [event.username for event in found] == users[-len(found) :]
    assert [event.left_out for event in found] == [2500 - len(found)] + [0] * (len(found) - 1)


def test_a_listing_with_more_changes_than_are_kept_is_cut_before_it_is_sent(server: Server, cache: FleetCache) -> None:
    server.tell(change("alice", 0))
    cursor = cache.events().cursor
    changes = [change("mallory", number) for number in range(20_000)]
    server.tell(*changes[:10_000], change("bob", 7), *changes[10_000:])
    found = read_all(cache)
    by_user = sessions_by_user(found)
    hers = by_user["mallory"]
    assert by_user == {"alice": ["alice-0"], "bob": ["bob-7"], "mallory": [c.session for c in changes[-len(hers) :]]}
    assert [event.missed_since(cursor) for event in found if event.left_out] == [20_000 - len(hers)]
    server.tell(*(change("mallory", number) for number in range(200)))
    again = [event for event in read_all(cache) if event.left_out]
    kept = sum(event.username == "mallory" for event in read_all(cache))
    assert [event.left_out for event in again] == [20_200 - kept]


def test_workers_of_an_earlier_version_write_to_the_same_stream(server: Server, cache: FleetCache) -> None:
    earlier, cursor, seen = server.of_earlier_version(), None, []
    for number in range(4000):
        server.tell(change("mallory", number), store=earlier if number // 500 % 2 else None)
        if number % 20 == 19:
            found = cache.events(since=cursor)
            assert not any(event.missed_since(cursor) for event in found)
            cursor = found.cursor
            seen += found
    assert [event.session for event in seen] == [change("mallory", number).session for number in range(4000)]
    # A reader of an earlier version takes these fields, and passes over all others.
    for _, fields in cast(Any, server.client.xrange(server.keys.events("ts01"))):
        assert {b"kind", b"at", b"session", b"username", b"status"} <= fields.keys()
        assert fields.keys() - {b"left_out", b"left_out_to"} == {b"kind", b"at", b"session", b"username", b"status"}


@pytest.mark.parametrize(
    "entry",
    [
        {"left_out": "7"},
        {"left_out": "0"},
        {"kind": "ended", "at": "1", "username": "eve", "left_out": "99999999999999999999", "left_out_to": "x"},
        {"kind": "ended", "at": "1", "username": "eve", "left_out": "-1", "left_out_to": "1-1"},
        {"kind": "ended", "at": "1", "username": "eve", "left_out": "5", "left_out_to": "later"},
        {f"field{number}": "x" for number in range(9000)},
    ],
    ids=["mark alone", "empty mark", "huge mark", "negative mark", "mark without id", "too many fields"],
)
def test_entries_that_no_worker_wrote_stop_nobody(server: Server, cache: FleetCache, entry: dict[str, str]) -> None:
    events = server.keys.events("ts01")
    for _ in range(3):
        server.client.xadd(events, cast(Any, entry))
    for number in range(4 * EVENTS_KEPT):
        server.tell(change("mallory", number))
    assert server.length() <= MOST
    # Without the one that is left where it has a user of its own.
    hers = [
        fields[b"session"]
        for _, fields in cast(Any, server.client.xrange(events))
        if fields.get(b"username") == b"mallory"
    ]
    first = 4 * EVENTS_KEPT - len(hers)
    assert hers == [change("mallory", number).session.encode() for number in range(first, 4 * EVENTS_KEPT)]
