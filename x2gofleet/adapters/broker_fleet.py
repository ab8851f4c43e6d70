"""broker_fleet: what the x2gobroker adapter asks of the fleet, and what it does where the fleet can't answer: None."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from x2gofleet.adapters.broker_answers import BrokerView, cached_view, session_counts
from x2gofleet.adapters.broker_hosts import BrokerProfile, Mapped, Unmapped, map_profile
from x2gofleet.adapters.broker_settings import BrokerSettings
from x2gofleet.adapters.live_agent import described
from x2gofleet.cache import FleetCache
from x2gofleet.errors import FleetError
from x2gofleet.fleet import PublishedFleet
from x2gofleet.keys import Keys
from x2gofleet.lookup import Lookups
from x2gofleet.placement import Placements, Standing
from x2gofleet.text import clean

T = TypeVar("T")
Found = tuple[PublishedFleet, int, list[Standing]]

_SAID_AGAIN_SECONDS = 60.0
_MAPS_KEPT = 1024
_SHARED_SECONDS = 0.5


class BrokerFleet:
    """One broker process's reader of the fleet. Connects at the first question, and anew after a fork."""

    def __init__(self, settings: BrokerSettings, logger: logging.Logger) -> None:
        self.settings = settings
        self.logger = logger
        self._pid = -1
        self._said: dict[str, float] = {}
        self._shared: dict[str, tuple[float, Found | None]] | None = None
        self._mapped_in: PublishedFleet | None = None
        self._maps: dict[BrokerProfile, Mapped | Unmapped] = {}
        self._open().close()

    def _open(self) -> FleetCache:
        """Return a cache that has not connected yet; raises ValueError for a URL that can't be used."""
        return FleetCache.from_url(self.settings.redis_url, namespace=self.settings.namespace)

    def _reader(self) -> FleetCache:
        if self._pid != os.getpid():
            self._cache = self._open()
            self._lookups = Lookups(Keys(self.settings.namespace))
            self._placements = Placements(self._lookups)
            self._fleet: PublishedFleet | None = None
            self._pid = os.getpid()
        return self._cache

    def _run(self, query: Generator[Any, Any, T]) -> T:
        return self._reader()._run(query)

    def guarded(self, what: str, ask: Callable[[], T]) -> T | None:
        """Return what ``ask`` returns, None where it raises an Exception: that is logged."""
        try:
            return ask()
        except (FleetError, ValueError) as exc:
            self.say(f"{what}: {exc}")
        # Whatever it is, it must not be in a login's way.
        except Exception as exc:
            self.say(f"{what}: {described(exc)}", exc)
        return None

    def say(self, text: str, error: Exception | None = None) -> None:
        """Log a warning, with the traceback of an error, the same text once a minute."""
        text = clean(text)
        now = time.monotonic()
        if now - self._said.get(text, -_SAID_AGAIN_SECONDS) >= _SAID_AGAIN_SECONDS:
            self._said = {said: at for said, at in self._said.items() if now - at < _SAID_AGAIN_SECONDS}
            self._said[text] = now
            self.logger.warning("x2gofleet: %s", text, exc_info=error)

    def view(self, profile_id: str, read: Callable[[], BrokerProfile], username: str | None) -> BrokerView | None:
        """Return what is known of a profile's servers, None where the fleet can't answer for it: that is logged.

        ``read`` returns the profile as the broker has it.
        """
        return self.guarded(f"profile {profile_id}", lambda: self._view(read(), username))

    def _view(self, profile: BrokerProfile, username: str | None) -> BrokerView | None:
        self._reader()
        if self._fleet is None:
            self._fleet = self._run(self._lookups.fleet())
        for _ in range(2):
            fleet = self._fleet
            if fleet is None:
                self.say("no inventory is published: is an x2gofleet-worker running, with this Redis and namespace?")
                return None
            mapped = self._map(profile, fleet)
            if isinstance(mapped, Unmapped):
                self._fleet = self._run(self._lookups.fleet())
                if self._fleet is fleet:
                    self.say(f"profile {profile.id} is not answered from the fleet: {mapped.reason}")
                    return None
                continue
            found = self._standings(mapped.fleet_profile)
            self._fleet = fleet if found is None else found[0]
            if found is not None and (found[0] is fleet or self._map(profile, found[0]) == mapped):
                return self._cached(profile, mapped, *found, username)
            if found is None:
                self._fleet = self._run(self._lookups.fleet())
        return None

    def _standings(self, fleet_profile: str) -> Found | None:
        shared = self._shared
        if shared is None:
            return self._run(self._placements.standings(fleet_profile))
        at, found = shared.get(fleet_profile, (-math.inf, None))
        now = time.monotonic()
        if found is None or now - at > _SHARED_SECONDS:
            found = self._run(self._placements.standings(fleet_profile))
            shared[fleet_profile] = now, found
        return found

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Ask for each profile of the fleet once: of the broker's, many may be answered from one."""
        outer = self._shared
        self._shared = {} if outer is None else outer
        try:
            yield
        finally:
            self._shared = outer

    def _map(self, profile: BrokerProfile, fleet: PublishedFleet) -> Mapped | Unmapped:
        if self._mapped_in is not fleet or len(self._maps) >= _MAPS_KEPT:
            self._mapped_in, self._maps = fleet, {}
        if profile not in self._maps:
            self._maps[profile] = map_profile(profile, fleet)
        return self._maps[profile]

    def _cached(
        self,
        profile: BrokerProfile,
        mapped: Mapped,
        fleet: PublishedFleet,
        now_ms: int,
        standings: list[Standing],
        username: str | None,
    ) -> BrokerView | None:
        by_server = {standing.target.server: standing for standing in standings}
        view = cached_view(
            mapped.fleet_profile,
            {host: by_server[server] for host, server in mapped.servers.items()},
            servers={host: fleet.servers[server] for host, server in mapped.servers.items()},
            whole=len(by_server) == len(mapped.servers),
            now_ms=now_ms,
            username=username,
        )
        if view is None:
            self.say(f"profile {profile.id} is not cached now")
        return view

    def place(self, view: BrokerView, username: str) -> str | None:
        """Choose and reserve the host of a new session; None where that can't be done, or where no host is left."""
        seconds = self.settings.reserve_seconds
        if view.whole:
            placement = self.guarded(
                f"placing {username}",
                lambda: self._reader().place(view.fleet_profile, username, reserve_seconds=seconds),
            )
            if placement is not None and (host := view.host_of(placement.server)) is not None:
                return host
        host = view.least_loaded(session_counts(view))
        if host is not None:
            self.reserve(view, host, username)
        return host

    def reserve(self, view: BrokerView, host: str, username: str) -> None:
        """Count a login that the broker sent to a host."""
        server, seconds = view.standings[host].target.server, self.settings.reserve_seconds
        if seconds:
            self.guarded(f"reserving {server}", lambda: self._reader().reserve(server, username, seconds=seconds))

    def release(self, view: BrokerView, host: str, username: str) -> None:
        """Count a login no more that went elsewhere."""
        server = view.standings[host].target.server
        self.guarded(f"releasing {server}", lambda: self._reader().release(server, username))

    def refresh(self, fleet_profile: str) -> None:
        """Have a profile polled now, in the background: what the broker changed is seen by the next lookup."""
        if self.settings.refresh_seconds:
            cache = self._reader()
            threading.Thread(target=self._refresh, args=(cache, fleet_profile), daemon=True).start()

    def _refresh(self, cache: FleetCache, fleet_profile: str) -> None:
        self.guarded(
            f"refreshing {fleet_profile}",
            lambda: cache.update(fleet_profile, timeout=self.settings.refresh_seconds),
        )
