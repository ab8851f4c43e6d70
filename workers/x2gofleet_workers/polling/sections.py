"""sections: what is requested of a probe for the kinds of a poll, and what its answers prove."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from x2gofleet.kinds import Kind
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.probe.delivery import first_input, start_command
from x2gofleet_workers.probe.frames import MAX_WORDS_BYTES
from x2gofleet_workers.probe.proof import Proven, prove_desktops, prove_load, prove_mounts, prove_sessions
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    Listing,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
)
from x2gofleet_workers.probe.requests import MAX_SECONDS, NO_SIGNATURE
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshConnection

_SECONDS_TO_ANSWER = 1
# Of a request: its first line, and a line for each of the other kinds.
_HEAD_BYTES = 1024
# The load figures come first: they need no database.
_ORDER = (Kind.LOAD, Kind.SESSIONS, Kind.MOUNTS, Kind.DESKTOPS)


def start_probe(target: Target, connection: SshConnection, deadline: Deadline) -> ProbeChannel:
    """Start a probe with the rights that the target's scope asks for."""
    as_root = target.scope == "server" and target.endpoint.user != "root"
    command = start_command(target.command, as_root=as_root)
    return connection.start_probe(command, deadline, first_input=first_input(target.command))


def is_of_users(target: Target, kind: Kind) -> bool:
    """Whether a kind is requested once for each user, and stored under user@server."""
    return kind is Kind.DESKTOPS and target.scope == "server"


def quick_kinds(target: Target) -> tuple[Kind, ...]:
    """Return the kinds that the resident probe answers at once: those that need none of X2Go's slow commands."""
    return (Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS) if target.scope == "server" else (Kind.SESSIONS, Kind.LOAD)


def slow_kinds(target: Target) -> tuple[Kind, ...]:
    """Return the other kinds."""
    return (Kind.DESKTOPS,) if target.scope == "server" else (Kind.DESKTOPS, Kind.MOUNTS)


def request_for(
    target: Target,
    kinds: Sequence[Kind],
    deadline: Deadline,
    *,
    signature: str = NO_SIGNATURE,
    users: Sequence[str] = (),
) -> Request | None:
    """Return the request for ``kinds``, None where there is nothing to request.

    ``signature``: that of the stored listing of sessions. ``users``: whose desktops, on a server that is polled for
    all users.
    """
    sections: list[SectionRequest] = []
    for kind in sorted(kinds, key=_ORDER.index):
        if kind is Kind.SESSIONS:
            sections.append(SectionRequest(SectionKind.SESSIONS, signature, Listing(target.listing)))
        elif is_of_users(target, kind):
            sections += [SectionRequest(SectionKind.DESKTOPS, user=user) for user in users]
        else:
            sections.append(SectionRequest(SectionKind(kind.value)))
    # Each request that the resident probe answers asks for a notice: the last one decides.
    watch = watches(target) and all(kind in quick_kinds(target) for kind in kinds)
    return _request(target, sections, deadline, watch=watch) if sections else None


def fitting_users(users: tuple[str, ...]) -> tuple[str, ...]:
    """Return as many users, from the first one on, as a request for their desktops has room for."""
    left = MAX_WORDS_BYTES - _HEAD_BYTES
    for number, user in enumerate(users):
        left -= len(SectionRequest(SectionKind.DESKTOPS, user=user).encode()) + 1
        if left < 0:
            return users[:number]
    return users


def reference_request(target: Target, deadline: Deadline) -> Request:
    """Return the request for X2Go's own query."""
    return _request(target, [SectionRequest(SectionKind.REFERENCE)], deadline)


def watches(target: Target) -> bool:
    """Whether the probe of a target sends notices of changes."""
    return target.scope == "server" and target.notices


def _request(target: Target, sections: Sequence[SectionRequest], deadline: Deadline, *, watch: bool = False) -> Request:
    seconds = min(MAX_SECONDS, max(1, int(deadline.left()) - _SECONDS_TO_ANSWER))
    each_poll = target.scope == "server" and target.database_connection == "each_poll"
    return Request(Scope(target.scope), tuple(sections), seconds, watch, each_poll)


def exchange(channel: ProbeChannel, request: Request, deadline: Deadline) -> Iterator[Section]:
    """Make a request and yield the sections of its answer as they arrive. Raises a PollError."""
    decoder = AnswerDecoder(request, after=channel.decoder)
    return channel.exchange(decoder, deadline)


def prove(target: Target, section: Section, channel: ProbeChannel, *, recorded_host: str = "") -> Proven:
    """Return what may be stored of a section; raises a PollError.

    ``recorded_host``: the host name under which the server had its sessions before, "" where none is known.
    """
    login = target.endpoint.user
    match section.kind:
        case SectionKind.SESSIONS:
            return prove_sessions(
                section,
                scope=target.scope,
                login=login,
                user=channel.hello.user,
                hostname=target.hostname,
                recorded_host=recorded_host,
            )
        case SectionKind.LOAD:
            return prove_load(section, login=login)
        case SectionKind.MOUNTS:
            return prove_mounts(section, scope=target.scope, login=login)
        case SectionKind.DESKTOPS:
            return prove_desktops(section, login=login)
        case SectionKind.REFERENCE:
            raise ValueError("a reference is compared, not proven")
