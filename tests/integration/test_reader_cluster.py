"""The reader's contract in a Cluster of three primaries."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
from redis.cluster import ClusterNode, RedisCluster

from tests.integration import test_reader_contract as contract
from tests.topologies import Cluster, cluster
from tests.waiting import LOOKUP_SECONDS, PATIENT, wait_until
from x2gofleet.connection import discovery, link_from_url
from x2gofleet.keys import Keys
from x2gofleet.store import Store

from .reader import row

# How much later one node may be asked than another in the same exchange, on a busy machine.
NODES_APART_SECONDS = 0.2


# One counts on a snapshot and TIME being read at the same moment: here they are on two nodes (its twin is below). The
# other has an inventory that changes nearly as fast as several nodes can be asked.
_OF_ONE_SERVER = frozenset(
    (
        "test_an_expired_snapshot_is_not_cached_and_never_shown_older_than_its_ttl",
        "test_an_answer_is_of_one_inventory_also_while_it_changes",
    )
)


def _is_of_one_server(test: object) -> bool:
    """Whether a test is about one server: others have a proxy before it that counts round trips, which
    tests/faults/test_cluster.py does for each node."""
    return isinstance(test, FunctionType) and (
        test.__name__ in _OF_ONE_SERVER or "CountingProxy" in test.__code__.co_names
    )


# Its tests, and its fixtures; but not the servers that it asks for.
globals().update(
    {
        name: each
        for name, each in vars(contract).items()
        if not name.startswith("__") and name != "pytestmark" and not _is_of_one_server(each)
    }
)


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster(replicas=0) as made:
        yield made


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how long the nodes of a Cluster are asked who serves what."""
    monkeypatch.setattr(discovery, "WAIT_SECONDS", LOOKUP_SECONDS)
    monkeypatch.setitem(discovery.ask_all.__kwdefaults__, "seconds", LOOKUP_SECONDS)


@pytest.fixture
def valkey_url(running: Cluster) -> str:
    return running.url


@pytest.fixture
def brokers_url(running: Cluster) -> str:
    return running.url


@pytest.fixture
def redis_client(running: Cluster) -> Iterator[RedisCluster]:
    """A client for what tests do by hand."""
    client = RedisCluster(startup_nodes=[ClusterNode(*node.address) for node in running.nodes])
    yield client
    client.close()


@pytest.fixture
def store(running: Cluster, keys: Keys) -> Iterator[Store]:
    link = link_from_url(running.url, **PATIENT)
    yield Store(link, keys, "w1")
    link.close()


def test_an_expired_snapshot_is_not_cached(cache: Any, publish: Any, store_listing: Any) -> None:
    publish({"mate": ["ts01", "ts02"]})
    ttl_seconds = 0.4
    for server in ("ts01", "ts02"):
        store_listing(server, "sessions", row("alice", hostname=server), ttl_seconds=ttl_seconds)
    seen: list[float] = []

    def gone() -> bool:
        seen.extend(each.age for each in cache.snapshots(profile_name="mate", kind="sessions"))
        return cache.list_sessions(profile_name="mate") is None

    wait_until(gone)
    assert seen
    assert max(seen) <= ttl_seconds + NODES_APART_SECONDS
    wait_until(lambda: cache.snapshots(profile_name="mate") == ())
    assert not cache.is_cached(profile_name="mate")


def test_a_server_is_chosen_and_reserved(cache: Any, publish: Any, store_listing: Any) -> None:
    publish({"mate": ["ts01", "ts02", "ts03"]})
    for server in ("ts01", "ts02", "ts03"):
        store_listing(server, "sessions", b"")
    assert {cache.place("mate", f"u{number}").server for number in range(3)} == {"ts01", "ts02", "ts03"}
    assert cache.reservations("mate") == {"ts01": 1, "ts02": 1, "ts03": 1}
    assert cache.release("ts01", "nobody") is False
