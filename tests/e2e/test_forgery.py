"""What a user writes into her own session record can print rows in another's name; none of them is ever believed."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess

import pytest

from .conftest import PollFactory
from .polled import PROFILE, PolledFleet
from .realserver import X2GO_LIB, RealX2GoServer

MALLORYS_ADDRESS = "203.0.113.7"


def row(name: str, user: str = "alice", display: int = 59, created: str = "2026-11-22T20:24:30") -> str:
    """A perfect row, with mallory's address."""
    start = f"4242|{name}|{display}|ts01|R|{created}|{'f' * 32}|{MALLORYS_ADDRESS}"
    return f"{start}|35001|35002|{created}|{user}|1|35003|-1|-1"


def sessions_of(polled: PolledFleet, user: str) -> set[str]:
    found = polled.cache.list_sessions(profile_name=PROFILE, username=user)
    assert found is not None
    return set(found)


def clients(polled: PolledFleet, user: str) -> set[str]:
    found = polled.cache.list_sessions(profile_name=PROFILE, username=user)
    assert found is not None
    return {info.client for info in found.rows}


def test_rows_forged_in_another_s_name_are_dropped_counted_and_told(
    server: RealX2GoServer, poll: PollFactory, caplog: pytest.LogCaptureFixture
) -> None:
    real = {"alice": server.insert_session("alice", 50), "bob": server.insert_session("bob", 51)}
    server.insert_session("mallory", 58, cookie=f"x\n{row('alice-59-1763800000_stDMATE_dp24')}\nx")
    server.insert_session("mallory", 57, client=f"x\n{row('bob-56-1763800000_stDMATE_dp24', 'bob')}\nx")
    honest = server.insert_session("mallory", 55)
    polled = poll(server)

    snapshot = polled.next_snapshot()

    assert sessions_of(polled, "alice") == {real["alice"]}
    assert sessions_of(polled, "bob") == {real["bob"]}
    assert sessions_of(polled, "mallory") == {honest}
    assert MALLORYS_ADDRESS.encode() not in snapshot.stdout
    assert snapshot.rejected_rows == 2
    assert polled.status().up
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert any("ts01: 2 row(s) of sessions left out" in record.getMessage() for record in told)
    assert MALLORYS_ADDRESS not in caplog.text


def test_a_forged_row_of_a_real_session_does_not_replace_it(server: RealX2GoServer, poll: PollFactory) -> None:
    """With the real name, display, host and time of start, but mallory's address: before and after the real row."""
    real = server.insert_session("alice", 50, client="10.1.2.3")
    created = str(server.sql("select strftime('%Y-%m-%dT%H:%M:%S', init_time) from sessions")[0][0])
    forged = row(real, display=50, created=created)
    server.insert_session("mallory", 57, client=f"x\n{forged}\n{forged}\nx")
    # Rows are printed by status, S before R: this one stands before alice's.
    first = server.insert_session("mallory", 58, client=f"x\n{forged}\nx")
    server.change_status("mallory", first, "S")
    polled = poll(server)

    snapshot = polled.next_snapshot()

    listing = server.run(["x2golistsessions_root"]).stdout.decode()
    assert listing.index(forged) < listing.index("|10.1.2.3|") < listing.rindex(forged)
    assert sessions_of(polled, "alice") == {real}
    assert clients(polled, "alice") == {"10.1.2.3"}
    assert snapshot.rejected_rows == 2


def test_a_forged_row_of_a_session_that_is_just_starting_is_dropped(server: RealX2GoServer, poll: PollFactory) -> None:
    real = server.insert_session("alice", 50, started=False)
    created = str(server.sql("select strftime('%Y-%m-%dT%H:%M:%S', init_time) from sessions")[0][0])
    first = server.insert_session("mallory", 58, client=f"x\n{row(real, display=50, created=created)}\nx")
    server.change_status("mallory", first, "S")
    polled = poll(server)

    polled.next_snapshot()
    assert sessions_of(polled, "alice") == {real}
    assert clients(polled, "alice") == {""}

    # Also while the start is being finished: each full listing is of the record as it is before or after it.
    agent = ["4711", "10.1.2.3", "1", "2", "3", "-1", "-1"]
    server.run([f"{X2GO_LIB}/x2gocreatesession", real, "c" * 32, *agent], "alice")
    polled.next_snapshot()
    assert clients(polled, "alice") == {"10.1.2.3"}


def test_forged_frames_of_the_probe_stay_text(server: RealX2GoServer, poll: PollFactory) -> None:
    real = server.insert_session("alice", 50)
    end = "status=ok records=0 others=0 source=records signature=a.1"
    done = "uid=0 host=ts01"
    frames = [
        f"E{1:08x}{len(end):08x}{end}",
        f"Z{1:08x}{len(done):08x}{done}",
        f"N{0:08x}{16:08x}changed=sessions",
        "x2gofleet-probe 2 uid=0 user=root host=ts01",
    ]
    server.insert_session("mallory", 58, cookie="\n".join(["x", *frames, row(real), "x"]))
    server.insert_mount("mallory", server.insert_session("mallory", 57), "\n".join(["x", *frames]), "/x")
    polled = poll(server)

    snapshot = polled.next_snapshot()

    assert sessions_of(polled, "alice") == {real}
    assert clients(polled, "alice") == {"10.1.2.3"}
    assert snapshot.rejected_rows == 1
    polled.next_snapshot("mounts")
    assert polled.cache.list_mounts(profile_name=PROFILE) == []
    assert polled.status().up


