"""The living sessions of simulated servers: a seeded model with an injected clock, which the SSH side only reads."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from x2gofleet_workers.probe.records import Record
from x2gofleet_workers.simulator.load import MachineLoad
from x2gofleet_workers.simulator.sessions import (
    FIRST_DISPLAY,
    Session,
    age_bytes,
    session_name,
    shadow_type,
)
from x2gofleet_workers.simulator.users import user_pool

STARTING_SECONDS = 1.5
FINISHED_SECONDS = 2.0
_CHANGES_KEPT = 100_000
_APPLICATIONS = ("RxTerm", "RFIREFOX", "RLIBREOFFICE")
_PUBLISHED = "RPUBLISHED"
_FOLDERS = ("_home_{user}_Documents", "_media_{user}_usb", "_home_{user}_Downloads")


class Change(NamedTuple):
    """One entry of a server's change log; ``event`` is started, running, suspended, resumed, finished or gone."""

    time: float
    event: str
    session_name: str


class ServerModel:
    """The session database and load of one simulated server.

    :param server_id: also the host name that its rows report.
    :param users: the fleet's pool of user names.
    :param desktops: session types of its desktops, e.g. ``("DMATE",)``.
    :param clock: returns epoch seconds.
    :param pace: mean seconds between changes that happen by themselves; 0: only what is called for.
    """

    def __init__(
        self,
        *,
        server_id: str,
        users: Sequence[str],
        desktops: Sequence[str],
        seed: int,
        clock: Callable[[], float],
        pace: float = 0.0,
    ) -> None:
        self.server_id = server_id
        self.revision = 1
        self.target_sessions = 0
        self._users, self._desktops = tuple(users), tuple(desktops)
        self._clock, self._pace = clock, pace
        self._random = random.Random(f"{seed}:{server_id}")
        self._sessions: dict[str, Session] = {}
        self._changes: deque[Change] = deque(maxlen=_CHANGES_KEPT)
        self._due: list[tuple[float, int, str, str]] = []
        self._due_count = 0
        self._rendered_revision = 0
        self._rows: tuple[tuple[float, bytes, bytes], ...] = ()
        self._watchers: set[Callable[[], None]] = set()
        self._load = MachineLoad(
            cpus=self._random.choice((4, 8, 16)),
            cpu_mhz=self._random.choice((2450.0, 2900.0, 3400.0)),
            mem_total_kb=self._random.choice((32_000_000, 64_000_000, 128_000_000)),
            phase=self._random.uniform(0.0, 6.28),
        )
        if pace > 0:
            self._push(clock() + self._random.expovariate(1.0 / pace), "churn", "")

    # What tests and the demo drive

    def start_session(
        self,
        username: str,
        session_type: str = "DMATE",
        *,
        ready: bool = False,
        starting_seconds: float = STARTING_SECONDS,
        mounts: Sequence[tuple[str, str]] = (),
        shared_with: Sequence[str] = (),
    ) -> str:
        """Start a session and return its name.

        ``ready`` skips the time in which its pid and ports are empty; ``starting_seconds`` says how long that is
        (infinite: until ``make_ready``).
        """
        return self._start(
            self._clock(),
            username,
            session_type,
            ready=ready,
            starting_seconds=starting_seconds,
            mounts=mounts,
            shared_with=shared_with,
        )

    def make_ready(self, name: str) -> None:
        """End a session's start; ValueError where it is not starting, KeyError where there is none."""
        if not self.session(name).is_starting:
            raise ValueError(f"{name} is not starting on {self.server_id}")
        self._become_ready(self._clock(), name)

    def start_shadow(self, watcher: str, watched: str, *, full_access: bool = True, ready: bool = False) -> str:
        """Start a session of ``watcher`` that shows the session named ``watched``, and return its name."""
        owner = self.session(watched)
        kind = shadow_type(owner.username, owner.display, full_access=full_access)
        return self._start(self._clock(), watcher, kind, ready=ready)

    def suspend(self, name: str) -> None:
        """Suspend a running session; ValueError where it is not running, KeyError where there is none."""
        self._suspend(self._clock(), name)

    def resume(self, name: str) -> None:
        """Resume a suspended session; ValueError where it is not suspended, KeyError where there is none."""
        self._resume(self._clock(), name)

    def end(self, name: str) -> None:
        """End a session: it is listed as finished for a moment and then gone."""
        self._end(self._clock(), name)

    def set_mounts(self, name: str, mounts: Sequence[tuple[str, str]]) -> None:
        """Replace what is mounted in a session by ``(client, path)`` pairs."""
        self._put(replace(self.session(name), mounts=tuple(mounts)))

    def tick(self, now: float) -> None:
        """Apply everything due by epoch second ``now``, each at the time it was due."""
        while self._due and self._due[0][0] <= now:
            when, _, what, name = heapq.heappop(self._due)
            if what == "churn":
                self._churn(when)
                self._push(when + self._random.expovariate(1.0 / self._pace), "churn", "")
            elif name in self._sessions:
                if what == "ready" and self._sessions[name].is_starting:
                    self._become_ready(when, name)
                elif what == "gone":
                    del self._sessions[name]
                    self._log(when, "gone", name)

    # What is read

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All sessions in the database's order, finished ones too."""
        return tuple(self._sessions.values())

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change log, oldest first (its last 100 000 entries)."""
        return tuple(self._changes)

    def session(self, name: str) -> Session:
        """Return one session; KeyError names the server where it has none of that name."""
        try:
            return self._sessions[name]
        except KeyError:
            raise KeyError(f"{self.server_id} has no session {name!r}") from None

    def listing(self, now: float) -> bytes:
        """Return the stdout of x2golistsessions_root run by root."""
        self._render()
        return b"".join(chain.from_iterable((a, age_bytes(made, now), z) for made, a, z in self._rows))

    def records(self, now: float) -> tuple[Record, ...]:
        """Return the records of all sessions in the listing's order, as the probe sends them."""
        return tuple(session.record(now) for session in self._ordered())

    def user_listing(self, username: str, now: float) -> bytes:
        """Return the stdout of x2golistsessions run by ``username``."""
        return b"".join(s.row(now).replace(b" ", b"") for s in self._listed_to(username) if not s.is_shadow)

    def shadow_listing(self, username: str, now: float) -> bytes:
        """Return the stdout of x2golistshadowsessions run by ``username``."""
        return b"".join(s.shadow_row(now) for s in self._listed_to(username) if s.is_shadow)

    def mounts(self, *, username: str | None = None) -> tuple[tuple[str, str, str], ...]:
        """Return (session, client, path) of every mount, or of those in one user's sessions."""
        return tuple(
            (session.name, client, path)
            for session in self._ordered()
            if session.status == "R" and username in (None, session.username)
            for client, path in session.mounts
        )

    def desktops(self, username: str) -> bytes:
        """Return the stdout of x2golistdesktops run by ``username``: own displays, then those shared."""
        running = [s for s in self._sessions.values() if s.is_desktop and s.status == "R" and not s.is_starting]
        own = [s for s in running if s.username == username]
        shared = [s for s in running if s.username != username and username in s.shared_with]
        return "".join(f"{s.username}@:{s.display}\n" for s in own + shared).encode()

    def load_stdout(self, now: float) -> bytes:
        """Return the probe's load lines."""
        states = [session.status for session in self._sessions.values()]
        return self._load.stdout(now, states.count("R"), states.count("S"))

    def watch(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` at each change from now on, perhaps several times for one, while it is being made."""
        self._watchers.add(callback)

    def unwatch(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` no more."""
        self._watchers.discard(callback)

    # How it changes

    def populate(self, now: float, username: str, kind: str) -> None:
        """Put in a session that is already some time old; ``kind`` is desktop, application, published or shadow."""
        created = now - self._random.uniform(60.0, 8 * 3600.0)
        if kind == "shadow" and self._start_any_shadow(created, username, ready=True):
            return
        name = self._start_kind(created, username, kind, ready=True)
        if self._random.random() < 0.3:
            self._suspend(created + self._random.uniform(0.2, 0.9) * (now - created), name)

    def settle(self) -> None:
        """Forget how the first sessions came to be: the log starts empty and the size now is the one to keep."""
        self._changes.clear()
        self.revision = 1
        self._rendered_revision = 0
        self.target_sessions = len(self._sessions)

    def _start(
        self,
        when: float,
        username: str,
        session_type: str,
        *,
        ready: bool,
        starting_seconds: float = STARTING_SECONDS,
        mounts: Sequence[tuple[str, str]] = (),
        shared_with: Sequence[str] = (),
    ) -> str:
        used = {session.display for session in self._sessions.values()}
        display = next(number for number in range(FIRST_DISPLAY, FIRST_DISPLAY + len(used) + 1) if number not in used)
        name = session_name(username, display, when, session_type)
        self._sessions[name] = Session(
            name=name,
            username=username,
            session_type=session_type,
            display=display,
            hostname=self.server_id,
            status="R",
            created=when,
            changed=when,
            mounts=tuple(mounts),
            shared_with=tuple(shared_with),
        )
        self._log(when, "started", name)
        if ready:
            self._become_ready(when, name)
        else:
            self._push(when + starting_seconds, "ready", name)
        return name

    def _become_ready(self, when: float, name: str) -> None:
        draw = self._random
        self._put(
            replace(
                self._sessions[name],
                agent_pid=draw.randrange(1000, 4_194_304),
                cookie=f"{draw.getrandbits(128):032x}",
                client=f"10.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}",
            )
        )
        self._log(when, "running", name)

    def _suspend(self, when: float, name: str) -> None:
        session = self.session(name)
        if session.status != "R" or session.is_starting:
            raise ValueError(f"{name} is not running on {self.server_id}: status {session.status}")
        self._put(replace(session, status="S", changed=when))
        self._log(when, "suspended", name)

    def _resume(self, when: float, name: str) -> None:
        session = self.session(name)
        if session.status != "S":
            raise ValueError(f"{name} is not suspended on {self.server_id}: status {session.status}")
        self._put(replace(session, status="R", changed=when))
        self._log(when, "resumed", name)

    def _end(self, when: float, name: str) -> None:
        session = self.session(name)
        if session.status == "F":
            raise ValueError(f"{name} has finished already on {self.server_id}")
        self._put(replace(session, status="F", changed=when))
        self._log(when, "finished", name)
        self._push(when + FINISHED_SECONDS, "gone", name)

    def _churn(self, when: float) -> None:
        draw = self._random
        alive = [s for s in self._sessions.values() if s.status in "RS" and not s.is_starting]
        fill = len(alive) / max(self.target_sessions, 1)
        choice = draw.random()
        if not alive or choice < 0.3 * (2.0 - fill):
            kind = draw.choices(("desktop", "application", "published", "shadow"), (12, 2, 1, 1))[0]
            username = draw.choice(self._users)
            if kind != "shadow" or not self._start_any_shadow(when, username, ready=False):
                self._start_kind(when, username, kind, ready=False)
            return
        session = draw.choice(alive)
        if choice > 1.0 - 0.3 * fill:
            self._end(when, session.name)
        elif session.status == "R":
            self._suspend(when, session.name)
        else:
            self._resume(when, session.name)

    def _start_kind(self, when: float, username: str, kind: str, *, ready: bool) -> str:
        draw = self._random
        if kind == "application":
            return self._start(when, username, draw.choice(_APPLICATIONS), ready=ready)
        if kind == "published":
            return self._start(when, username, _PUBLISHED, ready=ready)
        folders = draw.sample(_FOLDERS, draw.choice((0, 0, 1, 2)))
        mounts = [
            ("127.0.0.1", f"/tmp/.x2go-{username}/media/disk/{folder.format(user=username)}") for folder in folders
        ]
        shared_with = draw.sample(self._users, 2) if draw.random() < 0.2 else []
        session_type = draw.choice(self._desktops)
        return self._start(when, username, session_type, ready=ready, mounts=mounts, shared_with=shared_with)

    def _start_any_shadow(self, when: float, username: str, *, ready: bool) -> bool:
        watched = [s for s in self._sessions.values() if s.is_desktop and s.status == "R" and s.username != username]
        if not watched:
            return False
        session = self._random.choice(watched)
        kind = shadow_type(session.username, session.display, full_access=self._random.random() < 0.5)
        self._start(when, username, kind, ready=ready)
        return True

    def _put(self, session: Session) -> None:
        self._sessions[session.name] = session
        self._changed()

    def _log(self, when: float, event: str, name: str) -> None:
        self._changes.append(Change(when, event, name))
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        for callback in tuple(self._watchers):
            callback()

    def _push(self, when: float, what: str, name: str) -> None:
        self._due_count += 1
        heapq.heappush(self._due, (when, self._due_count, what, name))

    def _ordered(self) -> list[Session]:
        """The database's ``order by status desc``."""
        return sorted(self._sessions.values(), key=lambda session: session.status, reverse=True)

    def _listed_to(self, username: str) -> list[Session]:
        return [s for s in self._ordered() if s.username == username and s.status != "F"]

    def _render(self) -> None:
        if self._rendered_revision == self.revision:
            return
        self._rows = tuple((session.created, *session.row_parts()) for session in self._ordered())
        self._rendered_revision = self.revision


class FleetModel:
    """All simulated servers ``ts01``, ``ts02`` ... and the users they share.

    The same arguments and the same clock give the same sessions, whatever steps ``tick`` is called in.
    """

    def __init__(
        self, *, servers: int, sessions: int, seed: int, clock: Callable[[], float], pace: float = 0.0
    ) -> None:
        if servers < 1 or sessions < 0:
            raise ValueError(f"a fleet needs at least one server and no negative sessions: {servers}, {sessions}")
        self.users = user_pool(max(12, sessions * 2 // 3))
        digits = max(2, len(str(servers)))
        self.servers: dict[str, ServerModel] = {}
        self.labels: dict[str, tuple[str, ...]] = {}
        for index in range(servers):
            server_id = f"ts{index + 1:0{digits}d}"
            labels = _labels(index, servers)
            self.labels[server_id] = labels
            desktops = tuple(f"D{label.upper()}" for label in labels)
            self.servers[server_id] = ServerModel(
                server_id=server_id,
                users=self.users,
                desktops=(*desktops, *desktops, "DKDE"),
                seed=seed,
                clock=clock,
                pace=pace,
            )
        self._populate(sessions, random.Random(f"{seed}:fleet"), clock())

    def tick(self, now: float) -> None:
        """Apply on every server what is due by epoch second ``now``."""
        for model in self.servers.values():
            model.tick(now)

    def _populate(self, sessions: int, draw: random.Random, now: float) -> None:
        models = list(self.servers.values())
        for index in range(sessions):
            # The first round gives neighbouring servers the same user, so that some are on several for sure.
            user = self.users[index // 2 % len(self.users)] if index < len(models) else draw.choice(self.users)
            models[index % len(models)].populate(now, user, _kind_of(index))
        for model in models:
            model.settle()


def _kind_of(index: int) -> str:
    if index % 9 == 5:
        return "published"
    if index % 9 == 7:
        return "application"
    return "shadow" if index % 11 == 10 else "desktop"


def _labels(index: int, servers: int) -> tuple[str, ...]:
    if servers == 1 or index % 5 == 4:
        return ("mate", "xfce")
    return ("mate",) if index % 2 == 0 else ("xfce",)
