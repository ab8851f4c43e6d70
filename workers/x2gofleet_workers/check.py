"""check: tries every target once, as a worker would, and says what is wrong and how to mend it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from x2gofleet.errors import PollError
from x2gofleet.kinds import Kind
from x2gofleet.parsing import parse_sessions
from x2gofleet_workers.inventory import Fleet, Target
from x2gofleet_workers.polling import judge, start_probe
from x2gofleet_workers.proof import show
from x2gofleet_workers.shell_probe import Request
from x2gofleet_workers.ssh import Deadline, SshConnection

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Checked:
    """What trying one target came to."""

    target: str
    address: str
    ok: bool
    text: str


def check_target(target: Target) -> Checked:
    """Connect, verify, log in, list once; never raises a PollError."""
    address = f"{target.endpoint.user}@{target.endpoint.host}:{target.endpoint.port}"
    deadline = Deadline(max(target.deadline_seconds, 10.0))
    try:
        connection = SshConnection.open(target.endpoint, deadline)
        try:
            return Checked(target.id, address, ok=True, text=_ask(target, connection, deadline))
        finally:
            connection.close()
    except PollError as exc:
        return Checked(target.id, address, ok=False, text=f"{type(exc).__name__}: {exc}")


def _ask(target: Target, connection: SshConnection, deadline: Deadline) -> str:
    channel = start_probe(target, connection, deadline)
    said: list[str] = []
    sections = ("load", "sessions=-", "mounts") if target.scope == "server" else ("sessions=-", "mounts")
    request = Request(target.scope, sections, max(1, int(deadline.left()) - 1))
    for section, answer in channel.ask(request, deadline):
        proven = judge(target, section, answer.mark, channel)
        if section.kind is Kind.SESSIONS:
            host = section.attributes.get("host") or channel.hello.host
            count = sum(not row.is_finished() for row in parse_sessions(proven.stdout)[0])
            backend = section.attributes.get("backend", "unknown")
            polls = "conditional polls" if section.signature != "-" else "a full listing each poll"
            said.append(f"{count} session(s)")
            said.append(f"host name {show(host.encode(), 64)}")
            said.append(f"{show(backend.encode(), 16)}, {polls}")
            if proven.rejected:
                said.append(f"{len(proven.rejected)} row(s) left out: {proven.rejected[0]}")
    return ", ".join(said)


def check_fleet(fleet: Fleet) -> int:
    """Print a line for each target, the first as soon as it is known; return how many failed."""
    width = max(len(name) for name in fleet.targets)
    failed = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for checked in pool.map(check_target, fleet.targets.values()):
            failed += not checked.ok
            word = "ok    " if checked.ok else "FAILED"
            print(f"{word}  {checked.target:<{width}}  {checked.address}  {checked.text}", flush=True)
    total = len(fleet.targets)
    if failed:
        print(f"{failed} of {total} target(s) failed", file=sys.stderr)
    else:
        print(f"all {total} target(s) answer")
    return failed
