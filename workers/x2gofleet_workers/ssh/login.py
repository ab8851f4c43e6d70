"""login: authentication by public key."""

from __future__ import annotations

import paramiko

from x2gofleet.errors import AuthenticationFailed, ConnectionLost
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.faults import describe


def authenticate(transport: paramiko.Transport, endpoint: Endpoint, key: paramiko.PKey, deadline: Deadline) -> None:
    """Log in. Raises AuthenticationFailed, ConnectionLost and DeadlineExceeded."""
    transport.auth_timeout = deadline.left()
    try:
        missing = transport.auth_publickey(endpoint.user, key)
    except paramiko.AuthenticationException as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        if not transport.is_active():
            # paramiko's word for a connection that ended before sshd answered, too.
            raise _ended(endpoint, exc) from exc
        raise AuthenticationFailed(
            f"{endpoint.address} refused the key {endpoint.key_file} ({key.fingerprint}) for {endpoint.user}",
            mend=f"add the public key of {endpoint.key_file} to authorized_keys of {endpoint.user} on the server",
        ) from exc
    except Exception as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise _ended(endpoint, exc) from exc
    if missing:
        raise AuthenticationFailed(
            f"{endpoint.address} wants more than a key of {endpoint.user}: {', '.join(missing)}",
            mend="allow a login by public key alone for this account",
        )


def _ended(endpoint: Endpoint, exc: Exception) -> ConnectionLost:
    return ConnectionLost(f"{endpoint.address} ended the connection while logging in: {describe(exc)}")
