"""What records, listings and errors of a polled server are worth: tables of what users can write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from x2gofleet_workers.probe.proof import Proven, prove_desktops, prove_load, prove_mounts, prove_sessions, row_of
from x2gofleet_workers.probe.records import MountRecord, Record
from x2gofleet_workers.probe.requests import Listing, SectionKind
from x2gofleet_workers.probe.sections import ErrorCode, Section, SectionError, SectionStatus

from x2gofleet.errors import HostNameChanged, ListingFailed, NotProven, PollError, SetupError

ALICE = Record(
    cut=b"",
    session=b"alice-50-1763800000_stDMATE_dp24",
    username=b"alice",
    hostname=b"ts01",
    status=b"R",
    display=b"50",
    created=b"2026-11-22T20:24:30",
    touched=b"2026-11-22T20:24:30",
    cookie=b"0123456789abcdef0123456789abcdef",
    client=b"10.1.2.3",
    agent_pid=b"1368",
    graphics_port=b"35001",
    sound_port=b"35002",
    sshfs_port=b"35003",
    tekictrl_port=b"-1",
    tekidata_port=b"-1",
    age=b"12",
    creator=b"",
    foreign_agent=b"",
    state=b"",
)
ALICE_ROW = (
    b"1368|alice-50-1763800000_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|0123456789abcdef0123456789abcdef|10.1.2.3|"
    b"35001|35002|2026-11-22T20:24:30|alice|12|35003|-1|-1"
)
BOB = replace(ALICE, session=b"bob-51-1763800000_stDXFCE_dp24", username=b"bob", display=b"51")


def sessions(*records: Record, **more: Any) -> Section:
    """A section of a server's sessions, as the probe sends it."""
    return Section(
        kind=SectionKind.SESSIONS,
        **{"backend": "sqlite", "host": "ts01", "records": records, "signature": "a.1", **more},
    )


def proven(section: Section, **more: Any) -> Proven:
    return prove_sessions(section, **{"scope": "server", "login": "root", "user": "root", **more})


def test_a_record_becomes_the_row_that_x2go_prints() -> None:
    assert proven(sessions(ALICE)).stdout == ALICE_ROW + b"\n"


def test_a_session_that_is_being_started_is_a_row_with_empty_fields() -> None:
    empty = dict.fromkeys(
        (
            "cookie",
            "client",
            "agent_pid",
            "graphics_port",
            "sound_port",
            "sshfs_port",
            "tekictrl_port",
            "tekidata_port",
        ),
        b"",
    )
    assert proven(sessions(replace(ALICE, **empty))).stdout == (
        b"|alice-50-1763800000_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|||||2026-11-22T20:24:30|alice|12|||\n"
    )


def test_without_telekinesis_a_row_has_14_fields() -> None:
    assert proven(sessions(ALICE, fields=14)).stdout == ALICE_ROW.rpartition(b"|-1|-1")[0] + b"\n"


@pytest.mark.parametrize(
    ("status", "state", "shown"),
    [
        (b"R", b"SUSPENDED", b"S"),
        (b"R", b"SUSPENDING", b"S"),
        (b"R", b"RUNNING", b"R"),
        (b"R", b"STARTING", b"R"),
        (b"R", b"RESUMING", b"R"),
        (b"R", b"TERMINATING", b"R"),
        (b"R", b"", b"R"),
        (b"R", b"!special", b"R"),
        (b"S", b"RUNNING", b"S"),
        (b"F", b"SUSPENDED", b"F"),
        (b"T", b"SUSPENDED", b"T"),
    ],
)
def test_an_agent_s_state_makes_a_running_session_suspended_and_nothing_else(
    status: bytes, state: bytes, shown: bytes
) -> None:
    assert row_of(replace(ALICE, status=status, state=state), 16).split(b"|")[4] == shown


