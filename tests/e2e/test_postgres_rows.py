"""A farm on PostgreSQL: rows and mounts equal X2Go's own output, and what users write by SQL changes no other row."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.probe.proof import Proven, prove_mounts
from x2gofleet_workers.probe.protocol import Section, SectionKind, SectionRequest
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference

from x2gofleet.errors import ListingFailed

from .conftest import FarmFactory
from .direct_probe import DirectProbe
from .namespace import wait_until
from .polled_farm import lines
from .postgres_farm import ADMIN_PASSWORD_FILE, ADMIN_ROLE, PostgresFarm, listing, role_of
from .realserver import RealX2GoServer

MOUNTS = SectionRequest(SectionKind.MOUNTS)
REFERENCE = SectionRequest(SectionKind.REFERENCE)
LOAD = SectionRequest(SectionKind.LOAD)
SESSIONS = SectionRequest(SectionKind.SESSIONS)


@pytest.fixture(scope="module")
def module_farm(start_module_postgres_farm: FarmFactory) -> PostgresFarm:
    return start_module_postgres_farm(("ts01", "ts02"), max_connections=20)


@pytest.fixture
def server(farm: PostgresFarm) -> RealX2GoServer:
    return farm.servers["ts01"]


@pytest.fixture
def probe(server: RealX2GoServer) -> Iterator[DirectProbe]:
    with DirectProbe(server) as found:
        yield found


def mounts(probe: DirectProbe) -> Proven:
    (section,) = probe.ask(MOUNTS)
    return prove_mounts(section, scope="server", login="root")


def reference(probe: DirectProbe) -> Section:
    (section,) = probe.ask(REFERENCE)
    return section


# What X2Go prints


@pytest.mark.parametrize("telekinesis", [False, True], ids=["14 fields", "16 fields"])
def test_rows_in_every_state_equal_x2go_s_listing(
    farm: PostgresFarm,
    server: RealX2GoServer,
    probe: DirectProbe,
    request: pytest.FixtureRequest,
    telekinesis: bool,
) -> None:
    farm.set_telekinesis(server, telekinesis)
    request.addfinalizer(lambda: farm.set_telekinesis(server, False))
    made = {
        "running": farm.create_session("ts01", "alice"),
        "starting": farm.create_session("ts01", "bob", started=False),
        "published": farm.create_session("ts01", "john_doe", kind="P"),
        "suspended": farm.create_session("ts01", "alice"),
        "by its agent": farm.create_session("ts01", "mallory"),
        "shadow": farm.shadow_session("ts01", "alice", "bob"),
    }
    farm.suspend_session("ts01", "alice", made["suspended"])
    server.set_agent_state("mallory", made["by its agent"], "SUSPENDED")
    farm.create_session("ts02", "alice")

    found = probe.proven()

    assert lines(found.stdout) == lines(listing(server))
    assert {line.split(b"|")[1].decode() for line in found.stdout.splitlines()} == set(made.values())
    assert (found.rejected_rows, found.notes) == (0, ())
    assert {line.count(b"|") + 1 for line in found.stdout.splitlines()} == {16 if telekinesis else 14}
    assert compare_with_reference(reference(probe)).agreement is Agreement.EQUAL


@pytest.mark.parametrize("client", ["10.1.2.3", "10.1.2.0/24", "fd00::7", "fd00::/64"])
def test_an_address_is_as_x2go_prints_it(
    farm: PostgresFarm, server: RealX2GoServer, probe: DirectProbe, client: str
) -> None:
    name = farm.create_session("ts01", "alice")
    farm.sql("update sessions_view set client = $1 where session_id = $2", client, name, role=role_of("alice"))
    farm.insert_mount("ts01", "alice", name, client, "/home/alice/media")

    assert probe.proven().stdout.split(b"|")[7].decode() == client
    assert lines(probe.proven().stdout) == lines(listing(server))
    printed = server.run(["x2golistmounts", name], "alice").stdout
    assert mounts(probe).stdout == name.encode() + b"|" + printed


def test_new_suspended_resumed_and_ended_sessions_are_seen(
    farm: PostgresFarm, server: RealX2GoServer, probe: DirectProbe
) -> None:
    assert probe.proven() == Proven(b"")
    name = farm.create_session("ts01", "alice")
    seen = []
    for change in (None, farm.suspend_session, farm.resume_session, farm.finish_session):
        if change is not None:
            change("ts01", "alice", name)
        section = probe.sessions()
        seen.append(
            [(line.split(b"|")[1].decode(), line.split(b"|")[4]) for line in probe.proven().stdout.splitlines()]
        )
        assert probe.sessions(section.signature).same
    assert seen == [[(name, status)] for status in (b"R", b"S", b"R", b"F")]

    assert listing(server) != b""
    assert probe.proven() == Proven(b"")


def test_mounts_equal_what_x2golistmounts_prints(
    farm: PostgresFarm, server: RealX2GoServer, probe: DirectProbe
) -> None:
    expected = []
    for user in ("alice", "john_doe"):
        name = farm.create_session("ts01", user)
        for path in ("_tmp", "_with space", "odd|name", "_ü"):
            farm.insert_mount("ts01", user, name, "10.1.2.3", f"/home/{user}/media/{path}")
        printed = server.run(["x2golistmounts", name], user).stdout.splitlines()
        assert len(printed) == 4
        expected += [name.encode() + b"|" + line for line in printed]
    other = farm.create_session("ts02", "alice")
    farm.insert_mount("ts02", "alice", other, "10.1.2.3", "/home/alice/elsewhere")

    assert sorted(mounts(probe).stdout.splitlines()) == sorted(expected)


TEXTS = ("ü", "Ã¼", "Ω", "Ωü", "ΩÃ¼", "日本", "\u00a0", "")


@pytest.mark.parametrize("cookie", TEXTS)
@pytest.mark.parametrize("name", ["mallory-9-1_stDMATE_dp24", "mallory-9-1_stDü_dp24", "mallory-9-1_stDΩ_dp24"])
def test_characters_that_a_user_writes_make_no_difference_to_x2go_s_query(
    farm: PostgresFarm, probe: DirectProbe, name: str, cookie: str
) -> None:
    farm.sql(
        "insert into sessions(session_id, display, uname, server, status, cookie)"
        " values ($1, 9, 'mallory', 'ts01', 'S', $2)",
        *(name, cookie),
        role=role_of("mallory"),
    )

    assert compare_with_reference(reference(probe)).agreement is not Agreement.DIFFERS


# What users write by SQL

INSERT = (
    "insert into sessions(session_id, display, uname, server, status, agent_pid, client, init_time, last_time)"
    " values ($1, 49, $2, 'ts01', 'S', '4242', '10.6.6.6', coalesce($3, now()::text)::timestamp, now())"
)
Forgery = Callable[[PostgresFarm, str], int]


def forged_rows(*rows: tuple[str, str], time: str | None = None) -> Forgery:
    """Rows by session name and user, written by mallory; returns how many are left out."""

    def forge(farm: PostgresFarm, genuine: str) -> int:
        for session, user in rows:
            farm.sql(INSERT, session.replace("GENUINE", genuine), user, time, role=role_of("mallory"))
        return len(rows)

    return forge


def a_thousand(farm: PostgresFarm, genuine: str) -> int:
    farm.sql(
        "insert into sessions(session_id, display, uname, server, status)"
        " select 'alice-50-' || n || '_stDMATE_dp24', 1000 + n, 'alice', 'ts01', 'S' from generate_series(1, 1000) n",
        role=role_of("mallory"),
    )
    return 1000


def five_thousand(farm: PostgresFarm, genuine: str) -> int:
    """More than one user may have, of which those are left out that come last by name, and none of another user."""
    farm.sql(
        "insert into sessions(session_id, display, uname, server, status)"
        " select 'zzz-' || n, 1000 + n, 'alice', 'ts01', 'S' from generate_series(1, 5000) n",
        role=role_of("mallory"),
    )
    return 5000


def changed_row(farm: PostgresFarm, genuine: str) -> int:
    """What X2Go's rules let pass of updates and deletions of another user's row."""
    for statement in (
        "update sessions_view set status = 'F' where session_id = $1",
        "delete from sessions where session_id = $1",
        "update sessions set status = 'F' where session_id = $1",
    ):
        with contextlib.suppress(Exception):
            farm.sql(statement, genuine, role=role_of("mallory"))
    return 0


def no_such_status(farm: PostgresFarm, genuine: str) -> int:
    insert = "insert into sessions(session_id, display, uname, server, status) values ('m', 9, 'mallory', 'ts01', 'X')"
    farm.sql(insert, role=role_of("mallory"))
    return 1


FORGERIES: dict[str, Forgery] = {
    "another user's row": forged_rows(("alice-77-1763800000_stDMATE_dp24", "alice")),
    "a row of root": forged_rows(("root-77-1763800000_stDMATE_dp24", "root")),
    "a newline and a row": forged_rows(("mallory-9\n4242|alice-78-1_stDMATE_dp24|78|ts01|R|a|b|c", "mallory")),
    "a separator": forged_rows(("mallory-9|alice-79-1_stDMATE_dp24", "mallory")),
    "a second row, by a space": forged_rows(("GENUINE ", "alice")),
    "a second row, by a newline": forged_rows(("GENUINE\n", "alice")),
    "a second row, by a newline, in her own name": forged_rows(("GENUINE\n", "mallory")),
    "a shadow of a third user": forged_rows(("alice-80-1763800000_stS1XSHADbobXSHADPP50_dp24", "alice")),
    "a shadow name with two owners": forged_rows(("alice-81-1_stS1XSHADbobXSHADPP50XSHADmalloryXSHADPP50", "alice")),
    "an infinite time": forged_rows(("mallory-9-1_stDMATE_dp24", "mallory"), time="infinity"),
    "an infinite past": forged_rows(("mallory-9-1_stDMATE_dp24", "mallory"), time="-infinity"),
    "the last year": forged_rows(("mallory-9-1_stDMATE_dp24", "mallory"), time="294276-12-31"),
    "no status that there is": no_such_status,
    "a column of a megabyte": forged_rows(("m" * 1000 + "x", "mallory" * 150_000)),
    "a thousand rows": a_thousand,
    "five thousand rows": five_thousand,
    "updates and deletions": changed_row,
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_a_user_writes_by_sql_changes_no_genuine_row(
    farm: PostgresFarm, server: RealX2GoServer, probe: DirectProbe, forgery: str
) -> None:
    alice, bob = farm.create_session("ts01", "alice"), farm.create_session("ts01", "bob")
    own = farm.create_session("ts01", "mallory")
    farm.suspend_session("ts01", "bob", bob)
    before = lines(probe.proven().stdout)
    assert len(before) == 3

    left_out = FORGERIES[forgery](farm, alice)

    found = probe.proven()
    assert lines(found.stdout) == before
    assert found.rejected_rows == left_out
    assert probe.names() == {alice, bob, own}
    assert compare_with_reference(reference(probe)).agreement is not Agreement.DIFFERS


COLUMN_TYPES = ("text", "varchar", "integer", "bigint", "inet", "timestamp", "oid")


@contextlib.contextmanager
def functions_of_a_user(farm: PostgresFarm) -> Iterator[None]:
    """Let mallory define functions that fit better than PostgreSQL's own, as any user may before version 15."""
    farm.sql(f"grant create on schema public to {role_of('mallory')}")
    body = "language sql as $$ select 'forged'::text $$"
    makes = [f"create function public.concat({kind}) returns text {body}" for kind in COLUMN_TYPES]
    makes.append(f"create function public.concat(bigint, text, oid) returns text {body}")
    for statement in makes:
        farm.sql(statement, role=role_of("mallory"))
    try:
        assert farm.sql("select concat(session_id) from public.sessions limit 1") == [("forged",)]
        yield
    finally:
        for arguments in (*COLUMN_TYPES, "bigint, text, oid"):
            farm.sql(f"drop function public.concat({arguments})")
        farm.sql(f"revoke create on schema public from {role_of('mallory')}")


