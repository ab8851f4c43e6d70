"""A running command over a fake channel of paramiko: bytes, stderr, status, and what becomes of exceptions."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
from x2gofleet_workers.ssh.command import NO_STATUS, RunningCommand, bounded
from x2gofleet_workers.ssh.deadlines import Deadline, DeadlineWatch

from tests.support.clocks import ManualClock
from x2gofleet.errors import ConnectionLost, DeadlineExceeded, NotProven, WorkerExhausted


class FakeChannel:
    """As much of paramiko's Channel as is used; ``received`` are pieces of stdout, None for a wait in vain."""

    def __init__(self, *received: bytes | None, stderr: bytes = b"", status: int | None = None) -> None:
        self._received, self._stderr, self._status = list(received), stderr, status
        self.status_event = threading.Event()
        self.status_event.set()
        self.timeouts: list[float] = []
        self.sent = b""
        self.command = ""
        self.closed = False
        self.clock: ManualClock | None = None

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def exec_command(self, command: str) -> None:
        if command == "refused":
            raise paramiko.SSHException("Channel closed.")
        self.command = command

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, size: int) -> bytes:
        found = self._received.pop(0) if self._received else b""
        if found is None:
            if self.clock is not None:
                self.clock.now += self.timeouts[-1]
            raise TimeoutError
        return found

    def recv_stderr_ready(self) -> bool:
        return bool(self._stderr)

    def recv_stderr(self, size: int) -> bytes:
        found, self._stderr = self._stderr[:size], self._stderr[size:]
        return found

    def exit_status_ready(self) -> bool:
        return self._status is not None

    def recv_exit_status(self) -> int:
        assert self._status is not None
        return self._status

    def close(self) -> None:
        self.closed = True
        raise EOFError


class FakeTransport:
    def __init__(self, channel: FakeChannel) -> None:
        self._channel = channel

    def open_session(self, timeout: float) -> FakeChannel:
        return self._channel


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def running(channel: FakeChannel, sock: socket.socket, clock: ManualClock) -> RunningCommand:
    fake: Any = channel
    return RunningCommand(fake, sock, DeadlineWatch(monotonic=clock))


def test_a_command_is_executed_and_written_to(sock: socket.socket, clock: ManualClock) -> None:
    channel = FakeChannel(b"out")
    transport: Any = FakeTransport(channel)
    deadline = Deadline(9, monotonic=clock)
    command = RunningCommand.start(transport, sock, DeadlineWatch(monotonic=clock), "true", deadline)
    command.send(b"in", deadline)
    assert (channel.command, channel.sent) == ("true", b"in")
    assert (command.receive(deadline), command.receive(deadline)) == (b"out", b"")
    assert all(0 < seconds <= 9 for seconds in channel.timeouts)


def test_a_command_that_is_refused_leaves_no_channel(sock: socket.socket, clock: ManualClock) -> None:
    channel = FakeChannel()
    transport: Any = FakeTransport(channel)
    with pytest.raises(paramiko.SSHException):
        RunningCommand.start(transport, sock, DeadlineWatch(monotonic=clock), "refused", Deadline(9, monotonic=clock))
    assert channel.closed


def test_while_stdout_is_waited_for_stderr_is_emptied_and_little_of_it_kept(
    sock: socket.socket, clock: ManualClock
) -> None:
    channel = FakeChannel(None, None, b"out", stderr=b"x" * 100_000 + b"the end")
    command = running(channel, sock, clock)
    assert command.receive(Deadline(9, monotonic=clock)) == b"out"
    assert not channel.recv_stderr_ready()
    assert (len(command.stderr), command.stderr[-7:]) == (4096, b"the end")
    command.forget_stderr()
    assert command.stderr == b""


def test_waiting_ends_at_the_deadline(sock: socket.socket, clock: ManualClock) -> None:
    channel = FakeChannel(*[None] * 100)
    channel.clock = clock
    with pytest.raises(DeadlineExceeded):
        running(channel, sock, clock).receive(Deadline(9, monotonic=clock))
    assert sum(channel.timeouts) == 9.0


@pytest.mark.parametrize(("status", "found"), [(0, 0), (127, 127), (None, NO_STATUS)])
def test_the_exit_status(status: int | None, found: int, sock: socket.socket, clock: ManualClock) -> None:
    command = running(FakeChannel(status=status), sock, clock)
    assert command.exit_status(Deadline(9, monotonic=clock)) == found


def test_closing_what_is_over_is_no_error(sock: socket.socket, clock: ManualClock) -> None:
    channel = FakeChannel()
    running(channel, sock, clock).close()
    assert channel.closed


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (NotProven("x"), NotProven),
        (EOFError(), ConnectionLost),
        (OSError("Socket is closed"), ConnectionLost),
        (KeyError("whatever paramiko lets through"), ConnectionLost),
        (OSError(errno.EMFILE, "Too many open files"), WorkerExhausted),
        (MemoryError(), WorkerExhausted),
        (RuntimeError("can't start new thread"), WorkerExhausted),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_whatever_is_raised_becomes_an_error_of_the_poll(
    raised: Exception, error: type[Exception], sock: socket.socket, clock: ManualClock
) -> None:
    with (
        pytest.raises(error) as caught,
        bounded(sock, DeadlineWatch(monotonic=clock), Deadline(9, monotonic=clock), "it broke"),
    ):
        raise raised
    assert type(caught.value) is error
    if error is ConnectionLost:
        assert str(caught.value).startswith("it broke: ")


def test_what_breaks_after_the_deadline_is_the_deadline(sock: socket.socket, clock: ManualClock) -> None:
    deadline = Deadline(9, monotonic=clock)
    clock.now += 9
    with pytest.raises(DeadlineExceeded), bounded(sock, DeadlineWatch(monotonic=clock), deadline, "it broke"):
        raise EOFError
