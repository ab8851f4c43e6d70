"""discovery: who serves now (a master's address, the slots of a cluster), found out in background threads.

Whoever is asked may be dead, hang, or be wrong: so all are asked at once, and a call waits only where nothing is known.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneInTime
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from x2gofleet.connection.forks import begins_anew

T = TypeVar("T")
Asked = TypeVar("Asked")
Address = tuple[str, int]

ASK_SECONDS = 0.4
WAIT_SECONDS = 0.5
_GRACE_SECONDS = 0.05
_GAP_SECONDS = 0.2
_RETRY_SECONDS = 0.5
_OLD_SECONDS = 5.0
_OLD_PATIENCE_SECONDS = 0.05
_HUNG_SECONDS = 3.0


def text_of(address: Address) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ask_all(
    asked: Iterable[Asked],
    ask: Callable[[Asked], T],
    *,
    seconds: float = ASK_SECONDS,
    grace_seconds: float = _GRACE_SECONDS,
) -> tuple[list[T], dict[Asked, Exception]]:
    """Ask all at once, a thread each; return the answers, first come first, and who failed and why.

    Waits for all, but no longer than ``seconds``, and ``grace_seconds`` after the first answer: one that is dead costs
    no more, and one that knows better is heard.
    """
    names = list(asked)
    said: SimpleQueue[tuple[Asked, T | Exception]] = SimpleQueue()

    def run(name: Asked) -> None:
        try:
            said.put((name, ask(name)))
        except Exception as exc:
            said.put((name, exc))

    for name in names:
        try:
            _start(run, name)
        except OSError as exc:
            said.put((name, exc))
    answers: list[T] = []
    failures: dict[Asked, Exception] = {}
    until = time.monotonic() + seconds
    while len(answers) + len(failures) < len(names):
        try:
            name, answer = said.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            break
        if isinstance(answer, Exception):
            failures[name] = answer
        else:
            answers.append(answer)
            until = min(until, time.monotonic() + grace_seconds)
    return answers, failures


def _start(run: Callable[..., None], *args: object) -> None:
    """Run something in a thread of its own. Raises OSError where this process may have no more threads."""
    try:
        threading.Thread(target=run, args=args, name="x2gofleet-discovery", daemon=True).start()
    except RuntimeError as exc:
        raise OSError(str(exc)) from exc


class _Search(Generic[T]):
    """One search in a thread of its own; its outcome is a value or the exception that ended it."""

    def __init__(self, find: Callable[[], T], ended: Callable[[_Search[T], T | Exception], None]) -> None:
        self.began = time.monotonic()
        self.outcome: Future[T | Exception] = Future()
        self._find, self._ended = find, ended
        try:
            _start(self._run)
        except OSError as exc:
            self.outcome.set_result(exc)

    def _run(self) -> None:
        outcome: T | Exception
        try:
            outcome = self._find()
        except Exception as exc:
            outcome = exc
        self._ended(self, outcome)
        self.outcome.set_result(outcome)

    def answer(self) -> T | None:
        """Return what was found; None where the search still runs. Raises what ended it."""
        if not self.outcome.done():
            return None
        outcome = self.outcome.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def wait(self, seconds: float) -> None:
        try:
            self.outcome.result(max(0.0, seconds))
        except NotDoneInTime:
            pass

    async def wait_async(self, seconds: float) -> None:
        await asyncio.wait([asyncio.wrap_future(self.outcome)], timeout=max(0.0, seconds))


class Discovery(Generic[T]):
    """Keeps an answer that background threads find and renew. Thread-safe; begins anew after a fork.

    While calls are made the answer is renewed each ``refresh_seconds``: a call is given the known one meanwhile.
    """

    def __init__(
        self,
        find: Callable[[], T],
        *,
        refresh_seconds: float,
        nothing_yet: Callable[[], Exception] = lambda: TimeoutError("nobody answered in time"),
    ) -> None:
        """Search with ``find``, which may raise; ``nothing_yet`` makes the error of a call that waited in vain."""
        self._find, self._refresh, self._nothing_yet = find, refresh_seconds, nothing_yet
        self._known: T | None = None
        self._found_at = 0.0
        self.after_fork()
        begins_anew(self)

    def after_fork(self) -> None:
        """Begin anew but for the answer: the thread that was searching is the parent's."""
        self._lock = threading.Lock()
        self._search: _Search[T] | None = None

    @property
    def known(self) -> T | None:
        """The last answer."""
        return self._known

    def renew(self) -> None:
        """Begin a search, unless one is under way or has just begun."""
        self._begin(_GAP_SECONDS)

    def get(self, deadline: float) -> T:
        """Return the answer; waits where there is none yet, to ``deadline`` (monotonic) at most.

        Raises what ended the search, or ``nothing_yet``.
        """
        search, patience = self._due(deadline)
        if search is not None and patience > 0:
            search.wait(patience)
        return self._answer(search)

    async def get_async(self, deadline: float) -> T:
        """Return what ``get`` does; the event loop goes on meanwhile."""
        search, patience = self._due(deadline)
        if search is not None and patience > 0:
            await search.wait_async(patience)
        return self._answer(search)

    def renewed(self, deadline: float) -> T:
        """Return what a search says that begins now, or the known answer where that takes too long or fails."""
        search = self._begin(0.0)
        search.wait(min(deadline - time.monotonic(), WAIT_SECONDS))
        return self._answer(search)

    async def renewed_async(self, deadline: float) -> T:
        """Return what ``renewed`` does; the event loop goes on meanwhile."""
        search = self._begin(0.0)
        await search.wait_async(min(deadline - time.monotonic(), WAIT_SECONDS))
        return self._answer(search)

    def _due(self, deadline: float) -> tuple[_Search[T] | None, float]:
        """Return the search that this call may wait for, and for how many seconds."""
        now = time.monotonic()
        age = now - self._found_at
        if self._known is not None and age < self._refresh:
            return None, 0.0
        before = self._search
        search = self._begin(_RETRY_SECONDS)
        if self._known is None:
            return search, min(deadline - now, WAIT_SECONDS)
        # Long unused, what is known may be wrong by now: worth the moment that a search takes, but only once.
        patience = _OLD_PATIENCE_SECONDS if age > self._refresh + _OLD_SECONDS and search is not before else 0.0
        return search, min(deadline - now, patience)

    def _answer(self, search: _Search[T] | None) -> T:
        known = self._known
        if known is not None:
            return known
        found = search.answer() if search is not None else None
        if found is None:
            raise self._nothing_yet()
        return found

    def _begin(self, gap_seconds: float) -> _Search[T]:
        """Return the search that runs, or the last one where it began within ``gap_seconds``; else a new one."""
        with self._lock:
            last = self._search
            if last is not None:
                age = time.monotonic() - last.began
                if age < (gap_seconds if last.outcome.done() else _HUNG_SECONDS):
                    return last
            self._search = _Search(self._find, self._ended)
            return self._search

    def _ended(self, search: _Search[T], outcome: T | Exception) -> None:
        if isinstance(outcome, Exception):
            return
        with self._lock:
            # Of two searches the one that began later knows better.
            if search.began >= self._found_at:
                self._known, self._found_at = outcome, search.began
