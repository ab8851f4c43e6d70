"""health: is this machine's worker well? What ``x2gofleet-worker healthcheck`` and a container's health check run.

Asks the worker's /live where X2GOFLEET_METRICS_PORT says on which port, else looks in Redis for the heartbeat of a
worker on this host. Imports nothing but the reader, because ``python -m x2gofleet_workers.health`` is started again and
again.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing

import redis

from x2gofleet.connection import Link, link_from_url, link_of, redact_url, unavailable, url_from_environment
from x2gofleet.errors import FleetError
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.programs import Parser
from x2gofleet.text import clean, say, show

EXIT_UNWELL = 1
EXIT_UNKNOWN = 3
_HTTP_SECONDS = 5.0
_CONNECT_SECONDS = 1.0
_COMMAND_SECONDS = 2.0
_LONGEST_LINE = 400
_MOST_LINES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a health check."""
    parser.add_argument(
        "--url",
        default="",
        help="a worker's /live or /ready (default: /live at X2GOFLEET_METRICS_ADDRESS and X2GOFLEET_METRICS_PORT; "
        "without a port there, the heartbeat of a worker of this host in X2GOFLEET_REDIS_URL)",
    )


def check(url: str = "") -> tuple[int, str]:
    """Return the exit status of a health check and what to print.

    The status is 0 where the worker is well, EXIT_UNWELL where it is not, EXIT_UNKNOWN where Redis can't be asked.
    """
    port = os.environ.get("X2GOFLEET_METRICS_PORT", "")
    if not url and port not in ("", "0"):
        url = health_url(os.environ.get("X2GOFLEET_METRICS_ADDRESS", ""), port)
    if not url:
        return _heartbeat()
    well, text = healthcheck(url)
    return (0 if well else EXIT_UNWELL), text


def url_place(address: str, port: int | str) -> str:
    """Return address and port as a URL has them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def health_url(address: str, port: str) -> str:
    """Return the URL of /live for a worker on this machine that listens on ``address`` and ``port``."""
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://{url_place(here, port)}/live"


def healthcheck(url: str) -> tuple[bool, str]:
    """Request a worker's /live or /ready; return whether it is well, and its lines or why it gave none."""
    if not url.startswith(("http://", "https://")):
        return False, f"{url} is no http URL"
    # A proxy of the environment is not the way to a worker next door.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_HTTP_SECONDS) as reply:
            return True, _text(reply.read(_LONGEST_LINE * _MOST_LINES))
    except urllib.error.HTTPError as exc:
        with exc:
            return False, _text(exc.read(_LONGEST_LINE * _MOST_LINES)) or f"HTTP status {exc.code}"
    except (OSError, ValueError, http.client.HTTPException) as exc:
        reason = getattr(exc, "reason", None) or exc
        return False, one_line(f"{url} does not answer as a worker does: {reason}")


def one_line(text: str) -> str:
    """Return one line that is fit for a terminal."""
    return show(text, _LONGEST_LINE)


def _text(body: bytes) -> str:
    lines = (one_line(line) for line in body.decode("utf-8", "replace").split("\n")[:_MOST_LINES])
    return "\n".join(line for line in lines if line)


def live_workers(client: redis.Redis | Link, keys: Keys, host: str) -> tuple[str, ...]:
    """Return the ids of the workers on ``host`` whose heartbeat has not expired.

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


def _heartbeat() -> tuple[int, str]:
    host = socket.gethostname()
    url = url_from_environment()
    try:
        keys = Keys(os.environ.get("X2GOFLEET_NAMESPACE") or DEFAULT_NAMESPACE)
        link = link_from_url(url, connect_timeout_seconds=_CONNECT_SECONDS, command_timeout_seconds=_COMMAND_SECONDS)
        with closing(link):
            found = live_workers(link, keys, host)
    except (FleetError, ValueError) as exc:
        return EXIT_UNKNOWN, (
            f"whether a worker lives on {host} is unknown: {redact_url(url)}: {exc}. "
            "Set X2GOFLEET_METRICS_PORT as for the worker to ask the worker itself"
        )
    if not found:
        return EXIT_UNWELL, f"no worker on {host} has sent Redis a heartbeat lately"
    return 0, f"alive: {clean(', '.join(found))}"


def report(url: str) -> int:
    """Make a health check, print what came of it, and return the exit status."""
    status, text = check(url)
    for line in text.split("\n"):
        say(line)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Print how this machine's worker is; return 0 where it is well."""
    parser = Parser(prog="python -m x2gofleet_workers.health", description="The same as x2gofleet-worker healthcheck.")
    add_arguments(parser)
    return report(parser.parse_args(argv).url)


if __name__ == "__main__":
    sys.exit(main())
