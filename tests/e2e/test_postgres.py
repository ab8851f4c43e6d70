"""A farm on PostgreSQL, polled: exact sets, and a database that fails is never "no sessions" or "no mounts"."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest
from x2gofleet_workers.cli import main

from tests.waiting import HANG_SECONDS

from .conftest import FarmFactory, LoginKey, PollFactory
from .earlier import EarlierProbe
from .polled import PROFILE, PolledFleet
from .polled_farm import PATIENT, RARELY, listed, names_of, refresh
from .postgres_farm import ADMIN_PASSWORD_FILE, ADMIN_ROLE, PostgresFarm, configure_postgres, role_of

SNAPSHOTS = 300
EVERY_SNAPSHOTS = 500

Fault = Callable[[PostgresFarm], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def module_farm(start_module_postgres_farm: FarmFactory, login_key: LoginKey) -> PostgresFarm:
    farm = start_module_postgres_farm(max_connections=20)
    for server in farm.servers.values():
        server.authorize("alice", login_key.public_text)
    return farm


def two_on_each(farm: PostgresFarm) -> dict[str, frozenset[str]]:
    """Start two sessions on each server; return their names."""
    return {
        server: frozenset(farm.create_session(server, user) for user in ("alice", "bob")) for server in farm.servers
    }


# Exact sets


def test_each_server_has_exactly_its_own_sessions(farm: PostgresFarm, poll_farm: Callable[..., PolledFleet]) -> None:
    made = {server: {farm.create_session(server, user) for user in ("alice", "bob")} for server in farm.servers}
    suspended = farm.create_session("ts02", "mallory")
    farm.suspend_session("ts02", "mallory", suspended)
    made["ts02"].add(suspended)

    polled = poll_farm()

    for server, expected in made.items():
        snapshot = polled.snapshot(server=server)
        assert snapshot is not None
        assert names_of(snapshot.stdout) == expected
        assert snapshot.rejected_rows == 0
    found = polled.cache.list_sessions(profile_name=PROFILE, username="mallory")
    assert found is not None
    assert {name: (info.status, info.hostname) for name, info in found.items()} == {suspended: ("S", "ts02")}


def test_sessions_that_ended_are_an_empty_list_that_is_believed(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet]
) -> None:
    name, other = farm.create_session("ts01", "alice"), farm.create_session("ts02", "alice")
    polled = poll_farm()
    farm.delete_session(name)

    assert refresh(polled) == {}

    snapshot = polled.snapshot()
    assert snapshot is not None
    assert snapshot.stdout == b""
    assert all(status.up for status in polled.cache.servers())
    found = polled.cache.list_sessions(profile_name=PROFILE, username="alice")
    assert found is not None
    assert set(found) == {other}


def test_mounts_are_those_of_the_server_s_own_sessions(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet]
) -> None:
    here, elsewhere = farm.create_session("ts01", "alice"), farm.create_session("ts02", "bob")
    farm.insert_mount("ts01", "alice", here, "10.1.2.3", "/home/alice/media/disk/a b|c")
    farm.insert_mount("ts02", "bob", elsewhere, "10.1.2.4", "/home/bob/media/disk/d")
    insert = "insert into mounts(session_id, path, client) values ($1, $2, '203.0.113.7')"
    farm.sql(insert, here, "/of-another-user", role=role_of("mallory"))
    polled = poll_farm()

    assert refresh(polled, mounts=True) == {}

    stored = {server: polled.snapshot("mounts", server) for server in farm.servers}
    assert {server: snapshot and snapshot.stdout.decode() for server, snapshot in stored.items()} == {
        "ts01": f"{here}|10.1.2.3|/home/alice/media/disk/a b|c\n",
        "ts02": f"{elsewhere}|10.1.2.4|/home/bob/media/disk/d\n",
        "ts03": "",
    }
    assert polled.cache.list_mounts(profile_name=PROFILE, username="bob") == ["10.1.2.4|/home/bob/media/disk/d"]


# Each fault by itself


@contextlib.contextmanager
def no_connection_allowed(farm: PostgresFarm, role: str = ADMIN_ROLE) -> Iterator[None]:
    farm.database.set_connection_limit(role, 0)
    try:
        yield
    finally:
        farm.database.set_connection_limit(role, -1)


@contextlib.contextmanager
def other_password(farm: PostgresFarm) -> Iterator[None]:
    farm.database.set_password(ADMIN_ROLE, "another")
    try:
        yield
    finally:
        farm.database.set_password(ADMIN_ROLE, farm.admin_password)


@contextlib.contextmanager
def no_password_file(farm: PostgresFarm) -> Iterator[None]:
    password = farm.admin_password
    for server in farm.servers.values():
        farm.set_admin_password_file(server, None)
    try:
        yield
    finally:
        for server in farm.servers.values():
            farm.set_admin_password_file(server, password)


@contextlib.contextmanager
def other_port(farm: PostgresFarm) -> Iterator[None]:
    for server in farm.servers.values():
        configure_postgres(server, "127.0.0.1", 1)
    try:
        yield
    finally:
        for server in farm.servers.values():
            configure_postgres(server, farm.database.host, farm.database.port)


def altered(there: str, back: str) -> Fault:
    @contextlib.contextmanager
    def alter(farm: PostgresFarm) -> Iterator[None]:
        farm.sql(there)
        try:
            yield
        finally:
            farm.sql(back)

    return alter


@dataclass(frozen=True, slots=True)
class Cause:
    """What a fault is, and what is said of it."""

    fault: Fault
    text: str
    remedy: str
    # Whether the probes keep the connections that they have; some faults are for new ones alone.
    standing: bool = False


AT_PORT = "see that PostgreSQL runs where /etc/x2go/x2gosql/sql says"
TOO_MANY = "raise max_connections of PostgreSQL, or the connection limit of x2godbuser"
PASSWORD = f"put the password of x2godbuser into {ADMIN_PASSWORD_FILE}"
FAULTS: dict[str, Cause] = {
    "connection limit": Cause(no_connection_allowed, 'too many connections for role "x2godbuser"', TOO_MANY),
    "no connections left": Cause(lambda farm: farm.database.all_connections_taken(), "connection slots", TOO_MANY),
    "password": Cause(other_password, 'password authentication failed for user "x2godbuser"', PASSWORD),
    "password file": Cause(no_password_file, f"{ADMIN_PASSWORD_FILE}: No such file or directory", PASSWORD),
    "port": Cause(other_port, "port 1 failed: Connection refused", AT_PORT),
    "stopped": Cause(lambda farm: farm.database.stopped(), "Connection refused", AT_PORT, standing=True),
    "lock": Cause(
        lambda farm: farm.database.locked_table("sessions"),
        "canceling statement due to lock timeout",
        "see what holds a lock in PostgreSQL: select * from pg_stat_activity",
        standing=True,
    ),
    "rights": Cause(
        altered("revoke select on sessions from x2godbuser", "grant select on sessions to x2godbuser"),
        "permission denied for table sessions",
        "grant x2godbuser SELECT on sessions and mounts",
        standing=True,
    ),
    "table": Cause(
        altered("alter table sessions rename to sessions_gone", "alter table sessions_gone rename to sessions"),
        'relation "public.sessions" does not exist',
        "run x2godbadmin --updatedb",
        standing=True,
    ),
    "frozen": Cause(lambda farm: farm.database.frozen(), "timeout expired", AT_PORT),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_database_is_a_failure_with_its_cause(
    farm: PostgresFarm,
    poll_farm: Callable[..., PolledFleet],
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    expected = {server: frozenset({farm.create_session(server, "alice")}) for server in farm.servers}
    for server, (name,) in expected.items():
        farm.insert_mount(server, "alice", name, "10.1.2.3", f"/home/alice/{server}")
    polled = poll_farm()
    assert refresh(polled, mounts=True) == {}
    cause = FAULTS[fault]
    if not cause.standing:
        farm.database.end_backends(ADMIN_ROLE)

    with cause.fault(farm):
        for kind in ("sessions", "mounts"):
            errors = refresh(polled, mounts=kind == "mounts")
            assert set(errors) == set(farm.servers)
            for text in errors.values():
                assert cause.text in text
                assert cause.remedy in text
        for server in farm.servers:
            status = polled.target_status(server)
            assert (status.up, status.error_class) == (False, "ListingFailed")
            sessions, mounts = polled.snapshot(server=server), polled.snapshot("mounts", server)
            assert sessions is None or names_of(sessions.stdout) == expected[server]
            assert mounts is None or mounts.stdout.endswith(f"|/home/alice/{server}\n".encode())
        assert main(["check", "--inventory", str(polled.inventory)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(farm.servers)
        assert all(line.startswith("FAILED") and cause.text in line for line in lines)

    assert refresh(polled) == {}
    assert refresh(polled, mounts=True) == {}
    for server in farm.servers:
        assert listed(polled, server) == expected[server]


USER_FAULTS: dict[str, tuple[Fault, str]] = {
    "connection limit": (
        lambda farm: no_connection_allowed(farm, role_of("alice")),
        'too many connections for role "x2gouser_alice"',
    ),
    **{name: (FAULTS[name].fault, FAULTS[name].text) for name in ("no connections left", "stopped", "lock")},
}


@pytest.mark.parametrize("fault", USER_FAULTS)
def test_a_failing_database_is_a_failure_for_a_user_s_own_login_too(
    farm: PostgresFarm, poll: PollFactory, fault: str
) -> None:
    name = farm.create_session("ts01", "alice")
    farm.insert_mount("ts01", "alice", name, "10.1.2.3", "/home/alice/media")
    profiles = {PROFILE: {"servers": ["ts01"], "user": "alice"}}
    polled = poll({"ts01": farm.servers["ts01"]}, profiles=profiles, login=PATIENT, intervals=RARELY)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first snapshot", seconds=60)
    begin, cause = USER_FAULTS[fault]

    with begin(farm):
        for mounts in (False, True):
            errors = refresh(polled, mounts=mounts)
            assert list(errors) == ["ts01"]
            assert cause in errors["ts01"]
        snapshot = polled.snapshot(username="alice")
        assert snapshot is None or names_of(snapshot.stdout) == {name}
    assert refresh(polled) == {}


def test_a_poll_that_waited_on_a_lock_leaves_no_backend_behind(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet]
) -> None:
    farm.create_session("ts01", "alice")
    polled = poll_farm()
    # Between polls a probe keeps one connection, without a transaction.
    assert farm.database.backends(ADMIN_ROLE) == [("x2gofleet-probe", "idle", "Client")] * len(farm.servers)

    with farm.database.locked_table("sessions"):
        errors = refresh(polled)
        assert "canceling statement due to lock timeout" in errors["ts01"]
        polled.wait_until(lambda: farm.database.backends(ADMIN_ROLE) == [], "the end of every backend of the poll")

    assert refresh(polled) == {}
    assert len(farm.database.backends(ADMIN_ROLE)) == len(farm.servers)


# Faults that come and go between a listing and its proof


@dataclass
class Tally:
    """Outcomes of many polls, of several servers at once."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def add(self, server: str, names: frozenset[str], expected: frozenset[str]) -> None:
        if names == expected:
            self.right += 1
        else:
            self.wrong.append(f"{server}: {sorted(names)}")

    def poll(self, polled: PolledFleet, expected: Mapping[str, frozenset[str]]) -> None:
        """Have every server polled now, and count what came of it."""
        errors = refresh(polled)
        self.causes += errors.values()
        for server in expected.keys() - errors.keys():
            self.add(server, listed(polled, server), expected[server])


