"""Polls of a real X2Go server on PostgreSQL with 5000 sessions of 100 hosts: CPU of the server and of PostgreSQL."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from x2gofleet_workers.probe.protocol import SectionKind, SectionRequest

from tests.e2e.direct_probe import DirectProbe
from tests.e2e.postgres import PostgresServer
from tests.e2e.postgres_farm import ADMIN_ROLE, PostgresFarm, missing_postgres
from tests.e2e.realserver import RealX2GoServer, create_empty_database, missing_requirements

Row = tuple[str, str, float, str]
HOSTS = 100
SESSIONS_OF_HOST = 50
POLLS = 100
LISTINGS = 10
INTERVAL_SECONDS = 2.0
SESSIONS = SectionRequest(SectionKind.SESSIONS)
# As one user's role: 50 sessions on each host are less than one user may have.
_FILL = (
    "insert into sessions (session_id, display, uname, server, status) "
    "select 'alice-' || h * 100 + n || '-1763800000_stDMATE_dp24', h * 100 + n, 'alice', "
    "'ts' || lpad(h::text, 2, '0'), 'S' from generate_series(1, {hosts}) h, generate_series(1, {sessions}) n"
)


@contextmanager
def _farm() -> Iterator[tuple[PostgresFarm, RealX2GoServer]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        (directory / "state").mkdir()
        empty = create_empty_database(directory / "state")
        server = stack.enter_context(RealX2GoServer(directory / "server", empty_database=empty, hostname="ts01"))
        database = stack.enter_context(PostgresServer())
        farm = PostgresFarm(database, {"ts01": server}, users=("alice",))
        statement = _FILL.format(hosts=HOSTS, sessions=SESSIONS_OF_HOST)
        farm.sql(statement, role="x2gouser_alice")
        # As autovacuum does in time.
        farm.sql("analyze sessions")
        yield farm, server


def _cpu_seconds(pids: list[int]) -> float:
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def _backends(farm: PostgresFarm) -> list[int]:
    rows = farm.sql("select pid from pg_stat_activity where usename = $1", ADMIN_ROLE)
    return [int(str(row[0])) for row in rows]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reaped_by_postgres(farm: PostgresFarm) -> float:
    """Return the CPU seconds of all backends that the postmaster has seen end."""
    fields = Path(f"/proc/{farm.database.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _median(run: Callable[[], object], times: int) -> float:
    walls = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls)


def run() -> list[Row]:
    """Return the rows of this benchmark."""
    lacking = missing_requirements() or missing_postgres()
    if lacking:
        return [(f"polls on PostgreSQL: not measured, {lacking}", "", 0.0, "")]
    with _farm() as (farm, server):
        reaped = _reaped_by_postgres(farm)
        cpu = _children_seconds()
        listing_wall = _median(lambda: server.run(["x2golistsessions_root"]), LISTINGS)
        listing_cpu = (_children_seconds() - cpu) / LISTINGS
        listing_postgres = (_reaped_by_postgres(farm) - reaped) / LISTINGS
        with DirectProbe(server) as probe:
            section = probe.sessions()
            assert len(section.records) == SESSIONS_OF_HOST
            (backend,), pids = _backends(farm), probe.pids()
            before = _cpu_seconds(pids), _cpu_seconds([backend])
            wall = _median(lambda: probe.sessions(section.signature), POLLS)
            after = _cpu_seconds(pids), _cpu_seconds([backend])
            farm.sql("create index sessions_server on sessions (server)")
            farm.sql("analyze sessions")
            begin = _cpu_seconds([backend])
            for _ in range(POLLS):
                probe.sessions(section.signature)
            indexed = (_cpu_seconds([backend]) - begin) / POLLS
    server_cpu, postgres_cpu = ((end - begin) / POLLS for begin, end in zip(before, after, strict=True))
    polls_a_second = HOSTS / INTERVAL_SECONDS
    base = "x2golistsessions_root"
    return [
        (f"a poll on PostgreSQL, {wall * 1e3:.1f} ms", f"{base}, {listing_wall * 1e3:.0f} ms", wall / listing_wall, ""),
        (
            f"server CPU of a poll on PostgreSQL, {server_cpu * 1e3:.2f} ms",
            f"{base}, {listing_cpu * 1e3:.0f} ms",
            server_cpu / listing_cpu,
            "<= 3 ms",
        ),
        (
            f"PostgreSQL's CPU of a poll, {postgres_cpu * 1e3:.2f} ms",
            f"{base}, {listing_postgres * 1e3:.1f} ms",
            postgres_cpu / listing_postgres if listing_postgres else 0.0,
            "",
        ),
        (f"PostgreSQL's CPU for {HOSTS} servers", "one core", postgres_cpu * polls_a_second, "<= 0.05"),
        (f"PostgreSQL's CPU for {HOSTS} servers, index on server", "one core", indexed * polls_a_second, "<= 0.05"),
    ]
