"""Authentication over a fake transport: refused, cut, late, or not by a key alone."""

from __future__ import annotations

from typing import Any

import asyncssh
import paramiko
import pytest
from x2gofleet_workers.ssh import Deadline, Endpoint
from x2gofleet_workers.ssh.keys import LoginKey
from x2gofleet_workers.ssh.login import authenticate

from tests.support.clocks import ManualClock
from x2gofleet.errors import AuthenticationFailed, ConnectionLost, DeadlineExceeded, PollError

ENDPOINT = Endpoint("ts01", 22, "bob", "/etc/x2gofleet/id", "known_hosts")


class FakeTransport:
    def __init__(self, outcome: Exception | list[str], *, active: bool = True) -> None:
        self._outcome, self._active = outcome, active
        self.auth_timeout = 0.0

    def auth_publickey(self, user: str, key: object) -> list[str]:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def is_active(self) -> bool:
        return self._active


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> paramiko.PKey:
    path = tmp_path_factory.mktemp("key") / "id"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(path)
    return paramiko.PKey.from_path(path)


def login(transport: Any, key: paramiko.PKey, deadline: Deadline | None = None) -> None:
    authenticate(transport, ENDPOINT, LoginKey(key), deadline or Deadline(9))


def test_a_login(key: paramiko.PKey) -> None:
    transport = FakeTransport([])
    login(transport, key)
    assert 0 < transport.auth_timeout <= 9


@pytest.mark.parametrize(
    ("transport", "error", "said"),
    [
        (
            FakeTransport(paramiko.AuthenticationException("Authentication failed.")),
            AuthenticationFailed,
            r"ts01 port 22 refused the key /etc/x2gofleet/id \(SHA256:.*\) for bob.*authorized_keys of bob",
        ),
        (FakeTransport(["password"]), AuthenticationFailed, "wants more than a key of bob: password"),
        # paramiko has one word for both: a connection that ends is no refusal, and passes.
        (
            FakeTransport(
                paramiko.AuthenticationException("Authentication failed: transport shut down or saw EOF"), active=False
            ),
            ConnectionLost,
            "ended the connection while logging in",
        ),
        (FakeTransport(EOFError(), active=False), ConnectionLost, "ended the connection while logging in: EOFError"),
        (FakeTransport(paramiko.SSHException("No existing session")), ConnectionLost, "No existing session"),
    ],
    ids=["refused", "more than a key", "cut", "end", "no session"],
)
def test_a_login_that_fails(transport: FakeTransport, error: type[PollError], said: str, key: paramiko.PKey) -> None:
    with pytest.raises(error, match=said) as caught:
        login(transport, key)
    assert type(caught.value) is error


@pytest.mark.parametrize("exc", [paramiko.AuthenticationException("Authentication timeout."), EOFError()])
def test_after_the_deadline_it_is_the_deadline(exc: Exception, key: paramiko.PKey) -> None:
    clock = ManualClock()
    deadline = Deadline(9, monotonic=clock)

    class Late(FakeTransport):
        def auth_publickey(self, user: str, key: object) -> list[str]:
            clock.now += 9
            raise exc

    with pytest.raises(DeadlineExceeded):
        login(Late([]), key, deadline)
