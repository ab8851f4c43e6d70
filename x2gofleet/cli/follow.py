"""follow: `x2gofleet events`: what changed, once or on and on, through outages of Redis."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections.abc import Sequence

from x2gofleet.cache import FleetCache
from x2gofleet.cli import documents, layout
from x2gofleet.cli.commands import no_inventory
from x2gofleet.cli.results import NEGATIVE, Result, UnknownServer, show, tell
from x2gofleet.cli.text import clean
from x2gofleet.errors import CacheUnavailable
from x2gofleet.events import Event, advance

PERIOD_SECONDS = 1.0
_PAGE = 1000


def read(
    cache: FleetCache, *, server: str | None, since: str | None, limit: int | None
) -> tuple[tuple[Event, ...], str]:
    """Return events in order of time, and the cursor behind them.

    At most ``limit``: without ``since`` the newest, with it the first after it, so that nothing is passed over.
    """
    found: list[Event] = []
    cursor = since
    while True:
        page = cache.events(since=cursor, server=server, limit=_PAGE)
        cursor = page.cursor
        if not page:
            break
        found += page
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
    there = _is_known(cache, server)
    found, cursor = read(cache, server=server, since=since, limit=limit)
    if as_json:
        print(json.dumps(documents.events_document(found, cursor, server=server, cached=there), indent=2))
    elif found:
        show(Result({}, (layout.event_table(found),)), as_json=False)
    elif there:
        print(f"no events{f' of {server}' if server else ''}{' since then' if since else ''}")
    sys.stdout.flush()
    if not there:
        tell(no_inventory(namespace))
    elif not as_json:
        _tell_cursor(cursor)
    return 0 if there else NEGATIVE


def follow(
    cache: FleetCache, *, namespace: str, server: str | None, since: str | None, limit: int | None, as_json: bool
) -> int:
    """Print what changed and what changes, until Ctrl-C or until nobody reads on; return the exit status.

    Goes on where Redis can't be asked. Raises UnknownServer.
    """
    cursor, first, there, waiting, unreachable = since, True, False, False, False
    try:
        while True:
            try:
                there = there or _is_known(cache, server)
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


def _is_known(cache: FleetCache, server: str | None) -> bool:
    """Whether there is an inventory; raises UnknownServer where it has no such server."""
    names = [status.id for status in cache.servers()]
    if names and server is not None and server not in names:
        raise UnknownServer(server, names)
    return bool(names)


def _print_on(found: Sequence[Event], cursor: str | None, *, as_json: bool) -> None:
    for event in found:
        print(json.dumps(documents.event_document(event)) if as_json else clean(layout.event_line(event)))
    if found and as_json:
        print(json.dumps({"cursor": cursor}))
    sys.stdout.flush()


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
