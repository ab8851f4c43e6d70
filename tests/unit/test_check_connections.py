"""What `x2gofleet-worker check` says of a database that takes too few connections."""

from __future__ import annotations

from dataclasses import replace

import pytest
from x2gofleet_workers.check import connections_warning
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
