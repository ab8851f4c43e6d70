"""commands: what each command word of ``x2gofleet`` asks of the cache, and the result it makes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from x2gofleet.cache import FleetCache
from x2gofleet.cli import documents, layout
from x2gofleet.cli.picture import sessions_of, take_picture
from x2gofleet.cli.reasons import missing_from
from x2gofleet.cli.results import NEGATIVE, Result
from x2gofleet.cli.tables import Block, Cell, Column, Line, Table
from x2gofleet.cli.text import counted, duration
from x2gofleet.errors import RefreshFailed, UnknownProfile
from x2gofleet.kinds import Kind
from x2gofleet.lookup import View
from x2gofleet.owners import belongs_to, other_names
from x2gofleet.snapshot import Snapshot


def no_inventory(namespace: str) -> str:
    """Return what to say where no worker has published an inventory."""
    return (
        f"not cached: no worker has published an inventory in namespace {namespace!r}. Start one, "
        "x2gofleet-worker run --inventory fleet.toml, or give another --redis-url or --namespace"
    )


def status(cache: FleetCache, *, namespace: str, fail_on_down: bool = False) -> Result:
    """Return every server, its sessions, load and errors."""
    picture = take_picture(cache)
    document = documents.status_document(picture)
    if not picture.servers:
        return Result(document, notes=(no_inventory(namespace),), exit_status=NEGATIVE)
    negative = fail_on_down and any(server.status.up is not True for server in picture.servers)
    return Result(document, tuple(layout.status_blocks(picture)), exit_status=NEGATIVE if negative else 0)


def sessions(cache: FleetCache, *, namespace: str, profile: str | None, user: str | None) -> Result:
    """Return the unfinished sessions of the fleet, of a profile's servers, of one user."""

    def entries(view: View) -> tuple[Table, list[dict[str, Any]]]:
        seen = sessions_of(view, user)
        return layout.session_table(seen), [documents.session_document(item) for item in seen]

    return _listing(cache, Kind.SESSIONS, entries, namespace=namespace, profile=profile, user=user)


def desktops(cache: FleetCache, *, namespace: str, profile: str | None, user: str) -> Result:
    """Return the desktops that a user may share."""
    columns = (Column("DESKTOP"), Column("SERVER", limit=24), Column("AGE", right=True))

    def entries(view: View) -> tuple[Table, list[dict[str, Any]]]:
        found = [(desktop, snapshot) for snapshot in _once(view.snapshots) for desktop in snapshot.desktops()]
        rows = [(desktop, snapshot.server, duration(snapshot.age)) for desktop, snapshot in found]
        items = [
            {"desktop": desktop, "server": snapshot.server, "age": round(snapshot.age, 3)}
            for desktop, snapshot in found
        ]
        return Table.of(columns, rows), items

    return _listing(cache, Kind.DESKTOPS, entries, namespace=namespace, profile=profile, user=user)


def mounts(cache: FleetCache, *, namespace: str, profile: str | None, user: str | None) -> Result:
    """Return the client folders that are mounted in sessions."""
    columns = (
        Column("SESSION"),
        Column("CLIENT", rank=1),
        Column("PATH"),
        Column("SERVER", limit=24),
        Column("AGE", rank=2, right=True),
    )

    def entries(view: View) -> tuple[Table, list[dict[str, Any]]]:
        found = [
            (mount, snapshot)
            for snapshot in _once(view.snapshots)
            for mount in snapshot.mounts()
            if user is None or belongs_to(mount.session_name, user)
        ]
        rows = [(m.session_name, m.client, m.path, snapshot.server, duration(snapshot.age)) for m, snapshot in found]
        items = [
            {
                "session": mount.session_name,
                "client": mount.client,
                "path": mount.path,
                "server": snapshot.server,
                "age": round(snapshot.age, 3),
            }
            for mount, snapshot in found
        ]
        return Table.of(columns, rows), items

    return _listing(cache, Kind.MOUNTS, entries, namespace=namespace, profile=profile, user=user)


def refresh(
    cache: FleetCache,
    *,
    namespace: str,
    profile: str,
    desktops: bool,
    mounts: bool,
    user: str | None,
    timeout_seconds: float,
) -> Result:
    """Have a profile's servers polled, and return what came and what failed."""
    if not cache.profiles():
        document: dict[str, Any] = {"profile": profile, "user": user, "snapshots": [], "errors": {}}
        return Result(document, notes=(no_inventory(namespace),), exit_status=NEGATIVE)
    errors: Mapping[str, str] = {}
    try:
        snapshots = cache.update(
            profile, update_desktops=desktops, update_mounts=mounts, username=user, timeout=timeout_seconds
        )
    except RefreshFailed as exc:
        snapshots, errors = exc.partial, exc.errors
    document = {
        "profile": profile,
        "user": user,
        "snapshots": [documents.snapshot_document(snapshot) for snapshot in snapshots],
        "errors": dict(errors),
    }
    notes = tuple(f"refresh failed: {server}: {text}" for server, text in errors.items())
    blocks: tuple[Block, ...] = (_snapshot_table(snapshots),) if snapshots else ()
    return Result(document, blocks, notes, NEGATIVE if errors else 0)


