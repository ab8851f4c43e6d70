"""mirror: the fleet in this process: a feed follows the workers' hints, and lookups are answered without Redis.

What is held are the replies that Redis gave; a question is driven with these as it is with those of Redis, so that an
answer can't differ but by being up to ALIVE_SECONDS older. Only what is surely known is answered: a snapshot is held
for as long as Redis would keep it, on the monotonic clock of this process, and everything else goes to Redis.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from weakref import ref

import redis

from x2gofleet.connection import Breaker, Link, WrongKeyType, link_from_url, opens_breaker, unavailable
from x2gofleet.connection.forks import begins_anew
from x2gofleet.errors import CacheUnavailable, FleetError, SnapshotCorrupt, Unavailable
from x2gofleet.fleet import PublishedFleet
from x2gofleet.held import (
    ANSWERS_KEPT,
    NOTHING_KNOWN,
    Answers,
    Entry,
    Generation,
    RememberingQuestions,
    confirmed,
    entry_of,
    is_of,
    without,
)
from x2gofleet.hints import Hint, decode_field
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.lookup import Lookups, Query
from x2gofleet.questions import Questions
from x2gofleet.redis_values import Command, checked, fields_of, time_ms, usable

T = TypeVar("T")

RESYNC_SECONDS = 2.0
ALIVE_SECONDS = 3.0
BLOCK_SECONDS = 0.5
BRIDGE_SECONDS = 0.2
ROUND_SECONDS = 2.0
REGISTERED_SECONDS = 5.0
COMMAND_SECONDS = BLOCK_SECONDS + 0.5
CLOSE_SECONDS = 3.0

_TRY_AGAIN_SECONDS = 0.25
_FETCHED_AT_ONCE = 200
_CHANGES_AT_ONCE = 1000
_NAMES_KEPT = 100_000
_SNAPSHOT_ENDS = tuple(f"}}:{kind.value}" for kind in Kind)
# Ages are what counts: the clock that answers are made with stands still.
_NOW_MS = 1 << 41
_TIME = [_NOW_MS // 1000, _NOW_MS % 1000 * 1000]

log = logging.getLogger(__name__)


class _Unknown(Exception):
    """A question goes beyond what is held."""


class NoMirror:
    """What a cache without a mirror has for one: it knows nothing."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.now = NOTHING_KNOWN

    def answer(
        self, method: str, arguments: Any, ask: Callable[[Questions], Query[T]], *, bridging: bool = False
    ) -> T | None:
        """Return None."""
        return None

    def watched(self, query: Query[T]) -> Query[T]:
        """Return the query."""
        return query

    def forget(self, profile_name: str | None = None) -> None:
        """Hold nothing, as before."""

    def resync(self) -> None:
        """Return at once."""

    def close(self) -> None:
        """Return at once."""


@dataclass(frozen=True, slots=True)
class _Name:
    """What a field of the hints is about."""

    target: str
    kind: Kind
    key: str


@dataclass(slots=True)
class _Fetch:
    """What an exchange is to bring: snapshots, with the hint of each where there is one, and states."""

    snapshots: dict[_Name, Hint | None] = field(default_factory=dict)
    states: list[Command] = field(default_factory=list)


