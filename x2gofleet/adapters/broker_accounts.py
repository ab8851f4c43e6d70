"""broker_accounts: by which name X2Go's rows have the sessions of a login: sssd and winbind give an account several.

A user may log in to the broker as ``Alice`` or ``alice@corp.example.org``, and the rows are of ``alice``. The live
agent finds them, because the server's name service resolves the login; the cache compares names. So "no sessions" is
said only of a name that is known to be the account's own: it is in a listing, or this host's name service says so.
"""

from __future__ import annotations

import os
import pwd
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from x2gofleet.adapters.broker_answers import BrokerView, other_accounts, users_of_view

NSS_SECONDS = 0.5
"""How long this host's name service may take for one name."""

_KNOWN_SECONDS = 300.0
_UNKNOWN_SECONDS = 30.0
_SEEN_SECONDS = 3600.0
_KEPT = 65536


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of a login.

    ``name``: by which X2Go's rows have it; None where only a live agent can say whether there are sessions, and
    ``hosts`` are then those that have some of a name that may be of the same account.
    """

    name: str | None
    hosts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Names:
    """Names with until when something is known of them, by the monotonic clock."""

    known: dict[str, tuple[float, str | None]] = field(default_factory=dict)

    def put(self, key: str, name: str | None, until: float) -> None:
        if len(self.known) >= _KEPT and key not in self.known:
            self.known.clear()
        self.known[key] = until, name


def canonical_name(login: str) -> str | None:
    """Return what this host's name service calls the account of a login, as X2Go does; None where it knows none."""
    try:
        return pwd.getpwuid(pwd.getpwnam(login).pw_uid).pw_name
    except (KeyError, ValueError, OSError):
        return None


class Accounts:
    """The accounts of logins, for one broker process."""

    def __init__(
        self,
        *,
        look_up: Callable[[str], str | None] = canonical_name,
        monotonic: Callable[[], float] = time.monotonic,
        limit_seconds: float = NSS_SECONDS,
    ) -> None:
        self._look_up, self._monotonic, self._limit = look_up, monotonic, limit_seconds
        self._seen, self._resolved, self._learned = _Names(), _Names(), _Names()
        self._hung: threading.Thread | None = None
        self._pid = os.getpid()

    def of(self, view: BrokerView, login: str) -> Account:
        """Return what is known of a login to the servers of a view; at most ``limit_seconds``, and only once that."""
        users = users_of_view(view)
        self._see(users)
        if login in users or all(each.target.username == login for each in view.standings.values()):
            return Account(login)
        learned = self._get(self._learned, login)
        if learned in users:
            return Account(learned)
        resolved = self._resolve(login)
        if resolved in users:
            return Account(resolved)
        others = other_accounts(view, login)
        if others:
            return Account(None, tuple(dict.fromkeys(others.values())))
        return Account(resolved or learned or self._get(self._seen, login))

    def learn(self, login: str, names: Iterable[str]) -> None:
        """Remember by which name a live agent listed the sessions of a login."""
        for name in names:
            self._learned.put(login, name, self._monotonic() + _KNOWN_SECONDS)

    def _see(self, names: Iterable[str]) -> None:
        until = self._monotonic() + _SEEN_SECONDS
        for name in names:
            self._seen.put(name, name, until)

    def _get(self, names: _Names, key: str) -> str | None:
        until, name = names.known.get(key, (0.0, None))
        return name if self._monotonic() < until else None

    def _resolve(self, login: str) -> str | None:
        """Ask this host's name service, which may hang: then nobody waits for it again before it has answered."""
        until, name = self._resolved.known.get(login, (-1.0, None))
        if self._monotonic() < until:
            return name
        if self._pid != os.getpid():
            self._pid, self._hung = os.getpid(), None
        if self._hung is not None and self._hung.is_alive():
            return None
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.append(self._look_up(login)), daemon=True)
        thread.name = "x2gofleet-name-service"
        try:
            thread.start()
        except RuntimeError:  # no more threads
            return None
        thread.join(self._limit)
        if not found:
            self._hung = thread
            return None
        lasting = _UNKNOWN_SECONDS if found[0] is None else _KNOWN_SECONDS
        self._resolved.put(login, found[0], self._monotonic() + lasting)
        return found[0]
