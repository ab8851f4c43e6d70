"""The model of simulated sessions: its rows, its life, its determinism; no SSH."""

from __future__ import annotations

from datetime import datetime

import pytest
from x2gofleet_workers.simulator.commands import run_command
from x2gofleet_workers.simulator.faults import Fault
from x2gofleet_workers.simulator.fleet import (
    FINISHED_SECONDS,
    STARTING_SECONDS,
    FleetModel,
    ServerModel,
)
from x2gofleet_workers.simulator.users import Login

START = 1_763_800_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock: Clock) -> ServerModel:
    return ServerModel(server_id="ts01", users=("alice", "bob"), desktops=("DMATE",), seed=1, clock=clock)


def fleet(seed: int = 3, *, servers: int = 3, sessions: int = 40, pace: float = 5.0) -> tuple[FleetModel, Clock]:
    clock = Clock()
    return FleetModel(servers=servers, sessions=sessions, seed=seed, clock=clock, pace=pace), clock


def events(model: ServerModel) -> list[tuple[float, str, str]]:
    return [(change.time, change.event, change.session_name) for change in model.changes]


def local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat()


def fields(listing: bytes) -> list[list[str]]:
    return [row.split("|") for row in listing.decode().splitlines()]


def test_a_starting_row_has_empty_pid_cookie_client_and_ports_as_the_real_one(model: ServerModel, clock: Clock) -> None:
    name = model.start_session("bob", "DKDE")
    assert name == "bob-50-1763800000_stDKDE_dp24"
    assert fields(model.listing(clock.now + 2)) == [
        ["", name, "50", "ts01", "R", local(START), "", "", "", "", local(START), "bob", "2", "", "", ""]
    ]


def test_a_started_session_gets_its_pid_cookie_and_ports_when_due(model: ServerModel, clock: Clock) -> None:
    name = model.start_session("alice")
    model.tick(START + STARTING_SECONDS - 0.01)
    assert model.session(name).is_starting
    model.tick(START + STARTING_SECONDS)
    (row,) = fields(model.listing(START + 100))
    assert int(row[0]) > 0
    assert len(row[6]) == 32
    assert row[7].startswith("10.")
    assert [row[8], row[9], row[13]] == ["30000", "30001", "30002"]
    assert row[12] == "100"
    assert row[14:] == ["-1", "-1"]


def test_only_a_published_applications_provider_has_telekinesis_ports(model: ServerModel, clock: Clock) -> None:
    model.start_session("alice", "RPUBLISHED", ready=True)
    (row,) = fields(model.listing(clock.now))
    assert row[13:] == ["30002", "30003", "30004"]


def test_suspend_and_resume_move_the_change_time_and_never_the_age(model: ServerModel, clock: Clock) -> None:
    name = model.start_session("alice", ready=True)
    clock.now = START + 60
    model.suspend(name)
    (row,) = fields(model.listing(START + 90))
    assert [row[4], row[5], row[10], row[12]] == ["S", local(START), local(START + 60), "90"]
    clock.now = START + 120
    model.resume(name)
    (row,) = fields(model.listing(START + 121))
    assert [row[4], row[10], row[12]] == ["R", local(START + 120), "121"]


def test_an_ended_session_is_finished_for_a_moment_and_then_gone(model: ServerModel, clock: Clock) -> None:
    name = model.start_session("alice", ready=True)
    model.end(name)
    assert fields(model.listing(clock.now))[0][4] == "F"
    assert model.user_listing("alice", clock.now) == b""
    model.tick(START + FINISHED_SECONDS)
    assert model.listing(clock.now) == b""
    assert [event for _, event, _ in events(model)] == ["started", "running", "finished", "gone"]


def test_the_change_log_says_when_and_what(model: ServerModel, clock: Clock) -> None:
    name = model.start_session("alice")
    model.tick(START + 10)
    clock.now = START + 20
    model.suspend(name)
    assert events(model) == [
        (START, "started", name),
        (START + STARTING_SECONDS, "running", name),
        (START + 20, "suspended", name),
    ]


