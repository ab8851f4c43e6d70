"""A farm on PostgreSQL as an administrator runs it: host names, connections, pgbouncer, TLS, a standby."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from x2gofleet_workers.cli import main
from x2gofleet_workers.probe.delivery import probe_text
from x2gofleet_workers.probe.proof import prove_sessions
from x2gofleet_workers.probe.protocol import SectionKind, SectionRequest
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference

from x2gofleet.errors import ListingFailed

from .conftest import FarmFactory, PollFactory
from .direct_probe import DirectProbe
from .namespace import wait_until
from .pgbouncer import PgBouncer, PoolMode
from .polled import PROFILE, PolledFleet
from .polled_farm import PATIENT, RARELY, listed, names_of, refresh
from .postgres_farm import ADMIN_ROLE, PostgresFarm, SslMode, configure_postgres, listing, role_of
from .postgres_standby import PostgresStandby, SwitchedProxy

SESSIONS = SectionRequest(SectionKind.SESSIONS)


@pytest.fixture(scope="module")
def module_farm(start_module_postgres_farm: FarmFactory) -> PostgresFarm:
    return start_module_postgres_farm(("ts01", "ts02"), max_connections=20)


@pytest.fixture
def farm(farm: PostgresFarm) -> Iterator[PostgresFarm]:
    yield farm
    for name, server in farm.servers.items():
        server.set_hostname(name)


# Host names


def events_of(polled: PolledFleet) -> list[str]:
    return [event.kind.value for event in polled.cache.events()]


def test_a_renamed_server_is_a_failure_of_worker_and_check(
    farm: PostgresFarm,
    poll_farm: Callable[..., PolledFleet],
    valkey_url: str,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, there = farm.create_session("ts01", "alice"), farm.create_session("ts02", "bob")
    polled = poll_farm()
    check = ["check", "--inventory", str(polled.inventory), "--redis-url", valkey_url, "--namespace", namespace]
    assert main(check) == 0
    capsys.readouterr()

    farm.servers["ts02"].set_hostname("renamed")

    # That is what a listing by X2Go's command says, and what was stored of it.
    assert listing(farm.servers["ts02"]) == b""
    errors = refresh(polled)
    assert set(errors) == {"ts02"}
    assert "the server's host name was ts02 and is renamed now" in errors["ts02"]
    assert polled.target_status("ts02").error_class == "HostNameChanged"
    kept = polled.snapshot(server="ts02")
    assert kept is None or names_of(kept.stdout) == {there}
    assert "ended" not in events_of(polled)
    assert main(check) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "ts01"], ["FAILED", "ts02"]]
    assert "HostNameChanged" in lines[1]
    # Without the record there is nothing to compare with.
    assert main(check[:3]) == 0

    farm.servers["ts02"].set_hostname("ts02")
    assert refresh(polled) == {}
    for server, name in (("ts01", here), ("ts02", there)):
        assert listed(polled, server) == {name}
    assert "ended" not in events_of(polled)


def test_two_servers_of_one_host_name_are_a_failure_of_both(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet], capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = farm.create_session("ts01", "alice"), farm.create_session("ts02", "bob")
    farm.insert_mount("ts01", "alice", here, "10.1.2.3", "/home/alice/media")
    polled = poll_farm()
    assert refresh(polled, mounts=True) == {}

    farm.servers["ts02"].set_hostname("ts01")

    # Each is listed the other's sessions by X2Go.
    assert here.encode() in listing(farm.servers["ts02"])
    refresh(polled)
    errors = refresh(polled)
    assert set(errors) == {"ts01", "ts02"}
    for server, text in errors.items():
        assert "more than one server has the host name ts01 on the same PostgreSQL database (ts01, ts02)" in text
        assert "give each server a host name of its own" in text
        assert polled.target_status(server).error_class == "HostNameShared"
        assert polled.snapshot(server=server) is None
        assert polled.snapshot("mounts", server) is None
    assert set(refresh(polled, mounts=True)) == {"ts01", "ts02"}
    assert main(["check", "--inventory", str(polled.inventory)]) == 1
    *_, found = capsys.readouterr().out.splitlines()
    assert found.startswith("FAILED  ts01, ts02  HostNameShared: ")

    farm.servers["ts02"].set_hostname("ts02")
    refresh(polled)
    assert refresh(polled) == {}
    for server, name in (("ts01", here), ("ts02", there)):
        assert listed(polled, server) == {name}
    assert "ended" not in events_of(polled)


def test_equal_host_names_on_two_databases_are_no_failure(
    farm: PostgresFarm, start_postgres_farm: FarmFactory, poll: PollFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = start_postgres_farm(("ts01",))
    here, there = farm.create_session("ts01", "alice"), other.create_session("ts01", "bob")
    servers = {"ts01": farm.servers["ts01"], "other": other.servers["ts01"]}

    polled = poll(servers, login=PATIENT, intervals=RARELY)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first snapshots", seconds=60)

    for server, name in (("ts01", here), ("other", there)):
        assert listed(polled, server) == {name}
    assert main(["check", "--inventory", str(polled.inventory)]) == 0
    assert "HostName" not in capsys.readouterr().out


# Connections


def probe_connections(farm: PostgresFarm) -> int:
    return sum(name == "x2gofleet-probe" for name, *_ in farm.database.backends(ADMIN_ROLE))


@pytest.mark.parametrize(("setting", "kept"), [("standing", 2), ("each_poll", 0)])
def test_the_probes_keep_a_connection_each_or_none(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet], setting: str, kept: int
) -> None:
    name = farm.create_session("ts01", "alice")
    # With notices: looks between polls must not connect either.
    polled = poll_farm(login={"deadline": 20, "database_connection": setting})
    assert refresh(polled) == {}
    polled.wait_until(lambda: probe_connections(farm) == kept, f"{kept} connections")
    logged = farm.database.log().count("connection authorized: user=x2godbuser")

    assert refresh(polled) == {}
    assert refresh(polled, mounts=True) == {}

    polled.wait_until(lambda: probe_connections(farm) == kept, f"{kept} connections")
    connected = farm.database.log().count("connection authorized: user=x2godbuser") - logged
    assert connected >= 4 if setting == "each_poll" else probe_connections(farm) == 2
    snapshot = polled.snapshot()
    assert snapshot is not None
    assert names_of(snapshot.stdout) == {name}


def test_a_probe_that_connects_for_each_poll_does_not_connect_between_them(farm: PostgresFarm) -> None:
    name = farm.create_session("ts01", "alice")

    def connections() -> int:
        return farm.database.log().count("application_name=x2gofleet-probe")

    for each_poll in (False, True):
        with DirectProbe(farm.servers["ts01"]) as probe:
            probe.send(SESSIONS, watch=True, each_poll=each_poll)
            probe.receive()
            before = connections()
            if each_poll:
                assert farm.database.backends(ADMIN_ROLE) == []
                # A state file is looked at all the same.
                farm.servers["ts01"].set_agent_state("alice", name, "SUSPENDED")
                probe.notice()
                assert connections() == before
            else:
                farm.suspend_session("ts01", "alice", name)
                probe.notice()
                assert connections() == before
                farm.resume_session("ts01", "alice", name)


# pgbouncer


@pytest.mark.parametrize("each_poll", [False, True], ids=["standing", "each poll"])
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_rows_through_pgbouncer_are_those_without_it(
    farm: PostgresFarm, request: pytest.FixtureRequest, mode: PoolMode, each_poll: bool
) -> None:
    made = farm.create_session("ts01", "alice"), farm.create_session("ts01", "bob")
    farm.create_session("ts02", "bob")
    farm.suspend_session("ts01", "bob", made[1])
    farm.insert_mount("ts01", "alice", made[0], "10.1.2.3", "/home/alice/media")
    kinds = (SESSIONS, SectionRequest(SectionKind.MOUNTS))

    def ask(probe: DirectProbe) -> list[object]:
        probe.send(*kinds, each_poll=each_poll)
        sessions, mounts = probe.receive()
        assert (sessions.error, mounts.error) == (None, None)
        return [{replace(record, age=b"") for record in sessions.records}, mounts.mounts, sessions.database.identity]

    with DirectProbe(farm.servers["ts01"]) as probe:
        plain = ask(probe)
    assert len(plain[0]) == 2  # type: ignore[arg-type]

    def back() -> None:
        for server in farm.servers.values():
            configure_postgres(server, farm.database.host, farm.database.port)

    request.addfinalizer(back)
    # In session mode a connection that stands takes one of the pool's; X2Go's own query needs further ones.
    pool_size = 6 if mode == "session" and not each_poll else 2
    own = farm.servers["ts01"].path("/home/alice/.x2go/pgsqlpass").read_text().strip()
    passwords = {ADMIN_ROLE: farm.admin_password, role_of("alice"): own}
    with PgBouncer(farm.database, passwords, mode=mode, pool_size=pool_size) as bouncer:
        for server in farm.servers.values():
            configure_postgres(server, bouncer.host, bouncer.port)
        with DirectProbe(farm.servers["ts01"]) as one, DirectProbe(farm.servers["ts02"]) as two:
            for _ in range(3):
                assert ask(one) == plain
                (other,) = ask(two)[:1]
                assert len(other) == 1  # type: ignore[arg-type]
            # Nothing stays in a connection that another server's probe gets next.
            settings = farm.sql(
                "select count(*) from pg_stat_activity where usename = $1 and state like 'idle in%'", ADMIN_ROLE
            )
            assert settings == [("0",)]
            one.send(SectionRequest(SectionKind.REFERENCE), each_poll=each_poll)
            (reference,) = one.receive()
            assert reference.error is None
            assert compare_with_reference(reference).agreement is Agreement.EQUAL
            # X2Go's own commands, as root and as a user.
            new = farm.create_session("ts01", "alice")
            farm.suspend_session("ts01", "alice", new)
            assert one.names() == {*made, new}
            assert new.encode() in listing(farm.servers["ts01"])
            assert new.encode() in farm.servers["ts01"].run(["x2golistsessions"], "alice").stdout
    back()


# check


def test_check_names_the_database_and_warns_where_it_takes_too_few_connections(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet], capsys: pytest.CaptureFixture[str]
) -> None:
    polled = poll_farm()
    check = ["check", "--inventory", str(polled.inventory)]

    assert main(check) == 0

    database = farm.database
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "all"]
    for line in lines[:2]:
        assert f"database at 127.0.0.1 port {database.port} (no TLS), postgres, by records, equal to" in line

    database.set_connection_limit(ADMIN_ROLE, 5)
    database.end_backends(ADMIN_ROLE)
    try:
        assert main(check) == 0
    finally:
        database.set_connection_limit(ADMIN_ROLE, -1)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "lets x2godbuser have 5 connections, 2 server(s) need 6" in warning
    assert "alter role x2godbuser connection limit 6;" in warning

    assert main(check) == 0
    assert "warning" not in capsys.readouterr().out


# TLS

ROOT_CERTIFICATE = "/root/.postgresql/root.crt"


def test_tls_is_used_and_verified_as_x2go_s_configuration_says(start_postgres_farm: FarmFactory) -> None:
    farm = start_postgres_farm(("ts01",))
    server, database = farm.servers["ts01"], farm.database
    name = farm.create_session("ts01", "alice")

    def outcome(ssl: SslMode) -> tuple[str, str]:
        """TLS version and error of a probe, which serves the session where it has no error."""
        configure_postgres(server, database.host, database.port, ssl=ssl)
        with DirectProbe(server) as probe:
            section = probe.sessions()
        if section.error is not None:
            # X2Go's own listing cannot be told from one without sessions.
            assert listing(server) == b""
            with pytest.raises(ListingFailed) as failed:
                prove_sessions(section, scope="server", login="root")
            return "", str(failed.value)
        assert [record.session.decode() for record in section.records] == [name]
        assert name.encode() in listing(server)
        return section.database.tls, ""

    assert outcome("prefer") == ("", "")
    assert "server does not support SSL, but SSL was required" in outcome("require")[1]
    certificate = database.enable_tls()
    assert outcome("disable") == ("", "")
    for ssl in ("prefer", "require"):
        assert outcome(ssl) == ("TLSv1.3", "")  # type: ignore[arg-type]
    refused = outcome("verify-full")[1]
    assert f'root certificate file "{ROOT_CERTIFICATE}" does not exist' in refused
    assert "and the CA certificate in /root/.postgresql/root.crt on the server" in refused
    file = server.path(ROOT_CERTIFICATE)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_text(certificate)
    for ssl in ("verify-ca", "verify-full"):
        assert outcome(ssl) == ("TLSv1.3", "")  # type: ignore[arg-type]
    # A certificate of somebody else.
    database.enable_tls()
    assert "certificate verify failed" in outcome("verify-full")[1]
    hba = database.data / "pg_hba.conf"
    hba.write_text(hba.read_text().replace("host ", "hostssl "))
    database.sql("select pg_reload_conf()")
    refused = outcome("disable")[1]
    assert "no pg_hba.conf entry" in refused
    assert "with TLS as `ssl` in /etc/x2go/x2gosql/sql says" in refused


# A standby that takes over


def test_a_standby_that_takes_over_is_polled_within_a_back_off(
    start_postgres_farm: FarmFactory, poll: PollFactory
) -> None:
    farm = start_postgres_farm(("ts01", "ts02"))
    expected = {server: {farm.create_session(server, user) for user in ("alice", "bob")} for server in farm.servers}
    served: list[tuple[str, frozenset[str]]] = []

    with PostgresStandby(farm.database) as standby, SwitchedProxy(farm.database.port) as proxy:
        for server in farm.servers.values():
            configure_postgres(server, "127.0.0.1", proxy.port)
        polled = poll(farm.servers, login={"deadline": 20})

        def look() -> None:
            for server in farm.servers:
                snapshot = polled.snapshot(server=server)
                if snapshot is not None:
                    served.append((server, names_of(snapshot.stdout)))

        def are(up: bool) -> bool:
            look()
            return all(polled.target_status(server).up is up for server in farm.servers)

        polled.wait_until(
            lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first snapshots", seconds=60
        )
        polled.wait_until(lambda: are(True), "the first polls", seconds=60)
        identities = farm.sql("select system_identifier from pg_control_system()")
        end = farm.sql("select pg_current_wal_lsn()")[0][0]
        polled.wait_until(
            lambda: standby.sql("select pg_last_wal_replay_lsn() >= $1::pg_lsn", (end,)) == [("t",)], "the standby"
        )

        farm.database.stop("immediate")
        polled.wait_until(lambda: are(False), "both servers to fail", seconds=60)
        for server in farm.servers:
            assert polled.target_status(server).error_class == "ListingFailed"
        standby.promote()
        proxy.switch(standby.port)
        failed = {server: polled.poller(server).counters.failed for server in farm.servers}

        polled.wait_until(lambda: are(True), "the standby to be polled", seconds=60)
        # One poll may have been on its way.
        for server in farm.servers:
            assert polled.poller(server).counters.failed <= failed[server] + 2
            assert names_of(polled.next_snapshot(server=server).stdout) == expected[server]
        assert standby.sql("select system_identifier from pg_control_system()") == identities
        new = farm.create_session("ts01", "mallory")
        expected_then = expected["ts01"] | {new}
        polled.wait_until(
            lambda: names_of(polled.next_snapshot().stdout) == expected_then, "a session of the new primary", seconds=60
        )
        look()

    assert {(server, names) for server, names in served} == {
        ("ts01", frozenset(expected["ts01"])),
        ("ts02", frozenset(expected["ts02"])),
        ("ts01", frozenset(expected_then)),
    }


@pytest.mark.parametrize("seconds", [b"0.2", b"600"])
def test_a_standing_connection_does_not_stay_with_a_server_that_was_switched_away(
    start_postgres_farm: FarmFactory, seconds: bytes
) -> None:
    farm = start_postgres_farm(("ts01",))
    server = farm.servers["ts01"]
    before = farm.create_session("ts01", "alice")
    setting = b"CONNECTION_SECONDS   => 60,"
    assert setting in probe_text()
    text = probe_text().replace(setting, setting.replace(b"60", seconds))

    with PostgresStandby(farm.database) as standby, SwitchedProxy(farm.database.port) as proxy:
        configure_postgres(server, "127.0.0.1", proxy.port)
        with DirectProbe(server, text=text) as probe:
            assert probe.names() == {before}
            # The old primary lives on, and so do connections to it.
            standby.promote()
            proxy.switch(standby.port)
            after = farm.create_session("ts01", "bob")
            if seconds == b"600":
                assert probe.names() == {before}
                return
            wait_until(lambda: probe.names() == {before, after}, "the probe to follow", timeout_seconds=60)


# The document

DOCUMENT = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text(encoding="utf-8")


def test_the_document_s_statements_work(start_postgres_farm: FarmFactory) -> None:
    farm = start_postgres_farm(("ts01",))
    blocks = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == 8

    with DirectProbe(farm.servers["ts01"]) as probe:
        assert probe.names() == set()
        found = {
            statement: farm.sql(statement) for block in blocks for statement in block.split(";\n") if statement.strip()
        }

    rights, connected = (next(rows for text, rows in found.items() if word in text) for word in ("privilege", "count("))
    assert rights == [("t", "t")]
    assert connected == [("x2gofleet-probe", "idle", "1")]
    assert farm.sql("select rolconnlimit from pg_roles where rolname = 'x2godbuser'") == [("300",)]
    farm.database.restart()
    assert farm.sql("show max_connections") == [("303",)]


def test_pgbouncer_runs_with_the_document_s_settings(farm: PostgresFarm, request: pytest.FixtureRequest) -> None:
    (settings,) = re.findall(r"```ini\n(.*?)```", DOCUMENT, re.DOTALL)
    name = farm.create_session("ts01", "alice")
    server, database = farm.servers["ts01"], farm.database
    request.addfinalizer(lambda: configure_postgres(server, database.host, database.port))

    with PgBouncer(database, {ADMIN_ROLE: farm.admin_password}, settings=settings) as bouncer:
        configure_postgres(server, bouncer.host, bouncer.port)
        with DirectProbe(server) as probe:
            assert probe.names() == {name}
