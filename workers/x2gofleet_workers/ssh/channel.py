"""channel: a running probe: a hello, then one request and one answer at a time.

Moves bytes between a command on the server and the decoders of the probe's protocol, and knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from x2gofleet.errors import ConnectionLost, NotProven, PollError
from x2gofleet.text import show
from x2gofleet_workers.probe.protocol import AnswerDecoder, Hello, HelloDecoder, Section
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.starting import login_ended


class ByteChannel(Protocol):
    """A command's input and output; RunningCommand is one."""

    @property
    def stderr(self) -> bytes:
        """What came on stderr lately."""

    def within(self, deadline: Deadline) -> AbstractContextManager[None]:
        """Bound a block that sends and receives."""

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Write to the command's stdin."""

    def receive(self, deadline: Deadline) -> bytes:
        """Return the next bytes of stdout, b"" at its end."""

    def on_input(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever stdout has something to read, its end included."""

    def has_input(self) -> bool:
        """Whether stdout has bytes to read."""

    def exit_status(self, deadline: Deadline) -> int:
        """Return the exit status, after the end of stdout."""

    def forget_stderr(self) -> None:
        """Let ``stderr`` begin anew."""

    def close(self) -> None:
        """End the command."""


class ProbeChannel:
    """A running probe that has greeted. Not thread-safe, but ``close`` may come from anywhere.

    ``decoder`` is that of the last request, None before the first; ``idle`` is False from the beginning of a request
    until its answer is complete, and for good when that failed: then the channel can't be used any more.
    """

    def __init__(self, channel: ByteChannel, hello: Hello, received: bytes = b"") -> None:
        self._channel, self._received = channel, received
        self.hello = hello
        self.decoder: AnswerDecoder | None = None
        self.idle = True
        self._unasked: Callable[[], None] | None = None

    @classmethod
    def greet(cls, channel: ByteChannel, user: str, deadline: Deadline, *, first_input: bytes = b"") -> ProbeChannel:
        """Write ``first_input`` and read up to the hello; what shells print before it is noise.

        Raises NotProven for another protocol and for endless noise, and where the login of ``user`` ends before the
        hello the error that says why.
        """
        if first_input:
            # A login that does not run the probe may be over by now: what it said comes from reading.
            with suppress(OSError):
                channel.send(first_input, deadline)
        decoder = HelloDecoder()
        while data := channel.receive(deadline):
            hello = decoder.feed(data)
            if hello is not None:
                return cls(channel, hello, decoder.rest)
        status = channel.exit_status(deadline)
        raise login_ended(user, status=status, stdout=decoder.noise, stderr=channel.stderr)

    def exchange(self, decoder: AnswerDecoder, deadline: Deadline) -> Iterator[Section]:
        """Send a request and yield each section of its answer as it arrives, until ``decoder`` is done.

        Raises DeadlineExceeded, ConnectionLost and NotProven; then the channel can't be used any more.
        """
        self.decoder = decoder
        self.idle = False
        self._channel.forget_stderr()
        with self._channel.within(deadline):
            self._channel.send(decoder.request_frame(), deadline)
            data, self._received = self._received, b""
            while not decoder.done:
                yield from _decoded(decoder, data or self._receive(deadline))
                data = b""
            if decoder.uid != self.hello.uid:
                raise NotProven(f"the probe greeted as uid {self.hello.uid} and answered as uid {decoder.uid}")
            noticed = bool(self._received) or decoder.noticed
            self.idle = True
        # What came while the answer was read called nobody.
        if noticed or self._channel.has_input():
            self._input()

    def on_unasked(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when the probe says something between answers, a notice or its end.

        It may be called by the thread that reads the connection, more than once for one notice, and must not wait.
        """
        self._unasked = call
        self._channel.on_input(self._input)

    def _input(self) -> None:
        call = self._unasked
        if call is not None and self.idle:
            call()

    def _receive(self, deadline: Deadline) -> bytes:
        data = self._channel.receive(deadline)
        if not data:
            raise ConnectionLost(f"the probe ended in the middle of an answer: {self.stderr or 'nothing was said'}")
        return data

    @property
    def stderr(self) -> str:
        """What came on stderr since the last request began, as one line of plain text."""
        return show(self._channel.stderr)

    def close(self) -> None:
        """End the probe: it reads end of input."""
        self._unasked = None
        self._channel.close()


def _decoded(decoder: AnswerDecoder, data: bytes) -> Iterator[Section]:
    try:
        yield from decoder.feed(data)
    except PollError:
        raise
    except Exception as exc:
        raise NotProven(f"the answer could not be decoded: {type(exc).__name__}") from exc
