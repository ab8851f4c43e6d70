"""sections: what is requested of a probe for the kinds of a poll, and what its answers prove."""

from __future__ import annotations

from collections.abc import Sequence

from x2gofleet.kinds import Kind
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.proof import Proven, prove_desktops, prove_load, prove_mounts, prove_sessions
from x2gofleet_workers.shell_probe import UNKNOWN_SIGNATURE, Request, Section, start_command
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshConnection

_SECONDS_TO_ANSWER = 1


def start_probe(target: Target, connection: SshConnection, deadline: Deadline) -> ProbeChannel:
    """Start a probe with the rights that the target's scope asks for."""
    as_root = target.scope == "server" and target.endpoint.user != "root"
    return connection.start_probe(start_command(target.command, as_root=as_root), deadline)


def is_of_users(target: Target, kind: Kind) -> bool:
    """Whether a kind is requested once for each user, and stored under user@server."""
    return kind is Kind.DESKTOPS and target.scope == "server"


def request_for(
    target: Target,
    kinds: Sequence[Kind],
    deadline: Deadline,
    *,
    signature: str = UNKNOWN_SIGNATURE,
    users: Sequence[str] = (),
) -> Request | None:
    """Return the request for ``kinds``, None where there is nothing to request.

    ``signature``: that of the stored listing of sessions. ``users``: whose desktops, on a server that is polled for
    all users.
    """
    sections: list[str] = []
    for kind in kinds:
        if kind is Kind.SESSIONS:
            sections.append(f"sessions={signature}")
        elif is_of_users(target, kind):
            sections += [f"desktops={user}" for user in users]
        else:
            sections.append(kind.value)
    if not sections:
        return None
    return Request(target.scope, tuple(sections), max(1, int(deadline.left()) - _SECONDS_TO_ANSWER))


def prove(target: Target, section: Section, mark: bytes, channel: ProbeChannel) -> Proven:
    """Return what may be stored of a section; raises a PollError."""
    stderr, login = channel.stderr_bytes, target.endpoint.user
    uid, host = channel.hello.uid, section.attributes.get("host") or channel.hello.host
    match section.kind:
        case Kind.SESSIONS:
            return prove_sessions(
                section,
                scope=target.scope,
                uid=uid,
                login=login,
                host=host,
                mark=mark,
                stderr=stderr,
                hostname=target.hostname,
            )
        case Kind.LOAD:
            return prove_load(section, stderr=stderr)
        case Kind.MOUNTS:
            return prove_mounts(section, scope=target.scope, uid=uid, login=login, mark=mark, stderr=stderr)
        case Kind.DESKTOPS:
            return prove_desktops(section, stderr=stderr)
