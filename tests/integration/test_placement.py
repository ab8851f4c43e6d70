"""place: the server of a login, chosen and reserved in one step."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.conftest import FleetBuilder, keys_below
from tests.integration.reader import LOAD, row, session_name
from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS
from x2gofleet import FleetCache, NoServerAvailable
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

SERVERS = ("ts01", "ts02", "ts03", "ts04")
PROCESSES = 4


@pytest.fixture
def four(fleet: FleetBuilder) -> FleetBuilder:
    """Profile mate: four idle servers of the same size."""
    return idle(fleet)


def idle(fleet: FleetBuilder, **more: Any) -> FleetBuilder:
    fleet.publish({"mate": SERVERS}, **more)
    for server in SERVERS:
        fleet.listing(server, Kind.SESSIONS, b"", age_seconds=1)
        fleet.listing(server, Kind.LOAD, LOAD)
    return fleet


def load(avg: float) -> bytes:
    return LOAD.replace(b"loadavg 0.05 0.10 0.20", f"loadavg {avg} {avg} {avg}".encode())


def users(count: int, prefix: str = "u") -> bytes:
    return b"".join(row(f"{prefix}{number}", 50 + number) for number in range(count))


def test_a_new_login_goes_to_the_emptiest_server_and_is_reserved(cache: FleetCache, four: FleetBuilder) -> None:
    for server, count in zip(SERVERS, (3, 1, 2, 4), strict=True):
        four.listing(server, Kind.SESSIONS, users(count))
    placement = cache.place("mate", "alice")
    assert placement is not None
    assert (placement.server, placement.session) == ("ts02", None)
    assert placement.reserved_until_ms is not None
    assert {c.server: (c.sessions, c.reservations) for c in placement.candidates} == {
        "ts01": (3, 0),
        "ts02": (1, 0),
        "ts03": (2, 0),
        "ts04": (4, 0),
    }
    assert cache.reservations("mate") == {"ts01": 0, "ts02": 1, "ts03": 0, "ts04": 0}


def test_each_choice_counts_for_the_next(cache: FleetCache, four: FleetBuilder) -> None:
    chosen = [cache.place("mate", f"u{number}") for number in range(8)]
    assert Counter(placement.server for placement in chosen if placement) == dict.fromkeys(SERVERS, 2)


def test_without_reserving_nothing_is_written(
    cache: FleetCache, four: FleetBuilder, redis_client: redis.Redis, namespace: str
) -> None:
    before = keys_below(redis_client, namespace)
    chosen = {cache.place("mate", "alice", reserve_seconds=0).server for _ in range(4)}  # type: ignore[union-attr]
    assert len(chosen) == 1
    assert keys_below(redis_client, namespace) == before


def test_a_login_tried_again_holds_one_place(cache: FleetCache, four: FleetBuilder) -> None:
    for _ in range(5):
        assert cache.place("mate", "alice") is not None
    counts = cache.reservations("mate")
    assert counts is not None
    assert sum(counts.values()) == 1


def test_weights_share_out(cache: FleetCache, fleet: FleetBuilder) -> None:
    idle(fleet, weights={"ts01": 1.0, "ts02": 1.0, "ts03": 2.0, "ts04": 4.0})
    chosen = Counter(cache.place("mate", f"u{number}").server for number in range(40))  # type: ignore[union-attr]
    assert chosen == {"ts01": 5, "ts02": 5, "ts03": 10, "ts04": 20}


def test_weights_of_any_size_share_out(cache: FleetCache, fleet: FleetBuilder) -> None:
    idle(fleet, weights=dict.fromkeys(SERVERS, 5e-324))
    assert cache.place("mate", "alice") is not None
    idle(fleet, weights={"ts01": 0.01, "ts02": 1000.0, "ts03": 5e-324, "ts04": 1.0})
    assert {cache.place("mate", f"u{number}").server for number in range(40)} == {"ts02"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("states", "server"), [("RS", "ts02"), ("SR", "ts01"), ("RR", "ts02")])
def test_a_session_of_the_user_comes_first_suspended_before_running_newest_first(
    cache: FleetCache, four: FleetBuilder, states: str, server: str
) -> None:
    """However full its server is; nothing is reserved for what counts already."""
    for name, status, created in zip(SERVERS, states, ("2026-11-22T08:00:00", "2026-11-22T09:00:00"), strict=False):
        four.listing(name, Kind.SESSIONS, users(9) + row("alice", 70, status, created=created))
    placement = cache.place("mate", "alice")
    assert placement is not None
    assert placement.server == server
    assert placement.session is not None
    assert placement.session.name == session_name("alice", 70)
    assert placement.reserved_until_ms is None
    assert cache.reservations("mate") == dict.fromkeys(SERVERS, 0)


def starting(username: str) -> bytes:
    fields = row(username).split(b"|")
    fields[0] = fields[8] = fields[9] = fields[13] = b""
    return b"|".join(fields)


@pytest.mark.parametrize(
    "line",
    [
        row("alice", 50, "F"),
        row("alice", 50, "T"),
        starting("alice"),
        row("alice", name="alice-50-1763800000_stS1XSHAD"),
    ],
    ids=["finished", "to be terminated", "starting", "shadow"],
)
def test_what_can_not_be_gone_on_with_is_no_session_to_resume(
    cache: FleetCache, four: FleetBuilder, line: bytes
) -> None:
    four.listing("ts03", Kind.SESSIONS, line)
    placement = cache.place("mate", "alice")
    assert placement is not None
    assert placement.session is None


def test_a_drained_server_gets_no_new_session_and_keeps_its_old_ones(cache: FleetCache, fleet: FleetBuilder) -> None:
    idle(fleet, drained=["ts01", "ts02", "ts03"])
    fleet.listing("ts04", Kind.SESSIONS, users(50))
    fleet.listing("ts01", Kind.SESSIONS, row("bob", 70, "S"))
    assert {cache.place("mate", f"n{number}").server for number in range(8)} == {"ts04"}  # type: ignore[union-attr]
    assert cache.place("mate", "bob").server == "ts01"  # type: ignore[union-attr]


def test_a_server_that_is_down_is_never_chosen_even_while_its_snapshot_lasts(
    cache: FleetCache, four: FleetBuilder
) -> None:
    four.listing("ts01", Kind.SESSIONS, row("alice", 70, "S"), age_seconds=0.5)
    four.failure("ts01")
    placement = cache.place("mate", "alice")
    assert placement is not None
    assert placement.server != "ts01"
    assert placement.session is None
    assert placement.missing_servers == ("ts01",)


def test_none_left_is_an_error_that_says_why(cache: FleetCache, fleet: FleetBuilder) -> None:
    idle(fleet, drained=["ts01", "ts02"])
    fleet.failure("ts03")
    fleet.failure("ts04")
    with pytest.raises(NoServerAvailable, match=r"ts01 is drained.*ts03 is down") as caught:
        cache.place("mate", "alice")
    assert caught.value.reasons == {"ts01": "drained", "ts02": "drained", "ts03": "down", "ts04": "down"}


def test_not_cached_is_none(cache: FleetCache, fleet: FleetBuilder) -> None:
    """A server that nobody has told of may have a session of the user: a choice without it would be a guess."""
    assert cache.place("mate", "alice") is None
    assert cache.reservations("mate") is None
    fleet.publish({"mate": SERVERS, "alices": ["alice@ts01"]})
    for server in SERVERS[:3]:
        fleet.listing(server, Kind.SESSIONS, b"")
    fleet.listing("alice@ts01", Kind.SESSIONS, b"")
    assert cache.place("mate", "alice") is None
    assert cache.place("nowhere", "alice") is None
    assert cache.place("alices", "bob") is None
    assert cache.place("alices", "alice").server == "ts01"  # type: ignore[union-attr]


def test_a_reservation_ends_with_the_session_that_it_was_for(cache: FleetCache, four: FleetBuilder) -> None:
    server = cache.place("mate", "alice").server  # type: ignore[union-attr]
    assert cache.reservations("mate")[server] == 1  # type: ignore[index]
    four.listing(server, Kind.SESSIONS, starting("alice"))
    assert cache.reservations("mate")[server] == 0  # type: ignore[index]
    others = {cache.place("mate", f"u{number}").server for number in range(3)}  # type: ignore[union-attr]
    assert others == set(SERVERS) - {server}


def test_a_reservation_expires(cache: FleetCache, four: FleetBuilder) -> None:
    server = cache.place("mate", "alice", reserve_seconds=0.05).server  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while cache.reservations("mate")[server]:  # type: ignore[index]
        assert time.monotonic() < deadline
    assert cache.reservations("mate") == dict.fromkeys(SERVERS, 0)


def test_a_place_chosen_elsewhere_is_reserved_and_given_back(cache: FleetCache, four: FleetBuilder) -> None:
    cache.reserve("ts02", "alice")
    cache.reserve("ts02", "bob")
    assert cache.reservations("mate")["ts02"] == 2  # type: ignore[index]
    assert cache.release("ts02", "alice") is True
    assert cache.release("ts02", "alice") is False
    assert cache.reservations("mate")["ts02"] == 1  # type: ignore[index]


def test_a_server_with_little_left_to_give_gets_fewer(cache: FleetCache, four: FleetBuilder) -> None:
    """Load factors vary with the minute: small differences only decide between equals, large ones outweigh counts."""
    four.listing("ts01", Kind.LOAD, load(0.5))
    four.listing("ts02", Kind.LOAD, load(30))
    chosen = Counter(cache.place("mate", f"u{number}").server for number in range(30))  # type: ignore[union-attr]
    assert chosen["ts02"] <= 2
    assert min(chosen["ts01"], chosen["ts03"], chosen["ts04"]) >= 9


@pytest.mark.parametrize(
    "question",
    [
        lambda cache: cache.place("mate", "-rf"),
        lambda cache: cache.place("mate", "alice", reserve_seconds=-1),
        lambda cache: cache.place("mate", "alice", reserve_seconds=float("nan")),
        lambda cache: cache.reserve("ts 01", "alice"),
        lambda cache: cache.release("ts01", "a b"),
    ],
)
def test_nonsense_is_refused(cache: FleetCache, four: FleetBuilder, question: Any) -> None:
    with pytest.raises(ValueError, match=r"is no|lasts from"):
        question(cache)


def _storm(url: str, namespace: str, names: Sequence[str], reserve_seconds: float, queue: Any) -> None:
    with (
        FleetCache.from_url(url, namespace=namespace, lookup_seconds=LOOKUP_SECONDS) as cache,
        ThreadPoolExecutor(10) as pool,
    ):

        def login(name: str) -> str:
            placement = cache.place("mate", name, reserve_seconds=reserve_seconds)
            assert placement is not None
            return placement.server

        queue.put(list(pool.map(login, names)))


def storm(url: str, namespace: str, reserve_seconds: float) -> Counter[str]:
    """Let 200 users log in at once, through brokers in processes of their own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    brokers = [
        context.Process(
            target=_storm,
            args=(url, namespace, [f"user{number}" for number in range(first, 200, PROCESSES)], reserve_seconds, queue),
        )
        for first in range(PROCESSES)
    ]
    for broker in brokers:
        broker.start()
    chosen: Counter[str] = Counter()
    for _ in brokers:
        chosen.update(queue.get(timeout=60))
    for broker in brokers:
        broker.join(HANG_SECONDS)
    return chosen


def test_200_logins_at_once_spread_by_weight(valkey_url: str, namespace: str, keys: Keys, fleet: FleetBuilder) -> None:
    weights = {"ts01": 1.0, "ts02": 1.0, "ts03": 2.0, "ts04": 4.0}
    idle(fleet, weights=weights)
    blind = storm(valkey_url, namespace, 0)
    spread = storm(valkey_url, namespace, 60)
    fair = {server: 200 * weight / sum(weights.values()) for server, weight in weights.items()}
    print(f"200 logins, fair {fair}; with reservations {dict(spread)}, without {dict(blind)}")
    assert sum(spread.values()) == 200
    assert all(abs(spread[server] - fair[server]) <= 0.1 * fair[server] for server in SERVERS)
    assert max(blind.values()) > 150
