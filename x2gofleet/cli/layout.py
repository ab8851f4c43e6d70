"""layout: a picture of the fleet -> tables and lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from x2gofleet.cli.picture import Counts, Coverage, Knowledge, Picture, SeenServer, SeenSession, status_word, type_word
from x2gofleet.cli.reasons import error_text, unknown_line, unowned_line
from x2gofleet.cli.tables import Block, Cell, Column, Line, Table
from x2gofleet.cli.text import counted, duration, iso
from x2gofleet.events import Event, EventKind
from x2gofleet.kinds import Kind
from x2gofleet.lookup import TargetStatus

_STATE_STYLES = {"up": "good", "down": "bad", "unknown": "warn"}
_STATUS_STYLES = {"running": "good", "suspended": "", "starting": "warn"}

_SERVER_COLUMNS = (
    Column("SERVER", limit=24),
    Column("STATE"),
    Column("SINCE", rank=2, right=True),
    Column("AGE", right=True),
    Column("RUNNING", right=True),
    Column("SUSPENDED", right=True),
    Column("STARTING", right=True),
    Column("LOAD FACTOR", rank=1, right=True),
    Column("WORKER", rank=3, limit=28),
    Column("LABELS", rank=4, limit=28),
)

_SESSION_COLUMNS = (
    Column("USER", limit=20),
    Column("SESSION"),
    Column("TYPE", rank=3),
    Column("STATUS"),
    Column("SERVER", limit=24),
    Column("DISPLAY", rank=4, right=True),
    Column("STARTED", rank=2),
    Column("AGE", rank=1, right=True),
)


_EVENT_STYLES = {
    EventKind.SERVER_DOWN: "bad",
    EventKind.SERVER_UP: "good",
    EventKind.STARTED: "good",
    EventKind.ENDED: "dim",
}
_EVENT_COLUMNS = (
    Column("TIME"),
    Column("SERVER", limit=24),
    Column("EVENT"),
    Column("USER", rank=1, limit=20),
    Column("SESSION OR ERROR"),
)
_EVENT_WIDTHS = (20, 12, 11, 12, 0)


def summary_line(picture: Picture) -> str:
    """Return the fleet in one line."""
    servers = picture.servers
    states = [server.state for server in servers]
    parts = [f"{states.count(state)} {state}" for state in ("up", "down", "unknown") if states.count(state)]
    drained = sum(server.status.drained for server in servers)
    if drained:
        parts.append(f"{drained} drained")
    text = f"{counted(len(servers), 'server')}: {', '.join(parts)}; {sessions_text(picture)}"
    if picture.oldest_age is not None:
        text += f"; oldest answer {duration(picture.oldest_age)} old"
    return text


def sessions_text(picture: Picture) -> str:
    """Return how many sessions there are, in words, and of how many servers that is not known."""
    counts, coverage = picture.counts, picture.coverage
    if counts is None:
        return "sessions unknown"
    if coverage.complete:
        return counts_text(counts)
    if counts.total:
        text = f"at least {counts_text(counts)}"
    else:
        text = f"no sessions on {counted(coverage.known + coverage.partly, 'server')}"
    return f"{text}; {unknown_text(coverage)}"


def unknown_text(coverage: Coverage) -> str:
    """Return of how many servers the sessions are unknown, in words."""
    parts = []
    if coverage.unknown:
        parts.append(f"those of {counted(coverage.unknown, 'server')} are unknown")
    if coverage.partly:
        parts.append(f"those of {counted(coverage.partly, 'server')} are known in part")
    return ", ".join(parts)


def counts_text(counts: Counts) -> str:
    """Return how many sessions there are, in words."""
    if not counts.total:
        return "no sessions"
    named = (
        (counts.running, "running"),
        (counts.suspended, "suspended"),
        (counts.starting, "starting"),
        (counts.ending, "ending"),
    )
    return f"{counted(counts.total, 'session')}: " + ", ".join(f"{number} {word}" for number, word in named if number)


def server_table(servers: Sequence[SeenServer]) -> Table:
    """Return one row for each server."""
    return Table.of(_SERVER_COLUMNS, [_server_row(server) for server in servers])


def _server_row(server: SeenServer) -> list[Cell | str]:
    status, counts = server.status, server.counts
    state = f"{server.state}, drained" if status.drained else server.state
    numbers = ["-"] * 3
    if counts is not None:
        more = "+" if server.knowledge is Knowledge.PARTLY else ""
        numbers = [f"{number}{more}" for number in (counts.running, counts.suspended, counts.starting)]
    return [
        status.id,
        Cell(state, "warn" if status.drained and server.state == "up" else _STATE_STYLES[server.state]),
        duration(server.since_seconds),
        duration(status.ages.get(Kind.SESSIONS)),
        *(Cell(number, "dim" if number in ("0", "-") else "") for number in numbers),
        "-" if server.load is None else str(server.load.load_factor),
        status.owner or Cell("none", "warn"),
        ", ".join(status.labels),
    ]


def broken_targets(picture: Picture) -> list[TargetStatus]:
    """Return the targets whose newest poll failed."""
    return [target for server in picture.servers for target in server.status.targets if target.up is False]


def problem_lines(picture: Picture) -> list[Line]:
    """Return lines for each target with a failing poll: its last error with the fix; and for each that nobody polls."""
    return [
        line
        for server in picture.servers
        for target in server.status.targets
        for line in _target_problems(target, server.status.read_at_ms)
    ]


def _target_problems(target: TargetStatus, read_at_ms: int) -> Iterator[Line]:
    if target.up is False or target.error_class:
        times = f" ({target.failures} failed polls in a row)" if target.failures > 1 else ""
        style = "bad" if target.up is False else "warn"
        yield Line(f"{target.id}: {error_text(target) or 'its last poll failed'}{times}", style, indent=2)
    if target.up is None:
        yield Line(unknown_line(target, read_at_ms), "warn", indent=2)
    elif target.owner is None:
        yield Line(unowned_line(target, read_at_ms), "warn", indent=2)


def session_table(sessions: Sequence[SeenSession], *, by_user: bool = True) -> Table:
    """Return one row for each session, newest first, ``by_user`` within each user's."""
    ordered = sorted(sessions, key=lambda seen: seen.session.date_created, reverse=True)
    if by_user:
        ordered.sort(key=lambda seen: seen.session.username)
    return Table.of(_SESSION_COLUMNS, [_session_row(seen) for seen in ordered])