class Mirror:
    """Holds the fleet, or some profiles of it. Thread-safe; a forked child begins with an empty one.

    The feed is a daemon thread. It begins at the first lookup, and ends with ``close``, or when nobody uses this any
    more. ``now`` is the generation that hot paths look at.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        profiles: Collection[str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow the fleet over ``link``, which nobody else uses and whose command timeout is COMMAND_SECONDS at least.

        ``profiles`` are names; None is the whole fleet. Raises ValueError for what are no names.
        """
        if profiles is not None and not _are_names(profiles):
            raise ValueError(f"give True, False or a collection of profile names for a mirror, not {profiles!r}")
        self.breaker = Breaker()
        self._link, self._keys, self._monotonic = link, keys, monotonic
        self._profiles = None if profiles is None else frozenset(profiles)
        self._uuids = keys.uuid("")
        self._targets, self._version = f"{keys.namespace}:{{", ("HGET", keys.fleet(), "version")
        self._closed = False
        self.after_fork()
        begins_anew(self)

    def after_fork(self) -> None:
        """Know nothing, and have no feed: it was a thread of the parent."""
        self.now = NOTHING_KNOWN
        self._feed: _Feed | None = None
        # Exchanges are one at a time, in the order in which what they bring is taken over.
        self._exchanging = threading.Lock()
        # Held for moments only.
        self._changing = threading.Lock()
        self._seen: dict[bytes, bytes] = {}
        self._names: dict[bytes, _Name | None] = {}
        self._forgotten: set[frozenset[str] | None] = set()
        self._registered: dict[str, tuple[float, Any]] = {}
        self._unregistered_at = -math.inf
        self._position = b"0-0"
        self._synced_at = -math.inf
        self._told = ""

    # What callers ask.

    def answer(
        self, method: str, arguments: Any, ask: Callable[[Questions], Query[T]], *, bridging: bool = False
    ) -> T | None:
        """Return the answer to a question, where it is surely known and neither None nor False; else None.

        ``method`` names the Generation's answers that it is kept in, by ``arguments``. ``bridging`` is for when Redis
        can't be asked: then an answer holds as long as what it is made of. Raises ValueError as the question does.
        """
        if self._feed is None:
            self._start()
        generation, now = self.now, self._monotonic()
        if generation.questions is None or (now >= generation.alive_until and not bridging):
            return None
        used: list[float] = [now + BRIDGE_SECONDS if bridging else generation.alive_until]
        query = ask(generation.questions)
        try:
            commands = next(query)
            while True:
                commands = query.send(self._replies(generation, commands, used))
        except StopIteration as stop:
            value: T | None = stop.value
        except (_Unknown, FleetError):
            return None
        if value is None or value is False:
            return None
        answers: Answers = getattr(generation, method)
        if len(answers) >= ANSWERS_KEPT:
            answers.clear()
        answers[arguments] = min(used), value
        # Callers own what they get.
        return cast(T, value.copy()) if isinstance(value, (list, dict)) else value

    def _replies(self, generation: Generation, commands: Iterable[Command], used: list[float]) -> list[Any]:
        """Return what Redis would reply; puts to ``used`` until when that is so."""
        now, replies = self._monotonic(), []
        for command in commands:
            name, key = command[0], command[1] if len(command) > 1 else ""
            reply: Any
            if name in ("HGETALL", "EXISTS") and self._is_snapshot(key):
                entry = generation.held.get(key)
                if entry is None or entry.expires <= now:
                    reply = [] if name == "HGETALL" else 0
                else:
                    used.append(entry.expires)
                    age_ms = math.ceil((now - entry.polled) * 1000)
                    reply = [*entry.reply, b"polled_at", b"%d" % (_NOW_MS - age_ms)] if name == "HGETALL" else 1
            elif name == "TIME":
                reply = _TIME
            elif command == self._version:
                reply = generation.version
            elif name == "HMGET" and key.startswith(self._uuids):
                until, reply = self._registered.get(key, (-math.inf, None))
                if until <= now:
                    raise _Unknown
                used.append(until)
            elif name == "HMGET" and key.startswith(self._targets) and key.endswith("}:state"):
                reply = generation.states.get(command) or [None] * (len(command) - 2)
            else:
                # Redis is asked for whatever is not held here.
                raise _Unknown
            replies.append(reply)
        return replies

    def _is_snapshot(self, key: str) -> bool:
        return key.startswith(self._targets) and key.endswith(_SNAPSHOT_ENDS)

    def watched(self, query: Query[T]) -> Query[T]:
        """Pass a query on that Redis is asked, and learn from it which sessions are registered, or are no more."""
        commands = _next_commands(query)
        while isinstance(commands, list):
            key = commands[0][1] if commands and len(commands[0]) > 1 else ""
            about = key if isinstance(key, str) and key.startswith(self._uuids) else ""
            reads = bool(about) and commands[0][0] == "HMGET"
            if about and not reads:
                self._unregister(about)
            asked_at = self._monotonic()
            replies = yield commands
            if reads and isinstance(replies[0], list) and replies[0][0] is not None:
                self._register(about, asked_at, replies[0])
            elif about and (not reads or about in self._registered):
                self._unregister(about)
            commands = _next_commands(query, replies)
        return commands.value  # type: ignore[no-any-return]

    def _register(self, key: str, asked_at: float, reply: Any) -> None:
        with self._changing:
            if asked_at <= self._unregistered_at:
                # Another thread may have changed it since.
                return
            if len(self._registered) >= ANSWERS_KEPT:
                self._registered.clear()
            self._registered[key] = asked_at + REGISTERED_SECONDS, reply

    def _unregister(self, key: str) -> None:
        with self._changing:
            self._unregistered_at = self._monotonic()
            self._registered.pop(key, None)
            self.now = self.now.next()

    def forget(self, profile_name: str | None = None) -> None:
        """Hold nothing any more of a profile's targets, or of any: a caller has just had it changed."""
        with self._changing:
            questions, targets = self.now.questions, None
            if profile_name is not None and questions is not None and (fleet := questions.lookups.known) is not None:
                targets = frozenset(fleet.profiles.get(profile_name, ()))
            self._forgotten.add(targets)
            self.now = self.now.next(held=without(self.now.held, targets))

    def resync(self, *, timeout_seconds: float = ROUND_SECONDS) -> None:
        """Take over now what workers have told.

        Raises CacheUnavailable where that could not be done in time, SnapshotCorrupt for an inventory that no worker
        wrote.
        """
        deadline = self._monotonic() + timeout_seconds
        if not self._exchanging.acquire(timeout=timeout_seconds):
            raise CacheUnavailable(f"the mirror could not be brought up to date within {timeout_seconds:g} s")
        try:
            self._resync(deadline)
        finally:
            self._exchanging.release()

    def close(self) -> None:
        """End the feed; waits for 3 s at most. The mirror answers nothing any more."""
        self._closed = True
        with self._changing:
            feed, self._feed = self._feed, None
            self.now = NOTHING_KNOWN
        if feed is not None:
            feed.stop()
        self._link.close()

    # The feed.

    def _start(self) -> None:
        with self._changing:
            if self._feed is not None or self._closed:
                return
            self._feed = _Feed(self, self._link)
            try:
                self._feed.start()
            except RuntimeError as exc:
                # Too many threads, or Python is about to end.
                self._feed = None
                self._tell(f"no thread can be had: {exc}")

    def is_fed_by(self, feed: object) -> bool:
        """Whether this is the feed that keeps the mirror."""
        return self._feed is feed

    def follow(self) -> tuple[Command, float]:
        """Resync where it is due; return the command that waits for changes, and how many seconds it waits at most."""
        if self._monotonic() >= self._due():
            self.resync()
        due = self._due() - self._monotonic()
        block = max(0.001, min(BLOCK_SECONDS, due))
        milliseconds = math.ceil(block * 1000)
        where = ("STREAMS", self._keys.changes(), self._position)
        return ("XREAD", "BLOCK", milliseconds, "COUNT", _CHANGES_AT_ONCE, *where), block

    def _due(self) -> float:
        # No change is told of an inventory: where there is none yet, it is looked for more often.
        return self._synced_at + (RESYNC_SECONDS if self.now.questions is not None else BLOCK_SECONDS)

    def fed(self, reply: Any) -> None:
        """Take over what the command that waits for changes brought."""
        self.breaker.succeeded()
        if not reply or not reply[0][1]:
            return
        entries = reply[0][1]
        texts: dict[bytes, bytes] = {}
        for _, parts in entries:
            items = iter(parts)
            texts.update(zip(items, items, strict=True))
        with self._exchanging:
            self._position = entries[-1][0]
            self._change(texts, self._monotonic() + ROUND_SECONDS)

    def failed(self, exc: Exception) -> None:
        """Take down that the feed could not go on."""
        failure = exc if isinstance(exc, CacheUnavailable) else unavailable(exc, "following the workers' hints")
        cause = exc.__cause__ if isinstance(exc, CacheUnavailable) else exc
        # The next turn begins with everything.
        self._synced_at = -math.inf
        if isinstance(cause, Exception) and opens_breaker(cause):
            self.breaker.failed(str(failure))
        else:
            self._tell(str(failure))

    def _tell(self, failure: str) -> None:
        if self._told != failure:
            log.warning("the mirror can't follow the fleet, lookups ask Redis: %s", failure)
            self._told = failure

    def _ask(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        try:
            replies = self._link.exchange(commands, deadline=deadline)
        except WrongKeyType as exc:
            replies = exc.replies
        except (redis.exceptions.RedisError, OSError) as exc:
            raise unavailable(exc, "following the workers' hints") from exc
        self.breaker.succeeded()
        return checked(commands, replies)

    def _resync(self, deadline: float) -> None:
        keys = self._keys
        with self._changing:
            self._forgotten.clear()
            before = self.now
        sent = self._monotonic()
        version, clock, newest, hints = self._ask(
            [
                ("HGET", keys.fleet(), "version"),
                ("TIME",),
                ("XREVRANGE", keys.changes(), "+", "-", "COUNT", 1),
                ("HGETALL", keys.fresh()),
            ],
            min(deadline, sent + COMMAND_SECONDS),
        )
        version = usable(version)
        try:
            newest, told = usable(newest), fields_of(hints)
        except SnapshotCorrupt as exc:
            raise CacheUnavailable(f"the workers' hints can't be followed: {exc}", Unavailable.OTHER) from exc
        questions = before.questions if version is not None and version == before.version else None
        if questions is None:
            questions, version = self._read_fleet(deadline)
            self._miss_profiles(questions)
        held: dict[str, Entry] = {}
        fetch = self._compare(questions, told, before.held, held, sent, time_ms(clock))
        states = self._fetch(fetch, held, deadline)
        self._seen = told
        self._position = newest[0][0] if newest else b"0-0"
        self._synced_at = sent
        self._told = ""
        self._take_over(
            Generation(questions, version or b"", held, states, sent + ALIVE_SECONDS) if questions else NOTHING_KNOWN
        )

    def _read_fleet(self, deadline: float) -> tuple[Questions | None, bytes]:
        lookups = Lookups(self._keys, self._monotonic)
        query = lookups.fleet()
        commands = _next_commands(query)
        while isinstance(commands, list):
            commands = _next_commands(query, self._ask(commands, deadline))
        fleet: PublishedFleet | None = commands.value
        return (RememberingQuestions(lookups), fleet.version.encode()) if fleet is not None else (None, b"")

    def _miss_profiles(self, questions: Questions | None) -> None:
        """Warn of profiles that are to be followed and are not there: a name may be misspelt."""
        fleet = questions.lookups.known if questions is not None else None
        missing = sorted(self._profiles - fleet.profiles.keys()) if fleet is not None and self._profiles else ()
        if missing and fleet is not None:
            log.warning(
                "the mirror is to follow %s, which the published inventory does not have; known profiles: %s",
                ", ".join(map(repr, missing)),
                ", ".join(map(repr, fleet.profiles)) or "none",
            )

    def _followed(self, fleet: PublishedFleet) -> Collection[str]:
        """Return the targets that are followed."""
        if self._profiles is None:
            return fleet.targets.keys()
        return frozenset(target for name in self._profiles for target in fleet.profiles.get(name, ()))

    def _compare(
        self,
        questions: Questions | None,
        told: dict[bytes, bytes],
        before: dict[str, Entry],
        held: dict[str, Entry],
        sent: float,
        now_ms: int,
    ) -> _Fetch:
        """Put to ``held`` what may stay of ``before``; return what has to be fetched."""
        fetch = _Fetch()
        if questions is None or (fleet := questions.lookups.known) is None:
            return fetch
        followed = self._followed(fleet)
        for name_text, text in told.items():
            name = self._name(name_text)
            if name is None or not is_of(followed, name.target):
                continue
            entry, hint = before.get(name.key), None
            if entry is None or entry.expires <= sent or self._seen.get(name_text) != text:
                hint = Hint.decode(text)
                entry = confirmed(entry, hint, sent, now_ms)
            if entry is not None:
                held[name.key] = entry
            else:
                fetch.snapshots[name] = hint
        lookups = questions.lookups
        for target_name in followed:
            target = fleet.targets[target_name]
            kinds = sorted(target.kinds)
            missing = [kind for kind in kinds if self._keys.snapshot(target.id, kind) not in held]
            for kind in missing:
                # Also where no hint tells of it.
                fetch.snapshots.setdefault(_Name(target.id, kind, self._keys.snapshot(target.id, kind)), None)
            if missing and target.scope == "server":
                missing.append(Kind.DESKTOPS)
            fetch.states += dict.fromkeys(lookups.down_command(target, kind) for kind in missing)
        return fetch

    def _name(self, text: bytes) -> _Name | None:
        try:
            return self._names[text]
        except KeyError:
            pass
        if len(self._names) >= _NAMES_KEPT:
            self._names.clear()
        found = decode_field(text)
        name = None if found is None else _Name(*found, self._keys.snapshot(*found))
        self._names[text] = name
        return name

    def _fetch(self, fetch: _Fetch, held: dict[str, Entry], deadline: float) -> dict[Command, Any]:
        """Read snapshots into ``held``; return the states that were asked for."""
        names, states = list(fetch.snapshots), {}
        if fetch.states:
            states = dict(zip(fetch.states, self._ask(fetch.states, deadline), strict=True))
        for start in range(0, len(names), _FETCHED_AT_ONCE):
            part = names[start : start + _FETCHED_AT_ONCE]
            commands: list[Command] = [("TIME",)]
            for name in part:
                # The time to live first: of a snapshot that is replaced in between, it is not too long.
                commands += [("PTTL", name.key), ("HGETALL", name.key)]
            sent = self._monotonic()
            replies = self._ask(commands, deadline)
            now_ms = time_ms(replies[0])
            for name, ttl_ms, reply in zip(part, replies[1::2], replies[2::2], strict=True):
                entry = entry_of(reply, int(ttl_ms), fetch.snapshots[name], sent, now_ms)
                if entry is None:
                    held.pop(name.key, None)
                else:
                    held[name.key] = entry
        return states

    def _change(self, texts: dict[bytes, bytes], deadline: float) -> None:
        """Take over what the stream told."""
        with self._changing:
            self._forgotten.clear()
            before = self.now
        questions = before.questions
        if questions is None or (fleet := questions.lookups.known) is None:
            return
        followed = self._followed(fleet)
        held, fetch = dict(before.held), _Fetch()
        for name_text, text in texts.items():
            name = self._name(name_text)
            if name is None or not is_of(followed, name.target):
                continue
            entry, hint = held.get(name.key), Hint.decode(text)
            if hint is None:
                held.pop(name.key, None)
                self._seen.pop(name_text, None)
            elif entry is None or entry.digest != hint.digest.encode():
                fetch.snapshots[name] = hint
        if fetch.snapshots or held.keys() != before.held.keys():
            self._fetch(fetch, held, deadline)
            self._take_over(before.next(held=held))

    def _take_over(self, generation: Generation) -> None:
        with self._changing:
            if self._closed:
                return
            for targets in self._forgotten:
                generation.held = without(generation.held, targets)
            self.now = generation


def _next_commands(query: Query[Any], replies: list[Any] | None = None) -> list[Command] | StopIteration:
    """Return what a query yields next, or its end."""
    try:
        return next(query) if replies is None else query.send(replies)
    except StopIteration as stop:
        return stop


class _Feed:
    """The thread that keeps a mirror, and keeps it alive only while it turns."""

    def __init__(self, mirror: Mirror, link: Link) -> None:
        self._stopping = threading.Event()
        self._mirror, self._link = ref(mirror), link
        self._thread = threading.Thread(target=self._run, name="x2gofleet-mirror", daemon=True)

    def start(self) -> None:
        """Begin to follow; the mirror knows this to be its feed by now."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it, unless it is the one that asks."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self._turn()
            if pause is None:
                break
            if pause:
                self._stopping.wait(pause)
        self._link.close()

    def _turn(self) -> float | None:
        """Follow once; return how many seconds to wait before the next turn, None where nobody wants one."""
        try:
            waiting = self._waiting()
            if waiting is None:
                return None
            command, seconds = waiting
            # Nothing here holds on to the mirror while it waits.
            until = time.monotonic() + seconds + COMMAND_SECONDS - BLOCK_SECONDS
            reply = checked([command], self._link.exchange([command], deadline=until))
            mirror = self._mirror()
            if mirror is None:
                return None
            mirror.fed(reply[0])
        except Exception as exc:
            mirror = self._mirror()
            if mirror is None:
                return None
            if not isinstance(exc, (FleetError, redis.exceptions.RedisError, OSError)):
                log.exception("following the workers' hints failed")
            mirror.failed(exc)
            return _TRY_AGAIN_SECONDS
        return 0.0

    def _waiting(self) -> tuple[Command, float] | None:
        mirror = self._mirror()
        return mirror.follow() if mirror is not None and mirror.is_fed_by(self) else None


def _are_names(profiles: object) -> bool:
    if isinstance(profiles, str) or not isinstance(profiles, Collection):
        return False
    return all(isinstance(name, str) for name in profiles)


def mirror_from_url(url: str, keys: Keys, wanted: bool | Collection[str] | None) -> Mirror | NoMirror:
    """Return a mirror of the whole fleet (True), of some profiles (their names), or none (False or None).

    Raises ValueError for a URL that is not understood, and for what are no names.
    """
    if wanted is None or wanted is False:
        return NoMirror()
    link = link_from_url(url, command_timeout_seconds=COMMAND_SECONDS)
    return Mirror(link, keys, profiles=None if wanted is True else wanted)
