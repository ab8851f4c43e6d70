"""What a user of a polled server does costs that user's rows at most: the exact rows of all others stay served."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

import pytest
from x2gofleet_workers.polling import TargetPoller

from x2gofleet.kinds import Kind

from .conftest import PollFactory
from .polled import PROFILE, PolledFleet
from .realserver import X2GO_LIB, RealX2GoServer

Attack = Callable[[RealX2GoServer], None]
MALLORYS_ADDRESS = "203.0.113.7"
SAMPLES = 4
OTHERS = frozenset(("alice", "bob", "john_doe", "root"))
COLUMNS = "session_id, display, uname, server, client, status, cookie, agent_pid, gr_port, sound_port, fs_port"


def forge(server: RealX2GoServer, *rows: tuple[object, ...]) -> None:
    """Insert records with any content, as X2Go's setgid program lets any local user do."""
    marks = ", ".join("?" * len(COLUMNS.split(", ")))
    with contextlib.closing(sqlite3.connect(server.database, timeout=30)) as connection:
        # In pieces, so that the database is not locked for long: X2Go's own commands give up after 2 s.
        for first in range(0, len(rows), 100):
            with connection:
                statement = f"insert into sessions ({COLUMNS}) values ({marks})"
                connection.executemany(statement, rows[first : first + 100])


def record(number: int, **changes: object) -> tuple[object, ...]:
    values: dict[str, object] = {
        "session_id": f"mallory-{number}-1763800000_stDMATE_dp24",
        "display": number,
        "uname": "mallory",
        "server": "ts01",
        "client": MALLORYS_ADDRESS,
        "status": "R",
        "cookie": "f" * 32,
        "agent_pid": 999_999,
        "gr_port": 1,
        "sound_port": 2,
        "fs_port": 3,
        **changes,
    }
    return tuple(values.values())


def rows_in_columns(server: RealX2GoServer) -> None:
    row = f"1|alice-9-1_stDMATE_dp24|9|ts01|R|2026-11-22T20:24:30|{'f' * 32}|{MALLORYS_ADDRESS}|1|2|2026-11-22T20:24:30"
    server.insert_session("mallory", 60, cookie=f"x\n{row}|alice|1|3|-1|-1\nx")
    server.insert_session("mallory", 61, client=f"x|alice|{row}")


def another_user_s_agent(server: RealX2GoServer) -> None:
    """Records in alice's and root's name with an agent that mallory runs."""
    hers = server.insert_session("mallory", 62)
    ((pid,),) = server.sql("select agent_pid from sessions where session_id = ?", (hers,))
    forge(
        server,
        record(63, session_id="alice-63-1763800000_stDMATE_dp24", uname="alice", agent_pid=pid),
        record(64, session_id="root-64-1763800000_stDMATE_dp24", uname="root", agent_pid=pid),
    )


def state_file(server: RealX2GoServer, script: str) -> None:
    """Put something other than a state file where mallory's agent keeps its state."""
    name = server.insert_session("mallory", 65)
    server.run(["sh", "-c", f'mkdir -p "$1" && cd "$1" && {script}', "sh", f"/tmp/.x2go-mallory/C-{name}"], "mallory")


def fifo(server: RealX2GoServer) -> None:
    state_file(server, "mkfifo state")


def device_behind_a_link(server: RealX2GoServer) -> None:
    state_file(server, "ln -s /dev/zero state")


def terminal_behind_a_link(server: RealX2GoServer) -> None:
    state_file(server, "ln -s /dev/ptmx state")


def loop_of_links(server: RealX2GoServer) -> None:
    state_file(server, "ln -s state state")


def another_user_s_state(server: RealX2GoServer) -> None:
    """A directory that is a link to alice's, whose agent is suspended."""
    server.insert_session("mallory", 66)
    server.run(["ln", "-s", "/tmp/.x2go-alice", "/tmp/.x2go-mallory"], "mallory")


def unreadable_directory(server: RealX2GoServer) -> None:
    state_file(server, "printf SUSPENDED > state && chmod 000 .")


def endless_state(server: RealX2GoServer) -> None:
    state_file(server, "head -c 3000000 /dev/zero > state")


MANY_FILES = """
import os
for directory in range(100):
    os.makedirs(f"/tmp/.x2go-mallory/C-{directory}")
    source = f"/tmp/.x2go-mallory/C-{directory}/state"
    open(source, "w").close()
    for number in range(999):
        os.link(source, f"{source}{number}")
"""


def many_state_files(server: RealX2GoServer) -> None:
    server.run(["/usr/bin/python3", "-c", MANY_FILES], "mallory", timeout_seconds=300)


def long_columns(server: RealX2GoServer) -> None:
    forge(server, *(record(100 + n, cookie="c" * 130_000, client="d" * 130_000) for n in range(14)))


def many_records(server: RealX2GoServer) -> None:
    forge(server, *(record(1000 + n, status="?" if n % 2 else "R", cookie="c" * 600) for n in range(6000)))


def records_as_large_as_can_be(server: RealX2GoServer) -> None:
    columns = ("uname", "status", "client", "cookie", "agent_pid", "gr_port", "sound_port", "fs_port")
    wide = dict.fromkeys(columns, "c" * 1024)
    for first in range(10_000, 18_000, 200):
        numbers = range(first, first + 200)
        forge(server, *(record(number, session_id=f"{number}{'c' * 1024}", **wide) for number in numbers))
        forge(server, *(record(10_000 + n, session_id=f"mallory-{n}-{'9' * 480}", client="d" * 250) for n in numbers))


