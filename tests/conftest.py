"""Fixtures for tests that need a real Redis or Valkey: a namespace per test, and a worker's store to fill it with."""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from x2gofleet_workers.embedded import EmbeddedValkey

from tests.servers import RedisServers
from tests.waiting import PATIENT
from x2gofleet.connection import client_from_url
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.hints import DROPPED, Hint, hint_commands, hint_field
from x2gofleet.keys import Keys, server_of, target_id, user_of
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome, Store

# Ignored by nohup or in the background of a script. A program inherits that a signal is ignored, but no handler: the
# programs that tests start and signal get the default, and this process still lets the signal pass.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

# An example that takes long says that the machine does much else.
settings.register_profile("x2gofleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("x2gofleet")


@pytest.fixture(scope="module", autouse=True)
def _leaks_are_told_where_they_are() -> Iterator[None]:
    """Collect garbage at the end of each module: a socket that it never closed fails a test of its own."""
    yield
    gc.collect()


SAMPLES = Path(__file__).parent / "samples"
LASTING_SECONDS = 60.0


@pytest.fixture(scope="session")
def samples() -> Path:
    """Where stdout captured from a real server is."""
    return SAMPLES


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[RedisServers]:
    """Servers of each version, started when first asked for; they live as long as the test session."""
    servers = RedisServers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def valkey_url(request: pytest.FixtureRequest, redis_servers: RedisServers) -> Iterator[str]:
    """URL of X2GOFLEET_TEST_REDIS_URL, or of a Valkey that lives as long as the test session.

    ``pytest.mark.parametrize("valkey_url", VERSIONS, indirect=True)`` has a test run on a server of each version.
    """
    given = os.environ.get("X2GOFLEET_TEST_REDIS_URL")
    if hasattr(request, "param"):
        yield redis_servers.url(request.param)
        return
    if given:
        yield given
        return
    with EmbeddedValkey() as valkey:
        yield valkey.url


@pytest.fixture
def redis_client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of its own for each test; the command timeout suits a busy machine."""
    client = client_from_url(valkey_url, **PATIENT)
    yield client
    client.close()


def keys_below(client: redis.Redis, namespace: str) -> list[str]:
    """Return every key of a namespace."""
    return sorted(key.decode() for key in client.scan_iter(match=f"{namespace}:*", count=500))


@pytest.fixture
def namespace(redis_client: redis.Redis) -> Iterator[str]:
    """A namespace of the test's own. At its end every key but the fences must have a TTL; then all are deleted."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    found = keys_below(redis_client, name)
    lasting = [key for key in found if redis_client.ttl(key) == -1 and not key.endswith(":fence")]
    if found:
        redis_client.delete(*found)
    assert lasting == [], "keys without a TTL were left"


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)


@pytest.fixture
def store(redis_client: redis.Redis, keys: Keys) -> Store:
    """The writes of worker ``w1`` into the test's namespace."""
    return Store(redis_client, keys, "w1")


