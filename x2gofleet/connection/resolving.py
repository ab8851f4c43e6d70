"""resolving: host names -> addresses, in threads of their own, because getaddrinfo has no timeout."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from x2gofleet.connection.forks import begins_anew

_RESOLVED_FOR_SECONDS = 30.0

Address = tuple[Any, ...]


class NameNotResolved(OSError):
    """A host name has no address, or none was found in time."""


class _Question:
    """One running getaddrinfo, and who waits for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.failure: Exception | None = None
        self.waiting: list[Callable[[], None]] = []


def _literal(host: str, port: int) -> Address | None:
    for family, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, *rest)
    return None


class Resolver:
    """Resolves names in background threads; a caller waits a bounded time, and only for a first answer."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Address]]] = {}
        self.after_fork()
        begins_anew(self)

    def after_fork(self) -> None:
        """Begin anew but for the answers: the threads that were asking are the parent's."""
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Question] = {}

    def addresses(self, host: str, port: int, *, timeout_seconds: float) -> list[Address]:
        """Return what getaddrinfo gives for ``host``; the last known answer while a newer one is fetched.

        Raises NameNotResolved when there is no answer within ``timeout_seconds``.
        """
        known, question = self._look_up(host, port)
        if known is not None:
            return known
        question.done.wait(max(timeout_seconds, 0.0))
        return self._found(host, port, question, timeout_seconds)

    async def addresses_async(self, host: str, port: int, *, timeout_seconds: float) -> list[Address]:
        """Return what ``addresses`` does; the event loop goes on meanwhile."""
        known, question = self._look_up(host, port)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def answer() -> None:
            if not answered.done():
                answered.set_result(None)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(answer)
            except RuntimeError:
                # The loop was closed meanwhile: nobody waits.
                pass

        with self._lock:
            if question.done.is_set():
                answered.set_result(None)
            else:
                question.waiting.append(wake)
        try:
            await asyncio.wait_for(answered, max(timeout_seconds, 0.0))
        except TimeoutError:
            pass
        finally:
            with self._lock:
                if wake in question.waiting:
                    question.waiting.remove(wake)
        return self._found(host, port, question, timeout_seconds)

    def _look_up(self, host: str, port: int) -> tuple[list[Address] | None, _Question]:
        literal = _literal(host, port)
        if literal is not None:
            return [literal], _Question()
        key = (host, port)
        with self._lock:
            known = self._known.get(key)
            question = self._running.get(key)
            if known and time.monotonic() - known[0] < _RESOLVED_FOR_SECONDS:
                return known[1], question or _Question()
            if question is None:
                question = self._begin(key)
        return (known[1] if known else None), question

    def _begin(self, key: tuple[str, int]) -> _Question:
        question = self._running[key] = _Question()
        try:
            threading.Thread(target=self._resolve, args=(key, question), name="x2gofleet-resolver", daemon=True).start()
        except RuntimeError as exc:
            # This process may have no more threads.
            del self._running[key]
            question.failure = exc
            question.done.set()
        return question

    def _found(self, host: str, port: int, question: _Question, timeout_seconds: float) -> list[Address]:
        with self._lock:
            known = self._known.get((host, port))
        if known is not None:
            return known[1]
        failure = question.failure
        text = getattr(failure, "strerror", None) or str(failure)
        why = f": {text}" if failure is not None else f" within {max(timeout_seconds, 0.0):.2g} s"
        raise NameNotResolved(f"the name {host!r} could not be resolved{why}") from failure

    def _resolve(self, key: tuple[str, int], question: _Question) -> None:
        try:
            found: list[Address] = list(socket.getaddrinfo(*key, type=socket.SOCK_STREAM))
            with self._lock:
                self._known[key] = (time.monotonic(), found)
        except (OSError, UnicodeError) as exc:
            # UnicodeError: for what cannot be a host name, such as a label of 64 letters.
            question.failure = exc
        finally:
            with self._lock:
                self._running.pop(key, None)
                question.done.set()
                waiting, question.waiting = question.waiting, []
            for wake in waiting:
                wake()


resolver = Resolver()
