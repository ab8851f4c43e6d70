"""A changed inventory is taken over without a restart; of different ones the newest is in force."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers import worker as worker_module
from x2gofleet_workers.inventory import InventoryFile, load_inventory, parse_inventory
from x2gofleet_workers.ownership import fair_share
from x2gofleet_workers.worker import Worker, WorkerSettings

from tests.processes import LiveFleet, live_fleet
from tests.waiting import LOOKUP_SECONDS, SLACK_SECONDS, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.kinds import Kind
from x2gofleet.lookup import ServerStatus

SERVERS = 6
INTERVAL_SECONDS = 0.3
STALE_SECONDS = 2.0
FIVE = tuple(f"ts{number:02}" for number in range(1, 6))
TAKEN_OVER = re.compile(r"inventory \S+: (\d+) target\(s\), (\d+) new, (\d+) changed, (\d+) removed")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        yield made


def write(fleet: LiveFleet, name: str = "fleet.toml", **changes: object) -> Path:
    options: dict[str, object] = {"sessions": INTERVAL_SECONDS, "load": 1, "servers": FIVE, **changes}
    return fleet.write_inventory(name, **options)  # type: ignore[arg-type]


@pytest.fixture
def two(fleet: LiveFleet) -> LiveFleet:
    """Two workers that share the first five servers by one file."""
    path = write(fleet)
    for name in ("w1", "w2"):
        fleet.start(name, path)
    fleet.wait_for_shares("w1", "w2", servers=FIVE)
    return fleet


def taken_over(fleet: LiveFleet, times: int = 1) -> None:
    """Wait until both have taken over that many inventories."""
    wait_until(
        lambda: all(len(TAKEN_OVER.findall(worker.said)) >= times for worker in fleet.workers.values()),
        "both take it over",
    )


def keys_of(fleet: LiveFleet, target: str) -> set[str]:
    found = fleet.valkey.client.scan_iter(match=f"x2gofleet:{{{target}}}:*", count=500)
    return {key.decode().rpartition(":")[2] for key in found}


def lease(fleet: LiveFleet, target: str) -> tuple[object, ...]:
    return tuple(fleet.valkey.client.hmget(fleet.keys.lease(target), "owner", "nonce", "fence"))


def connections(fleet: LiveFleet) -> dict[str, int]:
    return {name: server.counters.connections for name, server in fleet.simulation.servers.items()}


def status(fleet: LiveFleet, name: str) -> ServerStatus:
    return next(each for each in fleet.cache.servers() if each.id == name)


def polled_on(fleet: LiveFleet, *names: str) -> None:
    """Wait until the servers were polled some more, and what was found is what readers get."""
    polls, marks = fleet.polls(), {name: fleet.polled_at(name) for name in names}
    wait_until(lambda: all(fleet.polls()[name] >= polls[name] + 3 for name in names), "they are polled")
    wait_until(lambda: all(fleet.polled_at(name) > mark for name, mark in marks.items()), "and stored")


Start = Callable[..., Worker]


@pytest.fixture
def start(fleet: LiveFleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts workers in this process, where an old inventory is borne with for 2 s alone."""
    monkeypatch.setattr(worker_module, "STALE_INVENTORY_SECONDS", STALE_SECONDS)
    workers: list[Worker] = []

    def run(name: str, path: Path) -> Worker:
        workers.append(Worker(load_inventory(path), WorkerSettings(fleet.valkey.url, worker_id=name)))
        workers[-1].start()
        return workers[-1]

    yield run
    for worker in workers:
        worker.stop()


def owned(worker: Worker) -> set[str]:
    return set(worker.pollers)


# One file, two workers


def test_a_server_that_is_added(two: LiveFleet) -> None:
    before = connections(two)
    fences = {name: lease(two, name) for name in FIVE}
    write(two, servers=None)
    took = wait_until(lambda: two.is_full() and len(two.cache.servers()) == SERVERS, "the new one is found too")
    print(f"a new server is found by readers {took:.2f} s after the file changed")
    taken_over(two)
    assert all(TAKEN_OVER.findall(worker.said) == [("6", "1", "0", "0")] for worker in two.workers.values())
    polled_on(two, "ts06")
    moved = [name for name in FIVE if lease(two, name) != fences[name]]
    assert len(moved) <= 1, "those that were there stay where they are, but for evenness"
    assert {name: count for name, count in connections(two).items() if count != before[name]}.keys() <= {*moved, "ts06"}
    two.check_workers()


