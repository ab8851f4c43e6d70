"""node: one Redis server, as the links to it (link.py, aiolink.py) know it: where, as whom, how long they wait."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from x2gofleet.connection.failures import (
    DROPS_CONNECTION,
    LinkFailed,
    LinkTimeout,
    WrongKeyType,
    is_wrong_type,
    link_failure,
)
from x2gofleet.connection.tls import Tls
from x2gofleet.connection.urls import Credentials
from x2gofleet.errors import Unavailable

Command = Sequence[Any]

CONNECT_TIMEOUT_SECONDS = 0.25
COMMAND_TIMEOUT_SECONDS = 0.5
SCAN_COUNT = 500
NOBODY = Credentials()
# A name may have many addresses of which the first ones are dead: each gets a part of the time for connecting.
_LEAST_CONNECT_SECONDS = 0.05


REDIS_OPTIONS: dict[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "retry_on_timeout": False,
    "health_check_interval": 0,
    "decode_responses": False,
    "protocol": 2,
    # No CLIENT SETINFO: it costs a round trip each at the first call of a login.
    **(
        {"driver_info": None}
        if "driver_info" in inspect.signature(redis.Redis.__init__).parameters
        else {"lib_name": None, "lib_version": None}
    ),
}


@dataclass(frozen=True, slots=True)
class Node:
    """One server: ``host`` and ``port``, or the ``path`` of a unix socket. Times are seconds.

    An exchange that finds a connection has ``command_timeout_seconds`` in all, one that has to make one also
    ``connect_timeout_seconds``. With ``master_only`` a connection to a replica is refused.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    database: int = 0
    credentials: Credentials = NOBODY
    tls: Tls | None = None
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    max_connections: int | None = None
    master_only: bool = False

    @property
    def place(self) -> str:
        """Where it is, as people write it."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def until(self, deadline: float | None, *, connecting: bool) -> float:
        """Return until when an exchange that begins now may last, on time.monotonic."""
        seconds = self.command_timeout_seconds + (self.connect_timeout_seconds if connecting else 0.0)
        until = time.monotonic() + seconds
        return until if deadline is None or until < deadline else deadline

    def connect_until(self, until: float) -> float:
        """Return until when connecting may last, of an exchange that lasts ``until``."""
        return min(until, time.monotonic() + self.connect_timeout_seconds)

    def connection_options(self) -> dict[str, Any]:
        """Return what redis-py's connections are made with. Raises LinkFailed where the password can't be read."""
        try:
            login = self.credentials.login()
        except ValueError as exc:
            raise LinkFailed(str(exc), Unavailable.AUTHENTICATION) from exc
        return {"host": self.place, "db": self.database, **login, **REDIS_OPTIONS}

    def failure(self, exc: Exception, doing: str, *, answered: bool) -> redis.exceptions.RedisError:
        """Return what an exchange raises for an error met while ``doing``; the connection may have answered before."""
        may_be_tls = not (answered or self.path or self.tls)
        return link_failure(exc, self.place, self.host, doing, may_be_tls=may_be_tls)

    def check_role(self, reply: Any) -> None:
        """Look at a reply to ROLE. Raises LinkFailed where it is no master's."""
        if not isinstance(reply, list) or not reply or not isinstance(reply[0], bytes):
            raise redis.exceptions.InvalidResponse(f"the reply of {self.place} to ROLE has another form")
        if reply[0] != b"master":
            # Redis still says "slave".
            role = reply[0].decode("utf-8", "replace").replace("slave", "replica")
            failure = LinkFailed(f"{self.place} is no master, but a {role}", Unavailable.NO_MASTER)
            failure.unsent = True
            raise failure


def share_of(until: float, addresses_left: int) -> float:
    """Return until when the next of so many addresses may be tried, where all of them may last ``until``."""
    now = time.monotonic()
    return min(until, now + max((until - now) / addresses_left, _LEAST_CONNECT_SECONDS))


def left(until: float) -> float:
    """Return the seconds that are left. Raises TimeoutError where none are."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def all_in_use(node: Node) -> LinkTimeout:
    """Return what an exchange raises that got no connection in time."""
    return LinkTimeout(f"{node.place}: all {node.max_connections} connections are in use")


def drops_connection(replies: Sequence[Any]) -> bool:
    """Whether a reply says that the next commands had better take another connection."""
    return any(isinstance(reply, DROPS_CONNECTION) for reply in replies)


def settled(replies: list[Any]) -> list[Any]:
    """Return replies as they came.

    Raises the first error among them, and WrongKeyType where there is no other than those of such keys.
    """
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    for error in errors:
        if not is_wrong_type(error):
            raise error
    if errors:
        raise WrongKeyType(str(errors[0]), replies)
    return replies


def scanned(reply: Sequence[Any]) -> tuple[int, list[bytes]]:
    """Return the cursor and the keys of a SCAN's reply."""
    match reply:
        case [bytes(cursor), list(keys)] if cursor.isdigit() and all(isinstance(key, bytes) for key in keys):
            return int(cursor), keys
    raise redis.exceptions.InvalidResponse("the reply to SCAN has another form")