def with_connections_cut(disturbance: Fault) -> Fault:
    """The disturbance, while the probes' own connections are cut: otherwise they would need no new one."""

    @contextlib.contextmanager
    def disturb(farm: PostgresFarm) -> Iterator[None]:
        with disturbance(farm), farm.database.cut_connections(ADMIN_ROLE):
            yield

    return disturb


DISTURBANCES: dict[str, Fault] = {
    "connection limit": with_connections_cut(lambda farm: farm.database.toggled_connection_limit(ADMIN_ROLE)),
    "login storm": with_connections_cut(lambda farm: farm.database.login_storm()),
}

# It was refused, or cut while it was used.
CAUSE = re.compile(
    r"too many connections|connection slots are reserved|sorry, too many clients|terminating connection|server closed"
    r"|no connection to the server"
)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_no_disturbance_ever_makes_a_wrong_list(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet], disturbance: str
) -> None:
    expected = two_on_each(farm)
    polled = poll_farm(intervals={**RARELY, "mounts": 0})
    tally = Tally()

    with DISTURBANCES[disturbance](farm):
        while tally.right + len(tally.wrong) < SNAPSHOTS or not tally.causes:
            tally.poll(polled, expected)

    print(f"{disturbance}: {tally.right} right, {len(tally.wrong)} wrong, {len(tally.causes)} failed")
    assert tally.wrong == []
    assert [text for text in tally.causes if not CAUSE.search(text)] == []


