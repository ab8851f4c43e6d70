"""The same bytes through python-x2go's parser, run by the interpreter that Debian installs it for, and through ours.

Every attribute and method is compared. Generated rows know their true session type and share mode: ours must always
give it, and python-x2go's answer may differ in the named cases only, each of which must occur.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from x2gofleet.model import SessionInfo, SessionList

SYSTEM_PYTHON = Path("/usr/bin/python3")
SAMPLES = Path(__file__).parent.parent / "samples"
SEED = 20261122
GENERATED_ROWS = 10_000
COOKIE = "0123456789abcdef0123456789abcdef"

ATTRIBUTES = (
    *("agent_pid", "name", "display", "hostname", "status", "date_created", "cookie", "graphics_port", "snd_port"),
    *("date_suspended", "username", "sshfs_port", "tekictrl_port", "tekidata_port", "local_container"),
)
TYPE_METHODS = (
    *("get_session_type", "get_share_mode", "is_published_applications_provider"),
    *("is_desktop_session", "is_kdrive_session", "is_nx3_session"),
)
METHODS = ("is_running", "is_suspended", "get_status", "is_initialized", "__str__", *TYPE_METHODS)

# Reads {"rows": [...], "lists": [...], "queries": [...]}, each byte of an output as one Latin-1 character; prints
# what python-x2go makes of each row by itself, of each listing as a whole, and of each get_session_with.
PYTHON_X2GO_SIDE = """
import functools, importlib.util, json, os, sys

package = importlib.util.find_spec("x2go")
path = os.path.join(package.submodule_search_locations[0], "backends", "info", "plain.py")
spec = importlib.util.spec_from_file_location("plain", path)
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)
task = json.load(sys.stdin)

def attempt(call, *arguments):
    try:
        return {"value": call(*arguments)}
    except Exception as exc:
        return {"raised": type(exc).__name__}

def one_row(text):
    info = plain.X2GoServerSessionInfo()
    try:
        info._parse_x2golistsessions_line(text.encode("latin-1").decode())
    except Exception as exc:
        return {"raised": type(exc).__name__}
    return {
        "attributes": {name: getattr(info, name) for name in task["attributes"]},
        "methods": {name: attempt(getattr(info, name)) for name in task["methods"]},
    }

@functools.lru_cache
def sessions_of(text):
    return plain.X2GoServerSessionList(text.encode("latin-1").decode())

def names(text):
    sessions = sessions_of(text)
    return [list(sessions()), [sessions.get_session_info(name).display for name in sessions.get_sessions()]]

def query(text, arguments):
    found = sessions_of(text).get_session_with(*arguments)
    return None if found is None else found.name

