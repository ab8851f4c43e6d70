"""failures: what went wrong with Redis, told apart: a redis-py error -> CacheUnavailable; and the circuit breaker."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis

from x2gofleet.connection.forks import begins_anew
from x2gofleet.connection.resolving import NameNotResolved
from x2gofleet.connection.tls import tls_failure
from x2gofleet.errors import CacheUnavailable, Unavailable


class LinkFailed(redis.exceptions.ConnectionError):
    """No reply came, and ``reason`` says why: the server could not be reached, or ended the connection.

    ``unsent`` tells that no command had been sent yet: another server may be asked instead.
    """

    unsent = False

    def __init__(self, text: str, reason: Unavailable = Unavailable.UNREACHABLE) -> None:
        super().__init__(text)
        self.reason = reason


class LinkTimeout(redis.exceptions.TimeoutError):
    """No reply came in time; ``unsent`` as in LinkFailed."""

    unsent = False


class WrongKeyType(redis.exceptions.ResponseError):
    """Some commands met keys that hold another type of value; ``replies`` are all replies, errors in their places."""

    def __init__(self, text: str, replies: list[Any]) -> None:
        super().__init__(text)
        self.replies = replies


def is_wrong_type(reply: object) -> bool:
    """Whether a reply says that a key holds another type of value than its command is for."""
    return isinstance(reply, redis.exceptions.ResponseError) and str(reply).startswith("WRONGTYPE")


@contextlib.contextmanager
def only_redis_errors() -> Iterator[None]:
    """Raise InvalidResponse for what is neither redis-py's nor an OSError: its parsers raise anything for odd bytes."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError):
        raise
    except Exception as exc:
        raise redis.exceptions.InvalidResponse(f"{type(exc).__name__} while a reply was read") from exc


# What a reply says of the server it comes from: another one may be asked, or this one again over a new connection.
DROPS_CONNECTION = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ConnectionError,
    redis.exceptions.MasterDownError,
)

_LACKS_RIGHT = (
    "the Redis user lacks a right: lookups need the role reader, refreshes, registrations and placement the role "
    "broker, workers the role worker; x2gofleet acl prints the rules of each"
)
# What servers say where a command of a script meets NOPERM: the newer ones, then Redis 6.2 and 7.0.
_SCRIPT_LACKS_RIGHT = ("ACL failure in script", "The user executing the script can't")
_REASONS: tuple[tuple[type[Exception], Unavailable, str], ...] = (
    (redis.exceptions.BusyLoadingError, Unavailable.LOADING, "Redis is still loading its data set"),
    (redis.exceptions.ReadOnlyError, Unavailable.READ_ONLY, "Redis refuses writes"),
    (redis.exceptions.OutOfMemoryError, Unavailable.OUT_OF_MEMORY, "Redis is at its maxmemory"),
    (redis.exceptions.NoPermissionError, Unavailable.NO_PERMISSION, _LACKS_RIGHT),
    (
        redis.exceptions.AuthenticationError,
        Unavailable.AUTHENTICATION,
        "Redis refuses the user name or password, or wants one (in the URL, X2GOFLEET_REDIS_PASSWORD_FILE or "
        "X2GOFLEET_REDIS_PASSWORD)",
    ),
    (redis.exceptions.MasterDownError, Unavailable.NO_MASTER, "a replica of Redis has lost its master"),
    (redis.sentinel.MasterNotFoundError, Unavailable.NO_MASTER, "the sentinels know no master"),
    (redis.exceptions.AskError, Unavailable.MOVED, "this Redis is a Cluster, use redis+cluster://"),
    (redis.exceptions.ClusterCrossSlotError, Unavailable.MOVED, "this Redis is a Cluster, use redis+cluster://"),
    (redis.exceptions.TryAgainError, Unavailable.MOVED, "the Redis Cluster is moving these keys"),
    (redis.exceptions.ClusterDownError, Unavailable.CLUSTER_DOWN, "the Redis Cluster is down"),
    (redis.exceptions.TimeoutError, Unavailable.TIMEOUT, "Redis did not answer in time"),
    (TimeoutError, Unavailable.TIMEOUT, "Redis did not answer in time"),
    (NameNotResolved, Unavailable.NAME, ""),
    (ssl.SSLError, Unavailable.TLS, ""),
    (redis.exceptions.InvalidResponse, Unavailable.OTHER, "what answers there is no Redis"),
    (redis.exceptions.ConnectionError, Unavailable.UNREACHABLE, ""),
    (OSError, Unavailable.UNREACHABLE, ""),
)
AGREEING_ON_TLS = "agreeing on TLS"
CONNECTING = ("connecting", AGREEING_ON_TLS, "logging in")
_NO_TLS_PORT = "give the TLS port of Redis, or redis:// where there is none"
_A_TLS_PORT = "if that is its TLS port, use rediss://"
_REFUSES_WRITES = ("MISCONF", "NOREPLICAS")


