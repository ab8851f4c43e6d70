"""The probe beside all that can happen to a session database: right rows or a named failure, never empty or old."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from x2gofleet_workers.probe.protocol import ErrorCode, Scope, SectionKind, SectionRequest

from x2gofleet.errors import ListingFailed

from .direct_probe import DirectProbe
from .namespace import wait_until
from .realserver import DatabaseFault, RealX2GoServer

LOAD = SectionRequest(SectionKind.LOAD)
SESSIONS = SectionRequest(SectionKind.SESSIONS)


@pytest.fixture
def probe(server: RealX2GoServer) -> Iterator[DirectProbe]:
    with DirectProbe(server) as found:
        yield found


def copy_of(database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(database, tmp_path / "copy"))


def test_a_database_replaced_by_rename_is_read_at_once(
    server: RealX2GoServer, probe: DirectProbe, tmp_path: Path
) -> None:
    first = server.insert_session("alice", 50)
    old = copy_of(server.database, tmp_path)
    second = server.insert_session("bob", 51)
    listed = probe.sessions()
    assert probe.names() == {first, second}

    new = server.database.with_suffix(".new")
    shutil.copy2(old, new)
    new.rename(server.database)

    assert not probe.sessions(listed.signature).same
    assert probe.names() == {first}


def test_a_database_restored_in_place_with_its_old_times_is_read_at_once(
    server: RealX2GoServer, probe: DirectProbe, tmp_path: Path
) -> None:
    first = server.insert_session("alice", 50)
    old, times = copy_of(server.database, tmp_path), server.database.stat()
    # As long as the other, so that size and times are what they were.
    server.sql("update sessions set client = '10.1.2.9'")
    listed = probe.sessions()
    assert b"|10.1.2.9|" in probe.proven().stdout

    server.database.write_bytes(old.read_bytes())
    os.utime(server.database, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert not probe.sessions(listed.signature).same
    assert b"|10.1.2.3|" in probe.proven().stdout
    assert probe.names() == {first}


def test_while_a_copy_is_written_over_the_database_no_reading_is_empty_or_mixed(
    server: RealX2GoServer, probe: DirectProbe, tmp_path: Path
) -> None:
    both = {server.insert_session("alice", 50), server.insert_session("bob", 51)}
    contents = server.database.read_bytes()
    stopping = threading.Event()

    def overwrite() -> None:
        while not stopping.is_set():
            with server.database.open("r+b") as file:
                file.truncate(0)
                for at in range(0, len(contents), 4096):
                    file.write(contents[at : at + 4096])
                    file.flush()
            stopping.wait(0.05)

    writer = threading.Thread(target=overwrite)
    writer.start()
    seen, failures = [], []
    try:
        for _ in range(60):
            try:
                seen.append(probe.names())
            except ListingFailed as exc:
                failures.append(str(exc))
    finally:
        stopping.set()
        writer.join()

    assert all(names == both for names in seen)
    assert len(seen) + len(failures) == 60
    assert all("/var/lib/x2go/x2go_sessions" in text for text in failures)
    wait_until(lambda: probe.names() == both, "the database to be read when the copy is done")


@pytest.mark.parametrize("mode", ["wal", "persist", "truncate", "delete"])
def test_every_journal_mode(server: RealX2GoServer, probe: DirectProbe, mode: str) -> None:
    first = server.insert_session("alice", 50)
    server.sql(f"pragma journal_mode={mode}")
    listed = probe.sessions()
    assert probe.names() == {first}

    second = server.insert_session("bob", 51)

    assert not probe.sessions(listed.signature).same
    assert probe.names() == {first, second}


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_writer_s_open_transaction_is_not_seen(server: RealX2GoServer, probe: DirectProbe, mode: str) -> None:
    first = server.insert_session("alice", 50)
    server.sql(f"pragma journal_mode={mode}")
    with closing(sqlite3.connect(server.database, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("delete from sessions")

        assert probe.names() == {first}

        writer.execute("rollback")
    assert probe.names() == {first}


HALF_WRITTEN = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("pragma cache_size = 1")
connection.execute("begin exclusive")
connection.execute("delete from sessions")
connection.executemany("insert into messages values (?, ?)", [(f"m{n}", "x" * 3000) for n in range(200)])
print("written", flush=True)
time.sleep(600)
"""


def test_a_writer_killed_in_mid_commit_is_a_named_failure_until_a_writer_has_repaired_it(
    server: RealX2GoServer, probe: DirectProbe
) -> None:
    first = server.insert_session("alice", 50)
    writer = subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, str(server.database)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert server.database.with_name("x2go_sessions-journal").stat().st_size > 0

    section = probe.sessions()
    assert section.error is not None
    assert section.error.code is ErrorCode.HOT_JOURNAL
    # The remedy in the message.
    with pytest.raises(ListingFailed, match="x2gocleansessions"):
        probe.names()
    second = server.insert_session("bob", 51)

    assert probe.names() == {first, second}


FAULTS: list[tuple[DatabaseFault, ErrorCode]] = [
    ("garbage", ErrorCode.MALFORMED),
    ("missing-table", ErrorCode.SCHEMA),
    ("directory", ErrorCode.UNREADABLE),
    ("absent", ErrorCode.MISSING),
]


@pytest.mark.parametrize(("fault", "code"), FAULTS)
def test_a_broken_database_is_a_named_failure_and_load_figures_keep_coming(
    server: RealX2GoServer, probe: DirectProbe, fault: DatabaseFault, code: ErrorCode
) -> None:
    first = server.insert_session("alice", 50)
    server.make_database_unreadable(fault)

    load, sessions = probe.ask(LOAD, SESSIONS)

    assert load.error is None
    assert load.stdout.startswith(b"loadavg ")
    assert sessions.error is not None
    assert sessions.error.code is code
    server.restore_database()
    assert probe.names() == {first}


