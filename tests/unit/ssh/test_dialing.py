"""From addresses to a connected socket: refused, silent, several, none."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from x2gofleet_workers.ssh import Deadline, Endpoint
from x2gofleet_workers.ssh.dialing import dial

from x2gofleet.connection.resolving import NameNotResolved
from x2gofleet.errors import Unreachable

ENDPOINT = Endpoint("ts01.example.org", 22, "root", "id", "known_hosts")
LONG_SECONDS = 20.0


class FakeResolver:
    """Resolves every name to the given places of 127.0.0.1; raises where there is an error."""

    def __init__(self, *places: tuple[str, int], error: OSError | None = None) -> None:
        self._places, self._error = places, error

    def addresses(self, host: str, port: int, *, timeout_seconds: float) -> list[tuple[Any, ...]]:
        if self._error is not None:
            raise self._error
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place) for place in self._places]


def dialed(resolver: Any, seconds: float = LONG_SECONDS) -> socket.socket:
    return dial(ENDPOINT, resolver, Deadline(seconds))


@pytest.fixture
def listening() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def closed() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A place that answers no SYN: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_a_connection_with_its_options(listening: tuple[str, int]) -> None:
    with dialed(FakeResolver(listening)) as sock:
        assert sock.getpeername() == listening
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_one_that_refuses(closed: tuple[str, int]) -> None:
    with pytest.raises(Unreachable, match=r"ts01.example.org port 22: Connection refused\. see whether the server"):
        dialed(FakeResolver(closed))


def test_of_several_addresses_the_first_that_answers(
    listening: tuple[str, int], closed: tuple[str, int], silent: tuple[str, int]
) -> None:
    with dialed(FakeResolver(closed, silent, listening), 3.0) as sock:
        assert sock.getpeername() == listening


def test_one_that_is_silent_up_to_the_deadline(silent: tuple[str, int]) -> None:
    with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
        dialed(FakeResolver(silent), 0.1)


def test_names_without_an_address() -> None:
    with pytest.raises(Unreachable, match="the name has no address"):
        dialed(FakeResolver())
    with pytest.raises(Unreachable, match=r"could not be resolved.*DNS"):
        dialed(FakeResolver(error=NameNotResolved("the name 'ts01' could not be resolved")))


def test_a_name_that_is_not_resolved_for_lack_of_descriptors_is_no_fault_of_the_dns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        dialed(FakeResolver(error=NameNotResolved("Temporary failure in name resolution")))


def test_a_socket_that_can_not_be_made_is_not_taken_for_an_unreachable_server(
    listening: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        dialed(FakeResolver(listening))
