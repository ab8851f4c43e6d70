"""dialing: from an address to a connected socket, within a deadline."""

from __future__ import annotations

import socket

from x2gofleet.connection.resolving import Resolver
from x2gofleet.errors import Unreachable
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.endpoint import Endpoint

TCP_USER_TIMEOUT_MS = 15_000


def dial(endpoint: Endpoint, resolver: Resolver, deadline: Deadline) -> socket.socket:
    """Return a TCP connection to the first address of ``endpoint`` that takes one. Raises Unreachable."""
    try:
        addresses = resolver.addresses(endpoint.host, endpoint.port, timeout_seconds=deadline.left())
    except OSError as exc:
        # getaddrinfo words a lack of file descriptors as an outage of the DNS; this raises what it is.
        socket.socket(socket.AF_INET).close()
        raise Unreachable(f"{endpoint.address}: {exc}", mend="see whether the name is right and DNS answers") from exc
    failure: OSError | None = None
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        deadline.watch(sock)
        try:
            # One address that swallows packets leaves time for the others.
            sock.settimeout(deadline.left() / (len(addresses) - tried))
            sock.connect(address)
            _set_options(sock)
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if isinstance(failure, TimeoutError) and deadline.passed():
        raise Unreachable(f"{endpoint.address} did not answer within {deadline.seconds:g} s") from failure
    reason = (failure.strerror or str(failure)) if failure else "the name has no address"
    raise Unreachable(f"{endpoint.address}: {reason}", mend="see whether the server and its sshd run") from failure


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
