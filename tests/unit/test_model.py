from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet import model
from x2gofleet.model import LoadReport, RejectedRow, SessionInfo, SessionList

COOKIE = "0123456789abcdef0123456789abcdef"


def session(**changes: Any) -> SessionInfo:
    defaults: dict[str, Any] = {
        "agent_pid": 1368,
        "name": "alice-50-1763800000_stDMATE_dp24",
        "display": 50,
        "hostname": "ts01",
        "status": "R",
        "date_created": "2026-11-22T20:24:30",
        "cookie": COOKIE,
        "client": "192.0.2.17",
        "graphics_port": 35001,
        "snd_port": 35002,
        "date_suspended": "2026-11-22T20:24:31",
        "username": "alice",
        "age_seconds": 2728,
        "sshfs_port": 35003,
    }
    return SessionInfo(**{**defaults, **changes})


def printed(info: SessionInfo) -> bytes:
    values = [getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "server"]
    return ("|".join("" if value is None else str(value) for value in values) + "\n").encode()


STARTING = session(
    name="bob-60-1763800100_stDKDE_dp24",
    display=60,
    username="bob",
    agent_pid=None,
    graphics_port=None,
    snd_port=None,
    sshfs_port=None,
    cookie="",
    client="",
)


@pytest.mark.parametrize("made", ["constructed", "parsed"])
def test_session_info_is_immutable(made: str) -> None:
    info = session() if made == "constructed" else SessionList.from_stdout(printed(session())).rows[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.status = "F"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del info.status
    with pytest.raises((AttributeError, TypeError)):
        info.note = "x"  # type: ignore[attr-defined]
    assert not hasattr(info, "__dict__")


def test_a_parsed_session_is_the_constructed_one() -> None:
    (parsed,) = SessionList.from_stdout(printed(session())).rows
    assert type(parsed) is SessionInfo
    assert parsed == session()
    assert hash(parsed) == hash(session())
    assert repr(parsed) == repr(session())
    assert copy.deepcopy(parsed) == pickle.loads(pickle.dumps(parsed)) == dataclasses.replace(parsed) == parsed


def test_the_cookie_is_never_shown() -> None:
    sessions = SessionList.from_rows([session()])
    for text in (
        *(repr(session()), str(session()), f"{session()}", "%s %r" % (session(), session())),  # noqa: UP031
        *(repr(sessions), str(sessions), repr(sessions()), repr(sessions.rows), repr(sessions.items())),
    ):
        assert COOKIE not in text
        assert session().name in text


@given(st.sampled_from(["name", "hostname", "status", "client", "username", "date_created", "server"]), st.text())
def test_repr_has_no_control_characters(attribute: str, text: str) -> None:
    info = session(**{attribute: text + "\x1b[2J\r\n\u202e\udcff"})
    assert repr(info).isprintable()
    assert repr(SessionList.from_rows([info], missing_servers=[text + "\x1b"])).isprintable()


def test_local_container_is_empty_as_in_a_new_session_of_python_x2go() -> None:
    assert session().local_container == ""


@pytest.mark.parametrize(
    ("status", "running", "suspended", "finished"),
    [("R", True, False, False), ("S", False, True, False), ("F", False, False, True), ("T", False, False, False)],
)
def test_status_methods(status: str, running: bool, suspended: bool, finished: bool) -> None:
    info = session(status=status)
    assert (info.is_running(), info.is_suspended(), info.is_finished()) == (running, suspended, finished)
    assert info.get_status() == status
    assert info.is_initialized()


def test_is_starting_until_a_client_can_join() -> None:
    assert not session().is_starting()
    assert session(agent_pid=None).is_starting()
    assert session(graphics_port=None).is_starting()
    assert not session(snd_port=None, sshfs_port=None).is_starting()
    assert STARTING.is_starting()
    assert STARTING.is_running()
    assert not dataclasses.replace(STARTING, status="F").is_starting()
    assert not dataclasses.replace(STARTING, status="T").is_starting()


@pytest.mark.parametrize(
    ("type_part", "session_type", "share_mode"),
    [
        ("_stDMATE_dp24", "D", None),
        ("_stKMATE_dp24", "K", None),
        ("_stRxTerm_dp24", "R", None),
        ("_stRPUBLISHED_dp24", "P", None),
        ("_stRPUBLISHEDnot_dp24", "R", None),
        ("_stRPUBLISHED", "R", None),
        ("_stS0XSHADbobXSHADPP51_dp24", "S", "0"),
        ("_stS1XSHADbobXSHADPP51_dp24", "S", "1"),
        ("_stS", "S", None),
        ("_stD", "D", None),
        ("_stDfoo-1-2_stKbar_dp24", "D", None),
        ("_stDfoo_stRPUBLISHED_dp24", "D", None),
        ("_stS1XSHADj_stKXSHADPP51_dp24", "S", "1"),
        ("", None, None),
        ("_st_dp24", None, None),
        ("_xdmcp.example.org", None, None),
    ],
)
@pytest.mark.parametrize(
    "username",
    ["alice", "j.doe", "a1", "mary-ann", "john_doe", "_svc", "a__b", "x_stRPUBLISHED_y", "x-1-2_stK", "50-60-70_stS"],
)
def test_type_and_share_mode_come_from_the_name_after_its_user(
    username: str, type_part: str, session_type: str | None, share_mode: str | None
) -> None:
    info = session(username=username, name=f"{username}-50-1763800000{type_part}")
    assert (info.get_session_type(), info.get_share_mode()) == (session_type, share_mode)
    assert info.is_published_applications_provider() is (session_type == "P")
    assert info.is_desktop_session() is (session_type in ("D", "K"))
    assert info.is_kdrive_session() is (session_type == "K")
    assert info.is_nx3_session() is (session_type in ("D", "R", "P"))


@pytest.mark.parametrize("username", ["DOM\\bob", "bob+x", "söm", "bob x-1-2_stK"])
def test_type_is_found_though_the_name_lacks_characters_of_the_user(username: str) -> None:
    kept = "".join(letter for letter in username if letter.isascii() and (letter.isalnum() or letter in "._-@"))
    info = session(username=username, name=f"{kept}-50-1763800000_stRxTerm_dp24")
    assert info.get_session_type() == "R"


def test_type_is_found_where_the_user_column_does_not_match_the_name() -> None:
    assert session(username="root").get_session_type() == "D"
    assert session(username="root", name="x_stS1").get_share_mode() == "1"


def test_session_list_is_an_immutable_mapping() -> None:
    sessions = SessionList.from_rows([session(), STARTING])
    assert isinstance(sessions, Mapping)
    assert list(sessions) == [session().name, STARTING.name]
    assert sessions[STARTING.name] is STARTING
    assert len(sessions) == 2
    assert sessions.get("nobody") is None
    assert list(sessions.keys()) == list(sessions)
    assert list(sessions.values()) == [session(), STARTING]
    assert list(sessions.items()) == [(session().name, session()), (STARTING.name, STARTING)]
    for view in (sessions.keys(), sessions.values(), sessions.items()):
        with pytest.raises(TypeError):
            view.mapping["x"] = session()  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        sessions["nobody"]
    with pytest.raises(TypeError):
        sessions["x"] = session()  # type: ignore[index]
    for attribute in ("rows", "rejected", "missing_servers", "oldest_age", "note"):
        with pytest.raises(AttributeError):
            setattr(sessions, attribute, ())


def test_dicts_handed_out_are_the_callers_own() -> None:
    sessions = SessionList.from_rows([session()])
    for handed_out in (sessions.get_sessions(), sessions()):
        assert type(handed_out) is dict
        assert handed_out == {session().name: session()}
        handed_out.clear()
    assert len(sessions) == len(sessions.get_sessions()) == len(sessions()) == 1


def test_from_stdout_keeps_every_row_and_what_was_rejected() -> None:
    finished = session(name="alice-51-1763800000_stRxTerm_dp24", status="F")
    stdout = printed(session()) + b"an error text\n" + printed(finished) + printed(STARTING)
    sessions = SessionList.from_stdout(stdout, server="ts01")
    assert sessions.rows == tuple(dataclasses.replace(info, server="ts01") for info in (session(), finished, STARTING))
    assert sessions.rejected == (RejectedRow(2, "1 field(s) where a session has 14 or 16: not a session row"),)
    assert (sessions.missing_servers, sessions.oldest_age) == ((), None)


def test_without_finished_and_for_user_keep_what_is_known_of_the_answer() -> None:
    finished = session(name="alice-51-1763800000_stRxTerm_dp24", status="F")
    ending = session(name="alice-52-1763800000_stRxTerm_dp24", status="T")
    sessions = SessionList.from_rows(
        [session(), finished, ending, STARTING],
        rejected=[RejectedRow(9, "why")],
        missing_servers=["ts02"],
        oldest_age=1.5,
    )
    assert sessions.without_finished().rows == (session(), ending, STARTING)
    assert sessions.for_user("bob").rows == (STARTING,)
    assert sessions.for_user("nobody").rows == ()
    for part in (sessions.without_finished(), sessions.for_user("bob")):
        assert part.rejected == (RejectedRow(9, "why"),)
        assert part.missing_servers == ("ts02",)
        assert 1.5 <= part.oldest_age < 30


@pytest.mark.parametrize("newest_first", [False, True])
def test_one_name_on_two_servers_maps_to_the_newest(newest_first: bool) -> None:
    old = session(server="ts01", date_created="2026-11-22T20:24:30")
    new = session(server="ts02", date_created="2026-11-22T20:24:31")
    rows = (new, old) if newest_first else (old, new)
    sessions = SessionList.from_rows((STARTING, *rows))
    assert sessions[session().name].server == "ts02"
    assert sessions.rows == (STARTING, *rows)
    assert len(sessions) == 2


def test_of_rows_equally_new_the_last_is_kept_as_python_x2go_does() -> None:
    sessions = SessionList.from_rows([session(server="ts01"), session(server="ts02")])
    assert sessions[session().name].server == "ts02"


def test_get_session_info() -> None:
    sessions = SessionList.from_rows([session()])
    assert sessions.get_session_info(session().name) == session()
    assert sessions.get_session_info("nobody") is None


@pytest.mark.parametrize("value", [60, "60", ":60", ":60.0", "60.1", "::60"])
def test_get_session_with_a_display(value: object) -> None:
    sessions = SessionList.from_rows([session(), STARTING])
    assert sessions.get_session_with("display", value) is STARTING


def test_get_session_with_other_properties() -> None:
    sessions = SessionList.from_rows([session(), STARTING])
    assert sessions.get_session_with("username", "bob") is STARTING
    assert sessions.get_session_with("graphics_port", "35001") == session()
    assert sessions.get_session_with("status", "R") == session()
    assert sessions.get_session_with("status", "S") is None
    assert sessions.get_session_with("no_such_property", "x") is None
    assert sessions.get_session_with("username", "bob", hostname="ts01") is STARTING
    assert sessions.get_session_with("username", "bob", hostname="ts02") is None


def test_get_session_with_finds_no_session_by_what_it_has_not_got_yet() -> None:
    assert SessionList.from_rows([STARTING]).get_session_with("agent_pid", "None") is None


def test_get_session_with_a_hostname_sees_a_row_hidden_by_a_newer_one_of_its_name() -> None:
    old = session(hostname="ts01")
    new = session(hostname="ts02", date_created="2026-11-22T20:24:31")
    sessions = SessionList.from_rows([old, new])
    assert sessions.get_session_with("display", 50) is new
    assert sessions.get_session_with("display", 50, hostname="ts01") is old


def test_equality_compares_content_not_ages() -> None:
    sessions = SessionList.from_rows([session()], oldest_age=1.0)
    assert sessions == SessionList.from_rows([session()], oldest_age=2.0)
    assert sessions == {session().name: session()}
    assert sessions != SessionList.from_rows([session(status="S")])
    assert sessions != SessionList.from_rows([session()], missing_servers=["ts02"])
    assert sessions != SessionList.from_rows([session()], rejected=[RejectedRow(1, "why")])
    assert sessions != SessionList.from_rows([session(), session()])
    assert sessions != {}
    assert sessions != [session()]
    with pytest.raises(TypeError):
        hash(sessions)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock that stands until its one item is set."""
    now = [1000.0]
    monkeypatch.setattr(model, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_oldest_age_counts_on(clock: list[float]) -> None:
    sessions = SessionList.from_rows([session()], oldest_age=1.5)
    assert sessions.oldest_age == 1.5
    clock[0] += 2.0
    assert sessions.oldest_age == 3.5
    assert sessions.for_user("alice").oldest_age == 3.5
    assert "oldest_age=3.5" in repr(sessions)
    assert SessionList.from_rows([session()]).oldest_age is None


def test_the_oldest_age_begins_when_it_was_asked_for(clock: list[float]) -> None:
    sessions = SessionList.from_rows([session()], oldest_age=1.5, asked_at=999.5)
    assert sessions.oldest_age == 2.0
    clock[0] += 1.0
    assert sessions.oldest_age == 3.0


def test_a_list_survives_pickle_and_copy(clock: list[float]) -> None:
    missing = SessionList.from_rows([session(), STARTING], rejected=[RejectedRow(9, "why")], missing_servers=["ts02"])
    assert pickle.loads(pickle.dumps(missing)).oldest_age is None
    sessions = SessionList.from_rows([session(), STARTING], missing_servers=["ts02"], oldest_age=1.5)
    clock[0] += 1.0
    pickled = pickle.dumps(sessions)
    for twin in (pickle.loads(pickled), copy.deepcopy(sessions), copy.copy(sessions)):
        assert twin == sessions
        assert twin.oldest_age == 2.5
    clock[0] = 5.0
    unpickled = pickle.loads(pickled)
    assert unpickled.oldest_age == 2.5, "the clock of the process that reads it began at another time"
    clock[0] += 1.0
    assert unpickled.oldest_age == 3.5


LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"


def test_load_report_reads_the_five_lines_in_any_order() -> None:
    report = LoadReport(
        avg1=0.05,
        avg5=0.1,
        avg15=0.2,
        mem_total_kb=24_000_000,
        mem_available_kb=23_000_000,
        cpus=2,
        cpu_mhz=2450.0,
    )
    assert LoadReport.from_stdout(LOAD) == report
    assert LoadReport.from_stdout(b"\nuptime 5\n" + b"\n".join(reversed(LOAD.splitlines()))) == report


def test_load_factor_is_x2gobrokers() -> None:
    # The agent prints loadavgXX 12 (of 12.67), memAvail 23000, numCPU 2, typeCPU 2450: 23 * 2 * 2450 * 100 / 12.
    assert LoadReport.from_stdout(LOAD).load_factor == 939_166
    # loadavgXX 1 (of 1.67), memAvail 22999, typeCPU 2451.
    idle = LOAD.replace(b"0.05 0.10 0.20", b"0.00 0.02 0.00").replace(b"23000000", b"22999999")
    assert LoadReport.from_stdout(idle.replace(b"2450.0", b"2450.1")).load_factor == 11_274_109


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        (b"loadavg 0.05 0.10 0.20", b"loadavg 1e15 1e15 1e15"),
        (b"memavailable_kb 23000000", b"memavailable_kb 0"),
        (b"cpus 2", b"cpus 0"),
        (b"cpu_mhz 2450.0", b"cpu_mhz 0"),
    ],
)
def test_load_factor_is_never_below_one(line: bytes, instead: bytes) -> None:
    assert LoadReport.from_stdout(LOAD.replace(line, instead)).load_factor == 1


@pytest.mark.parametrize("figure", ["loadavg", "memtotal_kb", "memavailable_kb", "cpus", "cpu_mhz"])
def test_a_missing_or_absurd_load_figure_is_named(figure: str) -> None:
    lines = LOAD.decode().splitlines()
    others = [line for line in lines if not line.startswith(f"{figure} ")]
    assert len(others) == 4
    for bad in ("", figure, f"{figure} x", f"{figure} 1 2", f"{figure} nan", f"{figure} -1", f"{figure} 1e999"):
        with pytest.raises(ValueError, match=figure):
            LoadReport.from_stdout("\n".join([*others, bad]).encode())


@given(st.lists(st.floats(), min_size=7, max_size=7), st.binary(max_size=30))
def test_any_load_stdout_gives_a_usable_factor_or_value_error(numbers: list[float], noise: bytes) -> None:
    a, b, c, total, available, cpus, mhz = numbers
    stdout = f"loadavg {a} {b} {c}\nmemtotal_kb {total}\nmemavailable_kb {available}\ncpus {cpus}\ncpu_mhz {mhz}\n"
    try:
        report = LoadReport.from_stdout(stdout.encode() + noise)
    except ValueError:
        return
    assert report.load_factor >= 1
