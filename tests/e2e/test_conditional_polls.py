"""Polls of a real server where nothing changed run none of X2Go's commands; whatever changes is in the next poll."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.polling import exchange

from x2gofleet.snapshot import Snapshot

from .conftest import PollFactory
from .polled import INTERVALS, PROFILE, PolledFleet
from .realserver import CommandCounter, RealX2GoServer

INTERVAL = INTERVALS["sessions"]


def status_of(snapshot: Snapshot, name: str) -> str:
    return snapshot.sessions()[name].status


def checksum(file: Path) -> bytes:
    """By another process: where this one closes the file, it loses its locks on it (POSIX), SQLite's too."""
    return subprocess.run(["sha256sum", file], check=True, capture_output=True).stdout


def settle(polled: PolledFleet) -> Snapshot:
    """Wait until polls find nothing changed any more; returns the snapshot then."""
    polled.next_polls(2)
    snapshot = polled.snapshot()
    assert snapshot is not None
    return snapshot


def assert_quiet(polled: PolledFleet, counter: CommandCounter, *, polls: int = 5) -> None:
    """No X2Go command runs during so many polls, and the snapshot stays fresh all the time."""
    before = settle(polled)
    listings = polled.poller().counters.full_listings
    counter.reset()
    for _ in range(polls):
        polled.next_polls(1)
        after = polled.snapshot()
        assert after is not None
        assert after.age < 2 * INTERVAL
    assert counter.names == ()
    assert polled.poller().counters.full_listings == listings
    assert (after.listed_at_ms, after.stdout, after.digest) == (before.listed_at_ms, before.stdout, before.digest)
    assert after.polled_at_ms - before.polled_at_ms >= (polls - 1) * INTERVAL * 1000


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as valkey:
        yield valkey