@contextlib.contextmanager
def renamed_database(farm: PostgresFarm) -> Iterator[None]:
    def rename(old: str, new: str) -> None:
        for statement in (
            f"alter database {old} allow_connections false",
            f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{old}'",
            f"alter database {old} rename to {new}",
            f"alter database {new} allow_connections true",
        ):
            farm.database.sql(statement, database="postgres")

    rename("x2go_sessions", "x2go_elsewhere")
    try:
        yield
    finally:
        rename("x2go_elsewhere", "x2go_sessions")


@contextlib.contextmanager
def restarted(farm: PostgresFarm) -> Iterator[None]:
    farm.database.restart("immediate")
    yield


EVERY_FAULT: dict[str, Fault] = {
    **{name: cause.fault for name, cause in FAULTS.items() if name != "frozen"},
    "database renamed": renamed_database,
    "restarted": restarted,
    "no login": altered("alter role x2godbuser nologin", "alter role x2godbuser login"),
    "read only": altered(
        "alter role x2godbuser set default_transaction_read_only = on",
        "alter role x2godbuser reset default_transaction_read_only",
    ),
}
EVERY_CAUSE = re.compile(
    "|".join(
        (
            *(CAUSE.pattern, *(re.escape(cause.text) for cause in FAULTS.values())),
            *("is not permitted to log in", 'database "x2go_sessions" ', "the database system is"),
            *("server closed", "connection to server", "could not receive data"),
        )
    )
)


