"""login: authentication by public key."""

from __future__ import annotations

import paramiko

from x2gofleet.errors import AuthenticationFailed, ConnectionLost
from x2gofleet_workers.ssh.deadlines import Deadline
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.faults import describe
from x2gofleet_workers.ssh.keys import LoginKey


def authenticate(transport: paramiko.Transport, endpoint: Endpoint, login: LoginKey, deadline: Deadline) -> None:
    """Log in, by the key's certificate or by the key. Raises AuthenticationFailed, ConnectionLost, DeadlineExceeded."""
    missing = None
    for key in login.forms:
        missing = _attempt(transport, endpoint, key, deadline)
        if missing is not None:
            break
    if missing is None:
        raise AuthenticationFailed(
            f"{endpoint.address} refused the key {endpoint.key_file} ({login.key.fingerprint}) for {endpoint.user}",
            mend=f"add the public key of {endpoint.key_file} to authorized_keys of {endpoint.user} on the server",
        )
    if missing:
        raise AuthenticationFailed(
            f"{endpoint.address} wants more than a key of {endpoint.user}: {', '.join(missing)}",
            mend="allow a login by public key alone for this account",
        )


def _attempt(
    transport: paramiko.Transport, endpoint: Endpoint, key: paramiko.PKey, deadline: Deadline
) -> list[str] | None:
    """Return what is wanted besides this key, None where it is refused."""
    transport.auth_timeout = deadline.left()
    try:
        return transport.auth_publickey(endpoint.user, key)
    except paramiko.AuthenticationException as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        if not transport.is_active():
            # paramiko's word for a connection that ended before sshd answered, too.
            raise _ended(endpoint, exc) from exc
        return None
    except Exception as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise _ended(endpoint, exc) from exc


def _ended(endpoint: Endpoint, exc: Exception) -> ConnectionLost:
    return ConnectionLost(f"{endpoint.address} ended the connection while logging in: {describe(exc)}")
