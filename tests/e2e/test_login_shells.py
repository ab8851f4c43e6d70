"""The probe is started by every login shell; where it can't be, the failure says what is missing, and on which side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .conftest import LoginKey, PollFactory, ServerFactory
from .namespace import PATH
from .polled import PolledFleet
from .realserver import RealX2GoServer

SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh")
RARELY = {"sessions": 60, "load": 60, "mounts": 0, "desktops": 0}
PERL = "/usr/bin/perl"
LONG_TTLS = {"sessions": 180, "load": 180}
SECONDS = 60.0


@pytest.fixture
def server(start_server: ServerFactory, login_key: LoginKey) -> Iterator[RealX2GoServer]:
    """A server with a user for each shell, who may become root by sudo as documented, and who may log in."""
    server = start_server("ts01", users=())
    for shell in SHELLS:
        path = shutil.which(shell, path=PATH)
        assert path is not None, f"{shell} is not installed; run tests/e2e/setup.sh"
        server.add_user(f"with-{shell}", shell=path)
        server.authorize(f"with-{shell}", login_key.public_text)
        server.allow_sudo(f"with-{shell}", "ALL=(root) NOPASSWD: ALL")
    return server


def poll_as_users(poll: PollFactory, server: RealX2GoServer) -> PolledFleet:
    """Poll the server as each user."""
    profiles = {shell: {"servers": ["ts01"], "user": f"with-{shell}"} for shell in SHELLS}
    return poll(server, profiles=profiles, intervals=RARELY, ttls=LONG_TTLS)


def errors(polled: PolledFleet) -> dict[str, tuple[str, str]]:
    """The last failure of each target, by the user's shell."""
    targets = [target for status in polled.cache.servers() for target in status.targets]
    return {
        target.id.partition("@")[0].removeprefix("with-"): (target.error_class, target.error_text) for target in targets
    }


def test_every_shell_starts_the_probe(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll_as_users(poll, server)
    polled.wait_until(
        lambda: {shell for shell in SHELLS if polled.cache.is_cached(shell, cache_type="sessions")} == set(SHELLS),
        "all to be cached",
        seconds=SECONDS,
    )
    assert set(errors(polled).values()) == {("", "")}


def test_without_perl_every_shell_says_so_and_it_is_tried_again_soon(server: RealX2GoServer, poll: PollFactory) -> None:
    server.remove_command(PERL)
    polled = poll_as_users(poll, server)
    seen: dict[str, tuple[str, str]] = {}

    def all_failed() -> bool:
        # A failure is on record until the next try is due.
        seen.update({shell: error for shell, error in errors(polled).items() if error[0]})
        return seen.keys() == set(SHELLS)

    polled.wait_until(all_failed, "all to fail", seconds=SECONDS)
    for shell, (error_class, text) in seen.items():
        assert error_class == "CommandMissing", (shell, text)
        assert "install perl on the server" in text, (shell, text)
        assert "perl" in text.partition(". install")[0], (shell, text)


@pytest.mark.parametrize("shell", ["bash", "fish", "tcsh"])
@pytest.mark.parametrize(
    ("missing", "said", "remedy"),
    [
        (PERL, "perl", "install perl on the server"),
        ("/usr/bin/sudo", "sudo", "install sudo on the server, or log in as root"),
    ],
    ids=["perl", "sudo"],
)
def test_a_login_that_becomes_root_by_sudo_says_which_is_missing(
    shell: str, missing: str, said: str, remedy: str, server: RealX2GoServer, poll: PollFactory
) -> None:
    server.remove_command(missing)
    polled = poll(server, login={"user": f"with-{shell}"}, intervals=RARELY, ttls=LONG_TTLS)
    status = polled.wait_for_error("CommandMissing", seconds=SECONDS)
    assert said in status.error_text.partition(". install")[0]
    assert remedy in status.error_text
    retry_at = polled.worker.schedule.seconds_until("ts01/quick/retry")
    assert retry_at is not None


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_starts_the_probe_by_sudo(shell: str, server: RealX2GoServer, poll: PollFactory) -> None:
    name = server.insert_session("root", 50)
    polled = poll(server, login={"user": f"with-{shell}"})
    assert name.encode() in polled.next_snapshot(seconds=SECONDS).stdout
