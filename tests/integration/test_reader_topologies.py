"""The reader's contract in a Cluster of three primaries, and in a group that sentinels watch."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
from redis.cluster import ClusterNode, RedisCluster

from tests.integration import test_reader_contract as contract
from tests.topologies import cluster, sentinel_group
from x2gofleet.connection import link_from_url
from x2gofleet.keys import Keys
from x2gofleet.store import Store


def _counts_round_trips(test: object) -> bool:
    """Whether a test puts a proxy in front of the one server; tests/faults/test_cluster.py counts for each node."""
    return isinstance(test, FunctionType) and "CountingProxy" in test.__code__.co_names


# Its tests, and its fixtures; but not the servers that it asks for.
globals().update(
    {
        name: each
        for name, each in vars(contract).items()
        if not name.startswith("__") and name != "pytestmark" and not _counts_round_trips(each)
    }
)


@pytest.fixture(scope="module", params=["cluster", "sentinel"])
def topology(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """URL for readers and workers, and a redis-py client for what tests do by hand."""
    if request.param == "cluster":
        with cluster(replicas=0) as nodes:
            client = RedisCluster(startup_nodes=[ClusterNode(*node.address) for node in nodes.nodes])
            yield nodes.url, client
            client.close()
    else:
        with sentinel_group() as group:
            yield group.url, group.master.client


@pytest.fixture
def valkey_url(topology: tuple[str, Any]) -> str:
    return topology[0]


@pytest.fixture
def brokers_url(topology: tuple[str, Any]) -> str:
    return topology[0]


@pytest.fixture
def redis_client(topology: tuple[str, Any]) -> Any:
    return topology[1]


@pytest.fixture
def store(topology: tuple[str, Any], keys: Keys) -> Iterator[Store]:
    link = link_from_url(topology[0], connect_timeout_seconds=5.0, command_timeout_seconds=5.0)
    yield Store(link, keys, "w1")
    link.close()
