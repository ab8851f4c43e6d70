"""clients: links over redis-py clients that a caller made, of either protocol; what cannot be such a client is refused.

The client's own timeouts and retries hold, beside the deadline of each exchange. Replies are converted (replies.py), so
that the answers are those of a link made from a URL.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator, Sequence
from time import monotonic
from typing import Any

import redis
import redis.asyncio

from x2gofleet.connection import aiolink
from x2gofleet.connection.failures import LinkFailed
from x2gofleet.connection.link import read_reply, scan_keys
from x2gofleet.connection.node import Command, drops_connection, settled
from x2gofleet.connection.replies import TAKES_PUSHES_FOR_REPLIES, in_resp2
from x2gofleet.errors import Unavailable

_NO_TIME = "no time was left while waiting for a reply"


def check_client(client: Any, *, asynchronous: bool) -> None:
    """Return if ``client`` can be used for a link, blocking or ``asynchronous``.

    Raises TypeError for anything but a client of that kind, and ValueError for one with an option that changes replies;
    both say what to change.
    """
    library = redis.asyncio if asynchronous else redis
    if not isinstance(client, library.Redis) or isinstance(
        client, (redis.client.Pipeline, redis.asyncio.client.Pipeline)
    ):
        raise TypeError(_other_type(client, asynchronous))
    pool, name = client.connection_pool, _name_of(asynchronous)
    if isinstance(pool, redis.ConnectionPool if asynchronous else redis.asyncio.ConnectionPool):
        wanted = "redis.asyncio.ConnectionPool" if asynchronous else "redis.ConnectionPool"
        raise TypeError(f"this {name} client has a connection pool of the other kind: create it with a {wanted}")
    if client.get_encoder().decode_responses:
        raise ValueError(
            f"this {name} client returns text, but what is stored are bytes: create it with decode_responses=False "
            f"(the default), or use {_cache_of(asynchronous)}.from_url(URL)"
        )
    if getattr(pool, "cache", None) is not None:
        raise ValueError(
            f"this {name} client answers from a cache of its own: create it without cache_config= and cache=, or use "
            f"{_cache_of(asynchronous)}.from_url(URL)"
        )
    if TAKES_PUSHES_FOR_REPLIES and _speaks_resp3(pool):
        raise ValueError(
            f"this {name} client speaks RESP3 with a hiredis that takes what Redis pushes for replies: install hiredis "
            "3.2 or newer, or create it with protocol=2"
        )


def _speaks_resp3(pool: Any) -> bool:
    default = 3 if int(redis.__version__.split(".")[0]) >= 8 else 2
    return int(pool.connection_kwargs.get("protocol") or default) == 3


def _name_of(asynchronous: bool) -> str:
    return "redis.asyncio.Redis" if asynchronous else "redis.Redis"


def _cache_of(asynchronous: bool) -> str:
    return "AsyncFleetCache" if asynchronous else "FleetCache"


def _other_type(client: Any, asynchronous: bool) -> str:
    """Return what was expected, what came, and what to do."""
    name, cache = _name_of(asynchronous), _cache_of(asynchronous)
    kind = type(client)
    came = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    advice = f"pass {name}(host=HOST, port=PORT), or use {cache}.from_url(URL)"
    if client is None:
        came = "None"
    elif isinstance(client, type):
        came = f"the class {client.__qualname__}"
    elif isinstance(client, (str, bytes)):
        advice = f"for a URL use {cache}.from_url(URL)"
    elif isinstance(client, (redis.client.Pipeline, redis.asyncio.client.Pipeline)):
        advice = "a pipeline only collects commands: pass the client that it was made from"
    elif isinstance(client, (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster)):
        advice = f"for a Cluster use {cache}.from_url('redis+cluster://HOST:PORT')"
    elif isinstance(client, (redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel)):
        advice = f"pass master_for(MASTER) of it, or use {cache}.from_url('redis+sentinel://HOST:PORT/MASTER')"
    elif isinstance(client, (redis.ConnectionPool, redis.asyncio.ConnectionPool)):
        advice = f"pass {name}(connection_pool=POOL)"
    elif isinstance(client, redis.Redis if asynchronous else redis.asyncio.Redis) or hasattr(client, "exchange"):
        advice = f"use {_cache_of(not asynchronous)} for it, or {advice}"
    elif came.startswith(("valkey.", "fakeredis.", "aioredis.")):
        advice = f"redis-py connects to Redis and to Valkey: {advice}"
    return f"expected a {name} client of redis-py, got {came}: {advice}"


def is_link(given: object, *, asynchronous: bool) -> bool:
    """Whether ``given`` has the exchange of a Link, or of an AsyncLink."""
    exchange = getattr(given, "exchange", None)
    return callable(exchange) and inspect.iscoroutinefunction(exchange) == asynchronous


def _encoded(commands: Sequence[Command]) -> list[tuple[Any, ...]]:
    """Return commands whose text is UTF-8, whatever encoding the client was made with."""
    return [tuple(part.encode() if isinstance(part, str) else part for part in command) for command in commands]


def _failed(exc: Exception) -> LinkFailed:
    """Return what an exchange raises for an error that is not redis-py's, as a client may have any parts."""
    return LinkFailed(f"the Redis client failed: {type(exc).__name__}: {exc}", Unavailable.OTHER)