@pytest.mark.parametrize(
    "status",
    ["R\nx", "S|R|S", "", "X", "\N{SNOWMAN}", "R" * 5000, "R\n4242|alice-1-2_stD|1"],
    ids=["newline", "separators", "empty", "unknown", "utf8", "long", "row"],
)
def test_a_record_of_any_status_fails_nobody_else_s_poll(
    server: RealX2GoServer, poll: PollFactory, status: str
) -> None:
    """x2gochangestatus takes any text."""
    real = server.insert_session("alice", 50)
    hers = server.insert_session("mallory", 58)
    server.sql("update sessions set status=? where session_id=?", (status, hers))
    polled = poll(server)

    snapshot = polled.next_snapshot()

    assert sessions_of(polled, "alice") == {real}
    assert sessions_of(polled, "mallory") == set()
    assert snapshot.rejected_rows >= 1
    assert polled.status().up


@pytest.mark.parametrize(
    "text",
    ["|", "\n", "x\r", "\x1b[2J", "\N{SNOWMAN}", " x ", "'", "*", "%s%n", "0", "x" * 100_000],
    ids=["bar", "newline", "return", "escape", "utf8", "spaces", "quote", "star", "format", "zero", "long"],
)
def test_a_cookie_and_client_of_any_text_fail_nobody_else_s_poll(
    server: RealX2GoServer, poll: PollFactory, text: str
) -> None:
    real = server.insert_session("alice", 50)
    hers = server.insert_session("mallory", 58)
    server.sql("update sessions set cookie=?, client=? where session_id=?", (f"c{text}", f"c{text}", hers))
    polled = poll(server)

    snapshot = polled.next_snapshot()

    assert sessions_of(polled, "alice") == {real}
    if "|" in text or not text.isprintable() or len(text) > 1000:
        assert sessions_of(polled, "mallory") == set()
        assert snapshot.rejected_rows >= 1
    else:
        assert clients(polled, "mallory") == {f"c{text}"}
        assert snapshot.rejected_rows == 0


def test_bytes_that_are_no_text_fail_nobody_else_s_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    real = server.insert_session("alice", 50)
    hers = server.insert_session("mallory", 58)
    server.sql("update sessions set client=cast(? as text) where session_id=?", (b"\xff\xfe\x80", hers))
    polled = poll(server)

    assert polled.next_snapshot().rejected_rows == 1
    assert sessions_of(polled, "alice") == {real}
    assert sessions_of(polled, "mallory") == set()


def test_a_session_that_flips_while_it_is_listed_fails_nobody_else_s_poll(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    real = server.insert_session("alice", 50)
    hers = server.insert_session("mallory", 58)
    polled = poll(server)
    polled.next_snapshot()
    # Many times as fast as X2Go's own commands could, but not so that the database is locked all the time.
    flip = (
        "import sqlite3, sys, time\n"
        "db = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)\n"
        "while True:\n"
        "    for status in 'RSX':\n"
        "        db.execute('update sessions set status=? where session_id=?', (status, sys.argv[2]))\n"
        "        time.sleep(0.03)\n"
    )
    before = polled.poller().counters.full_listings
    flipping = subprocess.Popen(["/usr/bin/python3", "-c", flip, str(server.database), hers])
    try:
        for number in itertools.count(1):
            polled.next_snapshot()
            assert sessions_of(polled, "alice") == {real}
            assert sessions_of(polled, "mallory") <= {hers}
            if number == 6:
                break
    finally:
        os.kill(flipping.pid, signal.SIGKILL)
        flipping.wait()

    assert polled.poller().counters.full_listings >= before + 6
    assert polled.poller().counters.failed == 0


def test_a_record_of_another_host_does_not_make_a_known_server_look_renamed(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    """x2goinsertsession takes any host name; the inventory's word for it is better than a user's."""
    polled = poll(server, per_server={"ts01": {"hostname": "ts01"}})
    polled.next_snapshot()
    name = "mallory-58-1763800000_stDMATE_dp24"
    server.run([f"{X2GO_LIB}/x2goinsertsession", "58", "elsewhere", name], "mallory")

    assert polled.next_snapshot().stdout == b""
    assert polled.status().up
    assert sessions_of(polled, "alice") == set()


def test_mounts_with_separators_are_dropped_and_the_others_stand(server: RealX2GoServer, poll: PollFactory) -> None:
    real, hers = server.insert_session("alice", 50), server.insert_session("mallory", 58)
    server.insert_mount("alice", real, "10.1.2.3", "/home/alice/media/disk/_tmp")
    server.insert_mount("mallory", hers, f"x\n{real}|203.0.113.7", "/evil")
    server.insert_mount("mallory", hers, "x", f"/evil\n{real}|203.0.113.7|/evil")
    server.insert_mount("mallory", hers, "10.1.2.8", "/home/mallory/media/disk/_tmp")
    polled = poll(server)

    snapshot = polled.next_snapshot("mounts")

    assert polled.cache.list_mounts(profile_name=PROFILE, username="alice") == ["10.1.2.3|/home/alice/media/disk/_tmp"]
    assert polled.cache.list_mounts(profile_name=PROFILE, username="mallory") == [
        "10.1.2.8|/home/mallory/media/disk/_tmp"
    ]
    assert snapshot.rejected_rows == 2
    assert b"203.0.113.7" not in snapshot.stdout
