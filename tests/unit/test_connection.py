"""connection: URLs, what they may not leak, the circuit breaker, names that don't resolve; every wait bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff

from x2gofleet import connection
from x2gofleet.connection import Breaker, Resolver, client_from_url, exchange, redact_url, unavailable
from x2gofleet.errors import CacheUnavailable


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.005)


def test_the_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X2GOFLEET_REDIS_URL", raising=False)
    assert connection.url_from_environment() == "redis://127.0.0.1:6379/0"
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "")
    assert connection.url_from_environment() == "redis://127.0.0.1:6379/0"
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix:///run/valkey.sock")
    assert connection.url_from_environment() == "unix:///run/valkey.sock"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:s3cret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("redis://reader:s3cret@[::1]:6379/2", "redis://reader:***@[::1]:6379/2"),
        ("redis://reader:s3@cret@h/0", "redis://reader:***@h/0"),
        ("unix://reader:s3cret@/run/valkey.sock?db=1", "unix://reader:***@/run/valkey.sock?db=1"),
        ("redis://reader@h:1/0", "redis://reader@h:1/0"),
        ("unix:///run/valkey.sock?db=1&password=s3cret", "unix:///run/valkey.sock?db=1&password=***"),
        ("redis://h/0?username=reader&password=s3cret", "redis://h/0?username=reader&password=***"),
        ("redis://h/0?PASSWORD=s3cret", "redis://h/0?PASSWORD=***"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize("url", ["redis://127.0.0.1:7000/3", "redis://r:p@localhost/3", "unix:///run/x.sock?db=3"])
def test_every_timeout_is_set_and_nothing_is_retried(url: str) -> None:
    client = client_from_url(url)
    made = client.connection_pool.make_connection()
    assert made.socket_connect_timeout == 0.25
    assert made.socket_timeout == 0.5
    assert made.retry.get_retries() == 0
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


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://127.0.0.1:6379/0",
        "rediss://:s3cret@127.0.0.1:6379/0",
        "redis://:s3cret@127.0.0.1:port/0",
        "redis://127.0.0.1:6379/zero",
        "redis://127.0.0.1:6379/0/1",
        "unix://",
        "unix:///run/x.sock?db=zero",
        "redis://127.0.0.1/0?socket_timeout=60",
        "redis://127.0.0.1/0?retry_on_timeout=yes",
        "redis://127.0.0.1/0?decode_responses=yes",
        "redis://127.0.0.1/0?password=s3cret&protocol=3",
    ],
)
def test_another_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        client_from_url(url)
    assert "redis://HOST:PORT/DB" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_nothing_listening_is_one_quick_failure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = client_from_url(f"redis://127.0.0.1:{free.getsockname()[1]}/0")
        started = time.monotonic()
        with pytest.raises(redis.exceptions.ConnectionError):
            client.ping()
        assert time.monotonic() - started < 0.25


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
    thread.join(5)
    for peer in accepted:
        peer.close()


def test_a_silent_server_costs_one_command_timeout(silent_server: tuple[int, list[bytes]]) -> None:
    port, received = silent_server
    client = client_from_url(f"redis://127.0.0.1:{port}/0")
    started = time.monotonic()
    with pytest.raises(redis.exceptions.TimeoutError):
        exchange(client, [("GET", "a")])
    assert 0.4 < time.monotonic() - started < 0.9
    assert received == [b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"], "more was sent than the command"
    client.close()


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
        monkeypatch.setattr(connection.socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        self.let_go.wait(10)
        if self.failure is not None:
            raise self.failure
        return self.answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingNames]:
    made = HangingNames(monkeypatch)
    yield made
    made.let_go.set()
    wait_until(lambda: not any(thread.name == "x2gofleet-resolver" for thread in threading.enumerate()))


def test_a_name_that_hangs_costs_the_timeout_and_one_thread(names: HangingNames) -> None:
    resolver = Resolver()
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"'redis\.example' could not be resolved"):
            resolver.addresses("redis.example", 6379, timeout_seconds=0.05)
        assert 0.04 < time.monotonic() - started < 0.5
    assert names.asked == ["redis.example"]
    names.let_go.set()
    wait_until(lambda: not any(thread.name == "x2gofleet-resolver" for thread in threading.enumerate()))
    assert resolver.addresses("redis.example", 6379, timeout_seconds=0.0) == names.answer
    assert names.asked == ["redis.example"]


def test_a_client_of_a_name_that_hangs_fails_within_its_connect_timeout(
    names: HangingNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_resolver", Resolver())
    client = client_from_url("redis://redis.example/0")
    started = time.monotonic()
    with pytest.raises(redis.exceptions.ConnectionError, match=r"redis\.example"):
        client.ping()
    assert time.monotonic() - started < 0.5


def test_the_last_answer_serves_while_a_newer_one_hangs(names: HangingNames, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    names.let_go.set()
    assert resolver.addresses("redis.example", 6379, timeout_seconds=5) == names.answer
    names.let_go.clear()
    later = time.monotonic() + 31
    monkeypatch.setattr(connection.time, "monotonic", lambda: later)
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.exceptions.BusyLoadingError("LOADING"), "storing: Redis is still loading its data set: LOADING"),
        (redis.exceptions.ReadOnlyError("x"), "storing: Redis refuses writes: x"),
        (redis.exceptions.OutOfMemoryError("x"), "storing: Redis is at its maxmemory: x"),
        (redis.exceptions.NoPermissionError("x"), "storing: the Redis user lacks a right: x"),
        (redis.exceptions.TimeoutError("x"), "storing: Redis did not answer in time: x"),
        (redis.exceptions.ConnectionError(""), "storing: ConnectionError"),
        (OSError("no route"), "storing: no route"),
    ],
)
def test_what_is_told_of_a_redis_error(error: Exception, said: str) -> None:
    told = unavailable(error, "storing")
    assert isinstance(told, CacheUnavailable)
    assert str(told) == said