def test_functions_that_a_user_defines_are_not_called(farm: PostgresFarm, server: RealX2GoServer) -> None:
    name = farm.create_session("ts01", "alice")
    farm.insert_mount("ts01", "alice", name, "10.1.2.3", "/home/alice/media")
    printed = lines(listing(server))

    with functions_of_a_user(farm), DirectProbe(server) as probe:
        assert lines(probe.proven().stdout) == printed
        assert mounts(probe).stdout == f"{name}|10.1.2.3|/home/alice/media\n".encode()
        farm.delete_session(name)
        farm.create_session("ts02", "bob")
        assert probe.sessions().other_hosts == ("ts02",)


def test_mounts_that_a_user_forges_are_not_served(farm: PostgresFarm, probe: DirectProbe) -> None:
    alice, own = farm.create_session("ts01", "alice"), farm.create_session("ts01", "mallory")
    farm.insert_mount("ts01", "alice", alice, "10.1.2.3", "/home/alice/media")
    farm.insert_mount("ts01", "mallory", own, "10.1.2.4", "/home/mallory/media")
    before = mounts(probe).stdout
    assert len(before.splitlines()) == 2
    insert = "insert into mounts(session_id, path, client) values ($1, $2, '203.0.113.7')"
    farm.sql(insert, alice, "/of-another-session", role=role_of("mallory"))
    farm.sql(INSERT, "alice-77-1763800000_stDMATE_dp24", "alice", None, role=role_of("mallory"))
    farm.sql(insert, "alice-77-1763800000_stDMATE_dp24", "/of-a-forged-session", role=role_of("mallory"))
    farm.sql(insert, own, f"/a\n{alice}|10.6.6.6|/b", role=role_of("mallory"))

    found = mounts(probe)

    assert found.stdout == before
    assert found.rejected_rows == 1


