"""follow: `x2gofleet events`: what changed, once or on and on, through outages of Redis."""

from __future__ import annotations

import math
import os
import select
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from x2gofleet.cache import FleetCache
from x2gofleet.cli import documents, layout
from x2gofleet.cli.commands import no_inventory
from x2gofleet.cli.reasons import blind_spots
from x2gofleet.cli.results import NEGATIVE, Result, UnknownServer, show, tell
from x2gofleet.cli.text import iso
from x2gofleet.errors import CacheUnavailable
from x2gofleet.events import Event, advance
from x2gofleet.lookup import ServerStatus
from x2gofleet.text import clean, json_text

PERIOD_SECONDS = 1.0
BLIND_SPOTS_SECONDS = 5.0
"""How often it is looked whether there are servers whose changes nobody sees."""
_PAGE = 1000


def read(
    cache: FleetCache, *, server: str | None, since: str | None, limit: int | None
) -> tuple[tuple[Event, ...], str]:
    """Return events in order of time, and the cursor behind them.

    At most ``limit``: without ``since`` the newest, with it the first after it, so that nothing is passed over. Their
    ``left_out`` counts what was missed since ``since``.
    """
    found: list[Event] = []
    cursor = since
    while True:
        page = cache.events(since=cursor, server=server, limit=_PAGE)
        cursor = page.cursor
        if not page:
            break
        found += (replace(event, left_out=event.missed_since(since)) for event in page)
    found.sort(key=lambda event: event.order)
    if limit is None or len(found) <= limit:
        return tuple(found), cursor
    if since is None:
        return tuple(found[len(found) - limit :]), cursor
    return tuple(found[:limit]), advance(since, found[:limit])


def events(
    cache: FleetCache, *, namespace: str, server: str | None, since: str | None, limit: int | None, as_json: bool
) -> int:
    """Print what changed; return the exit status. Raises UnknownServer."""
    statuses = _asked(cache, server)
    found, cursor = read(cache, server=server, since=since, limit=limit)
    blind = blind_spots(statuses)
    if as_json:
        print(json_text(documents.events_document(found, cursor, server=server, statuses=statuses), indent=2))
    elif found:
        show(Result({}, (layout.event_table(found),)), as_json=False)
    elif statuses and limit != 0:
        known = " are known" if blind else ""
        print(f"no events{f' of {server}' if server else ''}{' since then' if since else ''}{known}")
    sys.stdout.flush()
    if not statuses:
        tell(no_inventory(namespace))
    elif not as_json:
        _tell_left_out(found)
        for gap in blind:
            tell(gap.text("changes"))
        _tell_cursor(cursor)
    return 0 if statuses else NEGATIVE


def follow(
    cache: FleetCache, *, namespace: str, server: str | None, since: str | None, limit: int | None, as_json: bool
) -> int:
    """Print what changed and what changes, until Ctrl-C or until nobody reads on; return the exit status.

    Goes on where Redis can't be asked. Raises UnknownServer.
    """
    cursor, first, waiting, unreachable = since, True, False, False
    watch = _BlindSpots(cache, server)
    try:
        while True:
            try:
                there = watch.look()
                found: tuple[Event, ...] = ()
                if there:
                    found, cursor = read(cache, server=server, since=cursor, limit=limit if first else None)
                    first = False
            except CacheUnavailable as exc:
                if not unreachable:
                    tell(f"Redis can't be asked, trying on: {exc}")
                unreachable = True
            else:
                if unreachable:
                    tell("Redis answers again")
                if not there and not waiting:
                    tell(f"{no_inventory(namespace)}; waiting for one")
                unreachable, waiting = False, not there
                _print_on(found, cursor, as_json=as_json)
            if _reader_went(PERIOD_SECONDS):
                return 0
    except KeyboardInterrupt:
        if cursor is not None and not as_json:
            _tell_cursor(cursor)
        return 0


def _asked(cache: FleetCache, server: str | None) -> tuple[ServerStatus, ...]:
    """Return the servers that are asked about, none where there is no inventory.

    Raises UnknownServer where the inventory has no such server.
    """
    statuses = cache.servers()
    if not statuses or server is None:
        return statuses
    found = tuple(status for status in statuses if status.id == server)
    if not found:
        raise UnknownServer(server, [status.id for status in statuses])
    return found


class _BlindSpots:
    """Reports on stderr which servers' changes nobody sees, when that begins and when it ends."""

    def __init__(self, cache: FleetCache, server: str | None) -> None:
        self._cache, self._server = cache, server
        self._known: frozenset[tuple[str, bool]] = frozenset()
        self._next = -math.inf
        self._there = False

    def look(self) -> bool:
        """Look once in a while; return whether there is an inventory. Raises UnknownServer before there was one."""
        if time.monotonic() < self._next:
            return self._there
        try:
            statuses = _asked(self._cache, self._server)
        except UnknownServer:
            if not self._there:
                raise
            # Taken out of the inventory meanwhile; its events are read on.
            statuses = ()
        self._there = self._there or bool(statuses)
        if self._there:
            self._next = time.monotonic() + BLIND_SPOTS_SECONDS
        self._report(statuses)
        return self._there

    def _report(self, statuses: Sequence[ServerStatus]) -> None:
        spots = blind_spots(statuses)
        blind = frozenset((name, gap.down) for gap in spots for name in gap.names)
        for gap in spots:
            new = tuple(name for name in gap.names if (name, gap.down) not in self._known)
            if new:
                tell(replace(gap, names=new).text("changes"))
        ended = {name for name, _ in self._known} - {name for name, _ in blind}
        seen = [target.id for status in statuses for target in status.targets if target.id in ended]
        if seen:
            tell(f"the changes on {', '.join(seen)} are seen again")
        self._known = blind


def _print_on(found: Sequence[Event], cursor: str | None, *, as_json: bool) -> None:
    for event in found:
        print(json_text(documents.event_document(event)) if as_json else clean(layout.event_line(event)))
    if found and as_json:
        print(json_text({"cursor": cursor}))
    sys.stdout.flush()
    if not as_json:
        _tell_left_out(found)


def _tell_left_out(found: Iterable[Event]) -> None:
    """Say on stderr of which events there were more than are kept."""
    for event in found:
        if event.left_out:
            whose = f"of {event.username}" if event.username else "of the server"
            tell(f"{event.server}: up to {event.left_out} events {whose} before {iso(event.at_ms)} are not kept")


def _tell_cursor(cursor: str) -> None:
    """Print the cursor in one piece: folded it could not be copied."""
    print(f"x2gofleet: go on from here with: --since {cursor}", file=sys.stderr)


def _reader_went(seconds: float) -> bool:
    """Wait; return early and True where stdout is a pipe that nobody reads any more."""
    try:
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        mode = 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        time.sleep(seconds)
        return False
    waiting = select.poll()
    waiting.register(descriptor, 0)
    return bool(waiting.poll(seconds * 1000))
