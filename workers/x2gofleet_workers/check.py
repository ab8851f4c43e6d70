"""check: tries every target once, as a worker would, and says what is wrong and how to fix it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from x2gofleet.errors import ListingFailed, PollError
from x2gofleet.kinds import Kind
from x2gofleet.parsing import parse_sessions
from x2gofleet_workers.inventory import Fleet, Target
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
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshClient, SshConnection
from x2gofleet_workers.text import show

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Checked:
    """What trying one target came to."""

    target: str
    address: str
    ok: bool
    text: str


def check_target(target: Target, client: SshClient) -> Checked:
    """Connect, verify, log in, list once; never raises a PollError."""
    address = f"{target.endpoint.user}@{target.endpoint.host}:{target.endpoint.port}"
    deadline = Deadline(max(target.deadline_seconds, 10.0))
    try:
        connection = client.open(target.endpoint, deadline)
        try:
            return Checked(target.id, address, ok=True, text=_ask(target, connection, deadline))
        finally:
            connection.close()
    except PollError as exc:
        return Checked(target.id, address, ok=False, text=f"{type(exc).__name__}: {exc}")


def _ask(target: Target, connection: SshConnection, deadline: Deadline) -> str:
    channel = start_probe(target, connection, deadline)
    facts: list[str] = []
    kinds = [kind for kind in quick_kinds(target) if kind is not Kind.LOAD or target.scope == "server"]
    request = request_for(target, kinds, deadline)
    assert request is not None
    for section in exchange(channel, request, deadline):
        proven = prove(target, section, channel)
        if section.kind is SectionKind.SESSIONS:
            facts += _facts(target, section, proven, channel.hello.host)
    if target.scope == "server" and target.listing == "records":
        facts.append(_agreement(target, channel, deadline))
    return ", ".join(facts)


def _facts(target: Target, section: Section, proven: Proven, host: str) -> list[str]:
    """Return what is worth knowing of a good listing."""
    count = sum(not row.is_finished() for row in parse_sessions(proven.stdout)[0])
    facts = [f"{count} session(s)", f"host name {show((section.host or host).encode(), 64)}"]
    if section.backend:
        facts.append(f"{show(section.backend.encode(), 16)}, by {proven.source}")
    if proven.rejected_rows:
        facts.append(f"{proven.rejected_rows} row(s) left out: {proven.rejected[0]}")
    return [*facts, *proven.notes[:1]]


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


def check_fleet(fleet: Fleet) -> int:
    """Print a line for each target, the first as soon as it is known; return how many failed."""
    width = max(len(name) for name in fleet.targets)
    failed = 0
    check = partial(check_target, client=SshClient())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for checked in pool.map(check, fleet.targets.values()):
            failed += not checked.ok
            word = "ok    " if checked.ok else "FAILED"
            print(f"{word}  {checked.target:<{width}}  {checked.address}  {checked.text}", flush=True)
    total = len(fleet.targets)
    if failed:
        print(f"{failed} of {total} target(s) failed", file=sys.stderr)
    else:
        print(f"all {total} target(s) answer")
    return failed