@pytest.mark.parametrize("change", ["start", "ready", "suspend", "resume", "end", "gone", "mounts"])
def test_every_change_gives_a_new_revision(model: ServerModel, clock: Clock, change: str) -> None:
    running = model.start_session("alice", ready=True)
    suspended = model.start_session("alice", ready=True)
    model.suspend(suspended)
    if change == "ready":
        model.start_session("bob")
    if change == "gone":
        model.end(running)
    before, listing = model.revision, model.records(START)
    match change:
        case "start":
            model.start_session("bob")
        case "ready" | "gone":
            model.tick(START + 60)
        case "suspend":
            model.suspend(running)
        case "resume":
            model.resume(suspended)
        case "end":
            model.end(running)
        case "mounts":
            model.set_mounts(running, [("127.0.0.1", "/tmp/x")])
    assert model.revision > before
    assert change == "mounts" or model.records(START) != listing


def test_nothing_changed_keeps_the_revision(model: ServerModel, clock: Clock) -> None:
    model.start_session("alice", ready=True)
    before = model.revision
    model.listing(clock.now)
    model.tick(START + 3600)
    assert model.revision == before


def test_what_a_session_is_not_can_not_be_done_to_it(model: ServerModel) -> None:
    name = model.start_session("alice")
    with pytest.raises(ValueError, match="not running"):
        model.suspend(name)
    with pytest.raises(ValueError, match="not suspended"):
        model.resume(name)
    model.end(name)
    with pytest.raises(ValueError, match="finished"):
        model.end(name)
    with pytest.raises(KeyError, match="ts01 has no session 'nope'"):
        model.suspend("nope")
    model.tick(START + 60)
    assert model.sessions == ()


def test_rows_come_suspended_first_and_finished_last(model: ServerModel, clock: Clock) -> None:
    ended, running, suspended = (model.start_session("alice", ready=True) for _ in range(3))
    model.end(ended)
    model.suspend(suspended)
    assert [row[1] for row in fields(model.listing(clock.now))] == [suspended, running, ended]


def test_a_display_is_used_once_at_a_time(model: ServerModel) -> None:
    first = model.start_session("alice", ready=True)
    model.start_session("bob", ready=True)
    model.end(first)
    model.tick(START + FINISHED_SECONDS)
    model.start_session("bob", "DXFCE", ready=True)
    assert sorted(session.display for session in model.sessions) == [50, 51]


def test_a_shadow_session_is_listed_by_its_own_command_with_14_fields(model: ServerModel, clock: Clock) -> None:
    desktop = model.start_session("alice", ready=True)
    shadow = model.start_shadow("bob", desktop, full_access=False, ready=True)
    assert shadow == "bob-51-1763800000_stS0XSHADaliceXSHADPP50_dp24"
    assert model.user_listing("bob", clock.now) == b""
    (row,) = fields(model.shadow_listing("bob", clock.now))
    assert len(row) == 14
    assert [row[1], row[11]] == [shadow, "bob"]
    assert shadow in [row[1] for row in fields(model.listing(clock.now))]


def test_records_hold_the_columns_of_the_listing(model: ServerModel, clock: Clock) -> None:
    model.start_session("alice", "RPUBLISHED", ready=True)
    model.start_session("bob")
    rows = fields(model.listing(clock.now))
    columns = [[column.decode() for column in record.columns()] for record in model.records(clock.now)]
    order = (1, 11, 3, 4, 2, 5, 10, 6, 7, 0, 8, 9, 13, 14, 15, 12)
    assert [record[1:17] for record in columns] == [[row[index] for index in order] for row in rows]
    # Not cut, without a creator (SQLite) or a foreign agent; the agent of one runs, the other one has none yet.
    assert [[record[0], *record[17:]] for record in columns] == [["", "", "", "RUNNING"], ["", "", "", ""]]


def test_desktops_are_own_running_displays_then_shared_ones(model: ServerModel) -> None:
    model.start_session("alice", ready=True, shared_with=["bob"])
    model.start_session("bob", ready=True)
    model.start_session("bob", "RxTerm", ready=True)
    suspended = model.start_session("bob", ready=True)
    model.suspend(suspended)
    assert model.desktops("bob") == b"bob@:51\nalice@:50\n"
    assert model.desktops("alice") == b"alice@:50\n"


def test_mounts_are_those_of_running_sessions(model: ServerModel, clock: Clock) -> None:
    mounts = [("127.0.0.1", "/tmp/a"), ("127.0.0.1", "/tmp/b")]
    running = model.start_session("alice", ready=True, mounts=mounts)
    suspended = model.start_session("bob", ready=True, mounts=mounts)
    model.suspend(suspended)
    assert model.mounts() == ((running, "127.0.0.1", "/tmp/a"), (running, "127.0.0.1", "/tmp/b"))
    assert model.mounts(username="bob") == ()


