"""Outages of a real sshd: dropped connections, a restart; every login comes back soon, whatever its interval."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .conftest import LoginKey, PollFactory, ServerFactory
from .polled import PolledFleet
from .realserver import RealX2GoServer

LOGINS = 40
MANY = [f"user{number:02}" for number in range(1, LOGINS)]
RARELY = {"sessions": 60, "load": 60, "mounts": 0, "desktops": 0}
LONG_TTLS = {"sessions": 180, "load": 180}
SECONDS = 90.0


def profiles_of(users: Sequence[str]) -> dict[str, dict[str, object]]:
    """A profile of the whole server, and one of each user."""
    return {"all": {"servers": ["ts01"]}} | {user: {"servers": ["ts01"], "user": user} for user in users}


def dropped(server: RealX2GoServer) -> int:
    """How many connections sshd has dropped for MaxStartups."""
    return len(re.findall(r"^drop connection #", server.sshd_log(), re.MULTILINE))


def cached(polled: PolledFleet) -> set[str]:
    """The targets whose sessions are cached."""
    return {target.id for status in polled.cache.servers() for target in status.targets if target.up}


@contextmanager
def unauthenticated_connections(server: RealX2GoServer, number: int) -> Iterator[None]:
    """Connections that never log in, as of port scanners: with ten of them sshd begins to drop others at random."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(socket.create_connection((server.host, server.port)))
        yield


def test_forty_logins_of_one_sshd_come_up_though_it_drops_connections(
    start_server: ServerFactory, login_key: LoginKey, poll: PollFactory
) -> None:
    server = start_server("ts01", users=MANY, max_startups="10:30:100")
    for user in MANY:
        server.authorize(user, login_key.public_text)
    everybody = {"ts01", *(f"{user}@ts01" for user in MANY)}

    with unauthenticated_connections(server, 20):
        polled = poll(server, profiles=profiles_of(MANY), intervals=RARELY, ttls=LONG_TTLS)
        polled.wait_until(lambda: dropped(server) >= 10, "sshd to drop connections", seconds=SECONDS)
    polled.wait_until(lambda: cached(polled) == everybody, "all to be cached", seconds=SECONDS)


def test_an_sshd_that_was_restarted_is_polled_again_soon(server: RealX2GoServer, poll: PollFactory) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, intervals=RARELY, ttls=LONG_TTLS)
    polled.next_snapshot()

    server.stop_sshd()
    polled.wait_for_error("Unreachable", seconds=SECONDS)
    server.start_sshd()
    snapshot = polled.next_snapshot(seconds=SECONDS)
    assert name.encode() in snapshot.stdout
