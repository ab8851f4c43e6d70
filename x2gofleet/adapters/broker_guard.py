"""broker_guard: every call that x2gobroker makes into the adapter ends in a way that x2gobroker can go on from.

The exceptions of x2gobroker derive from BaseException. Tornado replies to a client when a request fails with an
Exception, and not otherwise: an exception of x2gobroker that nobody catches leaves the client without a reply.
``Guard.wrap`` is the one place that turns a failure into what x2gobroker's own function gives for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from x2gofleet.adapters.live_agent import AgentError, described
from x2gofleet.text import clean, shortened

ENDS: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
"""How a program, a generator or a task ends: no failure of a call."""

_LONGEST_REASON = 300


class RequestFailed(Exception):
    """x2gobroker could not answer a request, for a reason that Tornado does not know: the client gets HTTP 500."""


@dataclass(frozen=True, slots=True)
class OnFailure:
    """What x2gobroker is given for a call that failed: an answer, or an exception that it or Tornado handles.

    ``answer`` is called with the arguments of the call, ``error`` with the reason. Exceptions of the types in
    ``passes`` are raised as they are.
    """

    answer: Callable[..., Any] | None = None
    error: Callable[[str], BaseException] = RequestFailed
    passes: tuple[type[BaseException], ...] = ()


def give(make: Callable[[], Any], *, passes: tuple[type[BaseException], ...] = ()) -> OnFailure:
    """Give a new ``make()`` for each call that failed."""
    return OnFailure(lambda *_, **__: make(), passes=passes)


AS_IT_IS = OnFailure(passes=(BaseException,))
"""For x2gobroker's reading of its own files, whose exceptions are part of what it reads."""


class Guard:
    """Wraps what is put in the place of x2gobroker's functions; logs every failure that it handles."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def wrap(self, name: str, function: Callable[..., Any], failure: OnFailure) -> Callable[..., Any]:
        """Return ``function`` with its failures handled as ``failure`` says."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (*ENDS, *failure.passes):
                raise
            except BaseException as exc:
                reason = reason_of(exc)
                # What no agent did is a fault of this program, or of another plug-in of x2gobroker.
                self._logger.error("x2gofleet: %s: %s", name, reason, exc_info=_traceback(exc))
                if failure.answer is None:
                    raise failure.error(reason) from exc
                return failure.answer(*args, **kwargs)

        return guarded


def reason_of(exc: BaseException) -> str:
    """Return one line, of bounded length, that says what failed."""
    return shortened(clean(described(exc)), _LONGEST_REASON)


def _traceback(exc: BaseException) -> BaseException | None:
    return None if isinstance(exc, AgentError) or not isinstance(exc, Exception) else exc