def test_a_server_that_is_removed(two: LiveFleet) -> None:
    gone = "ts03"
    two.simulation.server(gone).start_session("zoe", ready=True)
    wait_until(lambda: "events" in keys_of(two, gone), "it has all sorts of keys")
    write(two, servers=[name for name in FIVE if name != gone])
    wait_until(lambda: len(two.cache.servers()) == 4 and two.is_full(), "readers know of four")
    taken_over(two)
    server = two.simulation.server(gone)
    wait_until(lambda: server.counters.open_connections == 0, "nobody is connected to it")
    wait_until(lambda: keys_of(two, gone) <= {"fence"}, "its keys go")
    polls = two.polls()
    polled_on(two, *(name for name in FIVE if name != gone))
    assert two.polls()[gone] == polls[gone]
    assert keys_of(two, gone) <= {"fence"}, "and don't come back"
    assert server.counters.open_connections == 0
    assert two.cache.snapshots(server=gone) == ()
    two.cache.check_cache()
    two.check_workers()


def test_a_server_that_moves_to_another_port(two: LiveFleet) -> None:
    before, polls = lease(two, "ts02"), two.polls()
    wait_until(lambda: two.polls()["ts02"] >= polls["ts02"] + 5, "it was polled often")
    old, new = (two.simulation.server(name) for name in ("ts02", "ts06"))
    path = two.folder / "fleet.toml"
    text = path.read_text()
    replacement = two.folder / "moved.toml"
    replacement.write_text(text.replace(f"port = {old.port}\n", f"port = {new.port}\n"))
    replacement.replace(path)
    name = new.start_session("zoe", ready=True)
    took = wait_until(lambda: name in two.session_names(), "its sessions are those of the new place")
    print(f"the new place is found by readers {took:.2f} s after the file changed")
    assert lease(two, "ts02") == before, "the lease is kept"
    wait_until(lambda: new.counters.polls >= 5, "it is polled there")
    wait_until(lambda: old.counters.open_connections == 0, "and no more where it was")
    assert status(two, "ts02").up
    assert two.cache.snapshots(server="ts02", kind="sessions")[0].age < SLACK_SECONDS
    taken_over(two)
    assert all(TAKEN_OVER.findall(worker.said) == [("5", "0", "1", "0")] for worker in two.workers.values())
    two.check_workers()


def test_another_interval(two: LiveFleet) -> None:
    before = {name: lease(two, name) for name in FIVE}
    polls = two.polls()
    wait_until(lambda: all(two.polls()[name] >= polls[name] + 10 for name in FIVE), "they were polled often")
    write(two, sessions=2, load=2)
    taken_over(two)
    marks = {name: two.polled_at(name) for name in FIVE}
    refreshed = wait_until(lambda: all(two.polled_at(name) > mark for name, mark in marks.items()), "writes are taken")
    wait_until(lambda: all(two.simulation.server(name).counters.connections >= 2 for name in FIVE), "they began anew")
    counted, began = two.polls(), time.monotonic()
    wait_until(lambda: all(two.polls()[name] >= counted[name] + 2 for name in FIVE), "two polls each")
    took = time.monotonic() - began
    print(f"the first write came {refreshed:.2f} s after the change, two polls at 2 s took {took:.2f} s")
    assert took > 1.5, "no longer every 0.3 s"
    assert {name: lease(two, name) for name in FIVE} == before, "the leases are kept"
    two.check_workers()


