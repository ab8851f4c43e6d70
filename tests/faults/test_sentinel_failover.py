"""A group of two servers and three sentinels fails over, in each way, while readers ask and workers write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import LiveFleet
from tests.topologies import SERVICE, SentinelGroup, ServerProcess, sentinel_group
from tests.waiting import SLACK_SECONDS, wait_until
from tests.watching import Watch, check_owned, working_fleet
from x2gofleet.cache import FleetCache
from x2gofleet.connection import link_from_url
from x2gofleet.errors import CacheUnavailable, Unavailable

pytestmark = pytest.mark.faults

SERVERS = 4
TTL_SECONDS = 15.0
# Until sentinels make a master that was deposed while it hung a replica.
DEMOTED_WITHIN_SECONDS = 60.0


@dataclass
class Watched:
    """A fleet whose workers write to a group, and the readers that ask it."""

    group: SentinelGroup
    fleet: LiveFleet
    watch: Watch

    def wait_for_another_master(self, old: ServerProcess) -> float:
        """Wait until the sentinels agree on another master; return how long that took."""
        return wait_until(
            lambda: len(self.group.agreed()) == 1 and old.port not in self.group.agreed(), "the sentinels agree"
        )

    def check_heal(self, what: str, agreed: float) -> None:
        """Check that readers are answered and workers write, lease and answer again; print how soon."""
        since_ms = int(time.time() * 1000)
        answered = self.watch.answer_again(what)
        written = wait_until(lambda: self.fleet.is_full(since_ms=since_ms), "every server is polled again")
        print(
            f"{what}: the sentinels agreed after {agreed:.2f} s; every reader was answered {answered:.2f} s later and "
            f"every server was written {written:.2f} s after that"
        )
        check_owned(self.fleet)
        assert len(self.fleet.cache.update("all", timeout=10)) == SERVERS
        assert self.group.master.client.get(self.fleet.keys.fence("ts01")) is not None
        self.fleet.check_workers()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with (
        sentinel_group() as group,
        working_fleet(tmp_path, group.url, servers=SERVERS, ttl_seconds=TTL_SECONDS) as (fleet, watch),
    ):
        yield Watched(group, fleet, watch)


def test_the_master_is_killed(watched: Watched) -> None:
    old = watched.group.master
    old.kill()
    agreed = watched.wait_for_another_master(old)
    watched.check_heal("kill -9 of the master", agreed)
    watched.watch.report("kill -9 of the master")
    watched.watch.check()


def test_the_master_hangs_and_comes_back(watched: Watched) -> None:
    """It believes to be the master still, and the connections to it survived."""
    old = watched.group.master
    old.pause()
    agreed = watched.wait_for_another_master(old)
    old.resume()
    watched.check_heal("a master that hangs", agreed)
    took = wait_until(lambda: old.role() == "slave", "the old master is demoted", DEMOTED_WITHIN_SECONDS)
    print(f"the old master was demoted {took:.1f} s after it came back")
    watched.check_heal("its demotion", 0.0)
    watched.watch.report("a master that hangs")
    watched.watch.check()


def test_a_failover_on_command(watched: Watched) -> None:
    old = watched.group.master
    watched.group.fail_over()
    agreed = watched.wait_for_another_master(old)
    watched.check_heal("a failover on command", agreed)
    wait_until(lambda: old.role() == "slave", "the old master is demoted", DEMOTED_WITHIN_SECONDS)
    watched.watch.report("a failover on command")
    watched.watch.check()


def refusal(ask: Callable[[], object]) -> tuple[CacheUnavailable, float]:
    began = time.monotonic()
    with pytest.raises(CacheUnavailable) as caught:
        ask()
    return caught.value, time.monotonic() - began


def test_what_readers_are_told_without_a_master() -> None:
    with sentinel_group() as group:
        other = group.url.replace(f"/{SERVICE}/", "/another/")
        with FleetCache.from_url(other) as cache:
            told, _ = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.NO_MASTER
        assert "no sentinel names a master of the service 'another'" in str(told)
        for sentinel in group.sentinels:
            assert f"127.0.0.1:{sentinel.port} knows no service 'another'" in str(told)
        for server in group.servers:
            server.kill()
        wait_until(
            lambda: all("down" in sentinel.state() for sentinel in group.sentinels), "every sentinel misses the master"
        )
        with FleetCache.from_url(group.url) as cache:
            told, _ = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.NO_MASTER
        assert "sees the master 127.0.0.1:" in str(told)
        for sentinel in group.sentinels:
            sentinel.pause()
        with FleetCache.from_url(group.url) as cache:
            told, seconds = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.NO_MASTER
        assert f"'{SERVICE}'" in str(told)
        assert seconds < SLACK_SECONDS, "a call ends within its deadline where every sentinel hangs"


def test_sentinels_and_servers_that_want_passwords() -> None:
    with sentinel_group(lines=("user reader on >one ~* +@all",)) as group:
        for sentinel in group.sentinels:
            sentinel.client.execute_command("ACL", "SETUSER", "asker", "on", ">two", "+@all")
            sentinel.client.execute_command("ACL", "SETUSER", "default", "-@all", "+ping")
        with FleetCache.from_url(group.url) as cache:
            told, _ = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.NO_MASTER
        assert "permission" in str(told)
        url = group.url.replace("://", "://reader:one@") + "?sentinel_username=asker&sentinel_password=two"
        with FleetCache.from_url(url) as cache:
            assert not cache.is_cached("all")
        with FleetCache.from_url(url.replace("reader:one@", "reader:wrong@")) as cache:
            told, _ = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.AUTHENTICATION


def test_sentinels_that_die_are_no_matter_to_who_knows_the_master() -> None:
    with sentinel_group() as group:
        link = link_from_url(group.url)
        assert link.exchange([("SET", "x", "1")]) == [b"OK"]
        for sentinel in group.sentinels:
            sentinel.kill()
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert link.exchange([("GET", "x")], deadline=time.monotonic() + 1.0) == [b"1"]
        link.close()


def test_a_replica_is_not_taken_for_the_master() -> None:
    """What the sentinels name proves to be no master: it is not read, and left once they name another."""
    with sentinel_group() as group, FleetCache.from_url(group.url) as cache:
        master = group.master
        replica = next(server for server in group.servers if server is not master)

        def watch(server: ServerProcess) -> None:
            for sentinel in group.sentinels:
                sentinel.client.execute_command("SENTINEL", "REMOVE", SERVICE)
                sentinel.client.execute_command("SENTINEL", "MONITOR", SERVICE, *server.address, 3)

        watch(replica)
        told, _ = refusal(lambda: cache.is_cached("all"))
        assert told.reason is Unavailable.NO_MASTER
        assert f"127.0.0.1:{replica.port} is no master, but a replica" in str(told)
        watch(master)

        def is_asked() -> bool:
            try:
                return not cache.is_cached("all")
            except CacheUnavailable:
                return False

        took = wait_until(is_asked, "the master is asked")
        print(f"the master was asked {took:.2f} s after the sentinels named it")
