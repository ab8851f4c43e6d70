"""A Cluster loses a primary, and moves slots, while readers ask and workers write."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from x2gofleet_workers.embedded import _binary

from tests.processes import LiveFleet
from tests.topologies import Cluster, ServerProcess, cluster
from tests.waiting import SLACK_SECONDS, wait_until
from tests.watching import Watch, check_owned, working_fleet
from x2gofleet.cache import FleetCache
from x2gofleet.connection import async_link_from_url, link_from_url
from x2gofleet.connection.cluster import AsyncClusterLink, ClusterLink
from x2gofleet.connection.discovery import Address
from x2gofleet.errors import CacheUnavailable, Unavailable
from x2gofleet.keys import Keys

pytestmark = pytest.mark.faults

SERVERS = 6
TTL_SECONDS = 15.0


@dataclass
class Watched:
    """A fleet whose workers write to a Cluster, and the readers that ask it."""

    cluster: Cluster
    fleet: LiveFleet
    watch: Watch

    def written_again(self) -> float:
        """Wait until every server was polled and written from now on; return the seconds."""
        since_ms = int(time.time() * 1000)
        return wait_until(lambda: self.fleet.is_full(since_ms=since_ms), "every server is polled again")

    def check_work(self) -> None:
        """Check that both workers hold leases, answer requests, and met nothing that nobody expected."""
        check_owned(self.fleet)
        assert len(self.fleet.cache.update("all", timeout=10)) == SERVERS
        self.fleet.check_workers()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with (
        cluster() as running,
        working_fleet(tmp_path, running.url, servers=SERVERS, ttl_seconds=TTL_SECONDS) as (fleet, watch),
    ):
        yield Watched(running, fleet, watch)


@pytest.mark.parametrize("which", ["of the inventory", "of a target"])
def test_a_primary_is_killed(watched: Watched, which: str) -> None:
    keys = watched.fleet.keys
    of_inventory = watched.cluster.primary_of(keys.fleet())
    others = [watched.cluster.primary_of(keys.state(name)) for name in watched.fleet.simulation.servers]
    lost = of_inventory if which == "of the inventory" else next(node for node in others if node is not of_inventory)
    lost.kill()
    killed = time.monotonic()
    wait_until(lambda: lost.port not in watched.cluster.owners(), "its replica is promoted")
    promoted = time.monotonic() - killed
    answered = watched.watch.answer_again("the promotion")
    written = watched.written_again()
    print(
        f"kill -9 of the primary {which}: its replica was promoted after {promoted:.2f} s; every reader was answered "
        f"{answered:.2f} s later and every server was written {written:.2f} s after that"
    )
    watched.check_work()
    lost.start()
    watched.cluster.wait_until_whole()
    assert lost.role() == "slave"
    watched.watch.answer_again("its return")
    watched.watch.report(f"kill -9 of the primary {which}")
    watched.watch.check()


def test_slots_move_while_readers_ask_and_workers_write(watched: Watched) -> None:
    """The slot of each target and of the inventory goes to another node, slowly: ASK, TRYAGAIN, then MOVED."""
    keys, nodes = watched.fleet.keys, watched.cluster
    primaries = [nodes.node(port) for port in sorted(nodes.owners())]
    moved = 0
    for key in (keys.fleet(), *(keys.state(name) for name in watched.fleet.simulation.servers)):
        source = nodes.primary_of(key)
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        nodes.begin_move(key_slot(key.encode()), source, target)
        watched.watch.answer_again("the beginning of a move")
        moved += nodes.move_keys(key_slot(key.encode()), source, target)
        watched.watch.answer_again("the move of the keys")
        nodes.end_move(key_slot(key.encode()), target)
        watched.watch.answer_again("the end of a move")
        assert nodes.primary_of(key) is target
    written = watched.written_again()
    watched.check_work()
    print(f"{moved} keys of {SERVERS + 1} slots moved; every server was written {written:.2f} s later")
    assert moved > SERVERS
    watched.watch.report("slots that move")
    watched.watch.check()
    assert all(reader.refused.keys() <= {Unavailable.MOVED} for reader in watched.watch.readers)


@pytest.fixture(scope="module")
def quiet() -> Iterator[Cluster]:
    """A Cluster that nobody breaks."""
    with cluster(replicas=0) as running:
        yield running


class Ask:
    """A Link or an AsyncLink to a Cluster behind one blocking method."""

    def __init__(self, url: str, kind: str) -> None:
        self.kind = kind
        self._loop = asyncio.Runner()
        self.link: Any = async_link_from_url(url) if kind == "asyncio" else link_from_url(url)

    def __call__(self, commands: list[tuple[Any, ...]], **more: Any) -> list[Any]:
        replies: list[Any]
        if self.kind == "asyncio":
            replies = self._loop.run(self.link.exchange(commands, **more))
        else:
            replies = self.link.exchange(commands, **more)
        return replies

    def scan(self, match: str) -> list[bytes]:
        """Return the keys of a pattern."""

        async def found() -> list[bytes]:
            return [key async for key in self.link.scan(match)]

        return self._loop.run(found()) if self.kind == "asyncio" else list(self.link.scan(match))

    def close(self) -> None:
        """Close the link."""
        if self.kind == "asyncio":
            self._loop.run(self.link.aclose())
        else:
            self.link.close()
        self._loop.close()


@pytest.fixture(params=["sync", "asyncio"])
def ask(quiet: Cluster, request: pytest.FixtureRequest) -> Iterator[Ask]:
    made = Ask(quiet.url, request.param)
    yield made
    made.close()


def key_on(cluster: Cluster, node: ServerProcess, name: str) -> str:
    return next(key for n in range(1000) if cluster.primary_of(key := f"{{{n}}}:{name}") is node)


def test_each_node_is_asked_at_once_and_once(quiet: Cluster, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundred servers: one round trip to each node, and each command is sent once."""
    rounds: list[dict[Address, int]] = []
    for kind in (ClusterLink, AsyncClusterLink):
        original = kind._answers

        def counted(self: Any, batches: Any, deadline: Any, original: Any = original) -> Any:
            rounds.append({address: len(batch) for address, batch in batches.items()})
            return original(self, batches, deadline)

        monkeypatch.setattr(kind, "_answers", counted)
    keys = Keys("round-trips")
    names = [keys.state(f"ts{number}") for number in range(100)]
    ask([("SET", name, name, "PX", 60_000) for name in names])
    rounds.clear()
    assert ask([("TIME",), *(("GET", name) for name in names)])[1:] == [name.encode() for name in names]
    assert len(rounds) == 1
    assert rounds[0].keys() == {node.address for node in quiet.nodes}
    assert sum(rounds[0].values()) == 101