def test_a_bad_file_is_refused_and_the_old_one_stays(two: LiveFleet) -> None:
    path = two.folder / "fleet.toml"
    good = path.read_text()
    version = two.valkey.client.hget(two.keys.fleet(), "version")
    line = good.splitlines().index(next(each for each in good.splitlines() if each.startswith("port"))) + 1
    bad = re.sub(r"^port = \d+$", 'port = "ssh"', good, count=1, flags=re.MULTILINE)
    path.write_text(bad)
    told = f"the changed inventory is refused, the one before stays in force: {path}:{line}: "
    wait_until(lambda: all(told in worker.said for worker in two.workers.values()), "both say which line")
    assert all("'ssh' is no port" in worker.said for worker in two.workers.values())
    polled_on(two, *FIVE)
    assert two.valkey.client.hget(two.keys.fleet(), "version") == version
    assert two.is_full()
    path.unlink()
    wait_until(
        lambda: all("there is no such file" in worker.said for worker in two.workers.values()), "a missing one too"
    )
    polled_on(two, *FIVE)
    path.write_text(good)
    write(two, servers=None)
    wait_until(lambda: two.is_full() and len(two.cache.servers()) == SERVERS, "a good one is taken over")
    assert all(worker.said.count(told) == 1 for worker in two.workers.values()), "it is said once"
    two.check_workers()


def test_sighup_reads_a_file_that_does_not_look_changed(two: LiveFleet) -> None:
    path = two.folder / "fleet.toml"
    was = path.stat()
    old, new = (two.simulation.server(name).port for name in ("ts05", "ts06"))
    text = path.read_text().replace(f"port = {old}\n", f"port = {new}\n")
    with path.open("r+") as file:
        file.write(text)
        file.truncate()
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    same_size = path.stat().st_size == was.st_size
    polled_on(two, *FIVE)
    if same_size:
        assert not any(TAKEN_OVER.search(worker.said) for worker in two.workers.values())
    for worker in two.workers.values():
        worker.process.send_signal(signal.SIGHUP)
    taken_over(two)
    wait_until(lambda: two.simulation.server("ts06").counters.polls >= 3, "the new place is polled")
    two.check_workers()


def test_sighup_says_again_what_is_wrong(two: LiveFleet) -> None:
    worker = two.workers["w1"]
    (two.folder / "fleet.toml").write_text("[servers.ts01]\n")
    wait_until(lambda: worker.said.count("is refused") == 1, "it is refused")
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker.said.count("is refused") == 2, "whoever asks is told again")
    two.check_workers()


def test_a_file_that_is_written_in_place(two: LiveFleet) -> None:
    path = two.folder / "fleet.toml"
    inode = path.stat().st_ino
    path.write_text(two.inventory_text(servers=None, sessions=INTERVAL_SECONDS, load=1))
    assert path.stat().st_ino == inode
    took = wait_until(lambda: two.is_full() and len(two.cache.servers()) == SERVERS, "it is in force")
    print(f"a new server is found by readers {took:.2f} s after the file was written")
    taken_over(two)
    assert all("refused" not in worker.said for worker in two.workers.values())
    two.check_workers()


def test_a_file_that_is_being_written_is_not_read(fleet: LiveFleet) -> None:
    path = write(fleet)
    file = InventoryFile(load_inventory(path))
    whole = fleet.inventory_text(sessions=INTERVAL_SECONDS, load=1)
    # A good inventory by itself: of the first server alone.
    part = whole[: whole.index("[servers.ts02]")]
    assert set(parse_inventory(part).targets) == {"ts01"}
    for length in (len(part), len(part) + 20, len(part) + 50):
        path.write_text(whole[:length])
        assert file.changed() is None
        assert file.error == ""
    path.write_text(whole)
    assert file.changed() is None
    taken = file.changed()
    assert taken is not None
    assert set(taken.targets) == set(fleet.simulation.servers)
    assert file.changed() is None
    path.write_text(part)
    file.look_again()
    taken = file.changed()
    assert taken is not None, "who asks by SIGHUP says that it is whole"


def test_drain_weight_and_labels_are_published_and_disturb_nobody(two: LiveFleet) -> None:
    before, fences = connections(two), {name: lease(two, name) for name in FIVE}
    assert not any(each.drained for each in two.cache.servers())
    path = two.folder / "fleet.toml"
    text = path.read_text().replace(
        "[servers.ts04]\n", '[servers.ts04]\ndrain = true\nweight = 2.5\nlabels = ["gpu"]\n'
    )
    path.write_text(text)
    wait_until(lambda: status(two, "ts04").drained, "readers see that it is drained")
    assert [each.id for each in two.cache.servers() if each.drained] == ["ts04"]
    assert (status(two, "ts04").weight, status(two, "ts04").labels) == (2.5, ("gpu",))
    taken_over(two)
    polled_on(two, *FIVE)
    assert connections(two) == before
    assert {name: lease(two, name) for name in FIVE} == fences
    path.write_text(text.replace("drain = true\n", ""))
    wait_until(lambda: not status(two, "ts04").drained, "and that it is no more")
    two.check_workers()


