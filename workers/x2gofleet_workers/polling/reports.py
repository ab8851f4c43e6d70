"""reports: what polls came to: of one poll for whoever requested it, of all polls of a target for its worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from x2gofleet.kinds import Kind


@dataclass(slots=True)
class Counters:
    """What a target's polls came to."""

    polls: int = 0
    full_listings: int = 0
    confirmed: int = 0
    failed: int = 0
    refused_writes: int = 0
    connections: int = 0


@dataclass(slots=True)
class Progress:
    """How far a target's polls have come.

    ``good_at``: monotonic time of the last good answer of each kind. ``overdue``: slow kinds that are recorded as
    failed as the server could not be reached, to be polled as soon as it can.
    """

    tried: bool = False
    good_at: dict[Kind, float] = field(default_factory=dict)
    overdue: set[Kind] = field(default_factory=set)


@dataclass(slots=True)
class PollReport:
    """What one poll did: which snapshots it stored, and what went wrong by kind."""

    stored: list[tuple[str, Kind]] = field(default_factory=list)
    errors: dict[Kind, str] = field(default_factory=dict)
    not_owned: bool = False
