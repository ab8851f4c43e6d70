"""connection: a client's timeouts, the circuit breaker, names that don't resolve, and what is told of each error."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.sentinel import MasterNotFoundError

from tests.clocks import WaitedClock
from tests.links import refusing
from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.connection import Breaker, client_from_url, link_of, opens_breaker, resolving, unavailable
from x2gofleet.connection.failures import LinkFailed, LinkTimeout
from x2gofleet.connection.forks import begins_anew
from x2gofleet.connection.resolving import NameNotResolved, Resolver
from x2gofleet.errors import CacheUnavailable, Unavailable


@pytest.mark.parametrize("url", ["redis://127.0.0.1:7000/3", "redis://r:p@localhost/3", "unix:///run/x.sock?db=3"])
def test_every_timeout_is_set_and_nothing_is_retried(url: str) -> None:
    client = client_from_url(url)
    made = client.connection_pool.make_connection()
    assert made.socket_connect_timeout == 0.25
    assert made.socket_timeout == 0.5
    assert made.retry._retries == 0
    assert isinstance(made.retry._backoff, NoBackoff)
    assert made.retry_on_error == []
    assert made.health_check_interval == 0
    assert made.db == 3
    assert made.protocol in (2, "2")


def test_timeouts_and_the_size_of_the_pool_can_be_chosen() -> None:
    client = client_from_url(
        "redis://127.0.0.1", connect_timeout_seconds=1.5, command_timeout_seconds=2.5, max_connections=3
    )
    made = client.connection_pool.make_connection()
    assert (made.socket_connect_timeout, made.socket_timeout) == (1.5, 2.5)
    assert client.connection_pool.max_connections == 3


@pytest.mark.parametrize("url", ["redis+sentinel://h/mymaster", "redis+cluster://h"])
def test_a_client_is_of_one_server(url: str) -> None:
    with pytest.raises(ValueError, match="more than one server: use link_from_url"):
        client_from_url(url)


def test_nothing_listening_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    connect = redis.Connection._connect

    def counted(connection: redis.Connection) -> Any:
        tried.append(connection.socket_connect_timeout)
        return connect(connection)

    monkeypatch.setattr(redis.Connection, "_connect", counted)
    with refusing() as port, pytest.raises(redis.exceptions.ConnectionError, match="refused"):
        client_from_url(f"redis://127.0.0.1:{port}/0").ping()
    assert tried == [0.25]


@pytest.fixture
def silent_server() -> Iterator[tuple[int, list[bytes]]]:
    """A TCP server that reads and never answers: (port, what it was sent)."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []
    accepted: list[socket.socket] = []

    def read(peer: socket.socket) -> None:
        received.extend(iter(lambda: peer.recv(4096), b""))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            accepted.append(peer)
            threading.Thread(target=read, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], received
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(HANG_SECONDS)
    for peer in accepted:
        peer.close()


