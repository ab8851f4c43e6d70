"""events: what changed between two listings of a server's sessions, and how it is kept in a Redis stream.

Workers compare each full listing with the one it replaces; the entries are written by the script that stores the
listing, so that a change is told exactly once, whoever polls. Readers page through all streams with one cursor.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from x2gofleet.keys import server_of
from x2gofleet.parsing import parse_sessions
from x2gofleet.redis_values import number
from x2gofleet.rows import SessionInfo

_GONE = frozenset("F")
_LEFT_OUT = re.compile(r"[1-9][0-9]{0,14}")
_STREAM_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class EventKind(StrEnum):
    """What happened."""

    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    ENDED = "ended"
    CHANGED = "changed"
    SERVER_UP = "server_up"
    SERVER_DOWN = "server_down"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two listings; holds no cookie."""

    kind: EventKind
    session: str
    username: str
    status: str


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a target's stream.

    ``at_ms``: when the poll that saw it began, ms on the clock of Redis. ``session``, ``username`` and ``status`` are
    empty for the events of a server. ``text`` is the error of a server that went down.

    ``left_out``: how many events of the same user before this one are not in the stream, because she had more than her
    share of it; of the first event of a stream also those of users of whom nothing is left. ``left_out_to`` is the id
    of the newest of these.
    """

    kind: EventKind
    target: str
    at_ms: int
    session: str
    username: str
    status: str
    text: str
    id: str
    left_out: int = 0
    left_out_to: str = ""

    @property
    def server(self) -> str:
        """Id of the server."""
        return server_of(self.target)

    @property
    def order(self) -> tuple[int, int]:
        """Orders events: the time of Redis in ms when it was written, and a number within that."""
        return _order(self.id)

    def missed_since(self, cursor: str | None) -> int:
        """Return how many events before this one were left out, for one who has read on to ``cursor``.

        0 where ``cursor`` lies behind all of them, so that nothing was missed; else one at least, and at most so many.
        Raises ValueError where ``cursor`` is not a cursor.
        """
        position = decode_cursor(cursor).get(self.target)
        if not self.left_out or (position is not None and _order(position) >= _order(self.left_out_to)):
            return 0
        return self.left_out


@dataclass(frozen=True, slots=True)
class Events(Sequence[Event]):
    """Events in the order of each server, oldest first; ``cursor`` is what the next call takes as ``since``."""

    events: tuple[Event, ...]
    cursor: str

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __getitem__(self, index: int) -> Event:  # type: ignore[override]
        return self.events[index]


def compare(before: bytes, after: bytes) -> tuple[Change, ...]:
    """Return what happened between two stdouts of a sessions command, in the order of ``after``, ends last.

    The age column is left out, as everywhere. A session that both started and ended in between is not seen.
    """
    old = {row.name: row for row in parse_sessions(before)[0] if row.status not in _GONE}
    new = {row.name: row for row in parse_sessions(after)[0] if row.status not in _GONE}
    changes = [
        Change(kind, row.name, row.username, row.status)
        for row in new.values()
        if (kind := _what_happened(old.get(row.name), row)) is not None
    ]
    changes += [Change(EventKind.ENDED, row.name, row.username, "F") for row in old.values() if row.name not in new]
    return tuple(changes)


def _what_happened(old: SessionInfo | None, new: SessionInfo) -> EventKind | None:
    if old is None:
        return EventKind.STARTED
    if old.status != new.status:
        if new.status == "S":
            return EventKind.SUSPENDED
        if old.status == "S" and new.status == "R":
            return EventKind.RESUMED
        return EventKind.CHANGED
    return None if _stable(old) == _stable(new) else EventKind.CHANGED


def _stable(row: SessionInfo) -> tuple[object, ...]:
    return (
        *(row.agent_pid, row.display, row.hostname, row.date_created, row.cookie, row.client, row.graphics_port),
        *(row.snd_port, row.date_suspended, row.username, row.sshfs_port, row.tekictrl_port, row.tekidata_port),
    )


def equal_shares(changes: Sequence[Change], most: int) -> tuple[tuple[Change, int], ...]:
    """Return at most ``most`` changes, of each user the last ones, and how many of hers before each are left out.

    The shares are those of lua/parts/events.lua: more could not stay in the stream. Of more than ``most`` users the
    first changes are left out, which the first that stays counts too.
    """
    counts = Counter(change.username for change in changes)
    share, room = len(changes), most
    for index, count in enumerate(sorted(counts.values())):
        share = room // (len(counts) - index)
        if count > share:
            break
        room -= count
    else:
        return tuple((change, 0) for change in changes)
    share = max(share, 1)
    surplus = {user: count - share for user, count in counts.items() if count > share}
    first, passed = dict(surplus), Counter[str]()
    found: list[tuple[Change, int]] = []
    for change in changes:
        passed[change.username] += 1
        if passed[change.username] > surplus.get(change.username, 0):
            found.append((change, first.pop(change.username, 0)))
    gone, found = found[:-most], found[-most:]
    lost = sum(1 + left_out for _, left_out in gone)
    return ((found[0][0], found[0][1] + lost), *found[1:])


def encode_cursor(positions: Mapping[str, str]) -> str:
    """Return an opaque cursor for the last entry seen of each target's stream."""
    return base64.urlsafe_b64encode(json.dumps(dict(sorted(positions.items()))).encode()).decode()


def advance(cursor: str | None, events: Iterable[Event]) -> str:
    """Return the cursor that lies behind ``events``, which are the first after ``cursor``, in order."""
    return encode_cursor(decode_cursor(cursor) | {event.target: event.id for event in events})


def decode_cursor(cursor: str | None) -> dict[str, str]:
    """Return the last entry seen by target; raises ValueError for what is no cursor."""
    if not cursor:
        return {}
    try:
        positions = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        if isinstance(positions, dict) and all(_is_stream_id(value) for value in positions.values()):
            return positions
    except (ValueError, RecursionError):
        pass
    raise ValueError("since= is no cursor of an earlier events() call")


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number)


def _is_stream_id(value: object) -> bool:
    if not isinstance(value, str):
        return False
    parts = _STREAM_ID.fullmatch(value)
    return parts is not None and all(int(part) < 2**64 for part in parts.groups())


def decode_entry(target: str, entry: Sequence[object]) -> Event:
    """Decode one entry of a reply of XRANGE; raises SnapshotCorrupt, ValueError and KeyError for a foreign one."""
    name, flat = entry
    if not isinstance(name, bytes) or not isinstance(flat, list) or not _is_stream_id(name.decode()):
        raise ValueError("no entry of a stream")
    items = iter(flat)
    fields = {key.decode(): value.decode("utf-8", "replace") for key, value in zip(items, items, strict=True)}
    left_out, left_out_to = _mark(fields, name.decode())
    return Event(
        EventKind(fields["kind"]),
        target,
        number(fields["at"].encode(), f"the time of an event of {target}"),
        fields.get("session", ""),
        fields.get("username", ""),
        fields.get("status", ""),
        fields.get("text", ""),
        name.decode(),
        left_out,
        left_out_to,
    )


def _mark(fields: Mapping[str, str], stream_id: str) -> tuple[int, str]:
    """Return what an entry says of events that are left out; of what no worker wrote, nothing."""
    text, to = fields.get("left_out", ""), fields.get("left_out_to", stream_id)
    if _LEFT_OUT.fullmatch(text) is None or not _is_stream_id(to):
        return 0, ""
    return int(text), to