@contextlib.contextmanager
def every_fault_in_turn(farm: PostgresFarm) -> Iterator[set[str]]:
    """While this lasts each fault comes and goes, one after another; yields which have come so far."""
    met, over = set[str](), threading.Event()

    def trouble() -> None:
        for name in itertools.cycle(EVERY_FAULT):
            with EVERY_FAULT[name](farm):
                # Most are met by new connections alone; where PostgreSQL is stopped there are none.
                with contextlib.suppress(Exception):
                    farm.database.end_backends(ADMIN_ROLE)
                met.add(name)
                over.wait(0.3)
            if over.wait(0.3):
                return

    with ThreadPoolExecutor(1) as pool:
        troubles = pool.submit(trouble)
        try:
            yield met
        finally:
            over.set()
        troubles.result()


def test_no_fault_of_the_database_ever_makes_a_wrong_list(
    farm: PostgresFarm, poll_farm: Callable[..., PolledFleet]
) -> None:
    expected = two_on_each(farm)
    polled = poll_farm(intervals={**RARELY, "mounts": 0})
    tally = Tally()

    with every_fault_in_turn(farm) as met:
        began = time.monotonic()
        while tally.right + len(tally.causes) < EVERY_SNAPSHOTS or met != EVERY_FAULT.keys():
            assert time.monotonic() - began < 4 * HANG_SECONDS
            tally.poll(polled, expected)

    print(f"{len(met)} faults: {tally.right} right, {len(tally.wrong)} wrong, {len(tally.causes)} failed")
    assert tally.wrong == []
    assert [text for text in tally.causes if not EVERY_CAUSE.search(text)] == []
    assert refresh(polled) == {}


EARLIER: dict[str, Fault] = {**DISTURBANCES, "every fault in turn": every_fault_in_turn}


@pytest.mark.parametrize("disturbance", EARLIER)
def test_the_same_disturbance_made_wrong_lists_with_the_earlier_probe(farm: PostgresFarm, disturbance: str) -> None:
    expected = two_on_each(farm)
    tally = Tally()
    with (
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(len(farm.servers)) as pool,
        EARLIER[disturbance](farm),
    ):
        probes = {name: stack.enter_context(EarlierProbe(server)) for name, server in farm.servers.items()}
        while not tally.wrong and tally.right < SNAPSHOTS:
            for name, listing in zip(probes, pool.map(EarlierProbe.poll, probes.values()), strict=True):
                if listing.names is not None:
                    tally.add(name, listing.names, expected[name])

    print(f"{disturbance}, earlier probe: {tally.right} right, {len(tally.wrong)} wrong")
    assert tally.wrong
    assert all(wrong.endswith(": []") for wrong in tally.wrong)
