"""starting: what it means when a login ends before the probe greets.

An error that is retried slowly needs positive evidence: a server that is out of memory or processes, which its users
can bring about, ends logins in many ways.
"""

from __future__ import annotations

import re

from x2gofleet.errors import CommandMissing, ConnectionLost, LoginEnded, NotPermitted, PollError
from x2gofleet.text import show
from x2gofleet_workers.ssh.command import NO_STATUS

_NOT_FOUND_STATUS = 127
_NOT_EXECUTABLE_STATUS = 126
# What sh, bash, dash, zsh, ksh, fish, csh, tcsh and sudo say; csh and tcsh with exit status 1.
_NOT_FOUND = re.compile(rb"[Cc]ommand not found|: not found|[Uu]nknown command")
_NOT_EXECUTABLE = re.compile(rb"[Pp]ermission denied")
_PROGRAM = re.compile(rb"\b(?:sudo|perl|x2gofleet-probe)\b")
_SUDO_REFUSED = re.compile(
    rb"sudo: .*(?:password is required|terminal is required|no tty present|must have a tty)"
    rb"|is not in the sudoers file|Sorry, user .* (?:is not allowed to|may not run)"
)
_NO_LOGIN = re.compile(rb"account is currently not available")
_REMEDIES = {
    b"sudo": "install sudo on the server, or log in as root (docs/servers.md)",
    b"perl": "install perl on the server; x2goserver itself depends on it",
    b"x2gofleet-probe": "install the probe on the server (docs/servers.md)",
}


def login_ended(user: str, *, status: int, stdout: bytes, stderr: bytes) -> PollError:
    """Return the error for a login of ``user`` that ended before the probe greeted.

    ``status`` is the exit status, NO_STATUS where there was none; ``stdout`` and ``stderr`` are what was said.
    """
    output = stderr.strip() or stdout.strip()
    said = show(output)
    missing = _missing_command(status, output)
    if missing is not None:
        return missing
    if _SUDO_REFUSED.search(output):
        return NotPermitted(
            f"{user} may not become root by sudo: {said}",
            mend=f"let {user} run the probe by sudo without a password (docs/servers.md), or log in as root",
        )
    if status == NO_STATUS:
        return ConnectionLost(f"the login ended before the probe greeted: {said or 'nothing was said'}")
    error = NotPermitted if _NO_LOGIN.search(output) else LoginEnded
    return error(
        f"the login of {user} did not run the probe (exit status {status}): {said or 'nothing was said'}",
        mend=f"give {user} a shell that runs commands, or the probe as forced command (docs/servers.md)",
    )


def _missing_command(status: int, output: bytes) -> CommandMissing | None:
    """Return the error for a command that the login's shell or sudo could not run, None for another end."""
    phrase = _NOT_EXECUTABLE if status == _NOT_EXECUTABLE_STATUS else _NOT_FOUND
    line = next((line for line in output.split(b"\n") if phrase.search(line)), b"")
    named = _PROGRAM.findall(line)
    # csh, tcsh and sudo end with 1. Other lines may be of a profile, and the login may have ended for another reason.
    if not named and status != _NOT_FOUND_STATUS:
        return None
    remedy = _REMEDIES[named[-1]] if named else "install the probe, perl or sudo, whichever is not found"
    return CommandMissing(
        f"the login could not start the probe: {show(line or output) or 'command not found'}", mend=remedy
    )
