"""What readers ask of workers, done by a real worker that polls simulated servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.simulator import RunningSimulation, running_simulation
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.waiting import wait_until
from x2gofleet import RefreshFailed
from x2gofleet.keys import Keys


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulation]:
    with running_simulation(servers=2, sessions=6, directory=tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
def worker(simulation: RunningSimulation, valkey_url: str, namespace: str, cache: Any) -> Iterator[Worker]:
    """A worker that has polled the simulated servers."""
    made = Worker(load_inventory(simulation.inventory), WorkerSettings(valkey_url, namespace, "real"))
    made.start()
    try:
        wait_until(lambda: cache.is_cached("all", cache_type="sessions"))
        yield made
    finally:
        made.stop()


@pytest.mark.usefixtures("worker")
def test_a_real_worker_does_what_readers_ask(
    cache: Any, simulation: RunningSimulation, redis_client: redis.Redis, keys: Keys
) -> None:
    server = simulation.server("ts01")
    name = server.start_session("carol", shared_with=["dave"], mounts=[("127.0.0.1", "/media/carol")])
    found = cache.update("all", update_mounts=True)
    assert {(each.server, each.kind.value) for each in found} == {
        (each, kind) for each in ("ts01", "ts02") for kind in ("sessions", "mounts")
    }
    assert cache.find_sessions(username="carol")[name].server == "ts01"
    assert cache.list_mounts(profile_name="all", username="carol") == ["127.0.0.1|/media/carol"]

    assert cache.list_desktops(profile_name="all", username="dave") is None
    desktops = cache.update("all", False, True, username="dave")
    assert {each.target for each in desktops} == {"dave@ts01", "dave@ts02"}
    display = cache.find_sessions(username="carol")[name].display
    wait_until(lambda: not cache.find_sessions(username="carol")[name].is_starting())
    cache.update("all", False, True, username="dave")
    assert cache.list_desktops(profile_name="all", username="dave") == [f"carol@:{display}"]

    redis_client.hset(keys.state("ts77"), "sessions.failures", "0")
    redis_client.pexpire(keys.state("ts77"), 60_000)
    cache.check_cache()
    assert not redis_client.exists(keys.state("ts77"))
    assert cache.list_desktops(profile_name="all", username="dave") == [f"carol@:{display}"]

    fences = {each.server: (each.fence, each.seq) for each in cache.snapshots(profile_name="all", kind="sessions")}
    cache.delete("all")
    wait_until(lambda: cache.is_cached("all", cache_type="sessions"))
    again = {each.server: (each.fence, each.seq) for each in cache.snapshots(profile_name="all", kind="sessions")}
    assert all(again[server] > fences[server] for server in fences)
    server.end(name)


@pytest.mark.usefixtures("worker")
def test_a_real_worker_says_which_server_is_down(cache: Any, simulation: RunningSimulation) -> None:
    server = simulation.server("ts02")
    server.set_fault("dead")
    try:
        with pytest.raises(RefreshFailed) as caught:
            cache.update("all")
        assert set(caught.value.errors) == {"ts02"}
        assert [each.server for each in caught.value.partial] == ["ts01"]
        status = {each.id: each for each in cache.servers()}
        assert (status["ts01"].up, status["ts02"].up, status["ts02"].owner) == (True, False, "real")
        assert status["ts02"].error_class in ("Unreachable", "ConnectionLost")
        assert cache.list_sessions(profile_name="all").missing_servers == ()
    finally:
        server.clear_fault()


def test_a_worker_that_stopped_owns_nothing(
    simulation: RunningSimulation, valkey_url: str, namespace: str, cache: Any, tmp_path: Path
) -> None:
    worker = Worker(load_inventory(simulation.inventory), WorkerSettings(valkey_url, namespace, "real"))
    worker.start()
    try:
        wait_until(lambda: cache.is_cached("all", cache_type="sessions"))
    finally:
        worker.stop()
    with pytest.raises(RefreshFailed, match="no worker owns it now"):
        cache.update("all")
    cache.check_cache()
    assert cache.is_cached("all", cache_type="sessions"), "what was cached stays until it expires"
