"""Generated records, hostile ones included: what is served is what X2Go's own query prints of the well-formed ones.

`make fuzz` runs a hundred thousand records, every test run a thousand (GENERATED_RECORDS).
"""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import pytest
from x2gofleet_workers.probe.proof import malformed

from .direct_probe import DirectProbe
from .realserver import RealX2GoServer

RECORDS = int(os.environ.get("GENERATED_RECORDS", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
MOST_RECORDS_OF_A_DATABASE = 500
HOST = b"ts01"
AGE = 12
# Beyond what Linux gives a process, so that no agent is another user's process.
FIRST_FREE_PID = 5_000_000

COLUMNS = (
    *("session_id", "uname", "server", "status", "display", "init_time", "last_time", "cookie", "client"),
    *("agent_pid", "gr_port", "sound_port", "fs_port", "tekictrl_port", "tekidata_port"),
)
# X2Go's own query in a process that stays: for each line with a host name, the number of rows and the rows.
QUERY = r"""
use X2Go::Server::DB::SQLite3; $| = 1; binmode STDOUT;
while (my $host = <STDIN>) {
    chomp $host;
    my @rows = X2Go::Server::DB::SQLite3::dbsys_listsessionsroot($host);
    print pack('N', scalar @rows), map { pack 'N/a*', $_ } @rows;
}
"""

Value = str | bytes | int | float | None
Draw = random.Random


def _user(draw: Draw) -> str:
    return draw.choice(("alice", "bob", "john_doe", "m.meyer", "x", "corp+eve", "user@realm.example", "u" * 80))


def _time(draw: Draw) -> str:
    day = f"{draw.randint(1970, 2099):04}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    return f"{day} {draw.randint(0, 23):02}:{draw.randint(0, 59):02}:{draw.randint(0, 59):02}"


def _port(draw: Draw) -> Value:
    return draw.choice((None, "", 0, -1, 30001, 65535, "30004", 2_147_483_647, draw.randint(1024, 65535)))


# What X2Go itself writes, and what else is printed as one plain row.
GOOD: dict[str, Callable[[Draw], Value]] = {
    "uname": _user,
    "server": lambda _: HOST.decode(),
    "status": lambda draw: draw.choice("RRRSSFT"),
    "display": lambda draw: draw.randint(0, 999_999_999),
    "init_time": _time,
    "last_time": _time,
    "cookie": lambda draw: draw.choice((None, "", f"{draw.getrandbits(128):032x}")),
    "client": lambda draw: draw.choice((None, "", "10.1.2.3", "2001:db8::1", "fe80::1%eth0", "büro", "会議室", "a b")),
    "agent_pid": lambda draw: draw.choice((None, "", FIRST_FREE_PID + draw.randint(0, 10**6))),
    "gr_port": _port,
    "sound_port": _port,
    "fs_port": _port,
    "tekictrl_port": _port,
    "tekidata_port": _port,
}
BAD_TEXT: tuple[Value, ...] = (
    *("a|b", "a\nb", "\n", "|", "a\rb", "a\tb", "\x1b[2J", "a\x00b", "a\x7fb", "\u200e", "\u2028", "\ue000", "\x85"),
    *(b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\x00", b"a\nb|c", "x" * 1025, "é" * 513, "y" * 130_000),
    "4242|bob-51-1763800000_stDMATE_dp24|51|ts01|R|2025-11-22T10:00:00|c|10.0.0.1|1|2|2025-11-22T10:00:00|bob|9|3|4|5",
)
BAD_NUMBER: tuple[Value, ...] = (
    *("abc", "1|2", "1\n2", "1 2", "0x10", "١", 10**12, -(10**12), 1.5, 1e30, b"\xff", b" 1", b"+1", "--1", "9" * 2000),
)
BAD_TIME: tuple[Value, ...] = ("", "never", "2025-13-01 00:00:00", "a|b", "9" * 400, b"\x00", "1;2")
BAD: dict[str, tuple[Value, ...]] = {
    "session_id": ("", *BAD_TEXT),
    "uname": ("", *BAD_TEXT),
    "status": ("", "X", "RR", "r", " R", "R|", "R\n", b"\xff", 1, *BAD_TEXT),
    "display": ("", -1, "-1", *BAD_NUMBER),
    "init_time": BAD_TIME,
    "last_time": BAD_TIME,
    "cookie": BAD_TEXT,
    "client": BAD_TEXT,
    "agent_pid": BAD_NUMBER,
    "gr_port": BAD_NUMBER,
    "sound_port": BAD_NUMBER,
    "fs_port": BAD_NUMBER,
    "tekictrl_port": BAD_NUMBER,
    "tekidata_port": BAD_NUMBER,
}
OTHER_HOSTS: tuple[Value, ...] = (
    "ts02",
    "",
    "TS01",
    "ts01.example.org",
    "ts01 ",
    " ts01",
    "ts01|",
    b"ts01",
    b"\xff",
    7,
)


@dataclass(frozen=True)
class Generated:
    """A record, and whether it is one that is to be served."""

    values: tuple[Value, ...]
    good: bool


def good_values(draw: Draw, number: int) -> tuple[Value, ...]:
    """Draw a record that is to be served; ``number`` is its display, and makes its name unique."""
    record = {name: make(draw) for name, make in GOOD.items()}
    kind, depth = draw.choice("DRSPC"), draw.choice((8, 24, 32))
    record["session_id"] = f"{record['uname']}-{number}-{draw.randint(10**9, 2 * 10**9)}_st{kind}MATE_dp{depth}"
    record["display"] = number
    return tuple(record[name] for name in COLUMNS)


def generate(draw: Draw, number: int) -> Generated:
    """Draw a record: two of three are good, others have one to three bad columns or are another host's as well."""
    values = good_values(draw, number)
    if draw.random() < 2 / 3:
        return Generated(values, good=True)
    record = dict(zip(COLUMNS, values, strict=True))
    for column in draw.sample(sorted(BAD), draw.randint(1, 3)):
        record[column] = draw.choice(BAD[column])
    if draw.random() < 0.2:
        record["server"] = draw.choice(OTHER_HOSTS)
    return Generated(tuple(record.values()), good=False)


def fill(server: RealX2GoServer, records: list[Generated]) -> list[Generated]:
    """Make these the only records; return those that the table takes: session names and displays are unique."""
    marks = ", ".join("?" * len(COLUMNS))
    taken = []
    with closing(sqlite3.connect(server.database)) as database, database:
        database.execute("delete from sessions")
        for each in records:
            try:
                database.execute(f"insert into sessions ({', '.join(COLUMNS)}) values ({marks})", each.values)
            except sqlite3.IntegrityError:
                continue
            taken.append(each)
    return taken


class OwnQuery:
    """X2Go's own query, called in one process on the server."""

    def __init__(self, server: RealX2GoServer) -> None:
        self._process = subprocess.Popen(
            server.namespace.enter(["perl", "-e", QUERY], user="root"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=server.namespace.login_environment("root"),
        )

    def rows(self) -> list[bytes]:
        """Return the rows as X2Go prints them, newlines in them included."""
        assert self._process.stdin is not None
        self._process.stdin.write(HOST + b"\n")
        self._process.stdin.flush()
        return [self._read(self._number()) for _ in range(self._number())]

    def _number(self) -> int:
        return cast(int, struct.unpack(">I", self._read(4))[0])

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(length)
        assert len(data) == length, "X2Go's own query ended"
        return data

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture
def own_query(server: RealX2GoServer) -> Iterator[OwnQuery]:
    found = OwnQuery(server)
    yield found
    found.close()


def without_age(row: bytes) -> bytes:
    fields = row.split(b"|")
    return b"|".join(fields[:AGE] + fields[AGE + 1 :])


def session_of(each: Generated) -> bytes:
    return str(each.values[0]).encode()


def test_generated_records_equal_x2gos_own_query_wherever_they_are_well_formed(
    server: RealX2GoServer, own_query: OwnQuery
) -> None:
    draw = random.Random(SEED)
    tally: Counter[str] = Counter()
    with DirectProbe(server) as probe:
        while tally["records"] < RECORDS:
            size = min(draw.randint(1, MOST_RECORDS_OF_A_DATABASE), RECORDS - tally["records"])
            records = fill(server, [generate(draw, number) for number in range(1, size + 1)])
            theirs = own_query.rows()
            section = probe.sessions()
            proven = probe.proven()
            ours = proven.stdout.splitlines()
            good = {session_of(each) for each in records if each.good}
            where = f"FUZZ_SEED={SEED}, database {tally['databases'] + 1} of {size} records"

            assert {row.split(b"|")[1] for row in ours} == good, where
            printed = Counter(without_age(row) for row in theirs)
            assert Counter(map(without_age, ours)) <= printed, where
            # All that X2Go prints beyond is of records that are refused, and each of these is reported.
            assert len(theirs) - len(ours) == len(section.records) - len(good) == proven.rejected_rows, where
            ages = {row.split(b"|")[1]: int(row.split(b"|")[AGE]) for row in ours}
            for row in theirs:
                name, *_ = row.split(b"|")[1:2] or [b""]
                if name in ages and without_age(row) in map(without_age, ours):
                    assert abs(int(row.split(b"|")[AGE]) - ages[name]) <= 60, where
            tally += Counter(records=size, databases=1, served=len(ours), refused=proven.rejected_rows)
    print(", ".join(f"{count} {name}" for name, count in tally.items()))
    assert tally["served"] > RECORDS / 2
    assert tally["refused"] > RECORDS / 10


@pytest.mark.parametrize("column", sorted(BAD))
def test_each_bad_value_costs_its_own_row(server: RealX2GoServer, column: str) -> None:
    draw = random.Random(SEED)
    records = [Generated(good_values(draw, 1), good=True)]
    for number, value in enumerate(BAD[column], 2):
        base = dict(zip(COLUMNS, good_values(draw, number), strict=True))
        records.append(Generated(tuple({**base, column: value}.values()), good=False))
    taken = fill(server, records)
    with DirectProbe(server) as probe:
        section = probe.sessions()
        assert probe.names() == {session_of(records[0]).decode()}
        assert len(section.records) == len(taken)
        assert sum(bool(malformed(record, host=HOST)) for record in section.records) == len(taken) - 1
