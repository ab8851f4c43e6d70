"""link: commands to one Redis server and their replies, over a pool of redis-py connections with hard deadlines.

redis-py's own timeouts hold for each read, so that a server that drips bytes is waited for without end: its connections
are given sockets here that know when to stop.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

import redis

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
from x2gofleet.connection.resolving import resolver
from x2gofleet.connection.tls import Tls

if TYPE_CHECKING:
    # What _Deadline stands before.
    _AnySocket = socket.socket
else:
    _AnySocket = object


class _Deadline(_AnySocket):
    """A socket that nobody waits for beyond ``until``, a value of time.monotonic."""

    until = 0.0

    def recv(self, *args: Any) -> bytes:
        self.settimeout(left(self.until))
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        self.settimeout(left(self.until))
        return super().recv_into(*args)

    def sendall(self, *args: Any) -> None:
        self.settimeout(left(self.until))
        super().sendall(*args)

    def quiet(self) -> bool:
        """Whether nothing came: neither bytes nor the end of the connection."""
        self.settimeout(0.0)
        try:
            super().recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False


class _Socket(_Deadline, socket.socket):
    """Without TLS."""


class _TlsSocket(_Deadline, ssl.SSLSocket):
    """With TLS."""

    def send(self, *args: Any, **more: Any) -> int:
        # What its sendall is made of; gevent's passes a time of its own.
        self.settimeout(left(self.until))
        return super().send(*args, **more)


class _Connection:
    """A connection of redis-py over a socket of ours; whoever gets an error from it closes it."""

    __slots__ = ("_redis", "_sock", "answered", "generation")

    def __init__(self, node: Node, generation: int) -> None:
        self.generation = generation
        self.answered = False
        self._sock: _Deadline | None = None
        self._redis: Any = redis.Connection(**node.connection_options())

    def log_in(self, sock: _Deadline, until: float, *, master_only: bool) -> Any:
        """Take over a connected socket: AUTH, SELECT; return the reply to ROLE where it is asked."""
        self._sock = self._redis._sock = sock
        sock.until = until
        with only_redis_errors():
            self._redis.on_connect()
            if not master_only:
                return None
            self._redis.send_command("ROLE", check_health=False)
            return self._redis.read_response()

    def send(self, commands: Sequence[Command], until: float) -> None:
        """Send. Raises redis-py's ConnectionError and TimeoutError."""
        assert self._sock is not None
        self._sock.until = until
        packed = self._redis.pack_commands(commands)
        self._redis.send_packed_command(packed if len(packed) == 1 else [b"".join(packed)], check_health=False)

    def receive(self, count: int, until: float) -> list[Any]:
        """Read ``count`` replies, error replies as exceptions. Raises redis-py's errors where there are no more."""
        assert self._sock is not None
        self._sock.until = until
        with only_redis_errors():
            replies = [read_reply(self._redis) for _ in range(count)]
        self.answered = True
        return replies

    def idle(self) -> bool:
        """Whether nothing came since the last reply: neither the end of the connection nor what nobody asked for."""
        return self._sock is not None and self._sock.quiet()

    def close(self) -> None:
        """Close the socket; in a forked child without a word to the server."""
        sock, self._sock, self._redis._sock = self._sock, None, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def __del__(self) -> None:
        self.close()


