from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.waiting import HANG_SECONDS
from x2gofleet.adapters.live_agent import QUIET_SECONDS, AgentError, LiveAgents, Unanswered, closed_with_its_call


class BrokerError(BaseException):
    """Like the exceptions of x2gobroker, not an Exception."""


class Unreadable(Exception):
    """Like paramiko's BadHostKeyException where it was made without its keys."""

    def __str__(self) -> str:
        raise AttributeError("key")


@pytest.fixture
def end() -> Iterator[threading.Event]:
    """What hung functions wait for; set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_returns_what_the_function_returns() -> None:
    assert LiveAgents(10, 30).call("ts01", lambda: (True, ["row"])) == (True, ["row"])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BrokerError("no agent"), "ts01 failed: BrokerError: no agent"),
        (ConnectionRefusedError("refused"), "ts01 failed: ConnectionRefusedError: refused"),
        (SystemExit(3), "ts01 failed: SystemExit: 3"),
        (GeneratorExit(), "ts01 failed: GeneratorExit: "),
        (Unreadable(), r"ts01 failed: Unreadable: \(its text can't be read\)"),
    ],
)
def test_whatever_a_call_raises_is_an_agent_error(error: BaseException, text: str) -> None:
    with pytest.raises(AgentError, match=text) as caught:
        LiveAgents(10, 30).call("ts01", raising(error))
    assert caught.value.__cause__ is error


def test_keyboard_interrupt_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        LiveAgents(10, 30).call("ts01", raising(KeyboardInterrupt()))


def test_a_hung_agent_costs_its_limit_once_and_others_nothing(end: threading.Event) -> None:
    now, asked = [0.0], []
    agents = LiveAgents(0.05, 30, monotonic=lambda: now[0])

    def hang() -> bool:
        asked.append(1)
        return end.wait(30)

    with pytest.raises(Unanswered, match=r"ts03 did not answer within 0\.05 s"):
        agents.call("ts03", hang)
    with pytest.raises(Unanswered, match="ts03 is not asked"):
        agents.call("ts03", hang)
    agents.limit_seconds = HANG_SECONDS
    assert agents.call("ts01", lambda: 1) == 1
    now[0] = QUIET_SECONDS + 1
    with pytest.raises(Unanswered, match="not asked"):
        agents.call("ts03", hang)
    end.set()
    agents._hung["ts03"].join(HANG_SECONDS)
    now[0] = QUIET_SECONDS - 1
    with pytest.raises(Unanswered, match="not asked"):
        agents.call("ts03", hang)
    now[0] = QUIET_SECONDS + 1
    assert agents.call("ts03", hang) is True
    assert len(asked) == 2


def test_the_calls_of_a_request_share_its_limit_and_none_is_left_out(end: threading.Event) -> None:
    now = [0.0]
    agents = LiveAgents(0.05, 0.2, monotonic=lambda: now[0])
    limits = [0.05, 0.05, 0.05, 0.025, 0.0125]
    assert sum(limits) < 0.2

    def call(host: str, limit: float) -> None:
        def hang() -> None:
            now[0] += limit
            end.wait(30)

        with pytest.raises(Unanswered, match=f"{host} did not answer within {limit:.3g} s"):
            agents.call(host, hang)

    with agents.request():
        for number, limit in enumerate(limits[:4]):
            call(f"ts{number}", limit)
        # Nested, like a profile within the list of all.
        with agents.request():
            call("ts4", limits[4])
            now[0] -= limits[4]
            assert agents.call("ts9", lambda: "answers") == "answers"
    with agents.request():
        call("ts5", 0.05)


def test_a_call_cut_short_by_its_request_does_not_silence_its_host(end: threading.Event) -> None:
    agents = LiveAgents(10, 0.1, monotonic=lambda: 0.0)
    with agents.request(), pytest.raises(Unanswered, match=r"within 0\.05 s"):
        agents.call("ts03", lambda: end.wait(30))
    end.set()
    agents._hung["ts03"].join(HANG_SECONDS)
    assert agents.call("ts03", lambda: True) is True


def test_a_fork_starts_afresh(end: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = LiveAgents(0.05, 0.05, monotonic=lambda: 0.0)
    with agents.request():
        with pytest.raises(Unanswered):
            agents.call("ts03", lambda: end.wait(30))
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert agents._limit() == 0.05
        assert agents.call("ts03", lambda: "asked") == "asked"


def test_a_call_within_a_call_is_part_of_it() -> None:
    agents = LiveAgents(10, 30)

    def outer() -> tuple[threading.Thread, threading.Thread]:
        return threading.current_thread(), agents.call("port 22 of ts01", threading.current_thread)

    first, second = agents.call("ts01", outer)
    assert first is second


class Connection:
    """Like paramiko's SSHClient: reading from it ends when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.may_connect = threading.Event()

    def close(self) -> None:
        self.closed.set()

    def connect(self) -> None:
        self.may_connect.wait(30)

    def read(self) -> None:
        self.closed.wait(30)


def connect(connection: Any) -> None:
    closed_with_its_call(Connection.connect)(connection)


def test_the_connection_of_a_call_that_is_left_behind_is_closed() -> None:
    agents, connection = LiveAgents(0.05, 30), Connection()
    connection.may_connect.set()

    def call() -> None:
        connect(connection)
        connection.read()

    with pytest.raises(Unanswered):
        agents.call("ts03", call)
    agents._hung["ts03"].join(HANG_SECONDS)
    assert connection.closed.is_set()


def test_a_connection_made_after_its_call_was_left_behind_is_closed() -> None:
    agents, connection, read = LiveAgents(0.05, 30), Connection(), []

    def call() -> None:
        connect(connection)
        read.append(1)

    with pytest.raises(Unanswered):
        agents.call("ts03", call)
    assert connection.closed.wait(10)
    connection.closed.clear()
    connection.may_connect.set()
    agents._hung["ts03"].join(HANG_SECONDS)
    assert connection.closed.is_set()
    assert read == []


def test_connections_of_other_threads_are_left_alone() -> None:
    connection = Connection()
    connection.may_connect.set()
    connect(connection)
    assert not connection.closed.is_set()
