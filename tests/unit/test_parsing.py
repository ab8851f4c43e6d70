from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from x2gofleet.model import LoadReport, Mount, RejectedRow, SessionInfo
from x2gofleet.parsing import parse_desktops, parse_load, parse_mounts, parse_sessions, strip_age

SAMPLES = Path(__file__).parent.parent / "samples"
COOKIE = "0123456789abcdef0123456789abcdef"
ROW = (
    f"1368|alice-50-1763800000_stDMATE_dp24|50|vm|R|2026-11-22T20:24:30|{COOKIE}|127.0.0.1|35001|35002"
    "|2026-11-22T20:24:31|alice|2728|35003|36104|36105"
)
FIELDS = ROW.split("|")
PORTS = ("graphics_port", "snd_port", "sshfs_port", "tekictrl_port", "tekidata_port")
INTEGER_COLUMNS = {
    "agent_pid": 0,
    "display": 2,
    "graphics_port": 8,
    "snd_port": 9,
    "age_seconds": 12,
    "sshfs_port": 13,
    "tekictrl_port": 14,
    "tekidata_port": 15,
}
REFUSED_COLUMNS = ("agent_pid", "display", "graphics_port", "snd_port", "sshfs_port")


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def row_with(**columns: str) -> bytes:
    """Return a printed row with some of its integer columns replaced."""
    fields = list(FIELDS)
    for name, text in columns.items():
        fields[INTEGER_COLUMNS[name]] = text
    return "|".join(fields).encode("utf-8", "surrogateescape")


def only_row(stdout: bytes) -> SessionInfo:
    rows, rejected = parse_sessions(stdout)
    assert rejected == ()
    (row,) = rows
    return row


def test_every_sample_is_used_here() -> None:
    used = set(re.findall(r'sample\("([^"]+)"\)', Path(__file__).read_text()))
    assert {path.name for path in SAMPLES.iterdir()} - {"README.md"} == used


def test_root_sample() -> None:
    rows, rejected = parse_sessions(sample("root-sqlite.txt"), server="ts01")
    assert rejected == ()
    assert [(row.name, row.status, row.username, row.is_starting()) for row in rows] == [
        ("alice-51-1763800000_stRxTerm_dp24", "S", "alice", False),
        ("alice-50-1763800000_stDMATE_dp24", "R", "alice", False),
        ("bob-52-1763800000_stDXFCE_dp24", "R", "bob", False),
        ("bob-60-1763800100_stDKDE_dp24", "R", "bob", True),
        ("john_doe-61-1763800200_stRPUBLISHED_dp24", "R", "john_doe", False),
    ]
    assert {row.server for row in rows} == {"ts01"}
    assert rows[4] == SessionInfo(
        agent_pid=4242,
        name="john_doe-61-1763800200_stRPUBLISHED_dp24",
        display=61,
        hostname="vm",
        status="R",
        date_created="2026-11-22T21:09:57",
        cookie="00112233445566778899aabbccddeeff",
        client="10.1.2.3",
        graphics_port=36101,
        snd_port=36102,
        date_suspended="2026-11-22T21:09:57",
        username="john_doe",
        age_seconds=1,
        sshfs_port=36103,
        tekictrl_port=36104,
        tekidata_port=36105,
        server="ts01",
    )


def test_user_samples() -> None:
    rows, rejected = parse_sessions(sample("user-alice-sqlite.txt"))
    assert ([row.display for row in rows], rejected) == ([51, 50], ())
    assert {row.username for row in rows} == {"alice"}
    assert parse_sessions(sample("user-alice-shadow-sqlite.txt")) == ((), ())


def test_a_row_being_started_is_a_row_with_none() -> None:
    rows, rejected = parse_sessions(sample("user-bob-sqlite.txt"))
    assert rejected == ()
    starting = rows[1]
    assert (starting.agent_pid, starting.cookie, starting.client, starting.age_seconds) == (None, "", "", 4)
    assert [getattr(starting, port) for port in PORTS] == [None, None, None, -1, -1]
    assert starting.is_starting()
    assert not rows[0].is_starting()


def test_desktop_and_mount_samples() -> None:
    assert parse_desktops(sample("desktops-root.txt")) == ("root@:77",)
    assert parse_mounts(sample("mounts-none.txt")) == ((), ())