class ClientLink:
    """A Link over a ``redis.Redis``."""

    one_clock = True

    def __init__(self, client: redis.Redis) -> None:
        """Use ``client``. Raises what ``check_client`` raises."""
        check_client(client, asynchronous=False)
        self.client = client

    def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``NodeLink.exchange`` does. The deadline is checked before each reply."""
        if not commands:
            return []
        encoded = _encoded(commands)
        try:
            replies = self._replies(encoded, deadline)
        except (redis.exceptions.RedisError, OSError):
            raise
        except Exception as exc:
            raise _failed(exc) from exc
        return settled(in_resp2(commands, replies))

    def _replies(self, commands: Sequence[Command], deadline: float | None) -> list[Any]:
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            replies: list[Any] = []
            for _ in commands:
                if deadline is not None and monotonic() > deadline:
                    raise redis.exceptions.TimeoutError(_NO_TIME)
                replies.append(read_reply(connection))
            if drops_connection(replies):
                connection.disconnect()
        except BaseException:
            # Replies may still be under way: nobody else may take them for theirs.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        return replies

    def scan(self, match: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice."""
        return scan_keys(self, match, deadline)

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class AsyncClientLink:
    """An AsyncLink over a ``redis.asyncio.Redis``, which belongs to one event loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        """Use ``client``. Raises what ``check_client`` raises."""
        check_client(client, asynchronous=True)
        self.client = client

    async def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``NodeLink.exchange`` does."""
        if not commands:
            return []
        encoded = _encoded(commands)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - monotonic()):
                replies = await self._replies(encoded)
        except TimeoutError:
            raise redis.exceptions.TimeoutError(_NO_TIME) from None
        except (redis.exceptions.RedisError, OSError):
            raise
        except Exception as exc:
            raise _failed(exc) from exc
        return settled(in_resp2(commands, replies))

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        pool = self.client.connection_pool
        connection: Any = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            replies = await aiolink.read_replies(connection, len(commands))
            if drops_connection(replies):
                await connection.disconnect(nowait=True)
        except BaseException:
            # Replies may still be under way: nobody else may take them for theirs.
            await connection.disconnect(nowait=True)
            raise
        finally:
            # A cancelled task still gives its connection back.
            await asyncio.shield(pool.release(connection))
        return replies

    def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice."""
        return aiolink.scan_keys(self, match, deadline)

    async def aclose(self) -> None:
        """Close the client."""
        await self.client.aclose()