def unavailable(exc: Exception, what: str) -> CacheUnavailable:
    """Return the CacheUnavailable for a redis-py error met while doing ``what``."""
    text = str(exc) or type(exc).__name__
    if isinstance(exc, LinkFailed):
        return CacheUnavailable(f"{what}: {text}", exc.reason)
    if text.startswith(_REFUSES_WRITES):
        return CacheUnavailable(f"{what}: Redis refuses writes: {text}", Unavailable.READ_ONLY)
    if any(words in text for words in _SCRIPT_LACKS_RIGHT):
        return CacheUnavailable(f"{what}: {_LACKS_RIGHT}: {text}", Unavailable.NO_PERMISSION)
    for kind, reason, said in _REASONS:
        if isinstance(exc, kind):
            return CacheUnavailable(f"{what}: {said}: {text}" if said else f"{what}: {text}", reason)
    return CacheUnavailable(f"{what}: {text}", Unavailable.OTHER)


def opens_breaker(exc: Exception) -> bool:
    """Whether an error is no proof that the server answers this client: then the next calls needn't try at once."""
    return isinstance(exc, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError))


_CODES: dict[str, type[redis.exceptions.ResponseError]] = {
    "ASK": redis.exceptions.AskError,
    "CLUSTERDOWN": redis.exceptions.ClusterDownError,
    "CROSSSLOT": redis.exceptions.ClusterCrossSlotError,
    "MASTERDOWN": redis.exceptions.MasterDownError,
    "MOVED": redis.exceptions.MovedError,
    "TRYAGAIN": redis.exceptions.TryAgainError,
}


def reply_error(exc: redis.exceptions.ResponseError) -> redis.exceptions.ResponseError:
    """Return an error reply as the exception that it is in a Cluster: redis-py's plain parser leaves these as text."""
    code, _, rest = str(exc).partition(" ")
    kind = _CODES.get(code) if type(exc) is redis.exceptions.ResponseError else None
    return exc if kind is None else kind(rest)


def is_unsent(exc: BaseException) -> bool:
    """Whether an exchange failed before any command was sent."""
    return isinstance(exc, (LinkFailed, LinkTimeout)) and exc.unsent


def link_failure(
    exc: Exception, place: str, host: str, doing: str, *, may_be_tls: bool = False
) -> redis.exceptions.RedisError:
    """Return what an exchange raises for an error of the socket or of TLS met while ``doing`` ("connecting").

    ``place`` is where Redis is, as people write it; ``host`` the name that its certificate must have. ``may_be_tls``
    tells that a connection without TLS has answered nothing yet.
    """
    failure = _link_failure(exc, place, host, doing)
    if may_be_tls and doing != "connecting" and isinstance(failure, LinkFailed) and failure is not exc:
        failure = LinkFailed(f"{failure}; {_A_TLS_PORT}", failure.reason)
    if isinstance(failure, (LinkFailed, LinkTimeout)) and doing in CONNECTING:
        failure.unsent = True
    return failure


def _link_failure(exc: BaseException, place: str, host: str, doing: str) -> redis.exceptions.RedisError:
    if type(exc) in (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        # What redis-py makes of an error of the socket; an error reply is of a kind of its own.
        if isinstance(exc.__context__, OSError):
            return _link_failure(exc.__context__, place, host, doing)
        if "max number of clients" not in str(exc):
            return LinkFailed(f"{place} ended the connection while {doing}")
    if isinstance(exc, redis.exceptions.RedisError):
        return exc
    if isinstance(exc, NameNotResolved):
        return LinkFailed(str(exc), Unavailable.NAME)
    if isinstance(exc, TimeoutError) and doing == AGREEING_ON_TLS:
        return LinkTimeout(f"{place}: no time was left while {doing}; if it is no TLS port, {_NO_TLS_PORT}")
    if isinstance(exc, TimeoutError):
        return LinkTimeout(f"{place}: no time was left while {doing}")
    if isinstance(exc, ssl.SSLEOFError):
        return LinkFailed(f"{place} ended the connection while {doing}", Unavailable.UNREACHABLE)
    if isinstance(exc, ssl.SSLError):
        return LinkFailed(tls_failure(exc, place, host), Unavailable.TLS)
    if isinstance(exc, OSError):
        # asyncio words errors of connecting its own way.
        said = os.strerror(exc.errno) if exc.errno else str(exc)
        return LinkFailed(f"{place}: {said} while {doing}")
    return LinkFailed(f"{place}: {exc} while {doing}", Unavailable.OTHER)


class Breaker:
    """After a failure, refuses calls at once for a while, but lets one trial through per period.

    A broker that asks during an outage must not wait for a timeout at each call.
    """

    def __init__(self, *, open_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_seconds = open_seconds
        self._clock = clock
        self._open_until: float | None = None
        self._reason = ""
        self.after_fork()
        begins_anew(self)

    def after_fork(self) -> None:
        """Forget the parent's lock, which another thread may have held."""
        self._lock = threading.Lock()

    def check(self) -> None:
        """Return if a call may be made; raise CacheUnavailable if the last one failed a moment ago."""
        if self._open_until is None:
            return
        with self._lock:
            now = self._clock()
            if now < (self._open_until or 0.0):
                raise CacheUnavailable(
                    f"{self._reason} (not tried again for {self._open_seconds:g} s)", Unavailable.BREAKER
                )
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