def records_of_other_hosts(server: RealX2GoServer) -> None:
    server.run([f"{X2GO_LIB}/x2goinsertsession", "67", "elsewhere", "mallory-67-1763800000_stDMATE_dp24"], "mallory")
    forge(server, *(record(200 + n, server=f"ts{n:02}") for n in range(50)))


def absurd_numbers(server: RealX2GoServer) -> None:
    huge: object = "9" * 400
    forge(
        server,
        record(-5),
        record(300, display=huge),
        record(301, agent_pid=-1),
        record(302, agent_pid=huge),
        record(303, gr_port="0x10", sound_port="1e9", fs_port=1.5),
        record(304, agent_pid=0),
        record(305, agent_pid=1),
        record(306, display="3 0 6"),
    )


def unprintable_names(server: RealX2GoServer) -> None:
    names = ("\0", "\x1b[2J", "a\u202eb", "\u2028", "\ufeff", "$(touch /tmp/x)", "`id`", "../../etc/passwd", "-rf", "")
    forge(server, *(record(400 + n, session_id=name, uname=name) for n, name in enumerate(names)))


ATTACKS: tuple[Attack, ...] = (
    rows_in_columns,
    another_user_s_agent,
    fifo,
    device_behind_a_link,
    terminal_behind_a_link,
    loop_of_links,
    another_user_s_state,
    unreadable_directory,
    endless_state,
    many_state_files,
    long_columns,
    many_records,
    records_as_large_as_can_be,
    records_of_other_hosts,
    absurd_numbers,
    unprintable_names,
)


def rows_of_others(polled: PolledFleet) -> dict[str, tuple[str, str, str]]:
    """Return what is served of the server's other users: user, status and client address by session name."""
    found = polled.cache.list_sessions(profile_name=PROFILE)
    assert found is not None
    return {row.name: (row.username, row.status, row.client) for row in found.rows if row.username in OTHERS}


def poller_of(polled: PolledFleet) -> TargetPoller:
    return polled.poller()


def wrong_samples(server: RealX2GoServer, polled: PolledFleet, attack: Attack) -> list[str]:
    """Make an attack while polls go on, and others go on working; return what was wrong at each sample."""
    alice, bob = server.insert_session("alice", 50), server.insert_session("bob", 51)
    server.set_agent_state("alice", alice, "SUSPENDED")
    expected = {alice: ("alice", "S", "10.1.2.3"), bob: ("bob", "R", "10.1.2.3")}
    polled.next_snapshot(seconds=60)
    assert rows_of_others(polled) == expected
    attack(server)
    wrong: list[str] = []
    for sample in range(SAMPLES):
        if sample == 1:
            # Others' sessions come and change as before.
            john = server.insert_session("john_doe", 52)
            server.change_status("bob", bob, "S")
            expected |= {john: ("john_doe", "R", "10.1.2.3"), bob: ("bob", "S", "10.1.2.3")}
        try:
            polled.next_snapshot(seconds=30)
        except TimeoutError as exc:
            wrong.append(f"no poll: {exc}")
            continue
        if rows_of_others(polled) != expected:
            wrong.append(f"served {rows_of_others(polled)}, expected {expected}")
        if not polled.status().up:
            wrong.append(f"down: {polled.status().error_text}")
    return wrong


@pytest.fixture
def attacked(server: RealX2GoServer, poll: PollFactory) -> tuple[RealX2GoServer, PolledFleet]:
    return server, poll(server, per_server={"ts01": {"deadline": 20}})


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
def test_an_attack_costs_the_attacker_s_rows_alone(
    attacked: tuple[RealX2GoServer, PolledFleet], attack: Attack
) -> None:
    server, polled = attacked

    assert wrong_samples(server, polled, attack) == []
    assert poller_of(polled).counters.failed == 0


REPORTED = {
    rows_in_columns: 2,
    another_user_s_agent: 2,
    long_columns: 14,
    many_records: 3000,
    absurd_numbers: 6,
    unprintable_names: 6,
}


@pytest.mark.parametrize("attack", REPORTED, ids=[attack.__name__ for attack in REPORTED])
def test_each_bad_row_is_counted(attacked: tuple[RealX2GoServer, PolledFleet], attack: Attack) -> None:
    server, polled = attacked
    server.insert_session("alice", 50)
    polled.next_snapshot()

    attack(server)

    assert polled.next_snapshot(seconds=60).rejected_rows >= REPORTED[attack]


@pytest.mark.parametrize("attack", [fifo, long_columns, records_of_other_hosts], ids=lambda attack: attack.__name__)
def test_the_harness_finds_what_x2go_s_root_listing_suffers(
    server: RealX2GoServer, poll: PollFactory, attack: Attack
) -> None:
    """Polled by x2golistsessions_root, as before there was a resident probe."""
    polled = poll(server, per_server={"ts01": {"listing": "command", "deadline": 6}})
    if attack is fifo:
        assert wrong_samples(server, polled, attack)
    else:
        # Checked against the records, these are no danger any more.
        assert wrong_samples(server, polled, attack) == []


def test_a_kind_of_error_that_a_user_can_bring_about_is_retried_soon(
    attacked: tuple[RealX2GoServer, PolledFleet],
) -> None:
    server, polled = attacked
    server.make_database_unreadable("missing-table")
    polled.wait_for_error("ListingFailed")

    retry_at = poller_of(polled).retry_at(Kind.SESSIONS)

    assert retry_at is not None
    server.restore_database()
    polled.next_snapshot(seconds=60)