@pytest.mark.parametrize(
    ("fields", "teki_ports"),
    [(14, (-1, -1)), (15, (36104, -1)), (16, (36104, 36105)), (18, (36104, 36105))],
)
def test_every_row_of_at_least_14_fields_is_a_row(fields: int, teki_ports: tuple[int, int]) -> None:
    row = only_row("|".join([*FIELDS, "x", "y"][:fields]).encode())
    assert (row.tekictrl_port, row.tekidata_port) == teki_ports
    assert (row.agent_pid, row.sshfs_port, row.username) == (1368, 35003, "alice")


@pytest.mark.parametrize("fields", range(1, 14))
def test_fewer_fields_are_no_row(fields: int) -> None:
    rows, rejected = parse_sessions("|".join(FIELDS[:fields]).encode())
    assert rows == ()
    assert rejected == (RejectedRow(1, f"{fields} field(s) where a session has 14 or 16: not a session row"),)


@pytest.mark.parametrize("column", REFUSED_COLUMNS)
@pytest.mark.parametrize("text", ["x", "0x1f", "1.5", "9" * 5000, "1 2", "--1", "\udcff"])
def test_a_column_that_is_no_integer_rejects_its_row_alone(column: str, text: str) -> None:
    rows, rejected = parse_sessions(b"\n".join([ROW.encode(), row_with(**{column: text}), ROW.encode()]))
    assert len(rows) == 2
    assert [line.line_number for line in rejected] == [2]
    assert f"field {INTEGER_COLUMNS[column] + 1} ({column})" in rejected[0].reason


@pytest.mark.parametrize("column", ["tekictrl_port", "tekidata_port"])
@pytest.mark.parametrize("text", ["", "x", "9" * 5000])
def test_a_teki_port_that_is_no_integer_is_minus_one(column: str, text: str) -> None:
    assert getattr(only_row(row_with(**{column: text})), column) == -1


def test_a_teki_port_that_is_no_integer_leaves_the_other() -> None:
    assert only_row(row_with(tekictrl_port="0", tekidata_port="x")).tekictrl_port == 0
    assert only_row(row_with(tekictrl_port="x", tekidata_port=" 7")).tekidata_port == 7


@pytest.mark.parametrize("text", ["", "x", "9" * 5000])
def test_an_age_that_is_no_integer_is_none(text: str) -> None:
    assert only_row(row_with(age_seconds=text)).age_seconds is None


@given(column=st.sampled_from(sorted(INTEGER_COLUMNS)), text=st.text(alphabet=" _+-0123456789٣x\t", max_size=6))
@example(column="agent_pid", text=" 5 ")
@example(column="display", text="٣")
@example(column="snd_port", text="1_000")
@example(column="sshfs_port", text="+5")
@example(column="tekictrl_port", text=" -1")
def test_integers_are_what_int_makes_of_them(column: str, text: str) -> None:
    rows, rejected = parse_sessions(row_with(**{column: text}))
    try:
        expected = int(text)
    except ValueError:
        if column in REFUSED_COLUMNS and (text.strip() or column == "display"):
            assert (rows, len(rejected)) == ((), 1)
        else:
            assert getattr(rows[0], column) == (-1 if column.startswith("teki") else None)
    else:
        assert getattr(rows[0], column) == expected


def test_lines_end_at_newlines_only() -> None:
    hostname = "a\rb\x0bc\x1cd\x85e\u2028f"
    row = only_row(ROW.replace("|vm|", f"|{hostname}|").encode())
    assert row.hostname == hostname


def test_bytes_that_are_not_utf8_survive() -> None:
    raw = ROW.encode().replace(b"|vm|", b"|v\xffm\xc3|")
    row = only_row(raw)
    assert row.hostname.encode("utf-8", "surrogateescape") == b"v\xffm\xc3"


def test_a_padded_cookie_stays_as_printed() -> None:
    assert only_row(ROW.replace(COOKIE, COOKIE + " ").encode()).cookie == COOKIE + " "


def test_blank_lines_are_ignored_but_counted_in_line_numbers() -> None:
    rows, rejected = parse_sessions(b"\n\n" + ROW.encode() + b"\n  \n\r\nno row\n\n")
    assert len(rows) == 1
    assert [line.line_number for line in rejected] == [6]


@given(st.binary(max_size=300))
@example(b"|" * 300)
@example(b"|\n" * 50)
@example(b"\xff\x00|" * 20)
def test_any_bytes_give_a_row_or_a_rejection_per_line(stdout: bytes) -> None:
    rows, rejected = parse_sessions(stdout)
    lines = [line for line in stdout.decode("utf-8", "surrogateescape").split("\n") if line.strip()]
    assert len(rows) + len(rejected) == len(lines)
    parse_desktops(stdout)
    parse_mounts(stdout)
    strip_age(stdout)


