"""held: what a mirror holds: snapshots as Redis replied them, until when, and the answers that were made of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from x2gofleet.hints import Hint
from x2gofleet.keys import server_of, user_of
from x2gofleet.lookup import Command, Lookups, fields_of
from x2gofleet.questions import Listed, Questions
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


class RememberingQuestions(Questions):
    """Parses what is held once for each user that is asked for."""

    def __init__(self, lookups: Lookups) -> None:
        super().__init__(lookups)
        self._known: dict[str, tuple[bytes, dict[str | None, Listed]]] = {}

    def listed(self, snapshot: Snapshot, username: str | None) -> Listed:
        known = self._known.get(snapshot.target)
        # What is held is the same object for as long as it does not change.
        if known is None or known[0] is not snapshot.stdout or len(known[1]) >= ANSWERS_KEPT:
            known = self._known[snapshot.target] = snapshot.stdout, {}
        found, whole = known[1].get(username), known[1].get(None)
        if found is not None:
            return found
        if whole is None or whole[1]:
            found = super().listed(snapshot, username)
        else:
            # No line was rejected, so that a user's lines are that user's rows.
            found = [row for row in whole[0] if row.username == username], ()
        known[1][username] = found
        return found


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
    fields = fields_of(reply)
    try:
        digest, polled_at_ms, listed_at_ms = fields[b"digest"], int(fields[b"polled_at"]), int(fields[b"listed_at"])
        polled, expires = sent - (now_ms - polled_at_ms) / 1000, sent + ttl_ms / 1000
    except (KeyError, ValueError, OverflowError):
        return None
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