BAD_RECORDS: dict[str, tuple[dict[str, bytes], str]] = {
    "separator in cookie": ({"cookie": b"x|y"}, "separator"),
    "newline in cookie": ({"cookie": b"x\n1|a|b"}, "separator"),
    "carriage return": ({"client": b"10.1.2.3\r"}, "separator"),
    "escape sequence": ({"client": b"\x1b[2J"}, "separator"),
    "NUL": ({"session": b"alice\0"}, "separator"),
    "not UTF-8": ({"session": b"alice-\xff"}, "separator"),
    "right-to-left override": ({"username": "a\u202elice".encode()}, "separator"),
    "line separator": ({"client": "a\u2028b".encode()}, "separator"),
    "long column": ({"cut": b"8"}, "too long"),
    "no name": ({"session": b""}, "no session name"),
    "no user": ({"username": b""}, "no session name or no user"),
    "unknown status": ({"status": b"X"}, "status"),
    "status in lower case": ({"status": b"r"}, "status"),
    "no status": ({"status": b""}, "status"),
    "other host": ({"hostname": b"ts02"}, "another host"),
    "host in other case": ({"hostname": b"TS01"}, "another host"),
    "negative display": ({"display": b"-5"}, "number"),
    "absurd display": ({"display": b"9" * 400}, "number"),
    "display with newline": ({"display": b"50\n"}, "number"),
    "no display": ({"display": b""}, "number"),
    "absurd port": ({"graphics_port": b"9" * 40}, "number"),
    "port that is text": ({"sound_port": b"35002|x"}, "number"),
    "other digits": ({"agent_pid": "٣".encode()}, "number"),
    "float": ({"sshfs_port": b"1.5"}, "number"),
    "no time": ({"created": b""}, "time"),
    "time with separator": ({"touched": b"2026-11-22|20:24:30"}, "time"),
    "no age": ({"age": b""}, "time"),
    "another user's agent": ({"foreign_agent": b"mallory"}, "process of mallory"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_left_out_reported_and_costs_no_other_row(case: str) -> None:
    changes, reason = BAD_RECORDS[case]
    bad = replace(ALICE, **{"session": b"mallory-60-1_stDX", "username": b"mallory", **changes})

    found = proven(sessions(ALICE, bad, BOB))

    assert found.stdout == proven(sessions(ALICE, BOB)).stdout
    assert found.rejected_rows == 1
    assert len(found.rejected) == 1
    assert reason in found.rejected[0]
    assert found.rejected[0].isprintable()
    assert "0123456789abcdef" not in found.rejected[0]


def test_reasons_are_bounded_and_all_rejected_rows_are_counted() -> None:
    bad = [replace(ALICE, session=b"m-%d" % number, status=b"?") for number in range(6000)]

    found = proven(sessions(ALICE, *bad))

    assert found.stdout == ALICE_ROW + b"\n"
    assert found.rejected_rows == 6000
    assert len(found.rejected) == 1000


CREATORS: list[tuple[str, Record, bytes, bool]] = [
    ("own", ALICE, b"x2gouser_alice", True),
    ("another user's", ALICE, b"x2gouser_mallory", False),
    ("administrator's", ALICE, b"x2godbuser", True),
    ("none", ALICE, b"", False),
    ("prefix only", ALICE, b"x2gouser_", False),
    ("cut at 63 bytes", replace(ALICE, username=b"a" * 80), (b"x2gouser_" + b"a" * 80)[:63], True),
    ("not cut", replace(ALICE, username=b"a" * 80), b"x2gouser_" + b"a" * 80, False),
    ("shadow, by its owner", replace(ALICE, session=b"bob-7-1_stS1XSHADaliceXSHADPP50_dp24"), b"x2gouser_alice", True),
    ("shadow, by another", replace(ALICE, session=b"bob-7-1_stS1XSHADaliceXSHADPP50_dp24"), b"x2gouser_eve", False),
]


@pytest.mark.parametrize(("case", "record", "creator", "genuine"), CREATORS, ids=[case[0] for case in CREATORS])
def test_on_postgresql_a_row_is_genuine_only_by_its_creator(
    case: str, record: Record, creator: bytes, genuine: bool
) -> None:
    found = proven(
        sessions(replace(record, creator=creator), replace(BOB, creator=b"x2gouser_bob"), backend="postgres")
    )

    assert found.rejected_rows == (not genuine)
    assert len(found.stdout.splitlines()) == 1 + genuine


def test_zero_records_of_a_reading_that_succeeded_are_no_sessions() -> None:
    assert proven(sessions()) == Proven(b"")


def test_records_that_the_probe_left_out_are_counted() -> None:
    found = proven(sessions(ALICE, BOB, left_out=3000))

    assert len(found.stdout.splitlines()) == 2
    assert found.rejected_rows == 3000
    assert found.rejected == ("3000 records are more than one database user may have on a server",)


def test_records_of_other_hosts_alone_prove_no_renaming() -> None:
    """Any user can insert a record of another host name: the server stays up, and the records are mentioned."""
    found = proven(sessions(others=3, other_hosts=("elsewhere", "ts09")))

    assert found.stdout == b""
    assert found.notes == ("no session of host ts01, but 3 of elsewhere, ts09",)


@pytest.mark.parametrize(
    ("recorded", "others", "records", "hostname", "is_refused"),
    [
        ("ts00", ("ts00",), (), "", True),
        ("ts00", ("mallory", "ts00"), (), "", True),
        ("ts00", ("mallory",), (), "", False),
        ("ts00", ("ts00",), (ALICE,), "", False),
        ("ts00", ("ts00",), (), "ts01", False),
        ("ts01", ("ts00",), (), "", False),
        ("", ("ts00",), (), "", False),
        ("ts00", (), (), "", False),
    ],
)
def test_a_renamed_server_is_recognized_by_the_name_it_had(
    recorded: str, others: tuple[str, ...], records: tuple[Record, ...], hostname: str, is_refused: bool
) -> None:
    section = sessions(*records, others=len(others), other_hosts=others)
    if is_refused:
        with pytest.raises(HostNameChanged, match='hostname = "ts01"'):
            proven(section, recorded_host=recorded, hostname=hostname)
    else:
        assert proven(section, recorded_host=recorded, hostname=hostname).rejected_rows == 0


def test_another_host_name_than_the_inventory_expects_is_refused() -> None:
    with pytest.raises(HostNameChanged, match="the inventory expects ts02"):
        proven(sessions(ALICE), hostname="ts02")
    assert proven(sessions(ALICE), hostname="TS01.example.org").stdout


@pytest.mark.parametrize("code", ErrorCode)
def test_no_error_of_the_probe_is_an_empty_listing(code: ErrorCode) -> None:
    section = sessions(status=SectionStatus.ERROR, error=SectionError(code, "what \x1b[2Jit said"))

    with pytest.raises(PollError) as raised:
        proven(section, login="poll")

    assert str(raised.value).isprintable()
    assert "it said" in str(raised.value)


@pytest.mark.parametrize(
    "code", ["locked", "hot_journal", "timeout", "hung", "busy", "too_large", "replaced", "malformed"]
)
def test_what_a_user_can_bring_about_is_never_a_fault_that_is_retried_slowly(code: str) -> None:
    with pytest.raises(PollError) as raised:
        proven(sessions(status=SectionStatus.ERROR, error=SectionError(ErrorCode(code), "text")))

    assert not isinstance(raised.value, SetupError)


def command_listing(*lines: bytes, **more: Any) -> Section:
    return sessions(
        ALICE, BOB, source=Listing.COMMAND, exit_status=0, lines=b"".join(line + b"\n" for line in lines), **more
    )


BOB_ROW = row_of(BOB, 16)


def test_a_listing_by_command_is_checked_against_the_records() -> None:
    forged = ALICE_ROW.replace(b"10.1.2.3", b"203.0.113.7")

    found = proven(command_listing(b"an error text", forged, ALICE_ROW, BOB_ROW, BOB_ROW))

    assert found.stdout == ALICE_ROW + b"\n" + BOB_ROW + b"\n"
    assert found.rejected_rows == 3
    assert found.source == "command"


def test_a_listing_by_command_that_lacks_a_session_is_refused() -> None:
    with pytest.raises(NotProven, match="lacks 1 of 2 sessions"):
        proven(command_listing(ALICE_ROW))
    with pytest.raises(ListingFailed, match="exit status 1"):
        proven(replace(command_listing(ALICE_ROW, BOB_ROW), exit_status=1))


def user_sessions(stdout: bytes, exit_status: int = 0) -> Section:
    return Section(kind=SectionKind.SESSIONS, stdout=stdout, exit_status=exit_status, stderr="")


@pytest.mark.parametrize(
    ("login", "user"), [("alice", "alice"), ("Alice", "alice"), ("alice@corp.example.org", "alice")]
)
def test_in_scope_user_rows_are_those_of_the_account_that_the_probe_runs_as(login: str, user: str) -> None:
    found = prove_sessions(user_sessions(ALICE_ROW + b"\n"), scope="user", login=login, user=user)

    assert found.stdout == ALICE_ROW + b"\n"


@pytest.mark.parametrize(
    ("stdout", "text"),
    [
        (b"Can't open database\n", "Can't open database"),
        (ALICE_ROW + b"\nCan't open database\n", "Can't open database"),
        (BOB_ROW + b"\n", "another user"),
        (b"a|b\n", "2 fields"),
    ],
)
def test_in_scope_user_an_error_text_is_not_a_listing(stdout: bytes, text: str) -> None:
    with pytest.raises(ListingFailed, match=text):
        prove_sessions(user_sessions(stdout), scope="user", login="alice", user="alice")


def test_mounts_come_from_records_and_bad_ones_are_left_out() -> None:
    good = MountRecord(b"", b"alice-50", b"10.1.2.3", b"/home/alice/a|b")
    bad = [
        replace(good, session=b"a|b"),
        replace(good, client=b"\n"),
        replace(good, path=b"x\ny"),
        replace(good, cut=b"3"),
    ]
    section = Section(kind=SectionKind.MOUNTS, backend="sqlite", host="ts01", mounts=(good, *bad))

    found = prove_mounts(section, scope="server", login="root")

    assert found.stdout == b"alice-50|10.1.2.3|/home/alice/a|b\n"
    assert found.rejected_rows == 4


def test_desktops_of_any_user_name() -> None:
    stdout = "carol@corp.example.org@:72\ncorp+user@:7\nCORP\\alice@:8\nüser@:9\nno desktop\n".encode()
    section = Section(kind=SectionKind.DESKTOPS, stdout=stdout, exit_status=0)

    found = prove_desktops(section, login="root")

    assert found.stdout == "carol@corp.example.org@:72\ncorp+user@:7\nCORP\\alice@:8\nüser@:9\n".encode()
    assert found.rejected_rows == 1


def test_a_desktop_without_its_display_is_left_out_and_fails_nobody() -> None:
    """x2golistdesktops prints so what another user with an @ in the name shares."""
    found = prove_desktops(
        Section(kind=SectionKind.DESKTOPS, stdout=b"carol@corp.example.org\n", exit_status=0), login="root"
    )
    assert (found.stdout, found.rejected_rows) == (b"", 1)
    assert "display is missing" in found.rejected[0]
    for said in (b"carol@corp.example.org\nno database\n", b"error: a@b\n", b"a@b: c\n"):
        with pytest.raises(ListingFailed):
            prove_desktops(Section(kind=SectionKind.DESKTOPS, stdout=said, exit_status=0), login="root")


def test_load_figures_are_read_before_they_are_stored() -> None:
    good = b"loadavg 0.1 0.2 0.3\nmemtotal_kb 1000\nmemavailable_kb 500\ncpus 2\ncpu_mhz 2000\n"

    assert prove_load(Section(kind=SectionKind.LOAD, stdout=good)).stdout == good
    with pytest.raises(ListingFailed):
        prove_load(Section(kind=SectionKind.LOAD, stdout=b"loadavg\n"))