@given(
    st.lists(
        st.one_of(st.just(ROW), st.text(alphabet="|x9\t -", max_size=40).filter(lambda text: text.count("|") < 13)),
        max_size=12,
    )
)
def test_no_bad_line_loses_a_good_one(lines: list[str]) -> None:
    rows, rejected = parse_sessions("\n".join(lines).encode())
    assert len(rows) == lines.count(ROW)
    bad = [number for number, line in enumerate(lines, 1) if line != ROW and line.strip()]
    assert [line.line_number for line in rejected] == bad


@given(
    position=st.integers(0, 15),
    count=st.integers(1, 16),
    row=st.lists(st.sampled_from(["", "5", "x", "-1"]), min_size=16, max_size=16),
)
def test_a_cookie_in_any_column_is_in_no_reason(position: int, count: int, row: list[str]) -> None:
    row[position] = COOKIE
    _, rejected = parse_sessions("|".join(row[:count]).encode())
    assert COOKIE not in repr(rejected)


def test_a_very_long_listing_is_parsed() -> None:
    rows, rejected = parse_sessions((ROW + "\n").encode() * 20_000 + b"x" * 1_000_000)
    assert (len(rows), len(rejected)) == (20_000, 1)


def test_desktops_are_the_lines_with_an_at_sign() -> None:
    stdout = b"alice@:50\nbob@:51\n\nsome error text\njos\xe9@:52\n"
    assert parse_desktops(stdout) == ("alice@:50", "bob@:51", "jos\udce9@:52")
    assert parse_desktops(b"") == ()


def test_mounts_keep_their_line_and_name_their_session() -> None:
    mounts, rejected = parse_mounts(b"s1|192.0.2.1|/media/a b|c\n\ns2|pc|/m\nDBI error\n|pc|/m\ns3|pc\n")
    assert mounts == (
        Mount(session_name="s1", listed="192.0.2.1|/media/a b|c"),
        Mount(session_name="s2", listed="pc|/m"),
    )
    assert (mounts[0].client, mounts[0].path) == ("192.0.2.1", "/media/a b|c")
    assert [line.line_number for line in rejected] == [4, 5, 6]


def test_load_is_the_models_report() -> None:
    stdout = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"
    assert parse_load(stdout) == LoadReport.from_stdout(stdout)


def test_strip_age_empties_the_age_of_every_row_and_nothing_else() -> None:
    for name in ("root-sqlite.txt", "user-alice-sqlite.txt", "user-bob-sqlite.txt"):
        stdout = sample(name)
        rows, _ = parse_sessions(strip_age(stdout))
        assert {row.age_seconds for row in rows} == {None}
        older = re.sub(rb"(?m)^((?:[^|\n]*\|){12})(\d+)", rb"\g<1>99\2", stdout)
        assert older != stdout
        assert strip_age(older) == strip_age(stdout)


@given(column=st.integers(0, 15).filter(lambda column: column != 12), fields=st.sampled_from([14, 15, 16]))
def test_strip_age_shows_a_change_of_any_other_column(column: int, fields: int) -> None:
    before = FIELDS[:fields]
    after = [text + "7" if index == column else text for index, text in enumerate(before)]
    assert (strip_age("|".join(before).encode()) == strip_age("|".join(after).encode())) is (column >= fields)


def test_strip_age_never_makes_a_row_equal_to_a_line_that_is_none() -> None:
    without_the_column = "|".join(FIELDS[:12] + FIELDS[13:14]).encode()
    assert strip_age("|".join(FIELDS[:14]).encode()) != strip_age(without_the_column)


@given(st.lists(st.text(alphabet="|x\r\x00é", max_size=30).filter(lambda text: text.count("|") < 13), max_size=6))
@example(["|" * 12 + "2728", "x"])
def test_strip_age_leaves_lines_that_are_no_rows(lines: list[str]) -> None:
    stdout = "\n".join(lines).encode()
    assert strip_age(stdout) == stdout


@given(st.binary(max_size=300))
@example(b"|" * 40)
def test_strip_age_is_idempotent(stdout: bytes) -> None:
    assert strip_age(strip_age(stdout)) == strip_age(stdout)


def test_a_row_is_printed_as_the_server_did() -> None:
    lines = sample("root-sqlite.txt").decode().splitlines()
    rows, _ = parse_sessions("\n".join(lines).encode())
    assert [row.to_row() for row in rows if not row.is_starting()] == [line for line in lines if line[0] != "|"]
    assert [row.to_row() for row in rows if row.is_starting()] == [
        f"{line[:-2]}|-1|-1" for line in lines if line[0] == "|"
    ]