def test_a_locked_database_is_read_all_the_same(server: RealX2GoServer, probe: DirectProbe) -> None:
    """Whoever locks it and writes nothing takes nothing from the others."""
    first = server.insert_session("alice", 50)
    server.make_database_unreadable("locked")
    try:
        assert probe.names() == {first}
    finally:
        server.restore_database()


def test_a_lock_under_which_is_written_is_a_named_failure(server: RealX2GoServer, probe: DirectProbe) -> None:
    first = server.insert_session("alice", 50)
    writer = subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, str(server.database)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    try:
        load, sessions = probe.ask(LOAD, SESSIONS)
        assert load.error is None
        assert sessions.error is not None
        assert sessions.error.code is ErrorCode.LOCKED
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    server.insert_session("bob", 51)
    assert first in probe.names()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("backend=nonsense\n", ErrorCode.BACKEND),
        ("backend=mysql\n", ErrorCode.BACKEND),
        ("", ErrorCode.CONFIG),
        ("[postgres]\nbackend=sqlite\n", ErrorCode.CONFIG),
        ("# backend=sqlite\n", ErrorCode.CONFIG),
    ],
)
def test_a_broken_configuration_is_a_named_failure_from_the_next_poll_on(
    server: RealX2GoServer, probe: DirectProbe, text: str, code: ErrorCode
) -> None:
    first = server.insert_session("alice", 50)
    listed = probe.sessions()
    server.break_sql_config(text)

    section = probe.sessions(listed.signature)

    assert section.error is not None
    assert section.error.code is code
    server.restore_sql_config()
    assert probe.names() == {first}


@pytest.mark.parametrize("text", ["backend = sqlite\n", '\tbackend="sqlite"\n', "; x\n# y\nbackend='sqlite'\r\n"])
def test_configurations_as_x2go_reads_them(server: RealX2GoServer, probe: DirectProbe, text: str) -> None:
    first = server.insert_session("alice", 50)
    server.break_sql_config(text)

    assert probe.names() == {first}


@pytest.mark.parametrize(
    ("name", "shown"),
    [("ts-01", "ts-01"), ("old_ts.example.org", "old_ts.example.org"), ("a,b c", "a?b?c"), ("t\u00e4st", "t??st")],
)
def test_names_of_other_hosts_come_as_they_are_where_a_host_can_have_them(
    server: RealX2GoServer, probe: DirectProbe, name: str, shown: str
) -> None:
    """By these a renamed server is recognized."""
    server.insert_session("alice", 50)
    with closing(sqlite3.connect(server.database)) as connection, connection:
        connection.execute("update sessions set server = ?", (name,))

    section = probe.sessions()

    assert (section.records, section.others, section.other_hosts) == ((), 1, (shown,))


def test_as_another_user_than_root_nothing_is_listed(server: RealX2GoServer) -> None:
    server.insert_session("alice", 50)
    with DirectProbe(server, user="alice") as probe:
        for kind in (SectionKind.SESSIONS, SectionKind.MOUNTS, SectionKind.REFERENCE):
            (section,) = probe.ask(SectionRequest(kind))
            assert section.error is not None
            assert section.error.code is ErrorCode.NOT_ROOT
        (own,) = probe.ask(SectionRequest(SectionKind.SESSIONS), scope=Scope.USER)
        assert own.stdout.count(b"|alice|") == 1


def test_a_change_is_noticed_by_the_idle_probe(server: RealX2GoServer, probe: DirectProbe) -> None:
    session = server.insert_session("alice", 50)
    for change in (
        lambda: server.change_status("alice", session, "S"),
        lambda: server.change_status("alice", session, "R"),
        lambda: server.set_agent_state("alice", session, "SUSPENDED"),
        lambda: server.set_agent_state("alice", session, "RUNNING"),
        lambda: server.insert_session("bob", 51),
        lambda: server.break_sql_config("backend=nonsense\n"),
        server.restore_sql_config,
    ):
        probe.send(SESSIONS, watch=True)
        probe.receive()
        change()
        if change == server.restore_sql_config:
            break
        probe.notice()


def test_a_state_directory_that_becomes_a_link_is_looked_through_no_more(
    server: RealX2GoServer, probe: DirectProbe
) -> None:
    def status() -> bytes:
        (row,) = probe.proven().stdout.splitlines()
        return row.split(b"|")[4]

    name = server.insert_session("mallory", 50)
    server.set_agent_state("mallory", name, "SUSPENDED")
    listed = probe.sessions()
    assert status() == b"S"

    server.run(["sh", "-c", "mv /tmp/.x2go-mallory /tmp/away && ln -s /tmp/away /tmp/.x2go-mallory"], "mallory")

    assert not probe.sessions(listed.signature).same
    assert status() == b"R"


def test_one_users_desktops_that_hang_do_not_use_up_the_time_of_the_others(
    server: RealX2GoServer, probe: DirectProbe
) -> None:
    server.replace_command(
        "/usr/bin/x2golistdesktops", '#!/bin/sh\n[ "$(id -un)" = alice ] && exec sleep 1000\necho "$(id -un)@:50"\n'
    )
    sections = probe.ask(*(SectionRequest(SectionKind.DESKTOPS, user=user) for user in ("alice", "bob", "mallory")))
    assert [(each.user, each.error is None, each.stdout) for each in sections] == [
        ("alice", False, b""),
        ("bob", True, b"bob@:50\n"),
        ("mallory", True, b"mallory@:50\n"),
    ]
