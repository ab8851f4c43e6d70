"""hints: what workers tell mirrors of a write that Redis has accepted: {ns}:fresh and {ns}:changes.

Hints follow a write in a second command, so that one may be missing, late or told twice: a mirror takes from them where
to look, and times that were true when they were written. What a snapshot holds, it reads from the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

HINTS_TTL_MS = 24 * 3600 * 1000
CHANGES_KEPT = 1000
DROPPED = ""
# Sums and differences of times up to it are floats too.
_LATEST_MS = 2**53


@dataclass(frozen=True, slots=True)
class Hint:
    """What is stored of one kind of one target. Times are ms on the clock of Redis, as in Snapshot."""

    polled_at_ms: int
    listed_at_ms: int
    expires_at_ms: int
    digest: str

    def encode(self) -> str:
        """Return ``polled_at listed_at expires_at digest``."""
        return f"{self.polled_at_ms} {self.listed_at_ms} {self.expires_at_ms} {self.digest}"

    @classmethod
    def decode(cls, text: bytes) -> Hint | None:
        """Return what ``encode`` made a text of; None for any other."""
        try:
            polled_at, listed_at, expires_at, digest = text.decode("ascii").split(" ")
            hint = cls(int(polled_at), int(listed_at), int(expires_at), digest)
        except ValueError:
            return None
        times = hint.polled_at_ms, hint.listed_at_ms, hint.expires_at_ms
        return hint if all(0 <= time <= _LATEST_MS for time in times) else None


def hint_field(target: str, kind: Kind) -> str:
    """Return the name of a snapshot among the hints: ``ts01:sessions``."""
    return f"{target}:{kind.value}"


def decode_field(name: bytes) -> tuple[str, Kind] | None:
    """Return target and kind of what ``hint_field`` made; None for anything else."""
    target, _, kind = name.decode("utf-8", "replace").rpartition(":")
    try:
        return (target, Kind(kind)) if target else None
    except ValueError:
        return None


def hint_commands(keys: Keys, hints: Mapping[str, str], changed: Iterable[str]) -> list[tuple[Any, ...]]:
    """Return the commands that tell hints: texts by field, DROPPED where the snapshot is gone.

    Those fields that ``changed`` names are told in the stream too, as one entry.
    """
    stored = [part for name, text in hints.items() if text != DROPPED for part in (name, text)]
    dropped = [name for name, text in hints.items() if text == DROPPED]
    news = [part for name in changed for part in (name, hints[name])]
    commands: list[tuple[Any, ...]] = []
    if stored:
        commands.append(("HSET", keys.fresh(), *stored))
    if dropped:
        commands.append(("HDEL", keys.fresh(), *dropped))
    if commands:
        commands.append(("PEXPIRE", keys.fresh(), HINTS_TTL_MS))
    if news:
        commands.append(("XADD", keys.changes(), "MAXLEN", "~", CHANGES_KEPT, "*", *news))
        commands.append(("PEXPIRE", keys.changes(), HINTS_TTL_MS))
    return commands
