"""command: a command that runs on the server, as bytes: stdin, stdout, stderr and exit status, within deadlines.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import paramiko

from x2gofleet.errors import ConnectionLost, PollError
from x2gofleet_workers.ssh.deadlines import Deadline, DeadlineWatch
from x2gofleet_workers.ssh.faults import describe, exhausted

NO_STATUS = -1
CUT_AFTER_SECONDS = 0.5
_RECEIVED_AT_ONCE_BYTES = 65536
_STDERR_KEPT_BYTES = 4096
_STDERR_DRAINED_SECONDS = 0.5
_STATUS_WAIT_SECONDS = 2.0


@contextmanager
def bounded(sock: socket.socket, watch: DeadlineWatch, deadline: Deadline, failure: str) -> Iterator[None]:
    """End the block at ``deadline``, and make a PollError of whatever it raises; ``failure`` says what did not work.

    Waits for data end at the deadline by themselves, at the cost of one channel alone; the connection, which other
    channels share, is cut only where paramiko does not come back from sending.
    """
    try:
        with watch.guarded(sock, deadline, grace_seconds=CUT_AFTER_SECONDS):
            yield
    except Exception as exc:
        if (lack := exhausted(exc)) is not None:
            raise lack from exc
        if isinstance(exc, PollError):
            raise
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise ConnectionLost(f"{failure}: {describe(exc)}") from exc


class _Signal(threading.Event):
    """An event that paramiko sets when input comes or ends; it calls instead, each time."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def set(self) -> None:
        """Call."""
        self._call()


class RunningCommand:
    """One command on a channel of its own. Not thread-safe, but ``close`` may come from anywhere."""

    def __init__(self, channel: paramiko.Channel, sock: socket.socket, watch: DeadlineWatch) -> None:
        self._channel, self._sock, self._watch = channel, sock, watch
        self._stderr = b""

    @classmethod
    def start(
        cls, transport: paramiko.Transport, sock: socket.socket, watch: DeadlineWatch, command: str, deadline: Deadline
    ) -> RunningCommand:
        """Execute ``command``; leaves no channel open when it fails."""
        channel = transport.open_session(timeout=deadline.left())
        running = cls(channel, sock, watch)
        try:
            channel.settimeout(deadline.left())
            channel.exec_command(command)
        except BaseException:
            running.close()
            raise
        return running

    def within(self, deadline: Deadline) -> AbstractContextManager[None]:
        """Bound a block that sends and receives; see ``bounded``."""
        return bounded(self._sock, self._watch, deadline, "the connection ended in the middle of a poll")

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Write to the command's stdin."""
        self._channel.settimeout(deadline.left())
        self._channel.sendall(data)

    def receive(self, deadline: Deadline) -> bytes:
        """Return the next bytes of stdout, b"" at its end. Raises DeadlineExceeded."""
        while True:
            # Now and then stderr is emptied while stdout is waited for: a command must not block on a full one.
            self._channel.settimeout(min(_STDERR_DRAINED_SECONDS, deadline.left()))
            try:
                data: bytes = self._channel.recv(_RECEIVED_AT_ONCE_BYTES)
            except TimeoutError:
                self._drain_stderr()
                continue
            if not data and deadline.passed():
                raise deadline.exceeded()
            self._drain_stderr()
            return data

    def on_input(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever stdout has something to read, its end included, and now if it has already.

        It is called by the thread that reads the connection, and must not wait for anything.
        """
        self._channel.in_buffer.set_event(_Signal(call))

    def has_input(self) -> bool:
        """Whether stdout has bytes to read."""
        return self._channel.recv_ready()

    def exit_status(self, deadline: Deadline) -> int:
        """Return the status of a command whose stdout has ended, NO_STATUS where the server does not send one."""
        # The exit status comes after the end of the output.
        self._channel.status_event.wait(min(_STATUS_WAIT_SECONDS, deadline.left()))
        self._drain_stderr()
        return self._channel.recv_exit_status() if self._channel.exit_status_ready() else NO_STATUS

    @property
    def stderr(self) -> bytes:
        """What came on stderr since ``forget_stderr``: its last 4096 bytes."""
        self._drain_stderr()
        return self._stderr

    def forget_stderr(self) -> None:
        """Let ``stderr`` begin anew."""
        self._drain_stderr()
        self._stderr = b""

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            self._stderr = (self._stderr + self._channel.recv_stderr(32768))[-_STDERR_KEPT_BYTES:]

    def close(self) -> None:
        """End the command: it reads end of input."""
        with suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()