@dataclass
class FleetBuilder:
    """Writes a fleet as its workers would: an inventory, snapshots, failures."""

    store: Store
    _leases: dict[str, Lease] = field(default_factory=dict)
    _seq: int = 0
    _versions: int = 0

    def publish(
        self,
        profiles: Mapping[str, Sequence[str]],
        *,
        hostnames: Mapping[str, str] | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        drained: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        version: str = "",
    ) -> PublishedFleet:
        """Publish profiles of target ids (``ts01``, or ``alice@ts01`` in user scope), and all that follows of them."""
        targets = {name: _target(name) for names in profiles.values() for name in names}
        servers = {
            name: PublishedServer(
                name,
                (hostnames or {}).get(name, name),
                tuple((labels or {}).get(name, ())),
                (weights or {}).get(name, 1.0),
                name in drained,
            )
            for name in dict.fromkeys(target.server for target in targets.values())
        }
        fleet = PublishedFleet(servers, targets, {name: tuple(names) for name, names in profiles.items()})
        fleet = PublishedFleet(fleet.servers, fleet.targets, fleet.profiles, version or self._next_version(fleet))
        self.store.publish(fleet, force=True)
        return fleet

    def _next_version(self, fleet: PublishedFleet) -> str:
        self._versions += 1
        return f"{self._versions:013d}-{fleet.digest()}"

    def lease(self, target: str) -> Lease:
        """Take the lease of a target, or return the one taken before."""
        if target not in self._leases:
            lease = self.store.acquire(target, ttl_ms=60_000)
            assert isinstance(lease, Lease), f"{target} is leased to {lease}"
            self._leases[target] = lease
        return self._leases[target]

    def next_seq(self) -> int:
        """Return a number that grows with each write."""
        self._seq += 1
        return self._seq

    def listing(
        self,
        target: str,
        kind: Kind | str,
        stdout: bytes | str | Path,
        *,
        age_seconds: float = 0.0,
        ttl_seconds: float = LASTING_SECONDS,
        **more: Any,
    ) -> Outcome:
        """Store what a command printed ``age_seconds`` ago; a Path is read. ``more`` are further fields of Listing."""
        kind = Kind(kind)
        if isinstance(stdout, Path):
            stdout = stdout.read_bytes()
        elif isinstance(stdout, str):
            stdout = stdout.encode()
        polled_at_ms = self.store.sync_clock() - int(age_seconds * 1000)
        listing = Listing(
            kind,
            stdout,
            digest_of(kind, stdout),
            polled_at_ms,
            polled_at_ms,
            12,
            int(ttl_seconds * 1000),
            int((ttl_seconds + LASTING_SECONDS) * 1000),
            **more,
        )
        outcome = self.store.store(self.lease(target), self.next_seq(), listing)
        if outcome is Outcome.STORED:
            self.tell(target, kind, Hint(polled_at_ms, polled_at_ms, polled_at_ms + listing.ttl_ms, listing.digest))
        return outcome

    def confirmation(
        self, target: str, kind: Kind | str, stdout: bytes, *, ttl_seconds: float = LASTING_SECONDS, told: bool = True
    ) -> Outcome:
        """Confirm what was stored of a target, as of now."""
        kind, digest, ttl_ms = Kind(kind), digest_of(Kind(kind), stdout), int(ttl_seconds * 1000)
        polled_at_ms = self.store.sync_clock()
        outcome = self.store.confirm(
            self.lease(target),
            self.next_seq(),
            kind,
            digest=digest,
            polled_at_ms=polled_at_ms,
            ttl_ms=ttl_ms,
            state_ttl_ms=ttl_ms,
        )
        if outcome is Outcome.STORED and told:
            self.tell(target, kind, Hint(polled_at_ms, polled_at_ms, polled_at_ms + ttl_ms, digest), changed=False)
        return outcome

    def tell(self, target: str, kind: Kind, hint: Hint | None, *, changed: bool = True) -> None:
        """Tell mirrors of a write, as a worker's HintTeller does; None is for a snapshot that was dropped."""
        name = hint_field(target, kind)
        text = hint.encode() if hint else DROPPED
        self.store.link.exchange(hint_commands(self.store.keys, {name: text}, [name] if changed else []))

    def failure(
        self,
        target: str,
        *,
        kinds: Sequence[Kind | str] = (Kind.SESSIONS,),
        error_class: str = "Unreachable",
        error_text: str = "no TCP connection to 10.0.0.3:22: connection refused",
        age_seconds: float = 0.0,
        state_ttl_seconds: float = LASTING_SECONDS,
    ) -> Outcome:
        """Record that a poll failed ``age_seconds`` ago."""
        return self.store.fail(
            self.lease(target),
            [Kind(kind) for kind in kinds],
            failed_at_ms=self.store.sync_clock() - int(age_seconds * 1000),
            state_ttl_ms=int(state_ttl_seconds * 1000),
            error_class=error_class,
            error_text=error_text,
        )


def _target(name: str) -> PublishedTarget:
    username = user_of(name)
    assert target_id(server_of(name), username) == name
    if username is None:
        return PublishedTarget(name, name, "server", None, frozenset({Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS}))
    kinds = frozenset({Kind.SESSIONS, Kind.DESKTOPS, Kind.MOUNTS})
    return PublishedTarget(name, server_of(name), "user", username, kinds)


@pytest.fixture
def fleet(store: Store) -> FleetBuilder:
    """Fills the test's namespace: ``fleet.publish``, ``fleet.listing``, ``fleet.failure``."""
    return FleetBuilder(store)


@pytest.fixture
def publish(fleet: FleetBuilder) -> Any:
    """``publish({"mate": ["ts01", "ts02"]})`` publishes an inventory."""
    return fleet.publish


@pytest.fixture
def store_listing(fleet: FleetBuilder) -> Any:
    """``store_listing("ts01", "sessions", stdout, age_seconds=0, ttl_seconds=60)`` stores what a command printed."""
    return fleet.listing