def test_load_follows_the_number_of_sessions(model: ServerModel) -> None:
    def figures(now: float) -> dict[str, list[float]]:
        lines = model.load_stdout(now).decode().splitlines()
        return {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines}

    idle = figures(START)
    for _ in range(20):
        model.start_session("alice", ready=True)
    soon, later = figures(START + 60), figures(START + 3600)
    assert list(idle) == ["loadavg", "memtotal_kb", "memavailable_kb", "cpus", "cpu_mhz"]
    assert idle["loadavg"][0] < soon["loadavg"][0] < later["loadavg"][0]
    assert soon["loadavg"][0] > soon["loadavg"][1] > soon["loadavg"][2]
    assert later["memavailable_kb"] < idle["memavailable_kb"]
    assert later["memavailable_kb"][0] > 0


def test_the_same_seed_gives_the_same_life_whatever_the_ticks() -> None:
    (one, one_clock), (other, other_clock) = fleet(), fleet()
    for second in range(1, 601):
        one_clock.now = START + second
        one.tick(one_clock.now)
    other_clock.now = START + 600
    other.tick(other_clock.now)
    for server_id, model in one.servers.items():
        assert events(model)
        assert events(model) == events(other.servers[server_id])
        assert model.listing(START + 600) == other.servers[server_id].listing(START + 600)


def test_another_seed_gives_another_life() -> None:
    one, other = fleet(seed=1)[0], fleet(seed=2)[0]
    assert one.servers["ts01"].listing(START) != other.servers["ts01"].listing(START)


def test_a_fleet_begins_with_its_sessions_and_stays_near_that_number() -> None:
    model, _ = fleet(servers=4, sessions=80, pace=2.0)
    assert sum(len(server.sessions) for server in model.servers.values()) == 80
    assert all(server.changes == () for server in model.servers.values())
    seen: set[str] = set()
    for minute in range(1, 61):
        model.tick(START + 60 * minute)
        assert 40 <= sum(len(server.sessions) for server in model.servers.values()) <= 130
    for server in model.servers.values():
        seen |= {change.event for change in server.changes}
    assert seen == {"started", "running", "suspended", "resumed", "finished", "gone"}


def test_a_fleet_without_pace_keeps_still() -> None:
    model, _ = fleet(pace=0.0)
    model.tick(START + 100_000)
    assert all(server.changes == () for server in model.servers.values())


def test_a_fleet_has_every_sort_of_session_and_user() -> None:
    model, _ = fleet(servers=6, sessions=120)
    sessions = [session for server in model.servers.values() for session in server.sessions]
    kinds = {session.session_type[:2] for session in sessions}
    assert {"DM", "DX", "DK", "RP", "S0", "S1"} <= kinds
    assert {session.status for session in sessions} == {"R", "S"}
    assert any("_" in session.username for session in sessions)
    places = {(session.username, session.hostname) for session in sessions}
    assert len(places) > len({username for username, _ in places})
    assert any(server.mounts() for server in model.servers.values())
    assert any(session.shared_with for session in sessions)


def test_even_the_smallest_fleet_has_a_user_on_two_servers() -> None:
    model, _ = fleet(servers=2, sessions=2)
    users = [server.sessions[0].username for server in model.servers.values()]
    assert users[0] == users[1]


def test_a_fleet_without_servers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one server"):
        fleet(servers=0)


@pytest.mark.parametrize("text", ["hang", "tarpit", "tarpit=3", "slow=0.5", "not-ssh", "dead"])
def test_a_fault_is_written_as_it_is_read(text: str) -> None:
    assert str(Fault.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("broken", "unknown fault 'broken'; known: hang"),
        ("slow", "slow needs its seconds"),
        ("slow=-1", "positive number"),
        ("slow=inf", "positive number"),
        ("slow=soon", "positive number"),
        ("hang=3", "hang takes no value"),
    ],
)
def test_a_fault_that_is_none_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Fault.parse(text)


def test_commands_joined_by_a_shell_run_one_after_the_other(model: ServerModel, clock: Clock) -> None:
    model.start_session("alice", ready=True)
    alice = Login.named("alice")
    output = run_command("export HOSTNAME && x2golistsessions; /usr/bin/hostname", alice, model, clock.now)
    assert output.stdout == model.user_listing("alice", clock.now) + b"ts01\n"
    assert run_command("nosuch", alice, model, clock.now).exit_status == 127
