"""connection: a Redis URL -> a redis-py client with every timeout and retry set explicitly.

redis-py's own defaults retry for seconds; a login must not wait for that. Host names are resolved in a thread of
their own, because getaddrinfo has no timeout.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from x2gofleet.errors import CacheUnavailable

DEFAULT_URL = "redis://127.0.0.1:6379/0"
CONNECT_TIMEOUT_SECONDS = 0.25
COMMAND_TIMEOUT_SECONDS = 0.5
_RESOLVED_FOR_SECONDS = 30.0
_HAS_DRIVER_INFO = "driver_info" in inspect.signature(redis.Redis.__init__).parameters

_URL_OPTIONS = {"db", "username", "password"}
_PASSWORD_OPTION = re.compile(r"(?<=[?&]password=)[^&#]*", re.IGNORECASE)

_Addresses = list[tuple[Any, ...]]


def url_from_environment() -> str:
    """Return X2GOFLEET_REDIS_URL, or the default URL on loopback."""
    return os.environ.get("X2GOFLEET_REDIS_URL") or DEFAULT_URL


def redact_url(url: str) -> str:
    """Return ``url`` without its password, for messages."""
    url = _PASSWORD_OPTION.sub("***", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//.*@", "//***@", url)
    if parts.password is None:
        return url
    name = f"{parts.username}:***@" if parts.username else ":***@"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, name + host, parts.path, parts.query, parts.fragment))


class Resolver:
    """Resolves names in background threads; a caller waits a bounded time, and only for a first answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], tuple[float, _Addresses]] = {}
        self._running: dict[tuple[str, int], threading.Event] = {}

    def addresses(self, host: str, port: int, *, timeout_seconds: float) -> _Addresses:
        """Return what getaddrinfo gives for ``host``; the last known answer while a newer one is fetched.

        Raises OSError when there is no answer within ``timeout_seconds``.
        """
        key = (host, port)
        with self._lock:
            known = self._known.get(key)
            if known and time.monotonic() - known[0] < _RESOLVED_FOR_SECONDS:
                return known[1]
            done = self._running.get(key)
            if done is None:
                done = self._running[key] = threading.Event()
                threading.Thread(target=self._resolve, args=(key, done), name="x2gofleet-resolver", daemon=True).start()
        if known:
            return known[1]
        done.wait(timeout_seconds)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            raise OSError(f"the name {host!r} could not be resolved within {timeout_seconds:g} s")
        return known[1]

    def _resolve(self, key: tuple[str, int], done: threading.Event) -> None:
        try:
            found: _Addresses = list(socket.getaddrinfo(*key, type=socket.SOCK_STREAM))
            with self._lock:
                self._known[key] = (time.monotonic(), found)
        except (OSError, UnicodeError):
            # UnicodeError: what is no host name at all, such as a label of 64 letters.
            pass
        finally:
            with self._lock:
                self._running.pop(key, None)
            done.set()


_resolver = Resolver()


class ResolvedConnection(Connection):
    """A TCP connection whose host name is resolved off the caller's path."""

    def _connect(self) -> socket.socket:
        timeout = self.socket_connect_timeout or CONNECT_TIMEOUT_SECONDS
        deadline = time.monotonic() + timeout
        failure: OSError = OSError(f"the name {self.host!r} has no address")
        for family, kind, protocol, _, address in _resolver.addresses(
            self.host, int(self.port), timeout_seconds=timeout
        ):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.settimeout(left)
                sock.connect(address)
                sock.settimeout(self.socket_timeout)
            except OSError as exc:
                sock.close()
                failure = exc
                continue
            return sock
        raise failure


def _is_understood(url: str) -> bool:
    """Whether redis-py would take ``url`` as it is meant: it ignores a database that is no number, and lets options
    in a URL replace timeouts and the decoding of replies."""
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _ = parts.port
    except ValueError:
        return False
    path = parts.path.removeprefix("/")
    database = options["db"][-1] if "db" in options else path if parts.scheme == "redis" else ""
    return (
        (parts.scheme == "redis" or (parts.scheme == "unix" and path != ""))
        and options.keys() <= _URL_OPTIONS
        and re.fullmatch(r"[0-9]*", database) is not None
    )


def client_from_url(
    url: str,
    *,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    max_connections: int | None = None,
) -> redis.Redis:
    """Return a redis-py client for ``redis://host:port/db`` or ``unix:///path?db=0``; nothing is sent yet.

    Raises ValueError for a URL of another form.
    """
    if not _is_understood(url):
        raise ValueError(
            f"{redact_url(url)!r} is no Redis URL of this version: use redis://HOST:PORT/DB or unix:///PATH?db=DB"
        )
    options: dict[str, Any] = {
        "socket_timeout": command_timeout_seconds,
        "socket_connect_timeout": connect_timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
        # No CLIENT SETINFO: it costs a round trip each at the first call of a login.
        **({"driver_info": None} if _HAS_DRIVER_INFO else {"lib_name": None, "lib_version": None}),
    }
    if max_connections is not None:
        options["max_connections"] = max_connections
    if urlsplit(url).scheme == "redis":
        options["connection_class"] = ResolvedConnection
    pool = redis.ConnectionPool.from_url(url, **options)
    return redis.Redis(connection_pool=pool)


def exchange(client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands in one piece and return their undecoded replies: one round trip.

    Half the cost of a redis-py pipeline of a few commands. Raises the first error among the replies, after all of them
    were read.
    """
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        failure: redis.exceptions.ResponseError | None = None
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.exceptions.ResponseError as exc:
                failure = failure or exc
    except BaseException:
        # Replies may still be under way: nobody else may take them for theirs.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
    if failure is not None:
        raise failure
    return replies


def unavailable(exc: Exception, what: str) -> CacheUnavailable:
    """Return the CacheUnavailable for a redis-py error met while doing ``what``."""
    text = str(exc) or type(exc).__name__
    if isinstance(exc, redis.exceptions.BusyLoadingError):
        text = f"Redis is still loading its data set: {text}"
    elif isinstance(exc, redis.exceptions.ReadOnlyError):
        text = f"Redis refuses writes: {text}"
    elif isinstance(exc, redis.exceptions.OutOfMemoryError):
        text = f"Redis is at its maxmemory: {text}"
    elif isinstance(exc, redis.exceptions.NoPermissionError):
        text = f"the Redis user lacks a right: {text}"
    elif isinstance(exc, redis.exceptions.TimeoutError):
        text = f"Redis did not answer in time: {text}"
    return CacheUnavailable(f"{what}: {text}")


class Breaker:
    """After a failure, refuses calls at once for a while, but lets one trial through per period.

    A broker that asks during an outage must not wait for a timeout at each call.
    """

    def __init__(self, *, open_seconds: float = 1.0, clock: Any = time.monotonic) -> None:
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until: float | None = None
        self._reason = ""

    def check(self) -> None:
        """Return if a call may be made; raise CacheUnavailable if the last one failed a moment ago."""
        if self._open_until is None:
            return
        with self._lock:
            now = self._clock()
            if now < (self._open_until or 0.0):
                raise CacheUnavailable(f"{self._reason} (not tried again for {self._open_seconds:g} s)")
            self._open_until = now + self._open_seconds

    def failed(self, reason: str) -> None:
        """Record that a call failed."""
        with self._lock:
            self._open_until = self._clock() + self._open_seconds
            self._reason = reason

    def succeeded(self) -> None:
        """Record that a call was answered."""
        if self._open_until is not None:
            with self._lock:
                self._open_until = None
