"""Key exchange with a server on the other end of a socket pair: its host key is a known one, or nothing goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import paramiko
import pytest
from x2gofleet_workers.ssh import Deadline, Endpoint
from x2gofleet_workers.ssh.blobs import key_from_blob, wire_string
from x2gofleet_workers.ssh.host_keys import KnownKeys, Named
from x2gofleet_workers.ssh.known_hosts import Line, Marker
from x2gofleet_workers.ssh.transport import Transport, end, negotiate

from x2gofleet.errors import DeadlineExceeded, HostKeyMismatch, Unreachable

ENDPOINT = Endpoint("ts01", 22, "root", "id", "/etc/x2gofleet/known_hosts")
LONG_SECONDS = 20.0
Pair = tuple[socket.socket, socket.socket]


ED25519 = wire_string(b"ssh-ed25519") + wire_string(bytes(31) + b"\1")


def known(key: paramiko.PKey) -> KnownKeys:
    line = Line(1, Marker.NONE, b"ts01", key_from_blob(key.asbytes()))
    return KnownKeys(ENDPOINT, (Named(keys=(line,)),))


@pytest.fixture(scope="module")
def keys() -> list[paramiko.ECDSAKey]:
    return [paramiko.ECDSAKey.generate() for _ in range(2)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def server(pair: Pair, keys: list[paramiko.ECDSAKey]) -> Iterator[paramiko.Transport]:
    """A server with the first of the keys."""
    transport = paramiko.Transport(pair[1])
    transport.add_server_key(keys[0])
    transport.start_server(event=threading.Event(), server=paramiko.ServerInterface())
    yield transport
    transport.close()


def test_a_known_key(pair: Pair, server: paramiko.Transport, keys: list[paramiko.ECDSAKey]) -> None:
    transport = negotiate(pair[0], ENDPOINT, known(keys[0]), Deadline(LONG_SECONDS))
    assert transport.is_active()
    assert transport.get_remote_server_key() == keys[0]
    end(transport, pair[0])
    assert not transport.is_alive()
    assert pair[0].fileno() == -1


def test_another_key_of_a_known_type(pair: Pair, server: paramiko.Transport, keys: list[paramiko.ECDSAKey]) -> None:
    with pytest.raises(HostKeyMismatch, match="which is not the known one; no key was offered") as caught:
        negotiate(pair[0], ENDPOINT, known(keys[1]), Deadline(LONG_SECONDS))
    assert "replace its line in /etc/x2gofleet/known_hosts" in caught.value.mend
    assert pair[0].fileno() == -1


def test_no_key_of_a_known_type(pair: Pair, server: paramiko.Transport, keys: list[paramiko.ECDSAKey]) -> None:
    with pytest.raises(HostKeyMismatch, match=r"no host key of the known types \(ssh-ed25519\)"):
        negotiate(pair[0], ENDPOINT, known(paramiko.Ed25519Key(data=ED25519)), Deadline(LONG_SECONDS))
    assert pair[0].fileno() == -1


def test_one_that_closes_before_its_banner(pair: Pair, keys: list[paramiko.ECDSAKey]) -> None:
    pair[1].close()
    with pytest.raises(Unreachable, match="does not speak SSH as expected"):
        negotiate(pair[0], ENDPOINT, known(keys[0]), Deadline(LONG_SECONDS))
    assert pair[0].fileno() == -1


def test_one_that_is_silent(pair: Pair, keys: list[paramiko.ECDSAKey]) -> None:
    with pytest.raises(DeadlineExceeded):
        negotiate(pair[0], ENDPOINT, known(keys[0]), Deadline(0.3))
    assert pair[0].fileno() == -1


def test_weak_ciphers_are_not_spoken(pair: Pair, keys: list[paramiko.ECDSAKey]) -> None:
    server = paramiko.Transport(pair[1])
    server.add_server_key(keys[0])
    server.get_security_options().ciphers = ("aes128-cbc",)
    server.start_server(event=threading.Event(), server=paramiko.ServerInterface())
    with pytest.raises(Unreachable, match=r"no acceptable ciphers"):
        negotiate(pair[0], ENDPOINT, known(keys[0]), Deadline(LONG_SECONDS))
    server.close()


def test_idle_connections_do_not_wake_up() -> None:
    assert Transport._active_check_timeout > paramiko.Transport._active_check_timeout
