"""health: ``python -m x2gofleet_workers.health``: is a worker of this host alive? What a container's health check runs.

Asks Redis and imports nothing but the reader, because it is started again and again.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing

import redis

from x2gofleet.connection import Link, link_from_url, link_of, redact_url, unavailable, url_from_environment
from x2gofleet.errors import CacheUnavailable
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys

_CONNECT_SECONDS = 1.0
_COMMAND_SECONDS = 2.0


def live_workers(client: redis.Redis | Link, keys: Keys, host: str) -> tuple[str, ...]:
    """Return the ids of the workers on ``host`` whose lease of life has not expired.

    ``host`` is what ``socket.gethostname`` gives the worker: in a container a name of its own.
    Raises CacheUnavailable.
    """
    link = link_of(client)
    try:
        (found,) = link.exchange([("ZRANGE", keys.workers(), 0, -1)])
        members = [worker.decode() for worker in found]
        hosts = link.exchange([("HGET", keys.worker(member), "host") for member in members])
    except (redis.exceptions.RedisError, OSError) as exc:
        raise unavailable(exc, "looking for this host's worker") from exc
    return tuple(member for member, name in zip(members, hosts, strict=True) if name == host.encode())


def main() -> int:
    """Print what is known of this host's worker; return 0 when one is alive, else 1."""
    host = socket.gethostname()
    url = url_from_environment()
    try:
        keys = Keys(os.environ.get("X2GOFLEET_NAMESPACE") or DEFAULT_NAMESPACE)
        link = link_from_url(url, connect_timeout_seconds=_CONNECT_SECONDS, command_timeout_seconds=_COMMAND_SECONDS)
        with closing(link):
            found = live_workers(link, keys, host)
    except (CacheUnavailable, ValueError) as exc:
        print(f"{redact_url(url)}: {exc}")
        return 1
    if not found:
        print(f"no worker on {host} has told Redis lately that it is alive")
        return 1
    print(f"alive: {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
