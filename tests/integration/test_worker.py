"""A whole worker against simulated servers and a real Valkey: fills, follows, shares, survives Redis, lets go."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from x2gofleet_workers import worker as worker_module
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.simulator import RunningSimulation, running_simulation
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.processes import OwnValkey
from tests.waiting import LOOKUP_SECONDS, SLACK_SECONDS, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.errors import CacheUnavailable, RefreshFailed
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import Lease, Store

TICK_SECONDS = 1.0
SERVERS = 3


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    server = OwnValkey()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def running(valkey: OwnValkey) -> OwnValkey:
    valkey.start()
    return valkey


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(SERVERS, 9, directory=tmp_path) as simulated:
        yield simulated


Start = Callable[..., Worker]


@pytest.fixture
def start(simulation: RunningSimulation, valkey: OwnValkey, tmp_path: Path) -> Iterator[Start]:
    """Starts workers; ``intervals`` are those of fleet.toml in seconds. Stopped with the test."""
    workers: list[Worker] = []

    def run(name: str = "w1", *, more: str = "", **intervals: float) -> Worker:
        chosen = {"sessions": 0.2, "load": 0.2, "mounts": 0.5, **intervals}
        path = tmp_path / f"{name}.toml"
        table = "".join(f"{kind} = {seconds}\n" for kind, seconds in chosen.items())
        path.write_text(f"{simulation.inventory.read_text()}\n[intervals]\n{table}{more}")
        worker = Worker(load_inventory(path), WorkerSettings(valkey.url, worker_id=name))
        workers.append(worker)
        worker.start()
        return worker

    yield run
    for worker in workers:
        worker.stop()


@pytest.fixture
def cache(valkey: OwnValkey) -> Iterator[FleetCache]:
    with FleetCache(valkey.client, lookup_seconds=LOOKUP_SECONDS) as reader:
        yield reader


def quietly(ask: Callable[[], object]) -> object:
    with contextlib.suppress(CacheUnavailable):
        return ask()
    return None


def is_filled(cache: FleetCache) -> bool:
    return bool(quietly(lambda: cache.is_cached("all", cache_type="sessions")))


def statuses(cache: FleetCache) -> dict[str, str]:
    found = cache.list_sessions(profile_name="all")
    return {} if found is None else {name: info.status for name, info in found.items()}


def simulated(simulation: RunningSimulation) -> dict[str, str]:
    return {
        session.name: session.status
        for server in simulation.servers.values()
        for session in server.sessions
        if session.status != "F"
    }


def polled_at(valkey: OwnValkey, target: str, kind: Kind = Kind.SESSIONS) -> int:
    return int(valkey.client.hget(Keys().snapshot(target, kind), "polled_at") or 0)


# Filling and following


def test_the_first_fill_is_all_that_the_servers_have(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    assert statuses(cache) == simulated(simulation) != {}
    wait_until(lambda: cache.is_cached("all", cache_type="mounts"), "mounts are cached")
    assert {status.id: status.up for status in cache.servers()} == {"ts01": True, "ts02": True, "ts03": True}
    load = cache.load("all")
    assert load is not None
    assert set(load) == {"ts01", "ts02", "ts03"}
    assert not cache.is_cached("all", cache_type="desktops")


def test_every_change_of_a_session_is_seen(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    server = simulation.server("ts02")
    name = server.start_session("li_wei")
    wait_until(lambda: name in statuses(cache), "a session that is being started is seen")
    found = cache.list_sessions(profile_name="all", username="li_wei")
    assert found is not None
    assert found[name].is_starting()
    wait_until(lambda: (cache.find_sessions(username="li_wei") or {})[name].agent_pid, "it is ready")
    for change, status in ((server.suspend, "S"), (server.resume, "R")):
        change(name)
        wait_until(lambda status=status: statuses(cache)[name] == status, f"status {status}")  # type: ignore[misc]
    server.end(name)
    wait_until(lambda: name not in statuses(cache), "it ended")


def test_unchanged_sessions_are_confirmed_and_stay_fresh(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    worker = start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    before = polled_at(running, "ts01")
    wait_until(lambda: worker.pollers["ts01"].counters.confirmed >= 8, "eight polls without a change")
    assert worker.pollers["ts01"].counters.full_listings == 1
    assert simulation.server("ts01").counters.full_listings == 1
    assert simulation.server("ts01").counters.commands == 0
    assert polled_at(running, "ts01") - before > 1000
    assert cache.snapshots(server="ts01", kind="sessions")[0].age < 1.0
    name = simulation.server("ts01").start_session("alice", ready=True)
    wait_until(lambda: name in statuses(cache), "the change is seen")
    assert worker.pollers["ts01"].counters.full_listings == 2


def test_once_a_minute_the_listing_is_made_anew(
    running: OwnValkey, simulation: RunningSimulation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2gofleet_workers.polling.exchange.RELIST_SECONDS", 0.7)
    worker = start()
    wait_until(lambda: worker.pollers and worker.pollers["ts01"].counters.full_listings >= 3, "it is listed again")
    assert worker.pollers["ts01"].counters.confirmed >= 2


def test_a_refresh_lists_in_full_and_asks_users_for_their_desktops(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    worker = start(sessions=60, load=60, mounts=60)
    wait_until(lambda: is_filled(cache), "sessions are cached")
    name = simulation.server("ts01").start_session("john_doe", "DMATE", ready=True)
    snapshots = cache.update("all")
    assert sorted(snapshot.target for snapshot in snapshots) == ["ts01", "ts02", "ts03"]
    assert name in statuses(cache)
    # The first, that of the refresh, and perhaps one on the server's notice of the new session.
    assert worker.pollers["ts01"].counters.full_listings in (2, 3)
    assert cache.list_desktops(profile_name="all", username="john_doe") is None
    cache.update("all", update_sessions=False, update_desktops=True, username="john_doe")
    desktops = cache.list_desktops(profile_name="all", username="john_doe")
    assert desktops is not None
    assert [each for each in desktops if each.startswith("john_doe@:")]
    found = cache.update("all", update_sessions=False, update_desktops=True)
    assert {snapshot.kind for snapshot in found} == {Kind.DESKTOPS}
    users = {session.username for session in simulation.server("ts01").sessions if session.status != "F"}
    assert {snapshot.target for snapshot in found if snapshot.server == "ts01"} == {f"{user}@ts01" for user in users}


def test_a_delete_drops_everything_and_the_next_poll_fills_it_again(
    running: OwnValkey, start: Start, cache: FleetCache
) -> None:
    start(sessions=60, load=60, mounts=60)
    wait_until(lambda: cache.is_cached("all", cache_type="mounts"), "it is filled")
    cache.update("all", update_desktops=True, username="alice")
    cache.delete("all")
    assert not cache.is_cached("all")
    assert not cache.is_cached("all", username="alice", cache_type="desktops")
    assert [key for key in running.all_keys() if key.endswith((":sessions", ":load", ":mounts", ":desktops"))] == []
    cache.update("all")
    assert cache.is_cached("all", cache_type="sessions")


def test_a_request_with_a_name_that_is_none_is_answered_and_reaches_no_server(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start(sessions=60, load=60, mounts=60)
    wait_until(lambda: cache.is_cached("all", cache_type="mounts"), "it is filled")
    keys = Keys()
    for number, body in enumerate(
        (
            {"operation": "refresh", "kinds": ["desktops"], "username": "x\npoll aa server 9 load"},
            {"operation": "refresh", "kinds": ["printers"]},
            {"operation": "refresh", "kinds": 5},
            {"operation": "refresh", "kinds": ["sessions"], "target": "nobody@nowhere"},
        )
    ):
        request = {"id": f"r{number}", "target": "ts01", **body}
        running.client.rpush(keys.refresh_requests("w1"), json.dumps(request))
        reply = running.client.blpop([keys.refresh_answers(f"r{number}")], 10)
        assert reply is not None, body
        assert json.loads(reply[1])["error"], body
    for garbage in (b"\xff", b"[]", b"3", b"{}", b"null"):
        running.client.rpush(keys.refresh_requests("w1"), garbage)
    assert cache.update("all", timeout=10)
    assert all(server.counters.error_answers == 0 for server in simulation.servers.values())


def test_a_server_that_is_down_fails_alone_and_comes_back(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    simulation.server("ts02").set_fault("dead")
    wait_until(lambda: {each.id: each.up for each in cache.servers()}["ts02"] is False, "ts02 is seen down")
    (down,) = (each for each in cache.servers() if each.id == "ts02")
    assert down.error_class in ("ConnectionLost", "Unreachable")
    assert is_filled(cache), "the others and its last good snapshot stand"
    with pytest.raises(RefreshFailed) as caught:
        cache.update("all")
    assert set(caught.value.errors) == {"ts02"}
    assert sorted(snapshot.server for snapshot in caught.value.partial) == ["ts01", "ts03"]
    simulation.server("ts02").clear_fault()
    wait_until(lambda: all(each.up for each in cache.servers()), "ts02 is back")


def test_an_answer_as_another_user_is_never_stored(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    before = statuses(cache)
    simulation.server("ts01").set_fault("empty")
    wait_until(lambda: {each.id: each.up for each in cache.servers()}["ts01"] is False, "it is seen as failed")
    assert statuses(cache) == before
    wait_until(lambda: cache.servers()[0].error_class == "NotPermitted", "the next login is told as what it is")
    assert 'scope "server"' in cache.servers()[0].error_text


def test_faults_on_a_standing_connection_are_backed_off_from(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    worker = start(sessions=0.1, load=0.1)
    wait_until(lambda: is_filled(cache), "sessions are cached")
    simulation.server("ts01").set_fault("empty")
    wait_until(lambda: cache.servers()[0].error_class == "NotPermitted", "a fault of the set-up")
    server = simulation.server("ts01")
    before = server.counters
    wait_until(lambda: server.counters.polls >= before.polls + 15, "its load is polled on")
    assert server.counters.full_listings == before.full_listings
    assert server.counters.connections == before.connections
    assert worker.pollers["ts01"].connected


def test_rows_that_are_left_out_are_told_once(
    running: OwnValkey, simulation: RunningSimulation, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "x2gofleet_workers")
    server = simulation.server("ts01")
    server.set_mounts(server.start_session("alice", ready=True), [("a|b", "/x")])
    worker = start(mounts=0.1)
    wait_until(lambda: worker.pollers and worker.pollers["ts01"].counters.polls >= 20, "it was polled often")
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("ts01: 1 row(s) of mounts left out")


def test_nothing_that_is_logged_or_recorded_holds_a_cookie(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    start(sessions=0.1)
    wait_until(lambda: is_filled(cache), "sessions are cached")
    cookies = {session.cookie for server in simulation.servers.values() for session in server.sessions} - {""}
    assert len(cookies) > 5
    simulation.server("ts01").set_fault("garbage")
    simulation.server("ts02").set_fault("empty")
    wait_until(lambda: [each.up for each in cache.servers()] == [False, False, True], "two have failed")
    states = b"".join(
        b"".join(running.client.hgetall(key).values()) for key in running.all_keys() if key.endswith((":state", ":w1"))
    )
    said = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("asyncssh"))
    assert states
    assert not [cookie for cookie in cookies if cookie in said or cookie.encode() in states]


# Stopping and sharing


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "x2gofleet-" in thread.name]


def test_a_stop_lets_go_of_everything(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    worker = start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    assert [key for key in running.all_keys() if key.endswith(":lease")]
    worker.stop()
    left = running.all_keys()
    assert [key for key in left if "lease" in key or "worker" in key] == []
    assert is_filled(cache), "snapshots are left to age out"
    wait_until(lambda: all(s.counters.open_connections == 0 for s in simulation.servers.values()), "no connection")
    lasting = {"x2gofleet-deadlines", "x2gofleet-simulation", "x2gofleet-resolver"}
    wait_until(lambda: set(ours()) <= lasting, f"no thread is left: {ours()}")
    polls = [server.counters.polls for server in simulation.servers.values()]
    worker.stop()
    assert [server.counters.polls for server in simulation.servers.values()] == polls


@pytest.mark.parametrize("fault", ["hang", "tarpit", "slow=60"])
def test_a_stop_cuts_what_hangs(
    fault: str, running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    if fault == "tarpit":
        simulation.server("ts01").set_fault(fault)
    worker = start()
    wait_until(lambda: is_filled(cache) or fault == "tarpit", "sessions are cached")
    simulation.server("ts01").set_fault(fault)
    server = simulation.server("ts01")
    if fault == "tarpit":
        wait_until(lambda: server.counters.open_connections >= 1, "it is connecting")
    else:
        wait_until(lambda: server.counters.running_polls >= 1, "a poll hangs")
    worker.stop()
    pools = ("x2gofleet-connecting", "ThreadPoolExecutor")
    wait_until(lambda: not [name for name in ours() if name.startswith(pools)], "no thread hangs", SLACK_SECONDS)


def owners(valkey: OwnValkey) -> dict[str, str]:
    found = {name: valkey.client.hget(Keys().lease(name), "owner") for name in ("ts01", "ts02", "ts03")}
    return {name: owner.decode() for name, owner in found.items() if owner}


def test_two_workers_share_and_one_takes_over_within_a_tick(
    running: OwnValkey, start: Start, cache: FleetCache
) -> None:
    first = start("w1")
    wait_until(lambda: list(owners(running).values()) == ["w1"] * SERVERS, "the first has all")
    second = start("w2")
    wait_until(lambda: sorted(owners(running).values()) in (["w1", "w1", "w2"], ["w1", "w2", "w2"]), "shares are even")
    wait_until(lambda: len(first.pollers) + len(second.pollers) == SERVERS, "each is polled by one")
    wait_until(lambda: is_filled(cache), "sessions are cached")
    gone = [name for name, owner in owners(running).items() if owner == "w2"]
    second.stop()
    assert "w2" not in owners(running).values(), "it waits for no lease to expire"
    took = wait_until(lambda: set(first.pollers) >= set(gone), "the first takes over")
    print(f"taken over after {took:.2f} s")
    marks = {name: polled_at(running, name) for name in gone}
    wait_until(lambda: all(polled_at(running, name) > mark for name, mark in marks.items()), "they are polled on")
    assert all(status.up for status in cache.servers())


def test_a_lease_that_another_took_means_no_more_writes(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    worker = start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    key = Keys().lease("ts01")
    stolen = Lease("ts01", "stolen", int(running.client.hget(key, "fence") or 0) + 1)
    pipeline = running.client.pipeline(transaction=True)
    pipeline.hset(key, mapping={"owner": "thief", "nonce": stolen.nonce, "fence": stolen.fence})
    pipeline.pexpire(key, 60_000)
    pipeline.hgetall(Keys().snapshot("ts01", Kind.SESSIONS))
    before = pipeline.execute()[-1]
    simulation.server("ts01").start_session("alice")
    wait_until(lambda: "ts01" not in worker.pollers, "the worker gives it up")
    after = running.client.hgetall(Keys().snapshot("ts01", Kind.SESSIONS))
    assert after == before
    assert is_filled(cache), "the last snapshot stands"
    assert Store(running.client, Keys(), "thief").release(stolen)
    wait_until(lambda: polled_at(running, "ts01") > int(before[b"polled_at"]), "it is taken again and polled on")


# Redis goes and comes


def test_after_flushall_the_same_tick_lists_in_full(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    interval = 0.5
    worker = start(sessions=interval)
    wait_until(lambda: is_filled(cache), "sessions are cached")
    wait_until(lambda: all(each.counters.confirmed >= 2 for each in worker.pollers.values()), "polls confirm")
    running.client.flushall()
    took = wait_until(lambda: all(polled_at(running, name) for name in simulation.servers), "all snapshots are back")
    print(f"refilled {took:.2f} s after FLUSHALL, at an interval of {interval} s")
    took += wait_until(lambda: is_filled(cache), "readers find the inventory")
    assert all(server.counters.full_listings == 2 for server in simulation.servers.values())


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_redis_restarts_empty_and_polls_go_on(
    how: str,
    running: OwnValkey,
    simulation: RunningSimulation,
    start: Start,
    cache: FleetCache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    running.kill(signal.SIGTERM if how == "stopped" else signal.SIGKILL)
    name = simulation.server("ts01").start_session("alice", ready=True)
    wait_until(lambda: "Redis can't be used" in caplog.text, "the outage is told")
    running.start()
    took = wait_until(lambda: is_filled(cache) and name in statuses(cache), "it is filled again")
    print(f"filled again {took:.2f} s after Redis was back")
    assert caplog.text.count("leases can't be renewed") == 1


def test_redis_that_hangs_and_wakes(
    running: OwnValkey, simulation: RunningSimulation, start: Start, cache: FleetCache
) -> None:
    start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    assert running.process is not None
    running.process.send_signal(signal.SIGSTOP)
    polls = simulation.server("ts01").counters.polls
    # Long enough that commands time out, short enough that leases outlive it.
    wait_until(lambda: simulation.server("ts01").counters.polls >= polls + 1, "a poll was made")
    name = simulation.server("ts01").start_session("alice", ready=True)
    running.process.send_signal(signal.SIGCONT)
    wait_until(lambda: name in (quietly(lambda: statuses(cache)) or ()), "polls are stored again")


def test_redis_that_hangs_does_not_keep_a_worker_from_stopping(
    running: OwnValkey, start: Start, cache: FleetCache
) -> None:
    worker = start()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    assert running.process is not None
    running.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    worker.stop()
    took = time.monotonic() - began
    running.process.send_signal(signal.SIGCONT)
    print(f"stopped within {took:.2f} s while Redis hung")
    assert took < worker_module.STOP_SECONDS + SLACK_SECONDS


def test_without_redis_it_says_so_keeps_trying_and_fills_when_it_comes(
    valkey: OwnValkey, start: Start, cache: FleetCache, caplog: pytest.LogCaptureFixture
) -> None:
    start()
    wait_until(lambda: "can't be used" in caplog.text and "--embedded" in caplog.text, "the ways out are told")
    assert valkey.url in caplog.text
    assert quietly(lambda: is_filled(cache)) is False
    valkey.start()
    took = wait_until(lambda: is_filled(cache), "it is filled")
    print(f"filled {took:.2f} s after Redis came")
    assert caplog.text.count("Start a Redis or Valkey there") == 1


def _as_a_list(client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.rpush(key, "x")


def _with_fields(**fields: str | bytes) -> Callable[[redis.Redis, str], object]:
    return lambda client, key: client.hset(key, mapping=fields)  # type: ignore[arg-type]


DAMAGES: dict[str, Callable[[redis.Redis, str], object]] = {
    "another version and document": _with_fields(version="x", document="{not json"),
    "another type": _as_a_list,
    "a version that is not UTF-8": _with_fields(version=b"\xff\xfe"),
    "a version of 5000 digits": _with_fields(version="9" * 5000),
    "a version beyond all": _with_fields(version="z"),
    "an empty version": _with_fields(version=""),
    "no version": lambda client, key: client.hdel(key, "version"),
    "no document": lambda client, key: client.hdel(key, "document"),
    "another document of the same version": _with_fields(document="{}"),
    "a document of 100 000 brackets": _with_fields(document=b"[" * 100_000),
    "a document that is not UTF-8": _with_fields(document=b"\xff"),
    "no time": lambda client, key: client.hdel(key, "published_at"),
    "a time that is not a number": _with_fields(published_at="yesterday"),
    "a time of 400 digits": _with_fields(published_at="9" * 400),
    "nothing at all": lambda client, key: client.delete(key),
}


def test_a_damaged_inventory_in_redis_is_replaced(running: OwnValkey, start: Start, cache: FleetCache) -> None:
    worker, key = start(), Keys().fleet()
    wait_until(lambda: is_filled(cache), "sessions are cached")
    published = worker._inventory.published

    def is_good(version: bytes | None = None) -> bool:
        stored = running.client.hgetall(key) if running.client.type(key) == b"hash" else {}
        at = stored.get(b"published_at", b"")
        if version is not None and stored.get(b"version") != version:
            return False
        return stored.get(b"document") == published.to_json().encode() and at.isdigit() and len(at) < 16

    for name, damage in DAMAGES.items():
        wait_until(is_good, f"it is well before {name}")
        version = running.client.hget(key, "version")
        damage(running.client, key)
        wait_until(partial(is_good, version), f"{name} is repaired")
    assert is_filled(cache)
    assert worker.live_problem() == ""


# Smaller things


@pytest.mark.parametrize("name", ["a b", "x\n", "a:b", "", "{w}", "w" * 81, "\u00e4"])
def test_worker_ids_are_checked(name: str, simulation: RunningSimulation, valkey: OwnValkey) -> None:
    fleet = load_inventory(simulation.inventory)
    settings = WorkerSettings(valkey.url, worker_id=name)
    if not name:
        assert Worker(fleet, settings).id == worker_module.default_worker_id()
        return
    with pytest.raises(ValueError, match="is no worker id"):
        Worker(fleet, settings)


def test_a_fleet_of_one_server(running: OwnValkey, cache: FleetCache, tmp_path: Path) -> None:
    with running_simulation(1, 2, directory=tmp_path / "one") as one:
        worker = Worker(load_inventory(one.inventory), WorkerSettings(running.url))
        worker.start()
        try:
            wait_until(lambda: is_filled(cache), "sessions are cached")
            assert worker.id == worker_module.default_worker_id()
        finally:
            worker.stop()
