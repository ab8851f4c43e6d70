"""connection: a logged-in SSH connection, on which probes are started."""

from __future__ import annotations

import socket

import paramiko

from x2gofleet_workers.ssh.channel import ProbeChannel
from x2gofleet_workers.ssh.command import RunningCommand, bounded
from x2gofleet_workers.ssh.deadlines import Deadline, DeadlineWatch
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.transport import end


class SshConnection:
    """A logged-in SSH connection. Not thread-safe: one poll at a time, but ``close`` may come from anywhere."""

    def __init__(
        self, transport: paramiko.Transport, sock: socket.socket, endpoint: Endpoint, watch: DeadlineWatch
    ) -> None:
        self._transport, self._sock, self._watch = transport, sock, watch
        self.endpoint = endpoint

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as is known."""
        return bool(self._transport.is_active())

    def start_probe(self, command: str, deadline: Deadline, *, first_input: bytes = b"") -> ProbeChannel:
        """Execute ``command`` on a channel of its own, write ``first_input`` to it, and read the probe's hello.

        Raises a PollError; then the channel is closed, and the connection can still be used.
        """
        with bounded(self._sock, self._watch, deadline, "the probe could not be started"):
            running = RunningCommand.start(self._transport, self._sock, self._watch, command, deadline)
            try:
                return ProbeChannel.greet(running, self.endpoint.user, deadline, first_input=first_input)
            except BaseException:
                running.close()
                raise

    def close(self) -> None:
        """Cut the connection and end its thread."""
        end(self._transport, self._sock)
