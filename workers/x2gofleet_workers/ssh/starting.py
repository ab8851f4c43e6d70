"""starting: what it means when a login ends before the probe greets."""

from __future__ import annotations

from x2gofleet.errors import CommandMissing, ConnectionLost, NotPermitted, PollError
from x2gofleet_workers.ssh.command import NO_STATUS
from x2gofleet_workers.text import show

_NOT_FOUND_STATUS = 127


def login_ended(user: str, *, status: int, stdout: bytes, stderr: bytes) -> PollError:
    """Return the error for a login of ``user`` that ended before the probe greeted.

    ``status`` is the exit status, NO_STATUS where there was none; ``stdout`` and ``stderr`` are what was said.
    """
    said = show(stderr.strip() or stdout.strip())
    # Before sudo's refusals: sudo too may say that there is no such command.
    if status == _NOT_FOUND_STATUS or "not found" in said:
        return CommandMissing(
            f"the login could not start the probe: {said or 'command not found'}",
            mend="install the probe, or sudo, whichever is not found (docs/servers.md)",
        )
    if "sudo" in said or "password is required" in said:
        return NotPermitted(
            f"{user} may not become root by sudo: {said}",
            mend=f"let {user} run the probe by sudo without a password (docs/servers.md), or log in as root",
        )
    if status == NO_STATUS:
        return ConnectionLost(f"the login ended before the probe greeted: {said or 'nothing was said'}")
    return NotPermitted(
        f"the login of {user} did not run the probe (exit status {status}): {said or 'nothing was said'}",
        mend=f"give {user} a shell that runs commands, or the probe as forced command (docs/servers.md)",
    )
