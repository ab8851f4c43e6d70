"""connection: a Redis URL -> a link to it, blocking or for asyncio, with every timeout set and nothing retried.

redis-py's own defaults retry for seconds; a login must not wait for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import redis
import redis.asyncio

from x2gofleet.connection.aiolink import AsyncNodeLink
from x2gofleet.connection.clients import AsyncClientLink, ClientLink, is_link
from x2gofleet.connection.cluster import AsyncClusterLink, ClusterLink
from x2gofleet.connection.failures import Breaker, WrongKeyType, opens_breaker, unavailable
from x2gofleet.connection.link import NodeLink
from x2gofleet.connection.node import COMMAND_TIMEOUT_SECONDS, CONNECT_TIMEOUT_SECONDS, REDIS_OPTIONS, Command, Node
from x2gofleet.connection.sentinel import AsyncSentinelLink, SentinelLink
from x2gofleet.connection.tls import Tls
from x2gofleet.connection.urls import DEFAULT_URL, RedisUrl, redact_url, url_from_environment

__all__ = [
    "COMMAND_TIMEOUT_SECONDS",
    "CONNECT_TIMEOUT_SECONDS",
    "DEFAULT_URL",
    "AsyncLink",
    "Breaker",
    "Command",
    "Link",
    "WrongKeyType",
    "async_link_from_url",
    "async_link_of",
    "client_from_url",
    "link_from_url",
    "link_of",
    "opens_breaker",
    "redact_url",
    "unavailable",
    "url_from_environment",
]


ASYNC_CONNECTIONS = 32


class Link(Protocol):
    """A way to one Redis, Sentinel group or Cluster. Thread-safe; usable in a forked child."""

    @property
    def one_clock(self) -> bool:
        """Whether all keys are on one server, so that there is one TIME; not so in a Cluster."""

    def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Send commands in one piece and return their undecoded replies: one round trip per node.

        ``deadline`` is a value of time.monotonic: nothing goes on beyond it. Without one the link's own timeouts hold.
        In a Cluster a command without a key goes to the node of ``near``, a key. Raises redis-py's errors (RedisError):
        the first one among the replies after all of them were read (WrongKeyType only where there is no other), or a
        ConnectionError or TimeoutError.
        """

    def scan(self, match: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """Yield the keys of a glob pattern, on every node; one may come twice. Raises what ``exchange`` raises."""

    def close(self) -> None:
        """Close the connections."""


class AsyncLink(Protocol):
    """A Link for asyncio. A cancelled exchange leaves no reply to anybody else."""

    async def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``Link.exchange`` does."""

    def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Do what ``Link.scan`` does."""

    async def aclose(self) -> None:
        """Close the connections."""


def _node_link(parsed: RedisUrl, node: Node) -> Link:
    return NodeLink(node)


def _async_node_link(parsed: RedisUrl, node: Node) -> AsyncLink:
    return AsyncNodeLink(node)


# By RedisUrl.kind. A Node is a first server; the others of the group have its settings but host and port.
_LINKS: dict[str, Callable[[RedisUrl, Node], Link]] = {
    "node": _node_link,
    "unix": _node_link,
    "sentinel": lambda parsed, node: SentinelLink(parsed.hosts, parsed.master, node, parsed.sentinel_credentials),
    "cluster": lambda parsed, node: ClusterLink(parsed.hosts, node),
}
_ASYNC_LINKS: dict[str, Callable[[RedisUrl, Node], AsyncLink]] = {
    "node": _async_node_link,
    "unix": _async_node_link,
    "sentinel": lambda parsed, node: AsyncSentinelLink(parsed.hosts, parsed.master, node, parsed.sentinel_credentials),
    "cluster": lambda parsed, node: AsyncClusterLink(parsed.hosts, node),
}


def _understood(
    url: str, connect_timeout_seconds: float, command_timeout_seconds: float, max_connections: int | None
) -> tuple[RedisUrl, Node]:
    parsed = RedisUrl.parse(url)
    host, port = parsed.hosts[0] if parsed.hosts else ("", 0)
    node = Node(
        host,
        port,
        parsed.path,
        parsed.database,
        parsed.credentials,
        Tls(parsed.tls) if parsed.tls else None,
        connect_timeout_seconds,
        command_timeout_seconds,
        max_connections,
    )
    return parsed, node


def link_from_url(
    url: str,
    *,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    max_connections: int | None = None,
) -> Link:
    """Return a link to what ``url`` names (docs/redis.md has the forms); nothing is sent yet.

    ``max_connections`` is per server; who gets none waits for one within its deadline. Raises ValueError for a URL of
    another form, and for a password or TLS file that can't be used.
    """
    parsed, node = _understood(url, connect_timeout_seconds, command_timeout_seconds, max_connections)
    return _LINKS[parsed.kind](parsed, node)


def async_link_from_url(
    url: str,
    *,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    max_connections: int | None = ASYNC_CONNECTIONS,
) -> AsyncLink:
    """Return what ``link_from_url`` does, for asyncio: many tasks share a few connections."""
    parsed, node = _understood(url, connect_timeout_seconds, command_timeout_seconds, max_connections)
    return _ASYNC_LINKS[parsed.kind](parsed, node)


def link_of(client: redis.Redis | Link) -> Link:
    """Return a link over a redis-py client, or the link that was given.

    Raises TypeError for anything else, ValueError for a client with an option that changes replies.
    """
    return cast(Link, client) if is_link(client, asynchronous=False) else ClientLink(cast(redis.Redis, client))


def async_link_of(client: redis.asyncio.Redis | AsyncLink) -> AsyncLink:
    """Return what ``link_of`` does, for asyncio."""
    if is_link(client, asynchronous=True):
        return cast(AsyncLink, client)
    return AsyncClientLink(cast(redis.asyncio.Redis, client))


def client_from_url(
    url: str,
    *,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    max_connections: int | None = None,
) -> redis.Redis:
    """Return a redis-py client of one server (redis://, rediss://, unix://), for tools; nothing is sent yet.

    Its timeouts hold for each read and names are resolved on the caller's path: lookups go through a link instead.
    Raises ValueError for a URL of another form.
    """
    parsed = RedisUrl.parse(url)
    options: dict[str, Any] = {
        "db": parsed.database,
        **parsed.credentials.login(),
        "socket_timeout": command_timeout_seconds,
        "socket_connect_timeout": connect_timeout_seconds,
        **REDIS_OPTIONS,
    }
    kind: Any = redis.Connection
    if parsed.kind == "unix":
        kind = redis.UnixDomainSocketConnection
        options["path"] = parsed.path
    elif parsed.kind == "node":
        options["host"], options["port"] = parsed.hosts[0]
    else:
        raise ValueError(f"{redact_url(url)!r} is more than one server: use link_from_url")
    if parsed.tls is not None:
        kind = redis.SSLConnection
        options |= {
            "ssl_ca_certs": parsed.tls.ca_certs or None,
            "ssl_certfile": parsed.tls.certfile or None,
            "ssl_keyfile": parsed.tls.keyfile or None,
        }
    pool = redis.ConnectionPool(connection_class=kind, max_connections=max_connections, **options)
    return redis.Redis.from_pool(pool)
