"""transport: the SSH protocol on a connected socket, up to a server that has proven its host key."""

from __future__ import annotations

import logging
import socket

import paramiko

from x2gofleet.errors import HostKeyMismatch, PollError, Unreachable
from x2gofleet_workers.ssh.blobs import BadKey, key_from_blob
from x2gofleet_workers.ssh.certificates import certificate_from_blob
from x2gofleet_workers.ssh.deadlines import Deadline, shut
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.faults import describe
from x2gofleet_workers.ssh.host_keys import KnownKeys, replace_remedy

_LOG_CHANNEL = "x2gofleet_workers.paramiko"
logging.getLogger(_LOG_CHANNEL).setLevel(logging.CRITICAL)

_END_SECONDS = 2.0
_NO_BANNER = "Error reading SSH protocol banner"
_WEAK_ALGORITHMS = {
    "kex": ["diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1", "diffie-hellman-group1-sha1"],
    "ciphers": ["aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc"],
    "macs": ["hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96"],
    "keys": ["ssh-rsa", "ssh-dss"],
    "pubkeys": ["ssh-rsa", "ssh-dss"],
}


class Transport(paramiko.Transport):
    """paramiko's transport without its ten wake-ups a second."""

    # paramiko wakes each idle connection ten times a second to see whether it was closed; here a connection is closed
    # by shutting its socket down, which wakes the reader at once. A test guards this private name.
    _active_check_timeout = 60.0


def end(transport: paramiko.Transport, sock: socket.socket) -> None:
    """Cut a connection, wait for its thread, then close it.

    In this order: a descriptor closed under a thread that is about to wait for it may be another's by then.
    """
    shut(sock)
    if transport.is_alive():
        transport.join(_END_SECONDS)
    transport.close()
    sock.close()


def negotiate(sock: socket.socket, endpoint: Endpoint, known: KnownKeys, deadline: Deadline) -> Transport:
    """Return the transport of a server that has proven one of the ``known`` keys; nothing is open after an error.

    Raises HostKeyMismatch, Unreachable and DeadlineExceeded.
    """
    transport = Transport(sock, disabled_algorithms=_WEAK_ALGORITHMS)
    transport.set_log_channel(_LOG_CHANNEL)
    transport.banner_timeout = transport.handshake_timeout = deadline.left()
    try:
        transport.get_security_options().key_types = known.algorithms()
        transport.start_client(timeout=deadline.left())
        _verify(transport, known, deadline)
    except PollError:
        end(transport, sock)
        raise
    except Exception as exc:
        # Of any class: paramiko hands on whatever its reading of the server's packets raised.
        end(transport, sock)
        raise _negotiation_error(exc, endpoint, known, deadline) from exc
    return transport


def _verify(transport: Transport, known: KnownKeys, deadline: Deadline) -> None:
    shown = transport.get_remote_server_key() if transport.is_active() else None
    if shown is None:
        raise deadline.exceeded()
    # Where the server showed a certificate, paramiko keeps it whole beside the key in it.
    proof = shown.public_blob
    certificate = None if proof is None else certificate_from_blob(proof.key_blob)
    known.verify(key_from_blob(shown.asbytes()), certificate, shown.fingerprint)


def _negotiation_error(exc: Exception, endpoint: Endpoint, known: KnownKeys, deadline: Deadline) -> PollError:
    if isinstance(exc, BadKey):
        return HostKeyMismatch(
            f"{endpoint.address} shows a host key that ssh would not take: {exc}; no key was offered",
            mend="give the server another host key, and its line in known_hosts",
        )
    if isinstance(exc, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(exc):
        return HostKeyMismatch(
            f"{endpoint.address} has no host key of the known types ({', '.join(known.algorithms())})",
            mend=replace_remedy(endpoint),
        )
    if deadline.passed():
        return deadline.exceeded()
    if isinstance(exc, paramiko.SSHException) and _NO_BANNER in str(exc):
        return Unreachable(
            f"{endpoint.address} does not speak SSH as expected: it closed the connection before its SSH banner",
            mend="it passes where sshd drops connections as too many are not logged in yet (MaxStartups of "
            "sshd_config); else see whether sshd listens there",
        )
    return Unreachable(f"{endpoint.address} does not speak SSH as expected: {describe(exc)}")
