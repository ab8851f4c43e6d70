"""documents: what ``--json`` prints; docs/cli.md describes it. Never a cookie; ages in seconds, times ISO 8601 UTC.

Keys are only ever added: scripts rely on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from x2gofleet.cli.picture import Counts, Picture, SeenServer, SeenSession, status_word, type_word
from x2gofleet.cli.text import iso
from x2gofleet.events import Event
from x2gofleet.kinds import Kind
from x2gofleet.lookup import ServerStatus, TargetStatus, View
from x2gofleet.snapshot import Snapshot

_EVENT_STATUSES = {"R": "running", "S": "suspended", "T": "ending", "F": "ended"}


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _ages(ages: Mapping[Kind, float]) -> dict[str, float]:
    return {kind.value: round(age, 3) for kind, age in ages.items()}


def counts_document(counts: Counts) -> dict[str, int]:
    """Sessions by state."""
    return {**asdict(counts), "total": counts.total}


def session_document(seen: SeenSession) -> dict[str, Any]:
    """One session without its cookie; ``started`` and ``suspended_at`` are naive local time of the server."""
    session = seen.session
    return {
        "name": session.name,
        "user": session.username,
        "type": type_word(session),
        "status": status_word(session),
        "server": session.server,
        "hostname": session.hostname,
        "display": session.display,
        "client": session.client,
        "agent_pid": session.agent_pid,
        "started": session.date_created,
        "suspended_at": session.date_suspended if session.is_suspended() else None,
        "age": _seconds(seen.age),
    }


def _error(status: TargetStatus | ServerStatus) -> dict[str, str] | None:
    """Return what went wrong last: also of a server that is up, where a kind other than sessions fails."""
    if status.up is False or status.error_class:
        return {"class": status.error_class, "text": status.error_text}
    return None


def _target_document(target: TargetStatus) -> dict[str, Any]:
    return {
        "id": target.id,
        "scope": target.scope,
        "state": {True: "up", False: "down", None: "unknown"}[target.up],
        "since": iso(target.since_ms),
        "ages": _ages(target.ages),
        "worker": target.owner,
        "failures": target.failures,
        "last_good": iso(target.last_good_ms),
        "last_failed": iso(target.last_failed_ms),
        "error": _error(target),
    }


def server_document(server: SeenServer) -> dict[str, Any]:
    """One server; ``sessions``, ``load`` and ``load_factor`` are null where they are not cached.

    ``sessions_known``: whether ``sessions`` are all ("known"), some ("partly"), or none of them ("unknown").
    """
    status, load = server.status, server.load
    return {
        "id": status.id,
        "hostname": status.hostname,
        "state": server.state,
        "since": iso(status.since_ms),
        "since_seconds": _seconds(server.since_seconds),
        "ages": _ages(status.ages),
        "sessions": None if server.counts is None else counts_document(server.counts),
        "sessions_known": server.knowledge.value,
        "load_factor": None if load is None else load.load_factor,
        "load": None if load is None else asdict(load),
        "worker": status.owner,
        "labels": list(status.labels),
        "weight": status.weight,
        "drained": status.drained,
        "failures": status.failures,
        "error": _error(status),
        "targets": [_target_document(target) for target in status.targets],
    }


def status_document(picture: Picture) -> dict[str, Any]:
    """The whole fleet. The summary's ``sessions`` are those of the servers that are known; null where none is."""
    states = [server.state for server in picture.servers]
    counts = picture.counts
    return {
        "cached": bool(picture.servers),
        "read_at": iso(picture.servers[0].status.read_at_ms) if picture.servers else None,
        "summary": {
            "servers": len(states),
            **{state: states.count(state) for state in ("up", "down", "unknown")},
            "drained": sum(server.status.drained for server in picture.servers),
            "sessions": None if counts is None else counts_document(counts),
            "sessions_known": asdict(picture.coverage),
            "oldest_age": _seconds(picture.oldest_age),
        },
        "servers": [server_document(server) for server in picture.servers],
    }


def listing_document(
    kind: Kind, view: View, entries: Iterable[dict[str, Any]], *, profile: str | None, user: str | None
) -> dict[str, Any]:
    """What is known of one kind. Not cached: the kind is null, and ``partial`` has what part of the servers said."""
    found = list(entries)
    return {
        "profile": profile,
        "user": user,
        "cached": view.cached,
        "complete": view.cached and not view.missing_servers,
        "oldest_age": _seconds(view.oldest_age),
        "missing_servers": list(dict.fromkeys(view.missing_servers)),
        "unknown_servers": list(dict.fromkeys(view.unknown_servers)),
        "rejected_rows": sum(snapshot.rejected_rows for snapshot in view.snapshots),
        kind.value: found if view.cached else None,
        "partial": None if view.cached else found,
    }


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """One refreshed snapshot, without what it lists."""
    return {
        "target": snapshot.target,
        "server": snapshot.server,
        "user": snapshot.username,
        "kind": snapshot.kind.value,
        "entries": entries_in(snapshot),
        "age": _seconds(snapshot.age),
        "polled_at": iso(snapshot.polled_at_ms),
        "duration_seconds": snapshot.duration_ms / 1000,
        "rejected_rows": snapshot.rejected_rows,
        "worker": snapshot.worker,
    }


def event_document(event: Event) -> dict[str, Any]:
    """One event; ``session``, ``user`` and ``status`` are null for those of a server, ``error`` for all others."""
    return {
        "time": iso(event.at_ms),
        "server": event.server,
        "target": event.target,
        "event": event.kind.value,
        "session": event.session or None,
        "user": event.username or None,
        "status": _EVENT_STATUSES.get(event.status, event.status) or None,
        "error": event.text or None,
        "left_out": event.left_out,
        "id": event.id,
    }


def events_document(
    events: Iterable[Event], cursor: str, *, server: str | None, statuses: Sequence[ServerStatus]
) -> dict[str, Any]:
    """What changed, and the cursor behind it; ``statuses`` are those of the servers that are asked about."""
    return {
        "server": server,
        "cached": bool(statuses),
        "missing_servers": [status.id for status in statuses if any(t.up is not True for t in status.targets)],
        "unknown_servers": [status.id for status in statuses if any(t.up is None for t in status.targets)],
        "events": [event_document(event) for event in events],
        "cursor": cursor,
    }


def entries_in(snapshot: Snapshot) -> int:
    """Return how many sessions, desktops or mounts a snapshot lists; 1 for a load."""
    if snapshot.kind is Kind.SESSIONS:
        return len(snapshot.sessions().without_finished().rows)
    if snapshot.kind is Kind.DESKTOPS:
        return len(snapshot.desktops())
    return len(snapshot.mounts()) if snapshot.kind is Kind.MOUNTS else 1
