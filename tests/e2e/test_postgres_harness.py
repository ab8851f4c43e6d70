"""The farm on PostgreSQL is a real one: what X2Go's own commands say there, and its faults on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import FarmFactory
from .namespace import wait_until
from .postgres import PostgresServer
from .postgres_farm import ADMIN_ROLE, PostgresFarm, listing, role_of
from .postgres_wire import PostgresError


@pytest.fixture(scope="module")
def module_farm(start_module_postgres_farm: FarmFactory) -> PostgresFarm:
    return start_module_postgres_farm(max_connections=20)


def names(raw: bytes) -> set[str]:
    return {line.split(b"|")[1].decode() for line in raw.splitlines()}


def test_each_server_lists_its_own_sessions_and_a_user_her_own(farm: PostgresFarm) -> None:
    alice = [farm.create_session(server, "alice") for server in farm.servers]
    bob = farm.create_session("ts02", "bob")

    assert [names(listing(server)) for server in farm.servers.values()] == [{alice[0]}, {alice[1], bob}, {alice[2]}]
    assert names(farm.servers["ts02"].run(["x2golistsessions"], "bob").stdout) == {bob}
    assert farm.session_names("ts02") == {alice[1], bob}
    assert {len(line.split(b"|")) for line in listing(farm.servers["ts02"]).splitlines()} == {14}
    created = farm.sql("select uname, creator_id from sessions order by uname, creator_id")
    assert set(created) == {("alice", role_of("alice")), ("bob", role_of("bob"))}


def test_sessions_are_suspended_resumed_and_finished(farm: PostgresFarm) -> None:
    name = farm.create_session("ts01", "alice")
    server = farm.servers["ts01"]
    states = []
    for change in (farm.suspend_session, farm.resume_session, farm.finish_session):
        change("ts01", "alice", name)
        states.append(listing(server).split(b"|")[4])

    assert states == [b"S", b"R", b"F"]
    assert farm.session_names("ts01") == set()


def test_shadow_sessions_carry_their_owner_s_role(farm: PostgresFarm) -> None:
    name = farm.shadow_session("ts01", "alice", "bob")

    assert farm.sql("select uname, creator_id from sessions where session_id = $1", name) == [("bob", role_of("alice"))]


def test_telekinesis_adds_two_fields(farm: PostgresFarm) -> None:
    farm.create_session("ts03", "alice")
    server = farm.servers["ts03"]
    farm.set_telekinesis(server, True)
    try:
        assert len(listing(server).split(b"|")) == 16
    finally:
        farm.set_telekinesis(server, False)


def test_mounts_belong_to_sessions_and_root_can_not_list_them(farm: PostgresFarm) -> None:
    name = farm.create_session("ts01", "alice")
    farm.insert_mount("ts01", "alice", name, "10.1.2.3", "/home/alice/media/disk/_tmp")

    assert farm.sql("select session_id, host(client), path from mounts") == [
        (name, "10.1.2.3", "/home/alice/media/disk/_tmp")
    ]
    server = farm.servers["ts01"]
    assert server.run(["x2golistmounts", name], "alice").stdout == b"10.1.2.3|/home/alice/media/disk/_tmp\n"
    assert server.run(["x2golistmounts", name], check=False).returncode == 255


def test_a_refused_connection_looks_like_no_session(farm: PostgresFarm) -> None:
    """X2Go's own fault, which is why an empty listing is no proof."""
    name = farm.create_session("ts01", "alice")
    server, database = farm.servers["ts01"], farm.database
    database.set_connection_limit(ADMIN_ROLE, 0)
    assert listing(server) == b""
    database.set_connection_limit(ADMIN_ROLE, -1)
    with database.all_connections_taken():
        assert listing(server) == b""
    database.set_password(ADMIN_ROLE, "another")
    assert listing(server) == b""
    database.set_password(ADMIN_ROLE, farm.admin_password)
    farm.set_admin_password_file(server, None)
    assert listing(server) == b""
    farm.set_admin_password_file(
        server, farm.servers["ts02"].path("/etc/x2go/x2gosql/passwords/x2gopgadmin").read_text()
    )
    with database.stopped():
        assert listing(server) == b""
    assert names(listing(server)) == {name}


def test_a_lock_makes_a_listing_wait(farm: PostgresFarm) -> None:
    name = farm.create_session("ts01", "alice")
    with farm.database.locked_table("sessions"):
        waiting = subprocess.Popen(
            farm.servers["ts01"].namespace.enter(["x2golistsessions_root"]), stdout=subprocess.PIPE
        )
        wait_until(
            lambda: [b for b in farm.database.backends(ADMIN_ROLE) if b[2] == "Lock"] != [],
            "the listing to wait on the lock",
        )
        assert waiting.poll() is None
    assert names(waiting.communicate(timeout=30)[0]) == {name}


def test_a_frozen_server_takes_connections_and_answers_nobody(farm: PostgresFarm) -> None:
    with farm.database.frozen(), pytest.raises(TimeoutError):
        farm.database.connect(timeout_seconds=0.2)
    assert farm.sql("select 1") == [("1",)]


def test_rights_of_a_user_s_role(farm: PostgresFarm) -> None:
    """What later tests forge with: rows in anybody's name, but never another's creator_id."""
    insert = "insert into sessions(session_id, display, uname, server, status) values ($1, $2, $3, $4, 'S')"
    farm.sql(insert, "forged", 99, "alice", "ts01", role=role_of("mallory"))
    assert farm.sql("select uname, creator_id from sessions") == [("alice", role_of("mallory"))]
    with pytest.raises(PostgresError, match="permission denied for table sessions"):
        farm.sql("select 1 from sessions", role=role_of("mallory"))


def test_a_storm_of_logins_has_some_connections_refused_and_some_not(farm: PostgresFarm) -> None:
    outcomes = set()

    def try_once() -> bool:
        try:
            farm.database.connect(ADMIN_ROLE).close()
            outcomes.add("taken")
        except PostgresError as exc:
            outcomes.add(str(exc))
        return len(outcomes) >= 2

    with farm.database.login_storm():
        wait_until(try_once, "a connection that is refused and one that is not", timeout_seconds=60)
    assert "taken" in outcomes
    assert all(said == "taken" or "connection" in said for said in outcomes)


def test_nothing_is_left_after_a_database(real_postgres: None) -> None:
    with PostgresServer() as database:
        directory, pid = database.directory, database.pid
        database.restart("immediate")
        assert database.sql("select 1", database="postgres") == [("1",)]
        assert Path(f"/proc/{database.pid}").stat().st_uid != 0
    assert not directory.exists()
    assert not any("postgres" in _command(int(found)) for found in os.listdir("/proc") if found == str(pid))


def test_a_killed_test_run_leaves_no_database(real_postgres: None) -> None:
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.e2e.postgres import PostgresServer
        with PostgresServer() as database:
            print(database.pid, database.directory, flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid, directory = starter.stdout.readline().decode().split()
        assert "postgres" in _command(int(pid))
        starter.kill()
    wait_until(lambda: "postgres" not in _command(int(pid)), "the end of the orphaned database")
    subprocess.run(["rm", "-r", directory], check=True)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