def test_with_nothing_changed_no_command_runs_and_the_snapshot_stays_fresh(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    name = server.insert_session("alice", 50)
    server.set_agent_state("alice", name, "RUNNING")
    server.insert_session("bob", 51, started=False)
    server.insert_mount("alice", name, "10.1.2.3", "/home/alice/media/disk/_tmp")
    counter = server.count_commands()
    polled = poll(server)

    first = polled.next_snapshot()
    assert first.rejected_rows == 0
    assert_quiet(polled, counter, polls=8)
    listings = polled.poller().counters.full_listings

    server.change_status("alice", name, "S")
    assert status_of(polled.next_snapshot(), name) == "S"
    assert polled.poller().counters.full_listings == listings + 1
    assert_quiet(polled, counter)


def test_a_change_of_an_agent_s_state_file_alone_is_in_the_next_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    """Also the first one to be made, and the one of an instance directory of pam_namespace."""
    name = server.insert_session("alice", 50)
    counter = server.count_commands()
    polled = poll(server)
    settle(polled)

    server.set_agent_state("alice", name, "RUNNING")
    assert status_of(polled.next_snapshot(), name) == "R"
    settle(polled)
    before = server.database.read_bytes()
    server.set_agent_state("alice", name, "SUSPENDED")
    assert server.database.read_bytes() == before
    assert status_of(polled.next_snapshot(), name) == "S"
    assert_quiet(polled, counter)


def test_a_database_replaced_by_another_file_is_in_the_next_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    name = server.insert_session("alice", 50)
    counter = server.count_commands()
    polled = poll(server)
    settle(polled)
    other = server.database.with_suffix(".other")
    shutil.copy2(server.database, other)
    with contextlib.closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("update sessions set status='S'")
    shutil.copystat(server.database, other)
    shutil.chown(other, "root", "x2gouser")

    other.rename(server.database)

    assert status_of(polled.next_snapshot(), name) == "S"
    assert_quiet(polled, counter)


def _make_twins(server: RealX2GoServer) -> tuple[bytes, bytes]:
    """Two contents of the database, a session running and suspended, that agree in size and change counter."""
    running = server.database.read_bytes()
    server.sql("update sessions set status='S'")
    suspended = bytearray(server.database.read_bytes())
    for counter in (slice(24, 28), slice(92, 96)):
        suspended[counter] = running[counter]
    assert len(running) == len(suspended)
    assert running != bytes(suspended)
    return running, bytes(suspended)


def test_a_copy_restored_with_the_same_inode_size_mtime_and_change_counter_is_in_the_next_poll(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    """The ctime alone differs."""
    name = server.insert_session("alice", 50)
    running, suspended = _make_twins(server)
    mtime = 1_763_800_000_000_000_000
    counter = server.count_commands()

    def restore(content: bytes) -> os.stat_result:
        with server.database.open("r+b") as file:
            file.write(content)
        os.utime(server.database, ns=(mtime, mtime))
        return server.database.stat()

    before = restore(running)
    polled = poll(server)
    assert status_of(polled.next_snapshot(), name) == "R"
    settle(polled)

    after = restore(suspended)

    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    assert status_of(polled.next_snapshot(), name) == "S"
    assert_quiet(polled, counter)


def test_a_copy_restored_by_cp_p_is_in_the_next_poll(server: RealX2GoServer, poll: PollFactory, tmp_path: Path) -> None:
    name = server.insert_session("alice", 50)
    copy = tmp_path / "copy"
    shutil.copy2(server.database, copy)
    server.change_status("alice", name, "S")
    os.utime(server.database, ns=(copy.stat().st_atime_ns, copy.stat().st_mtime_ns))
    polled = poll(server)
    assert status_of(polled.next_snapshot(), name) == "S"
    settle(polled)

    shutil.copy2(copy, server.database)

    assert server.database.stat().st_mtime_ns == copy.stat().st_mtime_ns
    assert status_of(polled.next_snapshot(), name) == "R"


def test_in_wal_mode_a_change_in_the_log_alone_is_in_the_next_poll(
    server: RealX2GoServer, poll: PollFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While X2Go's own query runs for the comparison, there is a log that is gone again afterwards.
    monkeypatch.setattr("x2gofleet_workers.worker.REFERENCE_LOOK_SECONDS", 3600.0)
    assert server.sql("pragma journal_mode=wal") == [("wal",)]
    name = server.insert_session("alice", 50)
    counter = server.count_commands()
    polled = poll(server)
    assert status_of(polled.next_snapshot(), name) == "R"
    assert_quiet(polled, counter)

    # A connection that stays open keeps the log from being written back.
    with contextlib.closing(sqlite3.connect(server.database, timeout=10)) as holder:
        assert holder.execute("select count(*) from sessions").fetchall() == [(1,)]
        settle(polled)
        before = checksum(server.database)
        server.change_status("alice", name, "S")
        assert checksum(server.database) == before
        assert status_of(polled.next_snapshot(), name) == "S"
        assert_quiet(polled, counter)
    server.change_status("alice", name, "R")
    assert status_of(polled.next_snapshot(), name) == "R"


def test_a_changed_host_name_is_seen_at_the_next_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    server.insert_session("alice", 50)
    polled = poll(server)
    settle(polled)
    counters = polled.poller().counters
    confirmed = counters.confirmed

    server.set_hostname("renamed")

    said = polled.wait_for_error("HostNameChanged").error_text
    # At most the poll that was under way when the name changed found nothing changed.
    assert counters.confirmed - confirmed <= 1
    assert "the server's host name was ts01 and is renamed now" in said


def test_one_full_listing_runs_now_and_then_though_nothing_changed(
    server: RealX2GoServer, poll: PollFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exchange.RELIST_SECONDS == 60.0
    monkeypatch.setattr(exchange, "RELIST_SECONDS", 2.0)
    server.insert_session("alice", 50)
    counter = server.count_commands()
    polled = poll(server)
    first = settle(polled)
    listings = polled.poller().counters.full_listings

    oldest = 0.0
    listed_at = {first.listed_at_ms}

    def relisted_twice() -> bool:
        nonlocal oldest
        snapshot = polled.snapshot()
        assert snapshot is not None
        oldest = max(oldest, (snapshot.polled_at_ms - snapshot.listed_at_ms) / 1000)
        listed_at.add(snapshot.listed_at_ms)
        return len(listed_at) == 3

    polled.wait_until(relisted_twice, "two full listings")

    assert polled.poller().counters.full_listings == listings + 2
    assert counter.names == ()
    assert 2 * INTERVAL <= oldest <= 2.0
    last = polled.snapshot()
    assert last is not None
    assert (last.digest, last.changed_at_ms) == (first.digest, first.changed_at_ms)


def test_after_flushall_a_full_listing_comes_within_the_same_tick(
    server: RealX2GoServer, poll: PollFactory, own_valkey: EmbeddedValkey
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, redis_url=own_valkey.url, intervals={"mounts": 0})
    settle(polled)
    poller = polled.poller()
    polled.next_polls(1)
    polls, listings = poller.counters.polls, poller.counters.full_listings

    polled.redis.flushall()
    polled.wait_until(lambda: polled.redis.keys("*:{ts01}:sessions"), "the snapshot")

    now = polled.poller()
    if now is poller:
        assert (now.counters.polls - polls, now.counters.full_listings - listings) == (1, 1)
    else:
        # The renewal of the lease met the loss before a poll did: owned anew, and listed in full at once.
        assert now.counters.full_listings == 1
        assert poller.counters.full_listings == listings
    # The inventory that readers need comes back as well, long before its next turn.
    polled.wait_until(lambda: polled.cache.profiles(), "the inventory")
    sessions = polled.cache.list_sessions(profile_name=PROFILE)
    assert sessions is not None
    assert list(sessions) == [name]
    settle(polled)
    assert polled.status().up


def test_after_script_flush_polls_go_on(server: RealX2GoServer, poll: PollFactory, own_valkey: EmbeddedValkey) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, redis_url=own_valkey.url)
    fence = settle(polled).fence
    counters = polled.poller().counters

    for change in ("S", "R"):
        polled.redis.script_flush()
        polled.next_polls(2)
        polled.redis.script_flush()
        server.change_status("alice", name, change)  # type: ignore[arg-type]
        assert status_of(polled.next_snapshot(), name) == change

    snapshot = settle(polled)
    assert snapshot.fence == fence
    assert (counters.failed, counters.refused_writes) == (0, 0)


def test_an_update_lists_in_full_whatever_changed(server: RealX2GoServer, poll: PollFactory) -> None:
    server.insert_session("alice", 50)
    counter = server.count_commands()
    polled = poll(server)
    before = settle(polled)
    listings = polled.poller().counters.full_listings

    (stored,) = polled.cache.update(PROFILE)

    assert polled.poller().counters.full_listings == listings + 1
    assert counter.names == ()
    assert stored.listed_at_ms > before.listed_at_ms
    assert (stored.target, stored.digest) == ("ts01", before.digest)
