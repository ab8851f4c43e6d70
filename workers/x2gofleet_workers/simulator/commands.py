"""The plain X2Go commands of a simulated server, for what asks without the probe: tests and comparisons."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from x2gofleet_workers.probe.hello import PROBE_NAME
from x2gofleet_workers.simulator.fleet import ServerModel
from x2gofleet_workers.simulator.users import ROOT, Login

WORKER_ACCOUNT = "x2gofleet"
_NOT_FOUND = 127
_DIRECTORIES = ("/usr/bin/", "/usr/sbin/")
_PROBE = re.compile(rf"\s*(?:exec\s+)?(?P<sudo>sudo\s+-n\s+)?(?:(?P<word>{PROBE_NAME})|perl\s+-e\s+'[^']*')\s*")
_FEATURES = frozenset({"X2GO_LIST_SHADOWSESSIONS"})


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed, and its exit status."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_status: int = 0


@dataclass(frozen=True, slots=True)
class ProbeStart:
    """A probe that a command line starts: as whom it runs, and whether its text has to come first."""

    login: Login
    needs_text: bool


def probe_start(command: str, login: Login) -> ProbeStart | Output | None:
    """Return the probe that a command line starts, what it prints where sudo refuses it, None for other commands.

    A probe is started by its loader, ``perl -e '...'``, or is there already under its name. The worker's account has it
    as a forced command that becomes root.
    """
    found = _PROBE.fullmatch(command)
    if found is None:
        return None
    is_forced_command = command.strip() == PROBE_NAME and login.username == WORKER_ACCOUNT
    if found["sudo"] or is_forced_command:
        allowed = _after_sudo(login)
        if isinstance(allowed, Output):
            return allowed
        login = allowed
    return ProbeStart(login, found["word"] is None)


def run_command(command: str, login: Login, model: ServerModel, now: float) -> Output:
    """Return what a shell of ``login`` would print for ``command``: X2Go commands joined by ``;`` or ``&&``."""
    stdout, stderr, status = b"", b"", 0
    for part in re.split(r";|&&", command):
        output = _run_one(part, login, model, now)
        stdout, stderr, status = stdout + output.stdout, stderr + output.stderr, output.exit_status
    return Output(stdout, stderr, status)


def _after_sudo(login: Login) -> Login | Output:
    if login.is_root or login.username == WORKER_ACCOUNT:
        return ROOT
    return Output(stderr=b"sudo: a password is required\n", exit_status=1)


def _run_one(command: str, login: Login, model: ServerModel, now: float) -> Output:
    try:
        words = shlex.split(command)
    except ValueError:
        return Output(stderr=b"sh: 1: Syntax error: Unterminated quoted string\n", exit_status=2)
    if words[:2] == ["sudo", "-n"]:
        allowed = _after_sudo(login)
        if isinstance(allowed, Output):
            return allowed
        login, words = allowed, words[2:]
    if not words or words[0] == "export":
        return Output()
    name = words[0]
    for directory in _DIRECTORIES:
        name = name.removeprefix(directory)
    argument = words[1] if len(words) > 1 else ""
    match name:
        case "hostname":
            return Output(f"{model.server_id}\n".encode())
        case "x2golistsessions":
            return Output(model.user_listing(login.username, now))
        case "x2golistshadowsessions":
            return Output(model.shadow_listing(login.username, now))
        case "x2golistsessions_root":
            return Output(model.listing(now) if login.is_root else b"")
        case "x2golistdesktops":
            return Output(model.desktops(login.username))
        case "x2golistmounts":
            return _mounts(argument, login, model)
        case "x2gofeature" if argument in _FEATURES:
            return Output(b"ok\n")
        case "x2gofeature":
            return Output(b"not available\n", exit_status=255)
    return Output(stderr=f"sh: 1: {words[0]}: not found\n".encode(), exit_status=_NOT_FOUND)


def _mounts(session: str, login: Login, model: ServerModel) -> Output:
    if not session:
        return Output(stderr=b"no valid session name that we can use\n", exit_status=255)
    mounts = model.mounts(username=None if login.is_root else login.username)
    lines = [f"{client}|{path}" for name, client, path in mounts if name == session]
    return Output(("\n".join(lines) + "\n").encode())
