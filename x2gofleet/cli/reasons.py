"""reasons: why something about a server is unknown, in words: statuses of servers and targets -> texts for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from x2gofleet.cli.text import duration
from x2gofleet.keys import server_of
from x2gofleet.kinds import Kind
from x2gofleet.lookup import ServerStatus, TargetStatus, View

NO_OWNER = "not owned by any worker; is an x2gofleet-worker running?"


def seconds_since(time_ms: int | None, read_at_ms: int) -> float | None:
    """Return the seconds from a time to when it was read, on the clock of Redis; None where there is no time."""
    return None if time_ms is None else max(0, read_at_ms - time_ms) / 1000.0


def error_text(status: TargetStatus | ServerStatus) -> str:
    """Return the last error: its class and message, "" where there is none."""
    return ": ".join(text for text in (status.error_class, status.error_text) if text)


def why_unknown(status: TargetStatus | ServerStatus) -> str:
    """Return why it is not known whether a server is up."""
    if status.owner is None:
        return NO_OWNER
    return f"not polled {'yet' if status.since_ms is None else 'again yet'} by worker {status.owner}"


def unknown_line(target: TargetStatus, read_at_ms: int) -> str:
    """Return what is known of a target of which nothing is cached: when it was last polled, and why not since."""
    polled = seconds_since(target.since_ms, read_at_ms)
    since = "" if polled is None else f"last polled {duration(polled)} ago; "
    return f"{target.id}: unknown: {since}{why_unknown(target)}"


def unowned_line(target: TargetStatus, read_at_ms: int) -> str:
    """Return what is known of a target that nobody polls now, while something of it is still cached."""
    times = [time for time in (target.last_good_ms, target.last_failed_ms) if time is not None]
    polled = seconds_since(max(times, default=None), read_at_ms)
    return f"{target.id}: last polled {duration(polled)} ago; {NO_OWNER}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Servers (or targets) of which something is unknown for the same reason. ``down``: they are known to be down."""

    names: tuple[str, ...]
    down: bool
    reason: str

    def text(self, what: str) -> str:
        """Return that ``what`` (a plural: "sessions", "changes") there is unknown, and why."""
        names, many = ", ".join(self.names), len(self.names) > 1
        if self.down:
            text = f"{names} {'are' if many else 'is'} down: {'their' if many else 'its'} {what} are unknown"
        else:
            text = f"the {what} on {names} are unknown"
        return f"{text}: {self.reason}" if self.reason else text


def gaps(states: Iterable[tuple[str, bool, str]]) -> tuple[Gap, ...]:
    """Group names, each given with whether it is down and the reason, by what is wrong."""
    found: dict[tuple[bool, str], dict[str, None]] = {}
    for name, down, reason in states:
        found.setdefault((down, reason), {})[name] = None
    return tuple(Gap(tuple(names), down, reason) for (down, reason), names in found.items())


def blind_spots(statuses: Iterable[ServerStatus]) -> tuple[Gap, ...]:
    """Return the targets whose changes nobody sees now: those that are not up."""
    return gaps(
        (target.id, target.up is False, error_text(target) if target.up is False else why_unknown(target))
        for status in statuses
        for target in status.targets
        if target.up is not True
    )


def missing_from(
    kind: Kind, view: View, statuses: Mapping[str, ServerStatus], *, profile: str | None, user: str | None
) -> tuple[Gap, ...]:
    """Return the servers that an answer lacks, and why; ``statuses`` by id."""
    return gaps(
        (name, name not in view.unknown_servers, _why_missing(kind, statuses.get(name), name, view, profile, user))
        for name in view.missing_servers
    )


def _why_missing(
    kind: Kind, status: ServerStatus | None, name: str, view: View, profile: str | None, user: str | None
) -> str:
    for target_id, error in view.errors.items():
        if server_of(target_id) == name:
            return f"{type(error).__name__}: {error}"
    targets: Sequence[TargetStatus] = () if status is None else status.targets
    if name not in view.unknown_servers:
        failing = next((target for target in targets if target.up is False), status)
        return "" if failing is None else error_text(failing)
    silent: TargetStatus | ServerStatus | None = next((target for target in targets if target.up is None), status)
    if silent is None or silent.owner is None or silent.up is None or kind is Kind.SESSIONS:
        return NO_OWNER if silent is None else why_unknown(silent)
    of_user = f" --user {user}" if user and kind is Kind.DESKTOPS else ""
    command = f"x2gofleet refresh {profile or 'PROFILE'} --{kind.value}{of_user}"
    return f"not polled for {f'those of {user}' if of_user else 'them'} yet; poll with: {command}"
