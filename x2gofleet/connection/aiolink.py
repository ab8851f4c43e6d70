"""aiolink: what link.py does, for asyncio: nothing of it ever blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import redis.asyncio

from x2gofleet.connection.failures import AGREEING_ON_TLS, only_redis_errors, reply_error
from x2gofleet.connection.forks import begins_anew
from x2gofleet.connection.node import (
    SCAN_COUNT,
    Command,
    Node,
    all_in_use,
    drops_connection,
    left,
    scanned,
    settled,
    share_of,
)
from x2gofleet.connection.replies import is_push
from x2gofleet.connection.resolving import Address, resolver


class _Connection:
    """A redis-py connection of one event loop; whoever gets an error from it, or is cancelled, closes it."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop, generation: int) -> None:
        self.loop, self.generation = loop, generation
        self.answered = False
        self._redis = redis.asyncio.Connection(**node.connection_options())
        self._writer: asyncio.StreamWriter | None = None
        self._poll: select.poll | None = None

    async def log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, master_only: bool) -> Any:
        """Take over connected streams: AUTH, SELECT; return the reply to ROLE where it is asked."""
        self._redis._reader, self._redis._writer = reader, writer
        self._writer = writer
        sock = writer.get_extra_info("socket")
        if sock is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        with only_redis_errors():
            await self._redis.on_connect()
            if not master_only:
                return None
            await self._redis.send_command("ROLE", check_health=False)
            return await self._redis.read_response()

    async def talk(self, commands: Sequence[Command]) -> list[Any]:
        """Send, and read the replies, error replies as exceptions. Raises redis-py's errors where there are no more."""
        connection = self._redis
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        with only_redis_errors():
            replies = await read_replies(connection, len(commands))
        self.answered = True
        return replies

    def idle(self) -> bool:
        """Whether nothing came since the last reply: neither the end of the connection nor what nobody asked for."""
        reader, writer = self._redis._reader, self._writer
        if reader is None or writer is None or reader.at_eof() or writer.is_closing():
            return False
        return self._poll is None or not self._poll.poll(0)

    def close(self) -> None:
        """Close the connection at once; its loop may be closed already."""
        writer, self._writer = self._writer, None
        # redis-py warns of a connection that it believes to be open.
        self._redis._reader = self._redis._writer = None
        if writer is None:
            return
        # Of Python 3.11.2, TLS that has ended already knows no protocol to abort: AttributeError.
        with contextlib.suppress(RuntimeError, AttributeError):
            writer.transport.abort()
        if self.loop.is_closed():
            # It can't close the socket any more.
            with contextlib.suppress(OSError, AttributeError):
                writer.get_extra_info("socket")._sock.close()


