"""faults: what an exception of paramiko or of the operating system says, and whether it is this worker's own fault."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from x2gofleet.errors import WorkerExhausted
from x2gofleet.text import show

_MAX_CAUSES = 10
_NO_THREAD = "can't start new thread"


@dataclass(frozen=True, slots=True)
class _Resource:
    name: str
    remedy: str


_DESCRIPTORS = _Resource(
    "file descriptors", "raise its limit (LimitNOFILE= of the unit, ulimit -n), or run more workers"
)
_ALL_DESCRIPTORS = _Resource(
    "the file descriptors of its machine", "raise fs.file-max, or see which program has so many"
)
_THREADS = _Resource("threads", "raise its limit (TasksMax= of the unit, ulimit -u, pids.max), or run more workers")
_MEMORY = _Resource("memory", "give the machine more, or raise MemoryMax= of the unit")
_BY_ERRNO: Mapping[int | None, _Resource] = MappingProxyType(
    {
        errno.EMFILE: _DESCRIPTORS,
        errno.ENFILE: _ALL_DESCRIPTORS,
        errno.ENOMEM: _MEMORY,
        errno.ENOBUFS: _MEMORY,
    }
)


def describe(exc: BaseException) -> str:
    """Return what an exception says as one line of plain text; its class where it says nothing."""
    return show(str(exc)) or type(exc).__name__


def exhausted(exc: BaseException) -> WorkerExhausted | None:
    """Return the error for an exception that comes from a lack of this worker's own resources; None for others.

    Such a failure says nothing about the server that was to be polled.
    """
    for cause in _causes(exc):
        if isinstance(cause, WorkerExhausted):
            return cause
        resource = _resource(cause)
        if resource is not None:
            return WorkerExhausted(
                f"this worker ran out of {resource.name}; nothing is known of the server", mend=resource.remedy
            )
    return None


def _resource(exc: BaseException) -> _Resource | None:
    if isinstance(exc, MemoryError):
        return _MEMORY
    if isinstance(exc, RuntimeError) and _NO_THREAD in str(exc):
        return _THREADS
    return _BY_ERRNO.get(exc.errno) if isinstance(exc, OSError) else None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it came from: paramiko and getaddrinfo wrap what the system said."""
    cause: BaseException | None = exc
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__
