"""What `x2gofleet-worker check` says of several servers: too few connections, equal host names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from x2gofleet_workers.check import Checked, connections_warning, print_findings
from x2gofleet_workers.inventory import parse_inventory
from x2gofleet_workers.probe.sections import DatabaseFacts

from tests.support.polling import make_target

FACTS = DatabaseFacts("1.2", "db port 5432", connections=30, reserved=3)


@pytest.mark.parametrize(
    ("facts", "connection", "servers", "said"),
    [
        (FACTS, "standing", 10, ""),
        (FACTS, "standing", 11, "takes 30 connections besides 3 reserved ones, 11 server(s) need 33: 11 that stand"),
        (FACTS, "standing", 11, "set max_connections = 36 or more"),
        (FACTS, "each_poll", 15, ""),
        (FACTS, "each_poll", 16, "16 server(s) need 32: 0 that stand"),
        (replace(FACTS, role_limit=29), "standing", 9, ""),
        (replace(FACTS, role_limit=29), "standing", 10, "alter role x2godbuser connection limit 30;"),
        (DatabaseFacts("", "db port 5432"), "standing", 1000, ""),
    ],
)
def test_a_database_that_takes_too_few_connections_is_a_warning(
    facts: DatabaseFacts, connection: str, servers: int, said: str
) -> None:
    target = replace(make_target(), database_connection=connection)

    warning = connections_warning([(facts, target)] * servers)

    assert said in warning
    assert bool(warning) == bool(said)


LOGIN = '[defaults]\nuser = "root"\nkey_file = "k"\nknown_hosts = "h"\n'
SERVERS = "".join(f'[servers.ts0{number}]\nhost = "10.0.0.{number}"\n' for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("hosts", "failed", "warned"),
    [
        ([("vm1", ""), ("vm2", ""), ("vm3", "")], 0, ""),
        ([("vm1", ""), ("vm2", ""), ("vm1", "")], 0, "ts01, ts03 have the host name vm1"),
        ([("vm1", "A"), ("vm1", "B"), ("vm3", "A")], 0, "ts01, ts02 have the host name vm1"),
        ([("vm1", "A"), ("vm1", ""), ("vm3", "A")], 0, "ts01, ts02 have the host name vm1"),
        ([("vm1", "A"), ("vm1", "A"), ("vm3", "A")], 2, ""),
        ([("", ""), ("", ""), ("", "")], 0, ""),
    ],
)
def test_equal_host_names_are_a_failure_on_one_database_and_a_warning_on_several(
    hosts: list[tuple[str, str]], failed: int, warned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = parse_inventory(LOGIN + SERVERS)
    found = [
        Checked(target, "root@host:22", True, "", host, DatabaseFacts(identity))
        for target, (host, identity) in zip(fleet.targets, hosts, strict=True)
    ]

    assert print_findings(fleet, found) == failed

    said = capsys.readouterr().out
    assert ("HostNameShared" in said) == bool(failed)
    assert warned in said
    assert said.count("warning") == bool(warned)