json.dump({
    "rows": [one_row(text) for text in task["rows"]],
    "lists": [attempt(names, text) for text in task["lists"]],
    "queries": [attempt(query, *arguments) for arguments in task["queries"]],
}, sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedRow:
    """A row as printed, with what is true of it."""

    raw: bytes
    username: str
    session_type: str | None
    share_mode: str | None


def python_x2go(
    *, rows: list[bytes] | None = None, lists: list[bytes] | None = None, queries: list[Any] | None = None
) -> dict[str, Any]:
    task = {
        "attributes": ATTRIBUTES,
        "methods": METHODS,
        "rows": [raw.decode("latin-1") for raw in rows or ()],
        "lists": [raw.decode("latin-1") for raw in lists or ()],
        "queries": [(raw.decode("latin-1"), arguments) for raw, arguments in queries or ()],
    }
    done = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-c", PYTHON_X2GO_SIDE],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def python_x2go_is_installed() -> bool:
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('x2go') is None)"
    return (
        SYSTEM_PYTHON.exists()
        and subprocess.run([SYSTEM_PYTHON, "-I", "-c", probe], timeout=60, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(
    not python_x2go_is_installed(),
    reason=f"{SYSTEM_PYTHON} has no python-x2go to compare with: apt-get install python3-x2go",
)


def ours_of(raw: bytes) -> dict[str, Any] | None:
    sessions = SessionList.from_stdout(raw)
    if not sessions.rows:
        assert len(sessions.rejected) == 1
        return None
    (info,) = sessions.rows
    return {
        "attributes": {name: getattr(info, name) for name in ATTRIBUTES},
        "methods": {name: {"value": getattr(info, name)()} for name in METHODS},
    }


def sample_rows() -> list[bytes]:
    return [line for path in sorted(SAMPLES.glob("*-sqlite.txt")) for line in path.read_bytes().split(b"\n") if line]


PLAIN_USERS = ("alice", "bob7", "42", "john.doe", "mary-ann", "a.b-c.9", "user@example.org")
ODD_USERS = ("john_doe", "_svc", "a_b_c", "x_stRPUBLISHED_y", "x-1-2_stK", "x-1-2_stS1")
USERS = PLAIN_USERS * 3 + ODD_USERS
USUAL_KINDS = ("D", "K", "R", "P", "S0", "S1")
ODD_KINDS = ("S", "untyped", "xdmcp")
COMMANDS = (
    "MATE",
    "XFCE",
    "KDE",
    "xTerm",
    "startkde4",
    "x2goruncommand",
    "foo_bar",
    "foo-1-2_stKbar",
    "a_stRPUBLISHED_",
)
ODD_INTEGERS = ("-1", "0", " 35001", "35001 ", "+5", "3_5001", "٣٥", "1" + "0" * 30, "\x1c7", "-0", "007")
NO_INTEGERS = ("x", "0x1f", "12.5", "9" * 5000, "1 2", "--1", "_1", "NULL")
HOSTNAMES = ("ts01", "ts01.example.org", "vm", "", "größe", "a\rb", "a\x1b[2Jb", "a\x85b\u2028c\x0bd\x1ee", "\u202e")


def generated_rows(count: int, *, seed: int = SEED) -> list[PrintedRow]:
    chance = random.Random(seed)
    return [_generated_row(chance, number) for number in range(count)]


def _generated_row(chance: random.Random, number: int) -> PrintedRow:
    username, display = chance.choice(USERS), chance.randrange(50, 1000)
    kind = chance.choice(USUAL_KINDS * 3 + ODD_KINDS)
    command = chance.choice(COMMANDS)
    session_type: str | None = kind[0]
    share_mode: str | None = None
    match kind:
        case "P":
            type_part = "_stRPUBLISHED_dp24"
        case "S0" | "S1":
            share_mode = kind[1]
            type_part = f"_st{kind}XSHAD{chance.choice(USERS)}XSHADPP{display}_dp24"
        case "S":
            type_part = "_stS_dp24"
        case "untyped":
            session_type, type_part = None, ""
        case "xdmcp":
            session_type, type_part = None, "_xdm.example.org"
        case _:
            type_part = f"_st{kind}{command}_dp{chance.choice((8, 24, 32))}"
    port = chance.randrange(30000, 60000)
    date = f"2026-11-{chance.randrange(1, 31):02}T{chance.randrange(24):02}:{chance.randrange(60):02}:00"
    fields = [
        str(chance.randrange(1, 4_000_000)),
        f"{username}-{display}-{1_763_800_000 + number}{type_part}",
        str(display),
        chance.choice(HOSTNAMES),
        chance.choice(("R", "R", "S", "F", "T", "X", "")),
        date,
        COOKIE + " " * chance.randrange(2),
        chance.choice(("127.0.0.1", "2001:db8::1", "", "pc 7")),
        str(port),
        str(port + 1),
        date,
        username,
        chance.choice((str(chance.randrange(100_000)), "", "-5", "x")),
        str(port + 2),
        chance.choice(("-1", "-1", str(port + 3), "", "x")),
        chance.choice(("-1", "-1", str(port + 4), "", "x", "9" * 5000)),
    ]
    fields = fields[: chance.choice((14, 14, 15, 16, 16, 16, 16))]
    numeric = (0, 2, 8, 9, 13)
    match chance.randrange(20):
        case 0 | 1:
            fields[0] = fields[8] = fields[9] = fields[13] = ""
        case 2 | 3:
            fields[chance.choice(numeric)] = chance.choice(ODD_INTEGERS)
        case 4:
            fields[chance.choice(numeric)] = chance.choice(NO_INTEGERS)
        case 5:
            fields = fields[: chance.randrange(1, 14)]
        case 6:
            fields = [*fields, "x", "y"]
        case 7:
            fields[3] = "v\udcff"
    return PrintedRow(
        raw="|".join(fields).encode("utf-8", "surrogateescape"),
        username=username,
        session_type=session_type,
        share_mode=share_mode,
    )


def is_a_row_without_numbers_yet(raw: bytes) -> bool:
    fields = raw.split(b"|")
    return len(fields) >= 14 and b"" in (fields[0], fields[8], fields[9], fields[13])


def test_every_row_of_the_samples_is_the_same_but_the_one_being_started() -> None:
    raws = sample_rows()
    cases = Counter[str]()
    for raw, theirs in zip(raws, python_x2go(rows=raws)["rows"], strict=True):
        ours = ours_of(raw)
        assert ours is not None
        if "raised" in theirs:
            assert theirs == {"raised": "ValueError"}
            assert is_a_row_without_numbers_yet(raw)
            cases["being started"] += 1
        elif b"|john_doe|" in raw:
            assert ours["attributes"] == theirs["attributes"]
            assert ours["methods"]["get_session_type"] == {"value": "P"}
            assert ours["methods"]["get_session_type"] != theirs["methods"]["get_session_type"]
            cases["_ in the user's name"] += 1
        else:
            assert ours == theirs
            cases["the same"] += 1
    assert cases == {"the same": 6, "being started": 2, "_ in the user's name": 1}


def named_difference(row: PrintedRow) -> str:
    """Return the reason for which python-x2go's answer to a type method is wrong, or ''."""
    name = row.raw.split(b"|")[1].decode()
    if "_" in row.username:
        return "_ in the user's name"
    if row.session_type is None:
        return "a name without a session type"
    if row.session_type == "S" and row.share_mode is None:
        return "a shadow session without a share mode"
    if row.session_type != "P" and "_stRPUBLISHED_" in name:
        return "the mark of published applications inside a command's name"
    return ""


def test_generated_rows_are_the_same_but_for_the_named_cases() -> None:
    rows = generated_rows(GENERATED_ROWS)
    rows_of_14 = sum(row.raw.count(b"|") == 13 for row in rows)
    cases = Counter[str]()
    for row, theirs in zip(rows, python_x2go(rows=[row.raw for row in rows])["rows"], strict=True):
        ours = ours_of(row.raw)
        if ours is None:
            assert theirs in ({"raised": "ValueError"}, {"raised": "IndexError"}), row
            cases["no row for either"] += 1
            continue
        methods = ours["methods"]
        assert methods["get_session_type"] == {"value": row.session_type}, row
        assert methods["get_share_mode"] == {"value": row.share_mode}, row
        assert methods["is_published_applications_provider"] == {"value": row.session_type == "P"}, row
        assert methods["is_desktop_session"] == {"value": row.session_type in ("D", "K")}, row
        assert methods["is_kdrive_session"] == {"value": row.session_type == "K"}, row
        assert methods["is_nx3_session"] == {"value": row.session_type in ("D", "R", "P")}, row
        if "raised" in theirs:
            if theirs["raised"] == "UnicodeDecodeError":
                assert b"\xff" in row.raw
                cases["bytes that are not UTF-8"] += 1
            else:
                assert theirs == {"raised": "ValueError"}, row
                assert is_a_row_without_numbers_yet(row.raw), row
                assert None in ours["attributes"].values()
                cases["being started"] += 1
            continue
        assert ours["attributes"] == theirs["attributes"], row
        different = {name for name in METHODS if methods[name] != theirs["methods"][name]}
        if different:
            assert different <= set(TYPE_METHODS), row
            assert named_difference(row), (row, different)
            cases[named_difference(row)] += 1
        else:
            cases["the same"] += 1
            cases["the same, 14 fields"] += row.raw.count(b"|") == 13
    expected = (
        *("the same", "the same, 14 fields", "no row for either", "being started", "bytes that are not UTF-8"),
        *("_ in the user's name", "a name without a session type", "a shadow session without a share mode"),
        "the mark of published applications inside a command's name",
    )
    assert set(cases) == set(expected)
    assert min(cases.values()) > 0
    assert sum(cases.values()) - cases["the same, 14 fields"] == GENERATED_ROWS
    assert rows_of_14 > GENERATED_ROWS // 10
    assert cases["the same"] > GENERATED_ROWS // 3


def listings() -> list[bytes]:
    """Return listings that python-x2go parses whole, as a server prints them."""
    good = [row.raw for row in generated_rows(3000, seed=SEED + 1) if python_can_parse(row.raw)]
    listings = [b"".join(raw + b"\n" for raw in good[start : start + 50]) for start in range(0, len(good), 50)]
    listings += [path.read_bytes() for path in sorted(SAMPLES.glob("user-alice-*.txt"))]
    return [*listings, b"", b"\n", b"\n\n" + listings[0] + b"\n"]


def python_can_parse(raw: bytes) -> bool:
    info = ours_of(raw)
    return info is not None and b"\xff" not in raw and not is_a_row_without_numbers_yet(raw)


def test_whole_listings_hold_the_same_sessions_in_the_same_order() -> None:
    stdouts = listings()
    assert len(stdouts) > 30
    for stdout, theirs in zip(stdouts, python_x2go(lists=stdouts)["lists"], strict=True):
        sessions = SessionList.from_stdout(stdout)
        assert sessions.rejected == ()
        assert {"value": [list(sessions()), [info.display for info in sessions.values()]]} == theirs
        assert [sessions.get_session_info(name) for name in theirs["value"][0]] == list(sessions.values())


def queries_of(info: SessionInfo) -> list[list[Any]]:
    display = str(info.display)
    asked: list[list[Any]] = [
        ["display", text] for text in (display, f":{display}", f":{display}.0", f"{display}.1", f"::{display}")
    ]
    asked += [[name, str(getattr(info, name))] for name in ATTRIBUTES]
    asked += [["graphics_port", info.graphics_port], ["no_such_property", "x"], ["is_running", "True"], ["name", ""]]
    asked += [["display", f":{display}", info.hostname], ["username", info.username, "elsewhere"]]
    return asked


def test_get_session_with_finds_the_same_session() -> None:
    stdouts = [stdout for stdout in listings() if SessionList.from_stdout(stdout)][:6]
    parsed = {stdout: SessionList.from_stdout(stdout) for stdout in stdouts}
    queries = [
        (stdout, arguments)
        for stdout, sessions in parsed.items()
        for info in sessions.rows[:20]
        for arguments in queries_of(info)
    ]
    found = Counter[bool]()
    for (stdout, arguments), theirs in zip(queries, python_x2go(queries=queries)["queries"], strict=True):
        ours = parsed[stdout].get_session_with(*arguments)
        assert {"value": None if ours is None else ours.name} == theirs, arguments
        found[ours is not None] += 1
    assert min(found[True], found[False]) > 100


def test_get_session_with_takes_a_display_as_a_number_where_python_x2go_raises() -> None:
    stdout = (SAMPLES / "user-alice-sqlite.txt").read_bytes()
    (theirs,) = python_x2go(queries=[(stdout, ["display", 50])])["queries"]
    assert theirs == {"raised": "AttributeError"}
    found = SessionList.from_stdout(stdout).get_session_with("display", 50)
    assert found is not None
    assert found.display == 50


def test_one_name_printed_twice_gives_the_newest_where_python_x2go_gives_the_last() -> None:
    line = (SAMPLES / "user-alice-sqlite.txt").read_bytes().split(b"\n")[0]
    older = line.replace(b"|S|2026-11-22", b"|R|2026-11-21")
    assert older != line
    stdout = line + b"\n" + older + b"\n"
    (theirs,) = python_x2go(queries=[(stdout, ["status", "S"])])["queries"]
    assert theirs == {"value": None}
    assert SessionList.from_stdout(stdout).get_session_with("status", "S") is not None


def test_a_listing_with_one_row_being_started_loses_no_other_where_python_x2go_raises() -> None:
    stdout = (SAMPLES / "root-sqlite.txt").read_bytes()
    (theirs,) = python_x2go(lists=[stdout])["lists"]
    assert theirs == {"raised": "ValueError"}
    assert len(SessionList.from_stdout(stdout)) == 5