def test_mounts_beyond_all_measure_are_left_out_of_their_own_user_s(farm: PostgresFarm, probe: DirectProbe) -> None:
    alice, own = farm.create_session("ts01", "alice"), farm.create_session("ts01", "mallory")
    farm.insert_mount("ts01", "alice", alice, "10.1.2.3", "/home/alice/media")
    farm.sql(
        "insert into mounts(session_id, path, client) select $1, '/m' || n, '10.1.2.4' from generate_series(1, 5000) n",
        own,
        role=role_of("mallory"),
    )

    found = mounts(probe)

    assert [line for line in found.stdout.splitlines() if not line.startswith(own.encode())] == [
        f"{alice}|10.1.2.3|/home/alice/media".encode()
    ]
    assert (len(found.stdout.splitlines()), found.rejected_rows) == (2001, 3000)


# A database that fails one server, and secrets


def test_a_wrong_password_of_one_server_is_that_server_s_failure(farm: PostgresFarm, server: RealX2GoServer) -> None:
    here, there = farm.create_session("ts01", "alice"), farm.create_session("ts02", "alice")
    with DirectProbe(server) as one, DirectProbe(farm.servers["ts02"]) as two:
        assert (one.names(), two.names()) == ({here}, {there})
        password = farm.admin_password
        farm.set_admin_password_file(farm.servers["ts02"], "another")

        with pytest.raises(ListingFailed, match=r'password authentication failed for user "x2godbuser".*') as caught:
            two.names()
        assert ADMIN_PASSWORD_FILE in str(caught.value)
        assert "another" not in str(caught.value).replace("as on the other", "")
        assert one.names() == {here}

        farm.set_admin_password_file(farm.servers["ts02"], password)
        assert two.names() == {there}