class AsyncNodeLink:
    """An AsyncLink to one server: a NodeLink for asyncio. May be used in one event loop after another."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._generation = 0
        self._idle: list[_Connection] = []
        self._parents: list[list[_Connection]] = []
        self._places: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        begins_anew(self)

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent: closing them here would take them out of its event loop."""
        self._parents.append(self._idle)
        self._idle, self._places = [], None

    async def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``NodeLink.exchange`` does."""
        return settled(await self.replies(commands, deadline=deadline))

    async def replies(self, commands: Sequence[Command], *, deadline: float | None = None) -> list[Any]:
        """Do what ``NodeLink.replies`` does."""
        if not commands:
            return []
        loop = asyncio.get_running_loop()
        if self.node.max_connections is None:
            return await self._replies(loop, commands, deadline)
        places = self._places_of(loop, self.node.max_connections)
        until = self.node.until(deadline, connecting=True)
        try:
            await asyncio.wait_for(places.acquire(), max(until - time.monotonic(), 0.0))
        except TimeoutError:
            raise all_in_use(self.node) from None
        try:
            return await self._replies(loop, commands, deadline)
        finally:
            places.release()

    def _places_of(self, loop: asyncio.AbstractEventLoop, limit: int) -> asyncio.Semaphore:
        if self._places is None or self._places[0] is not loop:
            self._places = loop, asyncio.Semaphore(limit)
        return self._places[1]

    async def _replies(
        self, loop: asyncio.AbstractEventLoop, commands: Sequence[Command], deadline: float | None
    ) -> list[Any]:
        connection = self._unused(loop)
        until = self.node.until(deadline, connecting=connection is None)
        doing = ["waiting for a reply"]
        try:
            async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
                if connection is None:
                    connection = await self._connected(loop, until, doing)
                    doing.append("waiting for a reply")
                replies = await connection.talk(commands)
        except BaseException as exc:
            # Replies may still be under way: nobody else may take them for theirs.
            if connection is not None:
                connection.close()
            if isinstance(exc, (OSError, redis.exceptions.RedisError)):
                answered = connection is not None and connection.answered
                raise self._failure(exc, doing[-1], answered=answered) from exc
            raise
        if connection.generation != self._generation or drops_connection(replies):
            connection.close()
        else:
            self._idle.append(connection)
        return replies

    def _unused(self, loop: asyncio.AbstractEventLoop) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.loop is loop and connection.idle():
                return connection
            connection.close()
        return None

    async def _connected(self, loop: asyncio.AbstractEventLoop, until: float, doing: list[str]) -> _Connection:
        node = self.node
        connection = _Connection(node, loop, self._generation)
        try:
            doing.append("connecting")
            connect_until = node.connect_until(until)
            addresses = await self._addresses(connect_until)
            async with asyncio.timeout_at(loop.time() + connect_until - time.monotonic()):
                reader, writer = await self._streams(loop, addresses, connect_until, doing)
        except (OSError, ValueError) as exc:
            raise self._failure(exc, doing[-1]) from exc
        doing.append("logging in")
        try:
            role = await connection.log_in(reader, writer, master_only=node.master_only)
            if node.master_only:
                node.check_role(role)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, (OSError, redis.exceptions.RedisError)):
                raise self._failure(exc, "logging in") from exc
            raise
        return connection

    async def _addresses(self, until: float) -> list[Address]:
        node = self.node
        if node.path:
            return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", node.path)]
        return await resolver.addresses_async(node.host, node.port, timeout_seconds=left(until))

    async def _streams(
        self, loop: asyncio.AbstractEventLoop, addresses: list[Address], until: float, doing: list[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        node = self.node
        failure: OSError = OSError("the name has no address")
        for number, (family, _, _, _, address) in enumerate(addresses):
            try:
                sock = await _connect(loop, family, address, share_of(until, len(addresses) - number))
                break
            except OSError as exc:
                failure = exc
        else:
            raise failure
        try:
            tls = None if node.tls is None else node.tls.context()
            if tls:
                doing.append(AGREEING_ON_TLS)
            return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=node.host if tls else None)
        except BaseException:
            sock.close()
            raise

    def _failure(self, exc: Exception, doing: str, *, answered: bool = False) -> redis.exceptions.RedisError:
        return self.node.failure(exc, doing, answered=answered)

    def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice. Raises what ``exchange`` raises."""
        return scan_keys(self, match, deadline)

    def disconnect(self) -> None:
        """Close the connections; those in use are closed after their reply. The next exchange makes a new one."""
        self._generation += 1
        while self._idle:
            self._idle.pop().close()

    async def aclose(self) -> None:
        """Close the connections."""
        self.disconnect()
        # A transport closes its socket in the next turn of the event loop.
        await asyncio.sleep(0)


class _Exchanges(Protocol):
    async def exchange(self, commands: Sequence[Command], *, deadline: float | None = None) -> list[Any]: ...


async def scan_keys(link: _Exchanges, match: str, deadline: float | None) -> AsyncIterator[bytes]:
    """Yield the keys of a glob pattern on one server; one may come twice. Raises what the exchange raises."""
    cursor = 0
    while True:
        (reply,) = await link.exchange([("SCAN", cursor, "MATCH", match, "COUNT", SCAN_COUNT)], deadline=deadline)
        cursor, keys = scanned(reply)
        for key in keys:
            yield key
        if cursor == 0:
            return


async def read_replies(connection: Any, count: int) -> list[Any]:
    """Return the next ``count`` replies of a redis-py connection, error replies as exceptions."""
    replies: list[Any] = []
    for _ in range(count):
        try:
            while is_push(reply := await connection.read_response()):
                pass
            replies.append(reply)
        except redis.exceptions.ResponseError as exc:
            replies.append(reply_error(exc))
    return replies


async def _connect(loop: asyncio.AbstractEventLoop, family: int, address: Any, until: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
            await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