def test_a_change_is_dated_by_the_clock_of_redis(fleet: LiveFleet) -> None:
    path = write(fleet)
    redis_ms: list[int | None] = [None]
    file = InventoryFile(load_inventory(path), lambda: redis_ms[0])
    assert file.published.version.startswith(f"{path.stat().st_mtime_ns // 1_000_000}-")
    redis_ms[0] = 1_900_000_000_123
    write(fleet, load=3)
    file.look_again()
    assert file.changed() is not None
    assert file.published.version.startswith("1900000000123-")


def test_an_error_that_nobody_expected_does_not_end_the_following(
    fleet: LiveFleet, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start("w1", write(fleet))
    wait_until(lambda: owned(worker) == set(FIVE), "it polls")
    monkeypatch.setattr(worker.schedule, "follow_clock", lambda: 1 / 0)
    wait_until(lambda: "following the inventory and the clock failed" in caplog.text, "the error is told")
    assert worker.ready_problem() == "the inventory can't be followed: ZeroDivisionError"
    monkeypatch.undo()
    write(fleet, servers=None)
    wait_until(lambda: owned(worker) == set(fleet.simulation.servers), "changes are taken over on")
    wait_until(lambda: worker.ready_problem() == "", "it is well")


def test_a_poller_that_is_replaced_is_closed(fleet: LiveFleet, start: Start) -> None:
    worker = start("w1", write(fleet))
    wait_until(lambda: owned(worker) == set(FIVE) and fleet.is_full(), "it polls")
    before = worker.pollers["ts01"]
    # As the ownership thread does after a reload came between its taking and its telling of a lease.
    worker._gain("ts01")
    assert before.is_closed()
    server = fleet.simulation.server("ts01")
    wait_until(lambda: worker.pollers["ts01"].connected, "the new one connects")
    wait_until(lambda: server.counters.open_connections == 1, "no connection is left")
    polled_on(fleet, "ts01")


# Different files


def test_other_times_of_the_same_content_are_no_conflict(fleet: LiveFleet) -> None:
    for number, name in enumerate(("w1", "w2", "w3")):
        path = write(fleet, f"{name}.toml", servers=None)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
        fleet.start(name, path)
    fleet.wait_for_shares("w1", "w2", "w3")
    for name in ("w1", "w3"):
        (fleet.folder / f"{name}.toml").touch()
    polled_on(fleet, *fleet.simulation.servers)
    # Whatever is said of it would be said by the time that each has published again.
    versions = fleet.valkey.client.hget(fleet.keys.fleet(), "version")
    for worker in fleet.workers.values():
        worker.process.send_signal(signal.SIGHUP)
    polled_on(fleet, *fleet.simulation.servers)
    assert fleet.valkey.client.hget(fleet.keys.fleet(), "version") == versions
    assert not any("newer inventory" in worker.said for worker in fleet.workers.values())
    assert fleet.shares() == {"w1": 2, "w2": 2, "w3": 2}
    fleet.check_workers()


@pytest.mark.parametrize("change", ["port", "interval", "server"])
def test_an_older_file_is_told_loudly_whatever_differs(fleet: LiveFleet, change: str) -> None:
    old, new = write(fleet, "old.toml"), write(fleet, "new.toml", servers=None if change == "server" else FIVE)
    if change == "port":
        ports = [fleet.simulation.server(name).port for name in ("ts05", "ts06")]
        new.write_text(new.read_text().replace(f"port = {ports[0]}\n", f"port = {ports[1]}\n"))
    elif change == "interval":
        write(fleet, "new.toml", load=2)
    os.utime(old, (1_700_000_000, 1_700_000_000))
    fleet.start("old", old)
    wait_until(fleet.is_full, "the old one is in force")
    fleet.start("new", new)
    said = "ERROR x2gofleet_workers.worker: another worker published a newer inventory"
    wait_until(lambda: said in fleet.workers["old"].said, "the old one says so")
    assert f"than {old} (1700000000000-" in fleet.workers["old"].said
    assert "newer inventory" not in fleet.workers["new"].said
    wait_until(fleet.is_full, "readers find all of the new one")
    polled_on(fleet, *FIVE[:4])
    assert fleet.workers["old"].said.count(said) == 1, "once is enough"
    fleet.check_workers()


def test_the_older_polls_nothing_while_a_newer_lives(
    fleet: LiveFleet, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    old_path, new_path = write(fleet, "old.toml"), write(fleet, "new.toml", servers=None)
    os.utime(old_path, (1_700_000_000, 1_700_000_000))
    old = start("old", old_path)
    wait_until(lambda: owned(old) == set(FIVE) and fleet.is_full(), "the old one polls all it knows")
    new = start("new", new_path)
    wait_until(lambda: "published a newer inventory" in caplog.text, "the old one says so")
    assert old.ready_problem().startswith("another worker published a newer inventory")
    with watching(fleet) as seen:
        took = wait_until(lambda: owned(new) == set(fleet.simulation.servers), "the new one has all")
        wait_until(lambda: owned(old) == set(), "the old one has nothing")
        print(f"the newer one has all after {took:.2f} s, at a grace of {STALE_SECONDS:g} s")
        wait_until(fleet.is_full, "readers find all six")
        polled_on(fleet, *fleet.simulation.servers)
        polls = old.pollers
        assert polls == {}
    assert not seen, f"what was cached stays cached: {seen}"
    new.stop()
    took = wait_until(lambda: owned(old) == set(FIVE), "without the newer one the older polls on")
    polled_on(fleet, *FIVE)
    print(f"the older one polls on {took:.2f} s after the newer left")
    assert len(fleet.cache.servers()) == SERVERS, "what is published stays the newest"


def test_the_older_one_that_catches_up_takes_part(fleet: LiveFleet, start: Start) -> None:
    old_path, new_path = write(fleet, "old.toml"), write(fleet, "new.toml", servers=None)
    os.utime(old_path, (1_700_000_000, 1_700_000_000))
    old, new = start("old", old_path), start("new", new_path)
    wait_until(lambda: owned(new) == set(fleet.simulation.servers) and not owned(old), "the new one has all")
    old_path.write_text(new_path.read_text())
    wait_until(lambda: len(owned(old)) == len(owned(new)) == 3, "they share again")
    wait_until(lambda: old.ready_problem() == "", "it is well")
    polled_on(fleet, *fleet.simulation.servers)


def test_while_files_differ_no_common_target_is_left_out(
    fleet: LiveFleet, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STALE_INVENTORY_SECONDS", 600.0)
    six = tuple(fleet.simulation.servers)
    # Two workers of which each would leave a target to the other, were it to share out its own targets.
    names = ((f"old{number}", f"new{number}") for number in range(1000))
    old_name, new_name, left_out = next(
        (old, new, target)
        for old, new in names
        for target in FIVE
        if fair_share(FIVE, [old, new])[target] == new and fair_share(six, [old, new])[target] == old
    )
    old_path, new_path = write(fleet, "old.toml"), write(fleet, "new.toml", servers=None)
    os.utime(old_path, (1_700_000_000, 1_700_000_000))
    old, new = start(old_name, old_path), start(new_name, new_path)
    wait_until(lambda: old.ready_problem().startswith("another worker"), "they differ")
    wait_until(
        lambda: left_out in owned(old) and owned(old) | owned(new) >= set(FIVE), "the common ones are shared out"
    )
    assert not owned(old) & owned(new)
    polled_on(fleet, *FIVE)


@contextlib.contextmanager
def watching(fleet: LiveFleet) -> Iterator[list[str]]:
    """Look all the time whether a server of the first five has no snapshot; gives those that had none."""
    missing: list[str] = []
    over = threading.Event()

    def look() -> None:
        with FleetCache.from_url(fleet.valkey.url, lookup_seconds=LOOKUP_SECONDS) as cache:
            while not over.wait(0.02):
                with contextlib.suppress(Exception):
                    found = {each.server for each in cache.snapshots(profile_name="all", kind=Kind.SESSIONS)}
                    missing.extend(set(FIVE) - found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield missing
    finally:
        over.set()
        thread.join()