def test_slots_that_move_answer_each_command_right(quiet: Cluster, ask: Ask) -> None:
    """ASK for what is gone already, MOVED for a slot that has another node, each within one exchange."""
    first, second, _ = quiet.nodes
    tag = key_on(quiet, first, ask.kind).partition("}")[0]
    here, gone, later = (f"{tag}}}:{ask.kind}:{name}" for name in ("here", "gone", "later"))
    slot = key_slot(here.encode())
    ask([("SET", here, "1", "PX", 60_000), ("SET", gone, "2", "PX", 60_000)])
    quiet.begin_move(slot, first, second)
    first.client.execute_command("MIGRATE", "127.0.0.1", second.port, gone, 0, 2000)
    script = "return redis.call('GET', KEYS[1])"
    commands = [("GET", here), ("GET", gone), ("EVAL", script, 1, gone), ("SET", later, "3", "PX", 60_000)]
    assert ask(commands) == [b"1", b"2", b"2", b"OK"]
    with pytest.raises(redis.exceptions.TryAgainError):
        ask([("EVAL", "return redis.call('MGET', KEYS[1], KEYS[2])", 2, here, gone)])
    assert quiet.move_keys(slot, first, second) == 1
    quiet.end_move(slot, second)
    assert ask([*commands[:3], ("GET", later)]) == [b"1", b"2", b"2", b"3"]
    assert ask([("EVAL", "return redis.call('MGET', KEYS[1], KEYS[2])", 2, here, gone)]) == [[b"1", b"2"]]


def test_keys_of_all_nodes_are_found(quiet: Cluster, ask: Ask) -> None:
    names = {f"scan:{ask.kind}:{number}".encode() for number in range(1500)}
    ask([("SET", name, "1", "PX", 60_000) for name in names])
    assert set(ask.scan(f"scan:{ask.kind}:*")) == names


def test_a_command_without_a_key_goes_near_what_is_named(quiet: Cluster, ask: Ask) -> None:
    for node in quiet.nodes:
        told = ask([("INFO", "server")], near=key_on(quiet, node, "near"))[0].decode()
        assert f"tcp_port:{node.port}\r\n" in told


def refusal(ask: Callable[[], object]) -> CacheUnavailable:
    with pytest.raises(CacheUnavailable) as caught:
        ask()
    return caught.value


def test_a_server_that_is_no_cluster() -> None:
    server = ServerProcess(_binary())
    try:
        server.start()
        with FleetCache.from_url(f"redis+cluster://127.0.0.1:{server.port}") as cache:
            told = refusal(lambda: cache.is_cached("all"))
        assert "this Redis is no Cluster: use redis://HOST:PORT/DB" in str(told)
    finally:
        server.close()


def test_what_readers_are_told_by_a_cluster_that_is_broken() -> None:
    with cluster(replicas=0) as running:
        one, two, three = running.nodes
        key = key_on(running, three, "x")
        with FleetCache.from_url(running.url) as cache:
            assert not cache.is_cached("all")
        link = link_from_url(running.url)
        assert link.exchange([("GET", key)]) == [None]
        one.kill()
        wait_until(lambda: _is_down(link, key), "the Cluster is down")
        with FleetCache.from_url(f"redis+cluster://127.0.0.1:{three.port}") as cache:
            told = refusal(lambda: wait_until(lambda: cache.is_cached("all"), "is refused"))
        assert told.reason in (Unavailable.CLUSTER_DOWN, Unavailable.UNREACHABLE)
        two.kill()
        three.kill()
        with FleetCache.from_url(running.url) as cache:
            began = time.monotonic()
            told = refusal(lambda: cache.is_cached("all"))
            assert time.monotonic() - began < SLACK_SECONDS
        assert told.reason is Unavailable.UNREACHABLE
        for node in running.nodes:
            assert f"127.0.0.1:{node.port}" in str(told) or node is not one
        link.close()


def _is_down(link: Any, key: str) -> bool:
    try:
        link.exchange([("GET", key)])
    except redis.exceptions.ClusterDownError:
        return True
    return False


def test_threads_share_a_link(quiet: Cluster) -> None:
    """Replies never go to another thread's question."""
    link = link_from_url(quiet.url)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(100):
            names = [f"thread:{number}:{turn}:{n}" for n in range(6)]
            link.exchange([("SET", name, name, "PX", 60_000) for name in names])
            found = link.exchange([("GET", name) for name in names])
            if found != [name.encode() for name in names]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link.close()
    assert wrong == []
