"""What a section of an answer is worth: genuine rows, forged ones, missing ones, failures that look like nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from x2gofleet_workers.proof import (
    Proven,
    prove_desktops,
    prove_load,
    prove_mounts,
    prove_sessions,
    show,
)
from x2gofleet_workers.shell_probe import Section

from x2gofleet.errors import (
    CommandMissing,
    FleetError,
    HostNameChanged,
    ListingFailed,
    NotPermitted,
    NotProven,
)
from x2gofleet.kinds import Kind
from x2gofleet.parsing import parse_sessions

MARK = b"0123456789abcdef" * 2
HOST = "ts01"
SAMPLES = Path(__file__).parents[1] / "samples"


@dataclass(frozen=True)
class Row:
    """One session: what the database holds, and what a listing prints of it."""

    session: str = "alice-50-1700000001_stDMATE_dp24"
    username: str = "alice"
    hostname: str = HOST
    status: str = "R"
    display: str = "50"
    created: str = "2026-11-22T20:24:30"
    touched: str = "2026-11-22T20:30:00"
    cookie: str = "c0ffee00c0ffee00c0ffee00c0ffee00"
    client: str = "10.1.2.3"
    agent_pid: str = "4711"
    graphics: str = "30001"
    sound: str = "30002"
    sshfs: str = "30003"
    tekictrl: str = "-1"
    tekidata: str = "-1"
    age: str = "330"

    @property
    def record(self) -> bytes:
        columns = (
            *(self.session, self.username, self.hostname, self.status, self.display, self.created, self.touched),
            *(self.cookie, self.client, self.agent_pid, self.graphics, self.sound, self.sshfs),
            *(self.tekictrl, self.tekidata),
        )
        return MARK + b" rec " + "|".join(column.encode().hex() for column in columns).encode() + b"\n"

    @property
    def line(self) -> bytes:
        fields = (
            *(self.agent_pid, self.session, self.display, self.hostname, self.status, self.created, self.cookie),
            *(self.client, self.graphics, self.sound, self.touched, self.username, self.age),
            *(self.sshfs, self.tekictrl, self.tekidata),
        )
        return "|".join(fields).encode() + b"\n"


ALICE = Row()
BOB = Row(session="bob-51-1700000002_stDXFCE_dp24", username="bob", display="51", status="S", client="10.1.2.4")
STARTING = Row(
    *("carla-52-1700000003_stRPUBLISHED_dp24", "carla", HOST, "R", "52"),
    *(ALICE.created, ALICE.touched, "", "", "", "", "", "", "", ""),
)


def body(
    before: Sequence[Row],
    listing: bytes | Sequence[Row],
    after: Sequence[Row] | None = None,
    *,
    status: object = 0,
) -> bytes:
    raw = listing if isinstance(listing, bytes) else b"".join(row.line for row in listing)
    return b"".join(
        (
            *(MARK, b" records before\n", *(row.record for row in before), MARK, b" listing\n", raw),
            *(b"\n", MARK, f" listed {status}\n".encode(), MARK, b" records after\n"),
            *(row.record for row in (before if after is None else after)),
        )
    )


def proven(
    raw: bytes, *, status: int = 0, uid: int = 0, host: str = HOST, hostname: str = "", stderr: bytes = b""
) -> Proven:
    section = Section(Kind.SESSIONS, {"backend": "sqlite", "sig": "1"}, raw, status)
    return prove_sessions(
        section, scope="server", uid=uid, login="root", host=host, mark=MARK, stderr=stderr, hostname=hostname
    )


def judged(
    before: Sequence[Row], listing: bytes | Sequence[Row], after: Sequence[Row] | None = None, *, status: object = 0
) -> Proven:
    return proven(body(before, listing, after, status=status))


def kept(*rows: Row) -> bytes:
    return b"".join(row.line for row in rows)


# Server scope on SQLite: every row against the records


def test_rows_that_match_are_kept_as_they_are_in_their_order() -> None:
    rows = (STARTING, BOB, ALICE)
    assert judged((ALICE, BOB, STARTING), rows) == Proven(kept(*rows))


def test_no_sessions_and_no_records_is_a_proven_empty_list() -> None:
    assert judged((), b"") == Proven(b"")
    assert judged((), b"\n\n") == Proven(b"")


def test_the_age_column_is_free() -> None:
    older = replace(ALICE, age="99999")
    negative = replace(BOB, age="-3")
    assert judged((ALICE, BOB), (older, negative)).stdout == kept(older, negative)


@pytest.mark.parametrize("age", ["", "-", "soon", "1 2", "--1", "1-"])
def test_an_age_that_is_no_number_is_no_row(age: str) -> None:
    found = judged((ALICE, BOB), (replace(ALICE, age=age), ALICE, BOB))
    assert found.stdout == kept(ALICE, BOB)
    assert found.rejected == ("line 1: no record of the session database prints this row",)


@pytest.mark.parametrize(
    "change",
    [
        {"username": "bob"},
        {"hostname": "evil"},
        {"cookie": "0" * 32},
        {"client": "6.6.6.6"},
        {"agent_pid": "1"},
        {"display": "1"},
        {"graphics": "1"},
        {"sound": "1"},
        {"sshfs": "1"},
        {"tekictrl": "1"},
        {"tekidata": "1"},
        {"created": "2020-01-01T00:00:00"},
        {"touched": "2020-01-01T00:00:00"},
        {"status": "T"},
        {"status": "F"},
        {"session": "bob-59-1700000009_stDMATE_dp24"},
    ],
)
def test_a_row_that_differs_from_its_record_in_one_column_is_forged(change: dict[str, str]) -> None:
    forged = replace(ALICE, **change)
    found = judged((ALICE, BOB), (forged, ALICE, BOB))
    assert found.stdout == kept(ALICE, BOB)
    assert found.rejected == ("line 1: no record of the session database prints this row",)


def test_a_user_who_writes_rows_into_her_own_record_loses_that_row_alone() -> None:
    forged_row = replace(BOB, session="bob-99-1700000009_stDMATE_dp24", client="6.6.6.6")
    mallory = Row(
        session="mallory-60-1700000005_stDMATE_dp24",
        username="mallory",
        display="60",
        client="x\n" + forged_row.line.decode() + "y",
    )
    found = judged((ALICE, mallory, BOB), (ALICE, mallory, BOB))
    assert found.stdout == kept(ALICE, BOB)
    # Her own row is broken into three lines, none of which is a row; the forged one has no record.
    assert [reason.partition(":")[0] for reason in found.rejected] == ["line 2", "line 3", "line 4"]


def test_a_forged_copy_of_a_row_never_replaces_the_genuine_one() -> None:
    forged = replace(ALICE, cookie="f" * 32)
    for order in ((ALICE, forged), (forged, ALICE)):
        found = judged((ALICE,), order)
        assert found.stdout == kept(ALICE)
        assert len(found.rejected) == 1


def test_a_second_genuine_row_of_a_session_is_left_out() -> None:
    again = replace(ALICE, age="331")
    found = judged((ALICE,), (ALICE, again))
    assert found.stdout == kept(ALICE)
    assert found.rejected == (f"line 2: a second row of session {ALICE.session}",)


def test_a_running_session_whose_agent_is_suspended_is_printed_as_suspended() -> None:
    suspended = replace(ALICE, status="S")
    assert judged((ALICE,), (suspended,)) == Proven(kept(suspended))


def test_the_other_way_round_the_record_is_believed() -> None:
    found = judged((BOB,), (replace(BOB, status="R"),))
    assert found.stdout == kept(BOB)
    assert found.rejected == ("line 1: not what the session database has; its own record was taken",)


def test_of_a_nearly_and_an_exactly_matching_row_the_exact_one_is_kept() -> None:
    suspended = replace(ALICE, status="S")
    for order in ((suspended, ALICE), (ALICE, suspended)):
        found = judged((ALICE,), order)
        assert found.stdout == kept(ALICE)
        assert len(found.rejected) == 1


def test_a_session_that_changed_while_it_was_listed_is_kept() -> None:
    before, after = ALICE, replace(ALICE, status="S", touched="2026-11-22T20:31:00", graphics="30011")
    for row in (before, after):
        assert judged((before,), (row,), (after,)) == Proven(kept(row))
    # A third state in between was gone when it was printed: the newer record is what holds.
    for between in (replace(after, status="R", graphics="30001"), replace(ALICE, status="X")):
        assert judged((before,), (between,), (after,)) == Proven(kept(after))


def test_a_forged_row_of_a_session_that_changes_is_never_believed() -> None:
    before, after = ALICE, replace(ALICE, status="S", touched="2026-11-22T20:31:00")
    between, forged = replace(ALICE, status="T"), replace(ALICE, client="6.6.6.6", cookie="f" * 32)
    for listing in ((forged, between), (between, forged), (forged, before), (after, forged), (forged,)):
        found = judged((before,), listing, (after,))
        assert found.stdout == kept(before if before in listing else after)
        assert len(found.rejected) == len(listing) - 1


@pytest.mark.parametrize(
    "change",
    [{"username": "bob"}, {"hostname": "evil"}, {"display": "9"}, {"created": "2020-01-01T00:00:00"}],
)
def test_what_a_session_can_not_change_must_still_agree(change: dict[str, str]) -> None:
    after = replace(ALICE, status="S", touched="2026-11-22T20:31:00")
    with pytest.raises(NotProven, match="lacks 1 of 1"):
        judged((ALICE,), (replace(ALICE, sound="1", **change),), (after,))


def test_sessions_that_came_or_went_in_between_may_be_there_or_not() -> None:
    assert judged((ALICE,), (ALICE, BOB), (ALICE, BOB)).stdout == kept(ALICE, BOB)
    assert judged((ALICE,), (ALICE,), (ALICE, BOB)).stdout == kept(ALICE)
    assert judged((ALICE, BOB), (ALICE, BOB), (ALICE,)).stdout == kept(ALICE, BOB)
    assert judged((ALICE, BOB), (ALICE,), (ALICE,)).stdout == kept(ALICE)


def test_a_listing_that_lacks_a_session_is_not_proven() -> None:
    with pytest.raises(NotProven, match=r"lacks 1 of 2 sessions that the session database has, and says: nothing else"):
        judged((ALICE, BOB), (ALICE,))


def test_an_error_text_with_exit_status_0_is_quoted() -> None:
    with pytest.raises(NotProven, match="DBI connect failed: database is locked"):
        judged((ALICE,), b"DBI connect failed: database is locked\n")


def test_a_dirty_record_that_no_row_can_show_is_not_missed() -> None:
    dirty = replace(BOB, client="a|b")
    assert judged((ALICE, dirty), (ALICE,)).stdout == kept(ALICE)


@pytest.mark.parametrize("status", ["", "X", "RS", "R\nx", "R|S"])
def test_a_record_whose_status_is_none_of_x2go_s_is_left_out_and_not_missed(status: str) -> None:
    odd = replace(BOB, status=status)
    found = judged((ALICE, odd), (ALICE, odd))
    assert found.stdout == kept(ALICE)
    assert found.rejected


@pytest.mark.parametrize("column", ["session", "username", "cookie", "client", "agent_pid"])
def test_users_can_not_hide_a_session_of_others_by_dirt_in_their_own(column: str) -> None:
    dirty = replace(BOB, **{column: "x\ny"})
    with pytest.raises(NotProven, match="lacks 1 of 2"):
        judged((ALICE, dirty), (dirty,))


def test_records_of_other_hosts_are_passed_over() -> None:
    elsewhere = replace(BOB, hostname="ts02")
    assert judged((ALICE, elsewhere), (ALICE,)) == Proven(kept(ALICE))
    found = judged((ALICE, elsewhere), (ALICE, elsewhere))
    assert found.stdout == kept(ALICE)
    assert len(found.rejected) == 1


def test_records_of_other_hosts_alone_mean_that_the_host_name_changed() -> None:
    with pytest.raises(
        HostNameChanged, match=r"all 2 session records are of host old, the server is ts01 now"
    ) as caught:
        judged((replace(ALICE, hostname="old"), replace(BOB, hostname="old")), b"")
    assert "old host name back" in caught.value.mend


@pytest.mark.parametrize(("hostname", "host"), [("ts01", "ts01.example.org"), ("TS01.other", "ts01"), ("ts01", "ts01")])
def test_the_expected_host_name_is_compared_without_domain(hostname: str, host: str) -> None:
    row = replace(ALICE, hostname=host)
    assert proven(body((row,), (row,)), host=host, hostname=hostname).stdout == row.line


def test_records_of_other_hosts_alone_are_no_evidence_where_the_host_name_is_known() -> None:
    elsewhere = replace(ALICE, hostname="elsewhere")
    assert proven(body((elsewhere,), b""), hostname="ts01") == Proven(b"")


def test_another_host_name_than_expected() -> None:
    with pytest.raises(HostNameChanged, match=r"calls itself ts01, the inventory expects ts07\. mend `hostname`"):
        proven(body((ALICE,), (ALICE,)), hostname="ts07")


def test_the_samples_of_a_real_server_prove_themselves() -> None:
    stdout = (SAMPLES / "root-sqlite.txt").read_bytes()
    rows = []
    for line in stdout.decode().splitlines():
        field = line.split("|")
        rows.append(
            Row(
                *(field[1], field[11], field[3], field[4], field[2], field[5], field[10], field[6], field[7], field[0]),
                *(field[8], field[9], field[13], field[14], field[15], field[12]),
            )
        )
    assert rows
    found = proven(body(rows, stdout), host=rows[0].hostname)
    assert found == Proven(stdout)


# What failed, though it may look like an empty list


@pytest.mark.parametrize(("status", "error"), [(127, CommandMissing), (126, CommandMissing), (124, ListingFailed)])
@pytest.mark.parametrize("records", [(), (ALICE,)])
def test_the_exit_status_of_the_listing(status: int, error: type[FleetError], records: tuple[Row, ...]) -> None:
    with pytest.raises(error, match="x2golistsessions_root"):
        judged(records, b"", status=status)


def test_another_exit_status_quotes_what_was_said() -> None:
    with pytest.raises(ListingFailed, match="ended with exit status 2: no such file"):
        proven(body((), b"", status=2), stderr=b"no such\x1b[31m file\n".replace(b"\x1b[31m", b""))
    with pytest.raises(ListingFailed, match="ended with exit status 1: DBI error"):
        judged((), b"DBI error\n", status=1)
    with pytest.raises(ListingFailed, match="nothing on stderr"):
        judged((), b"", status=1)


@pytest.mark.parametrize("status", [124, 137])
def test_the_check_itself_ran_out_of_time(status: int) -> None:
    with pytest.raises(ListingFailed, match="did not end in time"):
        proven(body((ALICE,), (ALICE,)), status=status)


def test_a_check_that_died_half_way_proves_nothing() -> None:
    whole = body((ALICE, BOB), (ALICE, BOB))
    cut = whole[: whole.rindex(MARK)]
    with pytest.raises(NotProven, match="exit status 143"):
        proven(cut, status=143)


def test_a_check_that_could_not_run() -> None:
    with pytest.raises(NotProven, match=r"could not be asked: Can't locate DBI\.pm.*needs perl with DBI"):
        proven(b"", status=2, stderr=b"Can't locate DBI.pm in @INC\n")
    with pytest.raises(CommandMissing, match="perl could not be run"):
        proven(b"", status=127)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_session_database_that_can_not_be_read(where: str) -> None:
    error = MARK + b" recerr unable to open database file\n"
    raw = MARK + b" records before\n" + error if where == "before" else body((ALICE,), (ALICE,), ()) + error
    with pytest.raises(ListingFailed, match="can't be read: unable to open database file") as caught:
        proven(raw)
    assert "x2go_sessions" in caught.value.mend


@pytest.mark.parametrize(
    "cut",
    [
        MARK + b" records before\n",
        MARK + b" records before\n" + ALICE.record + MARK + b" listing\n" + ALICE.line,
        MARK + b" records before\n" + MARK + b" listing\n\n" + MARK + b" listed 0",
        MARK + b" records before\n" + MARK + b" listing\n\n" + MARK + b" listed 0\n",
        MARK + b" records before\n" + MARK + b" listing\n\n" + MARK + b" listed \n" + MARK + b" records after\n",
        MARK + b" records before\n" + MARK + b" listing\n\n" + MARK + b" listed " + b"9" * 5000 + b"\n",
        b"x" + body((), b""),
        b"",
    ],
)
def test_a_section_that_was_cut_short(cut: bytes) -> None:
    with pytest.raises(NotProven):
        proven(cut)


@pytest.mark.parametrize(
    "record",
    [b"zz|6|", b"", b"61|62", b"|" * 14 + b"6", b"|" * 13, b"|" * 15, "|".join(["\u00e4"] * 15).encode()],
)
def test_damaged_records(record: bytes) -> None:
    damaged = MARK + b" rec " + record + b"\n"
    raw = body((ALICE,), (ALICE,)).replace(ALICE.record, damaged, 1)
    with pytest.raises(NotProven, match="damaged"):
        proven(raw)


def test_a_line_among_the_records_that_is_none() -> None:
    with pytest.raises(NotProven, match="damaged"):
        proven(body((ALICE,), (ALICE,)).replace(ALICE.record, b"hello\n" + ALICE.record, 1))


def test_a_login_that_is_not_root() -> None:
    with pytest.raises(
        NotPermitted, match=r"lists nothing to uid 1000 \(root\); scope \"server\" needs root"
    ) as caught:
        proven(body((), b""), uid=1000)
    assert "sudo" in caught.value.mend
    with pytest.raises(NotPermitted):
        proven(body((ALICE,), (ALICE,)), uid=-1)


def test_no_error_and_no_reason_holds_a_cookie() -> None:
    said: list[str] = []
    secret = ALICE.cookie
    cases: list[tuple[Sequence[Row], bytes, int]] = [
        ((ALICE,), BOB.line, 0),
        ((ALICE,), ALICE.line + replace(ALICE, client="x").line, 0),
        ((), ALICE.line, 1),
        ((ALICE,), ALICE.line, 1),
        ((ALICE, BOB), ALICE.line[:-20], 0),
        ((), b"garbage|" + secret.encode() + b"|x\n", 3),
    ]
    for records, listing, status in cases:
        try:
            found = judged(records, listing, status=status)
        except FleetError as exc:
            said.append(f"{exc} {exc!r}")
        else:
            said.append(f"{found!r}")
    plain = Section(Kind.SESSIONS, {}, b"x|" + secret.encode() + b"\n", 0)
    with pytest.raises(ListingFailed) as caught:
        prove_sessions(plain, scope="user", uid=1, login="alice", host=HOST, mark=MARK, stderr=b"")
    said.append(str(caught.value))
    assert len(said) == len(cases) + 1
    assert not [text for text in said if secret in text]


# Without records: user scope, PostgreSQL


def plainly(stdout: bytes, *, scope: str = "user", status: int = 0, stderr: bytes = b"", uid: int = 1000) -> Proven:
    section = Section(Kind.SESSIONS, {"backend": "postgres"}, stdout, status)
    login = "alice" if scope == "user" else "root"
    return prove_sessions(
        section, scope=scope, uid=0 if scope == "server" else uid, login=login, host=HOST, mark=MARK, stderr=stderr
    )


def test_user_scope_keeps_that_users_rows_of_16_and_14_fields() -> None:
    shadow = (
        b"|".join(replace(ALICE, session="alice-53-1_stS1XSHADbobXSHADPP51_dp24").line.rstrip().split(b"|")[:14])
        + b"\n"
    )
    assert plainly(ALICE.line + b"\n" + shadow) == Proven(ALICE.line + shadow)
    assert plainly(b"") == Proven(b"")


def test_user_scope_leaves_out_rows_of_others_and_what_is_no_row() -> None:
    found = plainly(ALICE.line + BOB.line + b"warning|x\n" + ALICE.line + b"|" * 15 + b"\n")
    assert found.stdout == ALICE.line
    assert [reason.partition(": ")[2] for reason in found.rejected] == [
        "a session of another user",
        "2 fields where a session has 14 or 16",
        "a second row of the same session",
        "no session's name, display and status",
    ]


def test_an_error_text_among_a_user_s_rows_is_that_of_one_of_two_commands() -> None:
    with pytest.raises(ListingFailed, match="databaseislocked"):
        plainly(ALICE.line + b"DBD::SQLite::dbpreparefailed:databaseislocked\n")
    # All users of a server can print such a line, so there it fails nobody's poll.
    assert plainly(ALICE.line + b"databaseislocked\n", scope="server").stdout == ALICE.line


def test_postgresql_keeps_rows_of_its_own_host_alone() -> None:
    found = plainly(ALICE.line + replace(BOB, hostname="ts02").line, scope="server")
    assert found.stdout == ALICE.line
    assert found.rejected == ("line 2: a session of another host",)


@pytest.mark.parametrize("scope", ["user", "server"])
def test_an_output_without_one_row_is_no_empty_list(scope: str) -> None:
    with pytest.raises(ListingFailed, match="printed no session but: DBI connect failed"):
        plainly(b"DBI connect failed\n", scope=scope)
    with pytest.raises(ListingFailed, match="another"):
        plainly(replace(BOB, hostname="x").line, scope=scope)


@pytest.mark.parametrize(("status", "error"), [(127, CommandMissing), (124, ListingFailed), (255, ListingFailed)])
def test_exit_statuses_without_records(status: int, error: type[FleetError]) -> None:
    for scope in ("user", "server"):
        with pytest.raises(error, match="x2golistsessions"):
            plainly(ALICE.line, scope=scope, status=status)


def test_what_is_kept_parses() -> None:
    rows, rejected = parse_sessions(judged((ALICE, BOB, STARTING), (ALICE, BOB, STARTING)).stdout, server="ts01")
    assert [row.username for row in rows] == ["alice", "bob", "carla"]
    assert rejected == ()


# The other kinds

LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"


def test_load() -> None:
    assert prove_load(Section(Kind.LOAD, {}, LOAD), stderr=b"") == Proven(LOAD)


@pytest.mark.parametrize("stdout", [b"", b"loadavg\n", LOAD.replace(b"0.05", b"nan"), LOAD.replace(b"cpus 2\n", b"")])
def test_load_figures_that_are_none(stdout: bytes) -> None:
    with pytest.raises(ListingFailed, match="the load figures can't be read"):
        prove_load(Section(Kind.LOAD, {}, stdout), stderr=b"")


def test_load_that_could_not_be_read() -> None:
    with pytest.raises(ListingFailed, match="reading /proc ended with exit status 1: gone"):
        prove_load(Section(Kind.LOAD, {}, LOAD, 1), stderr=b"gone\n")


def mounts(raw: bytes, *, scope: str = "server", uid: int = 0, status: int = 0, backend: str = "sqlite") -> Proven:
    section = Section(Kind.MOUNTS, {"backend": backend}, raw, status)
    return prove_mounts(section, scope=scope, uid=uid, login="root", mark=MARK, stderr=b"")


def mnt(*columns: str) -> bytes:
    return MARK + b" mnt " + "|".join(column.encode().hex() for column in columns).encode() + b"\n"


def test_mounts_by_records() -> None:
    raw = mnt("s1", "127.0.0.1", "/tmp/a b|c") + mnt("s2", "10.0.0.1", "/x")
    assert mounts(raw) == Proven(b"s1|127.0.0.1|/tmp/a b|c\ns2|10.0.0.1|/x\n")
    assert mounts(b"") == Proven(b"")


@pytest.mark.parametrize("columns", [("s|1", "c", "p"), ("s1", "c|d", "p"), ("s1", "c", "p\nq"), ("s1", "c\n", "p")])
def test_mounts_whose_columns_hold_separators_are_left_out(columns: tuple[str, str, str]) -> None:
    found = mounts(mnt(*columns) + mnt("s2", "c", "p"))
    assert found.stdout == b"s2|c|p\n"
    assert len(found.rejected) == 1
    assert "\n" not in found.rejected[0]


def test_mounts_that_fail() -> None:
    with pytest.raises(ListingFailed, match="can't be read: no such table: mounts"):
        mounts(MARK + b" recerr no such table: mounts\n")
    with pytest.raises(NotPermitted):
        mounts(b"", uid=1000)
    with pytest.raises(NotProven, match="damaged"):
        mounts(mnt("s1", "c"))
    with pytest.raises(NotProven, match="damaged"):
        mounts(b"s1|c|p\n")
    with pytest.raises(CommandMissing, match="the query of mounts"):
        mounts(b"", status=127)
    with pytest.raises(ListingFailed, match="in time"):
        mounts(b"", status=124)


@pytest.mark.parametrize(("scope", "backend"), [("user", "sqlite"), ("server", "postgres")])
def test_mounts_as_the_command_prints_them(scope: str, backend: str) -> None:
    if scope == "server":
        found = mounts(b"s1|10.0.0.1|/a\n\nnonsense\n", scope=scope, backend=backend)
        assert found == Proven(b"s1|10.0.0.1|/a\n", ("line 3: no mount",))
    else:
        with pytest.raises(ListingFailed, match="no mount but: database is locked"):
            mounts(b"s1|10.0.0.1|/a\ns2|database is locked\n", scope=scope, backend=backend)
    assert mounts(b"\n", scope=scope, backend=backend) == Proven(b"")
    with pytest.raises(ListingFailed, match="printed no mount but: nonsense"):
        mounts(b"nonsense\n", scope=scope, backend=backend)
    with pytest.raises(ListingFailed):
        mounts(b"s1|10.0.0.1|/a\n", scope=scope, backend=backend, status=1)


def desktops(raw: bytes, status: int = 0) -> Proven:
    return prove_desktops(Section(Kind.DESKTOPS, {}, raw, status), stderr=b"")


def test_desktops() -> None:
    assert desktops(b"alice@:50\nbob_x@:51\n\n") == Proven(b"alice@:50\nbob_x@:51\n")
    assert desktops(b"") == Proven(b"")
    found = desktops(b"alice@:50\nxauth: error\nbob@:\na b@:5\n")
    assert found.stdout == b"alice@:50\n"
    assert len(found.rejected) == 3


def test_desktops_that_fail() -> None:
    with pytest.raises(ListingFailed, match="printed no desktop but: xauth: error"):
        desktops(b"xauth: error\n")
    with pytest.raises(CommandMissing, match="install x2goserver"):
        desktops(b"", 127)
    with pytest.raises(ListingFailed, match="exit status 255"):
        desktops(b"", 255)


def test_a_desktops_sample_of_a_real_server() -> None:
    stdout = (SAMPLES / "desktops-root.txt").read_bytes()
    assert desktops(stdout).rejected == ()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b" a\n\tb \r\n", "a b"),
        (b"\x1b[31mred\x07", "[31mred"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202eright\u200bleft".encode(), "right left"),
        (b"x" * 300, "x" * 199 + "\u2026"),
    ],
)
def test_what_servers_say_is_shown_as_one_plain_line(raw: bytes, text: str) -> None:
    assert show(raw) == text
