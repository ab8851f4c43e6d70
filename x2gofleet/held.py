"""held: what a mirror holds: snapshots as Redis replied them, until when, and the answers that were made of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from x2gofleet.errors import SnapshotCorrupt
from x2gofleet.hints import Hint
from x2gofleet.keys import server_of, user_of
from x2gofleet.lookup import Lookups
from x2gofleet.questions import Listed, Questions
from x2gofleet.redis_values import Command, fields_of, number
from x2gofleet.rows import SessionInfo
from x2gofleet.snapshot import Snapshot

RELIST_MS = 55_000
"""What is held is fetched again where it was listed so long before it was confirmed: sessions' ages grow."""
ANSWERS_KEPT = 4096

Answers = dict[Any, tuple[float, Any]]
"""By the arguments of a method: until when (time.monotonic) an answer holds, and the answer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One snapshot as HGETALL replied; ``polled`` and ``expires`` are on the monotonic clock of this process."""

    reply: Sequence[bytes]
    digest: bytes
    listed_at_ms: int
    polled: float
    expires: float


@dataclass(slots=True)
class Generation:
    """What was known after one exchange with Redis, and the answers that were made of it."""

    questions: Questions | None = None
    version: bytes = b""
    held: dict[str, Entry] = field(default_factory=dict)
    states: dict[Command, Any] = field(default_factory=dict)
    alive_until: float = -math.inf
    sessions: Answers = field(default_factory=dict)
    cached: Answers = field(default_factory=dict)
    desktops: Answers = field(default_factory=dict)
    mounts: Answers = field(default_factory=dict)
    loads: Answers = field(default_factory=dict)
    found: Answers = field(default_factory=dict)

    def next(self, **changes: Any) -> Generation:
        """Return one without answers, in which ``changes`` are made."""
        known = (self.questions, self.version, self.held, self.states, self.alive_until)
        return replace(Generation(*known), **changes)


NOTHING_KNOWN = Generation()
"""Nobody puts answers to it: it has no questions."""


@dataclass(slots=True)
class _Parsed:
    """What was parsed of one listing, by user; None is all of them. ``whole``: who is not in it has no rows."""

    stdout: bytes
    by_user: dict[str | None, Listed] = field(default_factory=dict)
    whole: bool = False
    asked: int = 0


_NO_ROWS: Listed = ([], ())
_ASKED_OF_A_PART = 3


class RememberingQuestions(Questions):
    """Parses what is held once; what it remembers grows with what is held, not with who is asked for."""

    def __init__(self, lookups: Lookups) -> None:
        super().__init__(lookups)
        self._known: dict[str, _Parsed] = {}

    def listed(self, snapshot: Snapshot, username: str | None) -> Listed:
        known = self._known.get(snapshot.target)
        # What is held is the same object for as long as it does not change.
        if known is None or known.stdout is not snapshot.stdout:
            known = self._known[snapshot.target] = _Parsed(snapshot.stdout)
        found = known.by_user.get(username)
        if found is not None:
            return found
        if known.whole:
            return _NO_ROWS
        known.asked += 1
        if username is None or (known.asked >= _ASKED_OF_A_PART and None not in known.by_user):
            self._known[snapshot.target] = self._parsed_whole(snapshot)
            return self.listed(snapshot, username)
        found = super().listed(snapshot, username)
        if found != _NO_ROWS:
            known.by_user[username] = found
        return found

    def _parsed_whole(self, snapshot: Snapshot) -> _Parsed:
        rows, rejected = super().listed(snapshot, None)
        parsed = _Parsed(snapshot.stdout, {None: (rows, rejected)}, not rejected, _ASKED_OF_A_PART)
        if parsed.whole:
            # No line was rejected, so that a user's lines are that user's rows.
            by_user: dict[str, list[SessionInfo]] = {}
            for row in rows:
                by_user.setdefault(row.username, []).append(row)
            parsed.by_user.update((name, (of_user, ())) for name, of_user in by_user.items())
        return parsed


def confirmed(entry: Entry | None, hint: Hint | None, sent: float, now_ms: int) -> Entry | None:
    """Return what is held with the times of a hint; None where it has to be fetched."""
    if entry is None or hint is None or entry.digest != hint.digest.encode():
        return None
    if hint.polled_at_ms - entry.listed_at_ms > RELIST_MS and hint.listed_at_ms > entry.listed_at_ms:
        return None
    if hint.polled_at_ms > now_ms:
        # Redis's clock was set back.
        return None
    polled = sent - (now_ms - hint.polled_at_ms) / 1000
    expires = sent + (hint.expires_at_ms - now_ms) / 1000
    if polled < entry.polled:
        # Told late, by a worker that was paused.
        polled, expires = entry.polled, entry.expires
    return Entry(entry.reply, entry.digest, entry.listed_at_ms, polled, expires) if expires > sent else None


def entry_of(reply: Sequence[bytes], ttl_ms: int, hint: Hint | None, sent: float, now_ms: int) -> Entry | None:
    """Return what is to be held of a snapshot that was read; None for one that Redis itself has to be asked for."""
    try:
        fields = fields_of(reply)
        digest = fields[b"digest"]
        polled_at_ms, listed_at_ms = (number(fields[name], "a time") for name in (b"polled_at", b"listed_at"))
    except (KeyError, SnapshotCorrupt):
        return None
    polled, expires = sent - (now_ms - polled_at_ms) / 1000, sent + ttl_ms / 1000
    if ttl_ms <= 0 or polled_at_ms > now_ms:
        return None
    if hint is not None:
        expires = min(expires, polled + (hint.expires_at_ms - hint.polled_at_ms) / 1000)
    return Entry(reply, digest, listed_at_ms, polled, expires)


def without(held: dict[str, Entry], targets: frozenset[str] | None) -> dict[str, Entry]:
    """Return what is held but of these targets; of none at all where that is None."""
    if targets is None:
        return {}
    return {key: entry for key, entry in held.items() if not is_of(targets, key.partition("{")[2].partition("}")[0])}


def is_of(targets: Collection[str], name: str) -> bool:
    """Whether a target is one of these, or a user's on a server that is one of them."""
    return name in targets or (user_of(name) is not None and server_of(name) in targets)
