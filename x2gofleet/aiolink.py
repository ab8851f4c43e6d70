"""aiolink: what link.py does, for asyncio: nothing of it ever blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis

from x2gofleet.failures import LinkTimeout, link_failure
from x2gofleet.forks import begins_anew
from x2gofleet.node import SCAN_COUNT, Node, all_in_use, drops_connection, left, scanned, settled, share_of
from x2gofleet.resolving import resolver
from x2gofleet.resp import MISSING, Command, new_reader, pack


class _Connection(asyncio.Protocol):
    """One connection of one event loop; whoever gets an error from it, or is cancelled, closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, generation: int) -> None:
        self.loop, self.generation = loop, generation
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._count = 0
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is None:
            self._ended = True
            return
        try:
            self._reader.feed(data)
            while len(self._replies) < self._count:
                reply = self._reader.gets()
                if reply is MISSING:
                    return
                self._replies.append(reply)
        except redis.exceptions.InvalidResponse as exc:
            if not waiting.done():
                waiting.set_exception(exc)
            return
        self._waiting = None
        if not waiting.done():
            waiting.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(
                exc if isinstance(exc, OSError) else ConnectionResetError("the server ended the connection")
            )

    async def talk(self, packed: bytes, count: int) -> list[Any]:
        """Send, and wait for ``count`` replies. Raises OSError and InvalidResponse."""
        if self._transport is None or self._ended:
            raise ConnectionResetError("the server ended the connection")
        self._count, self._replies = count, []
        waiting: asyncio.Future[list[Any]] = self.loop.create_future()
        self._waiting = waiting
        self._transport.write(packed)
        return await waiting

    def idle(self) -> bool:
        """Whether nothing came since the last reply: neither the end of the connection nor what nobody asked for."""
        if self._ended or self._transport is None or self._transport.is_closing():
            return False
        return self._poll is None or not self._poll.poll(0)

    def close(self) -> None:
        """Close the connection at once; its loop may be closed already."""
        self._ended = True
        if self._transport is None:
            return
        if self.loop.is_closed():
            with contextlib.suppress(OSError, AttributeError):
                self._transport.get_extra_info("socket")._sock.close()
        else:
            with contextlib.suppress(RuntimeError):
                self._transport.abort()


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
        packed = pack(commands)
        loop = asyncio.get_running_loop()
        if self.node.max_connections is None:
            return await self._replies(loop, packed, len(commands), deadline)
        places = self._places_of(loop, self.node.max_connections)
        until = self.node.until(deadline, connecting=True)
        try:
            await asyncio.wait_for(places.acquire(), max(until - time.monotonic(), 0.0))
        except TimeoutError:
            raise all_in_use(self.node) from None
        try:
            return await self._replies(loop, packed, len(commands), deadline)
        finally:
            places.release()

    def _places_of(self, loop: asyncio.AbstractEventLoop, limit: int) -> asyncio.Semaphore:
        if self._places is None or self._places[0] is not loop:
            self._places = loop, asyncio.Semaphore(limit)
        return self._places[1]

    async def _replies(
        self, loop: asyncio.AbstractEventLoop, packed: bytes, count: int, deadline: float | None
    ) -> list[Any]:
        connection = self._unused(loop)
        until = self.node.until(deadline, connecting=connection is None)
        doing = "waiting for a reply"
        try:
            async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
                if connection is None:
                    doing = "connecting"
                    connection = await self._connected(loop, until)
                    doing = "waiting for a reply"
                replies = await connection.talk(packed, count)
        except BaseException as exc:
            # Replies may still be under way: nobody else may take them for theirs.
            if connection is not None:
                connection.close()
            if isinstance(exc, (OSError, redis.exceptions.InvalidResponse)):
                raise self._failure(exc, doing) from exc
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

    async def _connected(self, loop: asyncio.AbstractEventLoop, until: float) -> _Connection:
        greeting = self.node.greeting()
        connection = _Connection(loop, self._generation)
        try:
            connect_until = self.node.connect_until(until)
            async with asyncio.timeout_at(loop.time() + connect_until - time.monotonic()):
                await self._connect(loop, connection, connect_until)
        except (OSError, ValueError) as exc:
            connection.close()
            raise self._failure(exc, "connecting") from exc
        if greeting:
            try:
                self.node.greeted(await connection.talk(pack(greeting), len(greeting)))
            except BaseException as exc:
                connection.close()
                if isinstance(exc, asyncio.CancelledError) and time.monotonic() >= until:
                    raise LinkTimeout(f"{self.node.place}: no time was left while logging in") from exc
                if isinstance(exc, (OSError, redis.exceptions.InvalidResponse)):
                    raise self._failure(exc, "logging in") from exc
                raise
        return connection

    async def _connect(self, loop: asyncio.AbstractEventLoop, connection: _Connection, until: float) -> None:
        node = self.node
        if node.path:
            sock = await _connect(loop, socket.AF_UNIX, node.path, until)
        else:
            addresses = await resolver.addresses_async(node.host, node.port, timeout_seconds=left(until))
            failure: OSError = OSError("the name has no address")
            for number, (family, _, _, _, address) in enumerate(addresses):
                try:
                    sock = await _connect(loop, family, address, share_of(until, len(addresses) - number))
                    break
                except OSError as exc:
                    failure = exc
            else:
                raise failure
        tls = None if node.tls is None else node.tls.context()
        try:
            await loop.create_connection(
                lambda: connection, sock=sock, ssl=tls, server_hostname=node.host if tls else None
            )
        except BaseException:
            sock.close()
            raise

    def _failure(self, exc: Exception, doing: str) -> redis.exceptions.RedisError:
        return link_failure(exc, self.node.place, self.node.host, doing)

    async def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice. Raises what ``exchange`` raises."""
        cursor = 0
        while True:
            (reply,) = await self.exchange([("SCAN", cursor, "MATCH", match, "COUNT", SCAN_COUNT)], deadline=deadline)
            cursor, keys = scanned(reply)
            for key in keys:
                yield key
            if cursor == 0:
                return

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