class Opened:
    """A connection of a NodeLink for one exchange: ``send``, then ``receive``, or else ``abandon``."""

    __slots__ = ("_connection", "_count", "_link", "_places", "_until")

    def __init__(
        self, link: NodeLink, connection: _Connection, until: float, places: threading.Semaphore | None
    ) -> None:
        self._link, self._connection, self._until, self._places = link, connection, until, places
        self._count = 0

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands in one piece. Raises what ``NodeLink.exchange`` raises."""
        try:
            self._connection.send(commands, self._until)
        except BaseException as exc:
            self._broken(exc)
            raise
        self._count = len(commands)

    def receive(self) -> list[Any]:
        """Return the replies, error replies as exceptions. Raises what ``NodeLink.exchange`` raises."""
        try:
            replies = self._connection.receive(self._count, self._until)
        except BaseException as exc:
            self._broken(exc)
            raise
        self._link.give_back(self._connection, replies)
        self._release()
        return replies

    def abandon(self) -> None:
        """Close the connection, as replies may be under way: nobody else may take them for theirs."""
        self._connection.close()
        self._release()

    def _broken(self, exc: BaseException) -> None:
        self.abandon()
        if isinstance(exc, (OSError, redis.exceptions.RedisError)):
            raise self._link.failure(exc, "waiting for a reply", answered=self._connection.answered) from exc

    def _release(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.release()


class NodeLink:
    """A Link to one server. Thread-safe; a forked child makes connections of its own."""

    one_clock = True

    def __init__(self, node: Node) -> None:
        self.node = node
        self._generation = 0
        self.after_fork()
        begins_anew(self)

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent."""
        self._idle: deque[_Connection] = deque()
        limit = self.node.max_connections
        self._places = threading.Semaphore(limit) if limit else None

    def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Send commands in one piece and return their undecoded replies: one round trip.

        ``deadline`` is a value of time.monotonic: nothing goes on beyond it. ``near`` is for a Cluster. Raises
        redis-py's errors: the first one among the replies after all were read, or a ConnectionError or TimeoutError.
        """
        return settled(self.replies(commands, deadline=deadline))

    def replies(self, commands: Sequence[Command], *, deadline: float | None = None) -> list[Any]:
        """Return what ``exchange`` does, with error replies as exceptions in the list."""
        if not commands:
            return []
        opened = self.open(deadline=deadline)
        opened.send(commands)
        return opened.receive()

    def open(self, *, deadline: float | None = None) -> Opened:
        """Return a connection to talk over once, for who talks to several servers at a time."""
        places = self._places
        if places is not None:
            until = self.node.until(deadline, connecting=True)
            if not places.acquire(timeout=max(until - monotonic(), 0.0)):
                raise all_in_use(self.node)
        try:
            connection = self._unused()
            until = self.node.until(deadline, connecting=connection is None)
            if connection is None:
                connection = self._connected(until)
        except BaseException:
            if places is not None:
                places.release()
            raise
        return Opened(self, connection, until, places)

    def give_back(self, connection: _Connection, replies: list[Any]) -> None:
        """Keep a connection that is not in use any more for the next exchange, unless it had better be closed."""
        if connection.generation != self._generation or drops_connection(replies):
            connection.close()
        else:
            self._idle.append(connection)

    def _unused(self) -> _Connection | None:
        idle = self._idle
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.idle():
                return connection
            connection.close()

    def _connected(self, until: float) -> _Connection:
        node = self.node
        connection = _Connection(node, self._generation)
        connect_until = node.connect_until(until)
        doing = "connecting"
        try:
            sock = self._socket(connect_until)
            if node.tls is not None:
                doing = AGREEING_ON_TLS
                sock = self._with_tls(sock, node.tls, connect_until)
        except (OSError, ValueError) as exc:
            raise self.failure(exc, doing) from exc
        try:
            role = connection.log_in(sock, until, master_only=node.master_only)
            if node.master_only:
                node.check_role(role)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, (OSError, redis.exceptions.RedisError)):
                raise self.failure(exc, "logging in") from exc
            raise
        return connection

    def _socket(self, until: float) -> _Deadline:
        node = self.node
        if node.path:
            return _connect(socket.AF_UNIX, node.path, until)
        addresses = resolver.addresses(node.host, node.port, timeout_seconds=left(until))
        failure: OSError = OSError("the name has no address")
        for number, (family, _, _, _, address) in enumerate(addresses):
            try:
                return _connect(family, address, share_of(until, len(addresses) - number))
            except OSError as exc:
                failure = exc
        raise failure

    def _with_tls(self, sock: _Deadline, tls: Tls, until: float) -> _Deadline:
        try:
            context = tls.context()
            context.sslsocket_class = _TlsSocket
            sock.settimeout(left(until))
            return cast(_TlsSocket, context.wrap_socket(sock, server_hostname=self.node.host))
        except BaseException:
            sock.close()
            raise

    def failure(self, exc: Exception, doing: str, *, answered: bool = False) -> redis.exceptions.RedisError:
        """Return what an exchange raises for an error met while ``doing``; the connection may have answered before."""
        return self.node.failure(exc, doing, answered=answered)

    def scan(self, match: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice. Raises what ``exchange`` raises."""
        return scan_keys(self, match, deadline)

    def disconnect(self) -> None:
        """Close the connections; those in use are closed after their reply. The next exchange makes a new one."""
        self._generation += 1
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Close the connections."""
        self.disconnect()


class _Exchanges(Protocol):
    def exchange(self, commands: Sequence[Command], *, deadline: float | None = None) -> list[Any]: ...


def scan_keys(link: _Exchanges, match: str, deadline: float | None) -> Iterator[bytes]:
    """Yield the keys of a glob pattern on one server; one may come twice. Raises what the exchange raises."""
    cursor = 0
    while True:
        (reply,) = link.exchange([("SCAN", cursor, "MATCH", match, "COUNT", SCAN_COUNT)], deadline=deadline)
        cursor, keys = scanned(reply)
        yield from keys
        if cursor == 0:
            return


def read_reply(connection: Any) -> Any:
    """Return the next reply of a redis-py connection, an error reply as an exception."""
    try:
        while is_push(reply := connection.read_response()):
            pass
        return reply
    except redis.exceptions.ResponseError as exc:
        return reply_error(exc)


def _connect(family: int, address: Any, until: float) -> _Socket:
    sock = _Socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.settimeout(left(until))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