def _snapshot_table(snapshots: Sequence[Snapshot]) -> Table:
    columns = (
        Column("TARGET", limit=32),
        Column("KIND"),
        Column("ENTRIES", right=True),
        Column("AGE", right=True),
        Column("TOOK", rank=1, right=True),
        Column("REJECTED ROWS", rank=2, right=True),
        Column("WORKER", rank=3, limit=28),
    )
    return Table.of(
        columns,
        [
            (
                snapshot.target,
                snapshot.kind.value,
                "-" if snapshot.kind is Kind.LOAD else str(documents.entries_in(snapshot)),
                duration(snapshot.age),
                f"{snapshot.duration_ms} ms",
                Cell(str(snapshot.rejected_rows), "warn" if snapshot.rejected_rows else "dim"),
                snapshot.worker,
            )
            for snapshot in snapshots
        ],
    )


def _listing(
    cache: FleetCache,
    kind: Kind,
    entries: Callable[[View], tuple[Table, list[dict[str, Any]]]],
    *,
    namespace: str,
    profile: str | None,
    user: str | None,
) -> Result:
    profiles = cache.profiles()
    if profiles and profile is not None and profile not in profiles:
        raise UnknownProfile(profile, profiles)
    view = cache.view(kind, profile_name=profile, username=user)
    table, items = entries(view)
    others = _other_names(view, user) if kind is Kind.SESSIONS and not items else []
    if others:
        view = replace(view, cached=False)
    document = documents.listing_document(kind, view, items, profile=profile, user=user)
    blocks: list[Block] = []
    if table.rows:
        blocks.append(table)
    elif view.cached:
        blocks.append(Line(_nothing(kind, view, profile, user)))
    if not profiles:
        return Result(document, notes=(no_inventory(namespace),), exit_status=NEGATIVE)
    if others:
        notes = [
            f"not cached: no {kind.value} by the name {user}, but some of {', '.join(others)}: that may be another "
            f"name of the account; on one of the servers `id -un {user}` says by which name to ask"
        ]
    else:
        notes = _missing_notes(cache, kind, view, profile=profile, user=user)
    rejected = sum(snapshot.rejected_rows for snapshot in view.snapshots)
    if rejected:
        notes.append(f"{rejected} row(s) that could not be believed were left out by the worker; its log says why")
    return Result(document, tuple(blocks), tuple(notes), 0 if view.cached else NEGATIVE)


def _other_names(view: View, user: str | None) -> list[str]:
    """Return the users in a view that may be the same account as one without sessions."""
    if user is None:
        return []
    whole = [snapshot for snapshot in view.snapshots if snapshot.username is None]
    return sorted({name for snapshot in whole for name in other_names(snapshot.stdout, user)})


def _nothing(kind: Kind, view: View, profile: str | None, user: str | None) -> str:
    owner = f" that {user} may share" if user and kind is Kind.DESKTOPS else f" of {user}" if user else ""
    text = f"no {kind.value}{owner}{f' in profile {profile}' if profile else ''}"
    missing = len(set(view.missing_servers))
    if not missing:
        return text
    known = len({snapshot.server for snapshot in view.snapshots})
    return f"{text} on {counted(known, 'server')}; those of {counted(missing, 'server')} are unknown"


def _missing_notes(cache: FleetCache, kind: Kind, view: View, *, profile: str | None, user: str | None) -> list[str]:
    """Return what to say of the servers that the answer lacks: ``not cached`` of those that make it no answer."""
    if not view.cached and not view.missing_servers:
        where = f"profile {profile}" if profile else "the fleet"
        return [f"not cached: nothing in {where} is polled for the {kind.value} of {user or 'all users'}"]
    if not view.missing_servers:
        return []
    statuses = {status.id: status for status in cache.servers()}
    culprits = () if view.cached else view.unknown_servers or view.missing_servers
    return [
        f"{'not cached' if gap.names[0] in culprits else 'incomplete'}: {gap.text(kind.value)}"
        for gap in missing_from(kind, view, statuses, profile=profile, user=user)
    ]


def _once(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """A user's own target and the same user's listing by a server's are one key; take it once."""
    return list({snapshot.target: snapshot for snapshot in snapshots}.values())
