"""client: opens verified, logged-in connections; holds what all connections of a process share."""

from __future__ import annotations

import logging
from collections.abc import Callable

from x2gofleet.connection.resolving import Resolver
from x2gofleet_workers.ssh.connection import SshConnection
from x2gofleet_workers.ssh.deadlines import Deadline, DeadlineWatch, shut
from x2gofleet_workers.ssh.dialing import dial
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.faults import exhausted
from x2gofleet_workers.ssh.host_keys import KnownHosts, KnownKeys
from x2gofleet_workers.ssh.keys import KeyFiles, LoginKey
from x2gofleet_workers.ssh.limits import AddressLimits
from x2gofleet_workers.ssh.login import authenticate
from x2gofleet_workers.ssh.transport import end, negotiate

log = logging.getLogger(__name__)


class SshClient:
    """Opens connections. Thread-safe; one is enough for a process.

    :param warn: is given what is odd about key and known_hosts files that can be used, once for each content.
    """

    def __init__(self, *, resolver: Resolver | None = None, warn: Callable[[str], None] = log.warning) -> None:
        self._resolver = resolver or Resolver()
        self._key_files = KeyFiles(warn)
        self._known_hosts = KnownHosts(warn)
        self._watch = DeadlineWatch()
        self._limits = AddressLimits()

    def open(self, endpoint: Endpoint, deadline: Deadline) -> SshConnection:
        """Connect, verify the host key, log in. Raises a PollError; leaves nothing open when it fails."""
        try:
            key = self._key_files.load(endpoint.key_file)
            known = self._known_hosts.keys_of(endpoint)
            with self._limits.attempt(endpoint, deadline):
                return self._open(endpoint, key, known, deadline)
        except Exception as exc:
            lack = exhausted(exc)
            if lack is None:
                raise
            raise lack from exc

    def _open(self, endpoint: Endpoint, key: LoginKey, known: KnownKeys, deadline: Deadline) -> SshConnection:
        sock = dial(endpoint, self._resolver, deadline)
        try:
            with self._watch.guarded(sock, deadline):
                transport = negotiate(sock, endpoint, known, deadline)
                try:
                    authenticate(transport, endpoint, key, deadline)
                except BaseException:
                    end(transport, sock)
                    raise
        except BaseException:
            shut(sock)
            sock.close()
            raise
        return SshConnection(transport, sock, endpoint, self._watch)
