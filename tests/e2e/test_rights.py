"""What the polled login may do: too little is told with its mend, root's rights by sudo work, and docs/servers.md too.

The account of its own that may run nothing but the probe is set up here by the very lines of docs/servers.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from x2gofleet.errors import RefreshFailed

from .conftest import SSH, LoginKey, PollFactory, Ssh
from .polled import PROFILE, PolledFleet
from .realserver import RealX2GoServer

DOCUMENT = (Path(__file__).parents[2] / "docs" / "servers.md").read_text(encoding="utf-8")
ACCOUNT = "x2gofleet"
PROBE = "/usr/local/sbin/x2gofleet-probe"
OPTIONS = f'restrict,command="sudo -n {PROBE}"'
SUDOERS = f'{ACCOUNT} ALL=(root) NOPASSWD: {PROBE} ""'
WRAPPER = {"user": ACCOUNT, "command": "wrapper"}


def blocks(language: str) -> list[str]:
    """The document's code blocks of a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def installed_probe() -> bytes:
    """What `x2gofleet-worker probe` prints."""
    command = [sys.executable, "-m", "x2gofleet_workers", "probe"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def set_up_account(server: RealX2GoServer) -> None:
    """Run the document's lines on the server, as its root, next to the probe's file."""
    (script,) = (block for block in blocks("sh") if "visudo" in block)
    server.path("/root/x2gofleet-probe").write_bytes(installed_probe())
    server.run(["sh", "-e", "-c", f"cd /root\n{script}"])


@pytest.fixture
def wrapped(server: RealX2GoServer, login_key: LoginKey) -> RealX2GoServer:
    """A server that lets the worker's key in as the account of its own, and not as root."""
    server.revoke("root")
    set_up_account(server)
    server.authorize(ACCOUNT, login_key.public_text, OPTIONS)
    return server


Attempt = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def attempt(wrapped: RealX2GoServer, login_key: LoginKey, tmp_path: Path) -> Attempt:
    """`attempt(*arguments, input=b"")`: ssh as the account, with any options and command."""

    def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        known_hosts = tmp_path / "known_hosts-attempt"
        known_hosts.write_text(f"{wrapped.known_hosts_line}\n")
        trust = ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
        login = ["-i", str(login_key.private_path), "-p", str(wrapped.port), "-l", ACCOUNT]
        return subprocess.run(
            [*SSH, *trust, *login, *arguments], input=data, capture_output=True, check=False, timeout=60
        )

    return run


def assert_not_permitted(polled: PolledFleet, *said: str) -> None:
    status = polled.wait_for_error("NotPermitted")
    for words in said:
        assert words in status.error_text
    with pytest.raises(RefreshFailed) as caught:
        polled.cache.update(PROFILE, update_mounts=True)
    assert said[0] in caught.value.errors["ts01"]
    assert polled.cache.list_sessions(profile_name=PROFILE) is None
    assert polled.cache.list_mounts(profile_name=PROFILE) is None
    assert polled.cache.snapshots(server="ts01", kind="sessions") == ()


def assert_polled(polled: PolledFleet, server: RealX2GoServer) -> None:
    """All users' sessions come, mounts and load too, and a change of one is seen."""
    names = {server.insert_session("alice", 50), server.insert_session("john_doe", 51)}
    polled.next_snapshot()
    polled.wait_until(
        lambda: set(polled.cache.list_sessions(profile_name=PROFILE) or ()) == names, "both users' sessions"
    )
    server.insert_mount("alice", min(names), "10.1.2.3", "/home/alice/media/disk/_tmp")
    polled.next_snapshot("mounts")
    assert polled.cache.list_mounts(profile_name=PROFILE) == ["10.1.2.3|/home/alice/media/disk/_tmp"]
    polled.next_snapshot("load")
    polled.next_polls(1)
    assert polled.status().up


def test_a_login_that_may_not_become_root(server: RealX2GoServer, poll: PollFactory, login_key: LoginKey) -> None:
    server.insert_session("bob", 50)
    server.authorize("bob", login_key.public_text)
    polled = poll(server, login={"user": "bob"})
    assert_not_permitted(
        polled, "bob may not become root by sudo", "let bob run the probe by sudo without a password (docs/servers.md)"
    )


def test_a_probe_that_is_not_run_as_root(server: RealX2GoServer, poll: PollFactory, login_key: LoginKey) -> None:
    server.insert_session("bob", 50)
    set_up_account(server)
    server.authorize("bob", login_key.public_text, f'restrict,command="{PROBE}"')
    polled = poll(server, login={"user": "bob", "command": "wrapper"})
    uid = int(server.run(["id", "-u", "bob"]).stdout)
    assert_not_permitted(
        polled,
        f'bob may not read the session database (uid {uid} is not root); scope "server" needs root\'s rights',
        "log in as root, let bob run the probe by sudo or a forced command (docs/servers.md), or set scope",
    )


def test_a_login_without_a_shell(server: RealX2GoServer, poll: PollFactory, login_key: LoginKey) -> None:
    server.add_user("closed", shell="/usr/sbin/nologin")
    server.authorize("closed", login_key.public_text)
    polled = poll(server, login={"user": "closed"})
    assert_not_permitted(
        polled,
        "the login of closed did not run the probe (exit status 1): This account is currently not available.",
        "give closed a shell that runs commands",
    )


@pytest.mark.parametrize(
    "noise",
    [
        "echo 'Welcome to ts01!'; echo >&2 'quota: 90 %'",
        "printf '\\033]0;ts01\\007'",
        "echo x2gofleet-probe; printf 'no newline at its end'",
    ],
    ids=["lines", "a terminal's title", "no newline"],
)
def test_what_a_shell_prints_before_the_probe_is_no_harm(server: RealX2GoServer, poll: PollFactory, noise: str) -> None:
    server.path("/root/.bashrc").write_text(f"{noise}\n")
    assert_polled(poll(server), server)


def test_a_login_that_may_become_root_by_sudo(server: RealX2GoServer, poll: PollFactory, login_key: LoginKey) -> None:
    server.revoke("root")
    server.authorize("bob", login_key.public_text)
    (rule,) = (line for line in DOCUMENT.splitlines() if line.startswith("poll ALL="))
    server.allow_sudo("bob", rule.removeprefix("poll "))
    assert_polled(poll(server, login={"user": "bob"}), server)


def test_the_document_has_the_lines_that_are_tested_here() -> None:
    assert SUDOERS in DOCUMENT
    assert any(block.startswith(f"{OPTIONS} ssh-ed25519 ") for block in blocks("text"))
    assert "x2gofleet-worker probe > x2gofleet-probe" in DOCUMENT


def test_an_account_of_its_own_that_runs_the_probe_alone(wrapped: RealX2GoServer, poll: PollFactory) -> None:
    stat = wrapped.run(["stat", "-c", "%U:%G %a", PROBE, "/etc/sudoers.d/x2gofleet"]).stdout
    assert stat == b"root:root 755\nroot:root 440\n"
    polled = poll(wrapped, login=WRAPPER)
    assert_polled(polled, wrapped)
    with wrapped.x_display("alice") as display:
        polled.cache.update(PROFILE, False, True, username="alice")
        assert polled.cache.list_desktops(profile_name=PROFILE, username="alice") == [f"alice@{display}"]


def test_its_key_runs_nothing_else(wrapped: RealX2GoServer, attempt: Attempt, login_key: LoginKey) -> None:
    greeting = re.compile(rb"\s*x2gofleet-probe 2 uid=0 user=root host=ts01\n")
    asked = attempt(wrapped.host, "touch /tmp/made; id")
    assert greeting.fullmatch(asked.stdout)
    for subsystem in ("sftp", "anything"):
        assert b"SSH_FX" not in attempt("-s", wrapped.host, subsystem).stdout
    with_shell = attempt(wrapped.host, data=b"touch /tmp/made; touch /tmp/made\n")
    refusal = rb"X[0-9a-f]{16}error=request text=not%20a%20frame%2C%20or%20too%20long"
    assert re.fullmatch(greeting.pattern + refusal, with_shell.stdout)
    with_terminal = attempt("-tt", wrapped.host, data=b"touch /tmp/made\n")
    assert b"PTY allocation request failed" in with_terminal.stderr
    forwarded = attempt("-W", f"{wrapped.host}:{wrapped.port}", wrapped.host)
    assert b"administratively prohibited" in forwarded.stderr
    assert b"SSH-2.0" not in forwarded.stdout
    back = attempt("-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:1", wrapped.host, "true")
    assert b"remote port forwarding failed" in back.stderr
    assert not wrapped.path("/tmp/made").exists()
    # Nor can the account do more by sudo than the probe without arguments.
    for argv in ([PROBE, "x"], ["id"], ["sh", "-c", PROBE]):
        refused = wrapped.run(["sudo", "-n", *argv], ACCOUNT, check=False)
        assert refused.returncode == 1
        assert refused.stdout == b""


def test_a_user_s_key_that_runs_the_probe_alone(server: RealX2GoServer, poll: PollFactory, login_key: LoginKey) -> None:
    options = f'restrict,command="{PROBE}"'
    assert f"`{options}`" in DOCUMENT
    set_up_account(server)
    server.revoke("root")
    server.authorize("alice", login_key.public_text, options)
    name = server.insert_session("alice", 50)
    server.insert_session("bob", 51)
    profiles = {PROFILE: {"servers": ["ts01"], "user": "alice"}}
    polled = poll(server, login={"command": "wrapper"}, profiles=profiles)
    polled.next_snapshot(username="alice")
    assert set(polled.cache.list_sessions(profile_name=PROFILE) or ()) == {name}


def test_an_installed_probe_of_another_version(wrapped: RealX2GoServer, poll: PollFactory) -> None:
    wrapped.path(PROBE).write_text("#!/bin/sh\necho x2gofleet-probe 3 uid=0 user=root host=ts01\ncat\n")
    status = poll(wrapped, login=WRAPPER).wait_for_error("NotProven")
    assert "the probe on the server speaks protocol 3, this worker speaks protocol 2" in status.error_text
    assert "install the probe of this version on the server (x2gofleet-worker probe prints it)" in status.error_text


def test_a_probe_that_is_not_installed(wrapped: RealX2GoServer, poll: PollFactory, ssh: Ssh) -> None:
    wrapped.path(PROBE).unlink()
    status = poll(wrapped, login=WRAPPER).wait_for_error("CommandMissing")
    assert f"{PROBE}: command not found" in status.error_text
    assert "install the probe" in status.error_text
