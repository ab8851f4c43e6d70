"""check: tries every target once, as a worker would, and says what is wrong and how to fix it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from x2gofleet.errors import ListingFailed, PollError
from x2gofleet.kinds import Kind
from x2gofleet.parsing import parse_sessions
from x2gofleet.text import say, show
from x2gofleet_workers.inventory import Fleet, Target
from x2gofleet_workers.polling.host_names import host_name_shared
from x2gofleet_workers.polling.sections import (
    exchange,
    prove,
    quick_kinds,
    reference_request,
    request_for,
    start_probe,
)
from x2gofleet_workers.probe.proof import Proven
from x2gofleet_workers.probe.protocol import Section, SectionKind
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference
from x2gofleet_workers.probe.sections import NO_FACTS, DatabaseFacts
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshClient, SshConnection

_AT_ONCE = 16
_CONNECTIONS_OF_X2GO = 2
NOTHING_RECORDED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Checked:
    """What trying one target came to. ``host_name`` and ``database``: of a server that lists everybody's sessions."""

    target: str
    address: str
    ok: bool
    text: str
    host_name: str = ""
    database: DatabaseFacts = NO_FACTS


def check_target(target: Target, client: SshClient, recorded_hosts: Mapping[str, str] = NOTHING_RECORDED) -> Checked:
    """Connect, verify, log in, list once; never raises a PollError.

    ``recorded_hosts`` has the host names under which targets had their sessions, where one is known.
    """
    address = f"{target.endpoint.user}@{target.endpoint.host}:{target.endpoint.port}"
    deadline = Deadline(max(target.deadline_seconds, 10.0))
    try:
        connection = client.open(target.endpoint, deadline)
        try:
            return _ask(target, address, connection, deadline, recorded_hosts.get(target.id, ""))
        finally:
            connection.close()
    except PollError as exc:
        return Checked(target.id, address, ok=False, text=f"{type(exc).__name__}: {exc}")


def _ask(target: Target, address: str, connection: SshConnection, deadline: Deadline, recorded_host: str) -> Checked:
    channel = start_probe(target, connection, deadline)
    facts: list[str] = []
    host_name, database = "", NO_FACTS
    kinds = [kind for kind in quick_kinds(target) if kind is not Kind.LOAD or target.scope == "server"]
    request = request_for(target, kinds, deadline)
    assert request is not None
    for section in exchange(channel, request, deadline):
        proven = prove(target, section, channel, recorded_host=recorded_host)
        if section.kind is SectionKind.SESSIONS:
            facts += _facts(target, section, proven, channel.hello.host)
            host_name, database = section.host, section.database
    if target.scope == "server" and target.listing == "records":
        facts.append(_agreement(target, channel, deadline))
    return Checked(target.id, address, True, ", ".join(facts), host_name, database)


def _facts(target: Target, section: Section, proven: Proven, host: str) -> list[str]:
    """Return what is worth knowing of a good listing."""
    count = sum(not row.is_finished() for row in parse_sessions(proven.stdout)[0])
    facts = [f"{count} session(s)", f"host name {show(section.host or host, 64)}"]
    if section.backend:
        facts += _place(section)
        facts.append(f"{show(section.backend, 16)}, by {proven.source}")
    if proven.rejected_rows:
        facts.append(f"{proven.rejected_rows} row(s) left out: {proven.rejected[0]}")
    return [*facts, *proven.notes[:1]]


def _place(section: Section) -> list[str]:
    """Return where a PostgreSQL database is, and whether the connection to it is encrypted."""
    if not section.database.address:
        return []
    tls = show(section.database.tls, 16) or "no TLS"
    return [f"database at {show(section.database.address, 80)} ({tls})"]


def _agreement(target: Target, channel: ProbeChannel, deadline: Deadline) -> str:
    """Return how the records compare with X2Go's own query; raises ListingFailed where they differ."""
    (section,) = exchange(channel, reference_request(target, deadline), deadline)
    comparison = compare_with_reference(section)
    if comparison.agreement is Agreement.DIFFERS:
        raise ListingFailed(
            f"the session records and X2Go's own query differ: {comparison.text}",
            mend=f'set `listing = "command"` for the server {target.server} in fleet.toml',
        )
    if comparison.agreement is Agreement.INCONCLUSIVE:
        return f"not compared with X2Go's own query: {comparison.text}"
    return "equal to X2Go's own query"


