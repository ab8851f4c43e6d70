"""live: the fleet as it changes, once a second; `x2gofleet watch` and `x2gofleet-worker demo` show it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from x2gofleet.cache import FleetCache
from x2gofleet.cli.layout import (
    problem_lines,
    server_table,
    session_table,
    sessions_text,
    status_blocks,
    summary_line,
)
from x2gofleet.cli.picture import Picture, take_picture
from x2gofleet.cli.tables import Block, Line, Table, height_of, plain
from x2gofleet.cli.text import counted
from x2gofleet.errors import FleetError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PERIOD_SECONDS = 1.0
_MOST_PROBLEMS = 4
_LEAST_LINES = 3
_SUMMARY_LINES = 22


def _look(cache: FleetCache) -> Picture | FleetError:
    try:
        return take_picture(cache)
    except FleetError as exc:
        return exc


def _trouble(exc: FleetError) -> Line:
    return Line(
        f"{type(exc).__name__}: {exc}. Nothing is shown rather than what may be old; trying on", "bad", indent=2
    )


def _nobody() -> Line:
    return Line("no worker has published an inventory yet; waiting for an x2gofleet-worker", "warn")


def frame_blocks(seen: Picture | FleetError, *, title: str, width: int, height: int) -> list[Block]:
    """Return what fits ``height`` lines of ``width`` columns: what is wrong before what is well."""
    blocks: list[Block] = [Line(title, "title")] if title else []
    if isinstance(seen, FleetError):
        return [*blocks, _trouble(seen)]
    if not seen.servers:
        return [*blocks, _nobody()]
    blocks += [Line(summary_line(seen), indent=2), Line("")]
    problems: list[Block] = list(problem_lines(seen))
    most = max(1, min(_MOST_PROBLEMS, height // 8))
    if len(problems) > most:
        problems[most:] = [Line(f"... and {counted(len(problems) - most, 'more error')}: x2gofleet status", "dim")]
    left = height - height_of([*blocks, *problems, Line("")], width)
    servers = _server_blocks(seen, max(_LEAST_LINES, left // 2, left - 2 - len(seen.sessions)), width)
    sessions = _session_blocks(seen, left - height_of(servers, width), width)
    return [*blocks, *servers, *problems, Line(""), *sessions]


def _server_blocks(picture: Picture, room: int, width: int) -> list[Block]:
    servers = list(picture.servers)
    if len(servers) + 1 > room:
        servers.sort(key=lambda server: server.status.up is True)
    return _cut(server_table(servers), room, width, "more server", "x2gofleet status")


def _session_blocks(picture: Picture, room: int, width: int | None) -> list[Block]:
    table = session_table(picture.sessions, by_user=False)
    if not table.rows:
        return [Line(sessions_text(picture), "dim" if picture.coverage.complete else "warn")]
    if room < _LEAST_LINES:
        return []
    return _cut(table, room, width, "more session", "x2gofleet sessions")


def _cut(table: Table, room: int, width: int | None, noun: str, where: str) -> list[Block]:
    """Return as many rows as fit ``room`` lines, at least one, and how many more there are."""
    table = replace(table, noted=False)
    rows = max(1, min(len(table.rows), room))
    while True:
        blocks: list[Block] = [table.first(rows)]
        if rows < len(table.rows):
            blocks.append(Line(f"... and {counted(len(table.rows) - rows, noun)}: {where}", "dim"))
        if rows == 1 or height_of(blocks, width) <= room:
            return blocks
        rows -= 1


def render(cache: FleetCache, *, title: str = "") -> RenderableType:
    """Return the fleet as a rich renderable that fits where it is drawn; an error is drawn, not raised.

    Raises ImportError where rich is not installed (extra ``cli``).
    """
    from x2gofleet.cli.rich_output import Frame

    seen = _look(cache)
    return Frame(lambda width, height: frame_blocks(seen, title=title, width=width, height=height))


def summary(cache: FleetCache) -> str:
    """Return the fleet as plain text: servers, errors, the first sessions, a line of totals; an error as text."""
    seen = _look(cache)
    if isinstance(seen, FleetError):
        return plain([_trouble(seen)])
    if not seen.servers:
        return plain([_nobody()])
    *servers, totals = status_blocks(seen)
    return plain([*servers, *_session_blocks(seen, _SUMMARY_LINES, None), Line(""), totals])


def run_live(
    cache: FleetCache, *, console: Console | None = None, seconds: float | None = None, title: str = "x2gofleet"
) -> None:
    """Show the fleet, anew each second, until q, Ctrl-C or ``seconds`` have passed; then leave its totals on screen.

    Goes on where Redis can't be asked. Without a terminal it prints one ``summary``.
    Raises ImportError where rich is not installed (extra ``cli``).
    """
    from rich.live import Live

    from x2gofleet.cli.rich_output import console_for

    console = console or console_for(sys.stdout)
    if not console.is_terminal:
        console.file.write(f"{title}\n{summary(cache)}\n")
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    # Ctrl-C may be met anywhere in here, also in the drawing: it leaves the view as q does.
    with (
        contextlib.suppress(KeyboardInterrupt),
        _quit_key() as quits,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while deadline is None or time.monotonic() < deadline:
            started = time.monotonic()
            live.update(render(cache, title=f"{title}   (q ends)"), refresh=True)
            until = started + PERIOD_SECONDS if deadline is None else min(deadline, started + PERIOD_SECONDS)
            if quits(max(0.0, until - time.monotonic())):
                break
    seen = _look(cache)
    if isinstance(seen, Picture) and seen.servers:
        console.print(summary_line(seen))


@contextlib.contextmanager
def _quit_key() -> Iterator[Callable[[float], bool]]:
    """Yield what waits for a number of seconds and tells whether q or Ctrl-C was pressed meanwhile."""
    try:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):
        yield _sleep
        return

    def quits(seconds: float) -> bool:
        try:
            ready, _, _ = select.select([terminal], [], [], seconds)
            return bool(ready) and os.read(terminal, 64).lower() in (b"q", b"\x03", b"\x1b")
        except KeyboardInterrupt:
            return True

    tty.setcbreak(terminal)
    try:
        yield quits
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return True
    return False