def test_a_silent_server_costs_one_command_timeout(silent_server: tuple[int, list[bytes]]) -> None:
    port, received = silent_server
    client = client_from_url(f"redis://127.0.0.1:{port}/0")
    with pytest.raises(redis.exceptions.TimeoutError):
        link_of(client).exchange([("GET", "a")])
    client.close()
    wait_until(lambda: received, "the command is received")
    assert received == [b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"], "more was sent than the command"


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(breaker: Breaker) -> str:
    with pytest.raises(CacheUnavailable) as caught:
        breaker.check()
    return str(caught.value)


def test_the_breaker_lets_one_trial_through_per_second() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.check()
    breaker.check()
    breaker.failed("connection refused")
    assert refused(breaker) == "connection refused (not tried again for 1 s)"
    clock.now += 0.999
    refused(breaker)
    clock.now += 0.001
    breaker.check()
    refused(breaker)
    breaker.failed("timed out")
    clock.now += 0.5
    assert "timed out" in refused(breaker)
    clock.now += 0.5
    breaker.check()
    breaker.succeeded()
    breaker.check()
    breaker.check()


def test_a_trial_that_never_ends_does_not_stop_the_next_one() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.failed("gone")
    for _ in range(3):
        clock.now += 1.0
        breaker.check()
        refused(breaker)


def test_of_many_threads_one_makes_the_trial() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.failed("gone")
    clock.now += 1.0
    barrier, through = threading.Barrier(16), []

    def call() -> None:
        barrier.wait()
        try:
            breaker.check()
        except CacheUnavailable:
            return
        through.append(1)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(through) == 1


class HangingNames:
    """getaddrinfo that hangs until it is let go, then answers or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go = threading.Event()
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.answer: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 6379))]
        monkeypatch.setattr(resolving.socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        self.let_go.wait(HANG_SECONDS)
        if self.failure is not None:
            raise self.failure
        return self.answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingNames]:
    made = HangingNames(monkeypatch)
    yield made
    made.let_go.set()
    wait_until(lambda: not any(thread.name == "x2gofleet-resolver" for thread in threading.enumerate()))


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitedClock]:
    """The clock of what is made in the test: it counts what is waited for in vain."""
    with WaitedClock().installed(monkeypatch) as clock:
        yield clock


def test_a_name_that_hangs_costs_the_timeout_and_one_thread(waited: WaitedClock, names: HangingNames) -> None:
    resolver = Resolver()
    for _ in range(3):
        with waited.measured(0.05), pytest.raises(OSError, match=r"'redis\.example' could not be resolved"):
            resolver.addresses("redis.example", 6379, timeout_seconds=0.05)
    assert names.asked == ["redis.example"]
    names.let_go.set()
    wait_until(lambda: not any(thread.name == "x2gofleet-resolver" for thread in threading.enumerate()))
    assert resolver.addresses("redis.example", 6379, timeout_seconds=0.0) == names.answer
    assert names.asked == ["redis.example"]


def test_a_name_for_which_no_thread_can_be_started_is_not_resolved(
    names: HangingNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver()
    names.let_go.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(NameNotResolved, match=r"'redis\.example' could not be resolved: can't start new thread"):
            resolver.addresses("redis.example", 6379, timeout_seconds=HANG_SECONDS)
    assert resolver.addresses("redis.example", 6379, timeout_seconds=HANG_SECONDS) == names.answer


def test_the_event_loop_goes_on_while_a_name_hangs(waited: WaitedClock, names: HangingNames) -> None:
    resolver = Resolver()

    async def turns(until: asyncio.Event) -> int:
        counted = 0
        while not until.is_set():
            counted += 1
            await asyncio.sleep(0.001)
        return counted

    async def main() -> tuple[int, list[Any]]:
        over = asyncio.Event()
        counting = asyncio.create_task(turns(over))
        with (
            waited.measured(0.1),
            pytest.raises(NameNotResolved, match=r"'redis\.example' could not be resolved within 0\.1 s"),
        ):
            await resolver.addresses_async("redis.example", 6379, timeout_seconds=0.1)
        over.set()
        names.let_go.set()
        return await counting, await resolver.addresses_async("redis.example", 6379, timeout_seconds=10)

    with asyncio.Runner(loop_factory=waited.event_loop) as runner:
        counted, found = runner.run(main())
    assert counted > 90, "a turn each millisecond"
    assert found == names.answer
    assert names.asked == ["redis.example"], "the second one waited for the answer to the first"


def test_an_address_is_no_name_that_must_be_asked_for(names: HangingNames) -> None:
    assert Resolver().addresses("192.0.2.7", 6379, timeout_seconds=0)[0][4] == ("192.0.2.7", 6379)
    assert Resolver().addresses("::1", 6379, timeout_seconds=0)[0][4] == ("::1", 6379, 0, 0)
    assert names.asked == []


def test_a_child_asks_for_a_name_that_its_parent_was_asking_for(names: HangingNames) -> None:
    resolver = Resolver()
    with pytest.raises(NameNotResolved):
        resolver.addresses("redis.example", 6379, timeout_seconds=0)
    running = resolver._running[("redis.example", 6379)]
    resolver._lock.acquire()
    before = resolver._lock
    resolver.after_fork()
    assert resolver._running == {}
    before.release()
    names.let_go.set()
    assert resolver.addresses("redis.example", 6379, timeout_seconds=5) == names.answer
    assert running.done.wait(HANG_SECONDS)


def test_the_last_answer_serves_while_a_newer_one_hangs(names: HangingNames, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    names.let_go.set()
    assert resolver.addresses("redis.example", 6379, timeout_seconds=5) == names.answer
    names.let_go.clear()
    later = time.monotonic() + 31
    monkeypatch.setattr(resolving.time, "monotonic", lambda: later)
    assert resolver.addresses("redis.example", 6379, timeout_seconds=0) == names.answer
    assert resolver.addresses("redis.example", 6379, timeout_seconds=0) == names.answer
    wait_until(lambda: len(names.asked) == 2)
    monkeypatch.undo()


@pytest.mark.parametrize(
    "failure", [OSError(-2, "Name or service not known"), UnicodeError("label too long")], ids=["unknown", "no name"]
)
def test_a_name_without_an_address_is_an_os_error_and_asked_for_again(names: HangingNames, failure: Exception) -> None:
    names.let_go.set()
    names.failure = failure
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(OSError, match="could not be resolved"):
            resolver.addresses("redis.example", 6379, timeout_seconds=5)
    assert len(names.asked) == 2
    names.failure = None
    assert resolver.addresses("redis.example", 6379, timeout_seconds=5) == names.answer


LOGIN = (
    "storing: Redis refuses the user name or password, or wants one (in the URL, X2GOFLEET_REDIS_PASSWORD_FILE or "
    "X2GOFLEET_REDIS_PASSWORD): x"
)


@pytest.mark.parametrize(
    ("error", "said", "reason"),
    [
        (
            redis.exceptions.BusyLoadingError("LOADING"),
            "storing: Redis is still loading its data set: LOADING",
            Unavailable.LOADING,
        ),
        (redis.exceptions.ReadOnlyError("x"), "storing: Redis refuses writes: x", Unavailable.READ_ONLY),
        (
            redis.exceptions.ResponseError("MISCONF x"),
            "storing: Redis refuses writes: MISCONF x",
            Unavailable.READ_ONLY,
        ),
        (redis.exceptions.OutOfMemoryError("x"), "storing: Redis is at its maxmemory: x", Unavailable.OUT_OF_MEMORY),
        (
            redis.exceptions.NoPermissionError("x"),
            "storing: the Redis user lacks a right: lookups need the role reader, refreshes, registrations and "
            "placement the role broker, workers the role worker; x2gofleet acl prints the rules of each: x",
            Unavailable.NO_PERMISSION,
        ),
        (redis.exceptions.AuthenticationError("x"), LOGIN, Unavailable.AUTHENTICATION),
        (
            redis.exceptions.MasterDownError("x"),
            "storing: a replica of Redis has lost its master: x",
            Unavailable.NO_MASTER,
        ),
        (MasterNotFoundError("x"), "storing: the sentinels know no master: x", Unavailable.NO_MASTER),
        (
            redis.exceptions.MovedError("1 127.0.0.1:7001"),
            "storing: this Redis is a Cluster, use redis+cluster://: 1 127.0.0.1:7001",
            Unavailable.MOVED,
        ),
        (
            redis.exceptions.AskError("1 127.0.0.1:7001"),
            "storing: this Redis is a Cluster, use redis+cluster://: 1 127.0.0.1:7001",
            Unavailable.MOVED,
        ),
        (redis.exceptions.ClusterDownError("x"), "storing: the Redis Cluster is down: x", Unavailable.CLUSTER_DOWN),
        (redis.exceptions.TimeoutError("x"), "storing: Redis did not answer in time: x", Unavailable.TIMEOUT),
        (LinkTimeout("x"), "storing: Redis did not answer in time: x", Unavailable.TIMEOUT),
        (LinkFailed("x", Unavailable.TLS), "storing: x", Unavailable.TLS),
        (NameNotResolved("no such name"), "storing: no such name", Unavailable.NAME),
        (ssl.SSLError("x"), "storing: ('x',)", Unavailable.TLS),
        (
            redis.exceptions.InvalidResponse("x"),
            "storing: what answers there is no Redis: x",
            Unavailable.OTHER,
        ),
        (redis.exceptions.ConnectionError(""), "storing: ConnectionError", Unavailable.UNREACHABLE),
        (OSError("no route"), "storing: no route", Unavailable.UNREACHABLE),
        (redis.exceptions.ResponseError("WRONGTYPE x"), "storing: WRONGTYPE x", Unavailable.OTHER),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_told_of_a_redis_error(error: Exception, said: str, reason: Unavailable) -> None:
    told = unavailable(error, "storing")
    assert isinstance(told, CacheUnavailable)
    assert (str(told), told.reason) == (said, reason)
    again = pickle.loads(pickle.dumps(told))
    assert (str(again), again.reason) == (said, reason)


def test_an_error_may_be_made_of_its_message_alone() -> None:
    assert CacheUnavailable("x").reason is Unavailable.OTHER


@pytest.mark.parametrize("error", [redis.exceptions.NoPermissionError, redis.exceptions.OutOfMemoryError])
def test_a_server_that_refuses_is_asked_again_at_once(error: type[Exception]) -> None:
    assert not opens_breaker(error("x"))
    assert opens_breaker(LinkTimeout("x"))
    assert opens_breaker(LinkFailed("x"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_an_object_that_is_gone_is_not_called_in_a_child() -> None:
    called: list[str] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name
            begins_anew(self)

        def after_fork(self) -> None:
            called.append(self.name)

    kept, gone = Told("kept"), Told("gone")
    assert gone.name == "gone"
    del gone
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ",".join(called).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() == kept.name
    assert called == [], "nothing is forgotten in the parent"
    os.close(reading)
    os.close(writing)
