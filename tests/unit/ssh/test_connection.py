"""Probes on a connection: one that does not start leaves no channel, and the connection can still be used."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
from x2gofleet_workers.probe.encoding import encode_done, encode_section
from x2gofleet_workers.probe.hello import Hello
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Scope, Section, SectionKind, SectionRequest
from x2gofleet_workers.ssh import Deadline, Endpoint, SshConnection
from x2gofleet_workers.ssh.deadlines import DeadlineWatch

from x2gofleet.errors import CommandMissing, ConnectionLost, PollError

ENDPOINT = Endpoint("ts01", 22, "root", "id", "known_hosts")
HELLO = Hello(0, "root", "ts01")


class FakeChannel:
    """A command that prints ``output``, then ends."""

    def __init__(self, *output: bytes, status: int = 0, stderr: bytes = b"") -> None:
        self._output, self._status, self._stderr = list(output), status, stderr
        self.status_event = threading.Event()
        self.status_event.set()
        self.sent = b""
        self.closed = False

    def settimeout(self, seconds: float) -> None:
        pass

    def exec_command(self, command: str) -> None:
        self.command = command

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, size: int) -> bytes:
        return self._output.pop(0) if self._output else b""

    def recv_ready(self) -> bool:
        return bool(self._output)

    def recv_stderr_ready(self) -> bool:
        return bool(self._stderr)

    def recv_stderr(self, size: int) -> bytes:
        found, self._stderr = self._stderr[:size], self._stderr[size:]
        return found

    def exit_status_ready(self) -> bool:
        return True

    def recv_exit_status(self) -> int:
        return self._status

    def close(self) -> None:
        self.closed = True


class FakeTransport:
    def __init__(self, *channels: FakeChannel | Exception) -> None:
        self._channels = list(channels)
        self.active = True

    def open_session(self, timeout: float) -> FakeChannel:
        channel = self._channels.pop(0)
        if isinstance(channel, Exception):
            raise channel
        return channel

    def is_active(self) -> bool:
        return self.active

    def is_alive(self) -> bool:
        return False

    def close(self) -> None:
        self.active = False


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def connected(sock: socket.socket, *channels: FakeChannel | Exception) -> SshConnection:
    transport: Any = FakeTransport(*channels)
    return SshConnection(transport, sock, ENDPOINT, DeadlineWatch())


def test_a_probe_that_greets_can_be_asked(sock: socket.socket) -> None:
    load = Section(kind=SectionKind.LOAD, stdout=b"loadavg 0 0 0\n")
    answer = encode_section(load, Scope.SERVER, 1) + encode_done(0, "ts01", 1)
    channel = FakeChannel(HELLO.encode(), answer)
    probe = connected(sock, channel).start_probe("perl", Deadline(9), first_input=b"text")
    assert (channel.command, channel.sent, probe.hello, channel.closed) == ("perl", b"text", HELLO, False)
    request = Request(Scope.SERVER, (SectionRequest(SectionKind.LOAD),), 9)
    assert list(probe.exchange(AnswerDecoder(request), Deadline(9))) == [load]
    probe.close()
    assert channel.closed


@pytest.mark.parametrize(
    ("channel", "error"),
    [
        (FakeChannel(status=127, stderr=b"sh: 1: perl: not found\n"), CommandMissing),
        (FakeChannel(b"x2gofleet-probe 1 uid=0 user=root host=ts01\n"), PollError),
        (paramiko.ChannelException(1, "Administratively prohibited"), ConnectionLost),
    ],
)
def test_after_a_probe_that_does_not_start_the_next_one_can(
    channel: FakeChannel | Exception, error: type[PollError], sock: socket.socket
) -> None:
    connection = connected(sock, channel, FakeChannel(HELLO.encode()))
    with pytest.raises(error):
        connection.start_probe("perl", Deadline(9))
    assert not isinstance(channel, FakeChannel) or channel.closed
    assert connection.alive
    assert connection.start_probe("perl", Deadline(9)).hello == HELLO


def test_a_closed_connection_is_not_alive(sock: socket.socket) -> None:
    connection = connected(sock)
    assert connection.alive
    connection.close()
    assert not connection.alive
    assert sock.fileno() == -1