def _session_row(seen: SeenSession) -> list[Cell | str]:
    session, word = seen.session, status_word(seen.session)
    return [
        session.username,
        session.name,
        type_word(session),
        Cell(word, _STATUS_STYLES.get(word, "warn")),
        session.server,
        f":{session.display}",
        session.date_created.replace("T", " ")[:16],
        duration(seen.age),
    ]


def event_table(events: Sequence[Event]) -> Table:
    """Return one row for each event."""
    return Table.of(_EVENT_COLUMNS, [_event_cells(event) for event in events])


def event_line(event: Event) -> str:
    """Return one event as a line of its own, which stands below others nearly as in a table."""
    cells = [cell if isinstance(cell, str) else cell.text for cell in _event_cells(event)]
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _EVENT_WIDTHS, strict=True)).rstrip()


def _event_cells(event: Event) -> list[Cell | str]:
    when = iso(event.at_ms) or ""
    word = event.kind.value.replace("_", " ")
    return [
        f"{when[:10]} {when[11:19]}Z",
        event.server,
        Cell(word, _EVENT_STYLES.get(event.kind, "")),
        event.username or "-",
        event.session or event.text or "-",
    ]


def status_blocks(picture: Picture) -> list[Block]:
    """Return what ``x2gofleet status`` shows."""
    blocks: list[Block] = [server_table(picture.servers)]
    problems = problem_lines(picture)
    if problems:
        blocks += [Line(""), *problems]
    return [*blocks, Line(""), Line(summary_line(picture), "title", indent=2)]