def test_restarts_in_a_loop_are_named_failures_or_right_rows(farm: PostgresFarm, probe: DirectProbe) -> None:
    name = farm.create_session("ts01", "alice")
    for mode in ("fast", "immediate", "fast"):
        assert probe.names() == {name}
        with farm.database.stopped(mode):  # type: ignore[arg-type]
            with pytest.raises(ListingFailed, match="Connection refused"):
                probe.names()
            with pytest.raises(ListingFailed, match="Connection refused"):
                mounts(probe)
        # The first poll after it: a connection that ended is made again within the poll.
        assert probe.names() == {name}
        farm.database.restart(mode)  # type: ignore[arg-type]
        assert probe.names() == {name}


def test_a_connection_that_goes_silent_is_given_up_and_load_figures_come(
    farm: PostgresFarm, probe: DirectProbe
) -> None:
    name = farm.create_session("ts01", "alice")
    assert probe.names() == {name}
    pids = [int(row[0] or 0) for row in farm.sql("select pid from pg_stat_activity where usename = $1", ADMIN_ROLE)]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGSTOP)
    try:
        load, sessions = probe.ask(LOAD, SESSIONS, seconds=3)
        assert load.stdout.startswith(b"loadavg ")
        assert sessions.error is not None
        assert (sessions.error.code, sessions.records) == ("pg_silent", ())
        # A new connection is served by another backend.
        assert probe.names() == {name}
    finally:
        os.kill(pids[0], signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{pids[0]}").exists(), "the end of the silent backend")
    assert len(farm.database.backends(ADMIN_ROLE)) == 1


def test_no_password_is_in_a_command_line_or_an_environment(farm: PostgresFarm, server: RealX2GoServer) -> None:
    farm.create_session("ts01", "alice")
    secrets = {farm.admin_password, farm.database.superuser_password}
    secrets |= {server.path(f"/home/{user}/.x2go/pgsqlpass").read_text().strip() for user in ("alice", "bob")}
    with DirectProbe(server) as probe:
        probe.names()
        with farm.database.locked_table("sessions"):
            probe.send(SESSIONS)
            wait_until(lambda: ("x2gofleet-probe", "active", "Lock") in farm.database.backends(ADMIN_ROLE), "the lock")
            pids = probe.pids()
            assert len(pids) == 2
            texts = [process.command for process in server.processes()]
            texts += [Path(f"/proc/{pid}/environ").read_text(errors="replace") for pid in pids]
            assert not [text for text in texts for secret in secrets if secret in text]
        probe.receive()