def check_fleet(fleet: Fleet, recorded_hosts: Mapping[str, str] = NOTHING_RECORDED) -> int:
    """Print a line for each target, the first as soon as it is known; return how many failed.

    ``recorded_hosts`` is as of ``check_target``.
    """
    for warning in fleet.warnings:
        say(f"warning  {warning}")
    width = max(len(name) for name in fleet.targets)
    failed = 0
    client = SshClient(warn=lambda text: say(f"warning  {text}"))
    check = partial(check_target, client=client, recorded_hosts=recorded_hosts)
    found: list[Checked] = []
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for checked in pool.map(check, fleet.targets.values()):
            found.append(checked)
            failed += not checked.ok
            word = "ok    " if checked.ok else "FAILED"
            say(f"{word}  {checked.target:<{width}}  {checked.address}  {checked.text}")
    finally:
        # After Ctrl-C nobody waits for servers that don't answer.
        pool.shutdown(wait=False, cancel_futures=True)
    failed += print_findings(fleet, found)
    total = len(fleet.targets)
    if failed:
        say(f"{failed} of {total} target(s) failed", file=sys.stderr)
    else:
        say(f"all {total} target(s) answer")
    return failed


def print_findings(fleet: Fleet, found: Sequence[Checked]) -> int:
    """Print what concerns several servers; return how many have another's host name on one PostgreSQL database."""
    listed = [checked for checked in found if checked.host_name and fleet.targets[checked.target].scope == "server"]
    databases: dict[str, list[Checked]] = {}
    for checked in listed:
        if checked.database.identity:
            databases.setdefault(checked.database.identity, []).append(checked)
    failed = 0
    for members in databases.values():
        for twins in _twins(members):
            names = [checked.target for checked in twins]
            say(f"FAILED  {', '.join(names)}  HostNameShared: {host_name_shared(twins[0].host_name, names)}")
            failed += len(twins)
        warning = connections_warning([(checked.database, fleet.targets[checked.target]) for checked in members])
        if warning:
            say(f"warning  {warning}")
    for twins in _twins(listed):
        if len({checked.database.identity for checked in twins}) > 1 or not twins[0].database.identity:
            say(f"warning  {_same_name_warning(twins)}")
    return failed


def _same_name_warning(twins: Sequence[Checked]) -> str:
    """Return what is to be done about servers of one host name on databases of their own."""
    return (
        f"{', '.join(checked.target for checked in twins)} have the host name {show(twins[0].host_name, 64)}: "
        "their sessions are told apart here, but not by a broker that goes by host names. give each a host name of its "
        "own, or remove all but one of them from the inventory where they are one machine"
    )


def _twins(members: Sequence[Checked]) -> list[list[Checked]]:
    by_name: dict[str, list[Checked]] = {}
    for checked in members:
        by_name.setdefault(checked.host_name, []).append(checked)
    return [twins for twins in by_name.values() if len(twins) > 1]


def connections_warning(servers: Sequence[tuple[DatabaseFacts, Target]]) -> str:
    """Return what is to be set where a database takes fewer connections than its servers need, "" where it does not.

    A server needs one that stands, or one while it is polled, and two for X2Go's own commands and the comparison.
    """
    facts = servers[0][0]
    standing = sum(target.database_connection == "standing" for _, target in servers)
    needed = standing + _CONNECTIONS_OF_X2GO * len(servers)
    where = f"PostgreSQL at {show(facts.address, 80)}"
    why = f"{len(servers)} server(s) need {needed}: {standing} that stand, and two of each server's X2Go"
    if facts.connections is not None and facts.connections < needed:
        return (
            f"{where} takes {facts.connections} connections besides {facts.reserved} reserved ones, {why}. set "
            f'max_connections = {needed + facts.reserved} or more and restart it, or database_connection = "each_poll" '
            "in fleet.toml"
        )
    if facts.role_limit is not None and facts.role_limit < needed:
        return (
            f"{where} lets x2godbuser have {facts.role_limit} connections, {why}. run: alter role x2godbuser "
            f"connection limit {needed}; (and see the limit of the database)"
        )
    return ""
