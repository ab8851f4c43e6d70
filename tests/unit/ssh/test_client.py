"""Opening connections: what is checked before anything is sent, and a worker that lacks something of its own."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from x2gofleet_workers.ssh import Deadline, Endpoint, SshClient

from x2gofleet.connection.resolving import Resolver
from x2gofleet.errors import HostKeyUnknown, SetupError, Unreachable, WorkerExhausted

LONG_SECONDS = 20.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def endpoint(tmp_path: Path, listener: socket.socket) -> Endpoint:
    """A login with a good key at a place that listens, whose host key is taken to be known."""
    key, port = asyncssh.generate_private_key("ssh-ed25519"), listener.getsockname()[1]
    key.write_private_key(tmp_path / "id")
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
    return Endpoint("127.0.0.1", port, "root", str(tmp_path / "id"), str(known))


def accepted(listener: socket.socket) -> int:
    """How many connections wait to be taken."""
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def try_open(endpoint: Endpoint, **more: Any) -> None:
    SshClient(**more).open(endpoint, Deadline(LONG_SECONDS)).close()


def test_without_key_or_host_key_nothing_is_connected(endpoint: Endpoint, listener: socket.socket) -> None:
    with pytest.raises(SetupError, match="does not exist"):
        try_open(replace(endpoint, key_file="/nowhere/id"))
    with pytest.raises(HostKeyUnknown):
        try_open(replace(endpoint, known_hosts="/nowhere/known_hosts"))
    assert accepted(listener) == 0


def test_a_connection_that_is_dropped_before_the_banner_is_an_outage(endpoint: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        known = Path(endpoint.known_hosts)
        known.write_text(known.read_text().replace(str(endpoint.port), str(port)))
        thread = threading.Thread(target=lambda: server.accept()[0].close(), daemon=True)
        thread.start()
        with pytest.raises(Unreachable, match="it closed the connection before its SSH banner") as caught:
            try_open(replace(endpoint, port=port))
        thread.join(LONG_SECONDS)
    assert "MaxStartups" in caught.value.mend


def no_descriptor(*args: object, **more: object) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


def no_thread(*args: object, **more: object) -> Any:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("what", "lack", "resource"),
    [
        ("x2gofleet_workers.ssh.keys.read_file", no_descriptor, "file descriptors"),
        ("x2gofleet_workers.ssh.host_keys.read_file", no_descriptor, "file descriptors"),
        ("socket.socket", no_descriptor, "file descriptors"),
        ("threading.Thread.start", no_thread, "threads"),
    ],
    ids=["key file", "known_hosts", "socket", "thread"],
)
def test_a_lack_of_the_workers_own_is_nothing_about_the_server(
    what: str, lack: Any, resource: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, lack)
    with pytest.raises(WorkerExhausted, match=f"this worker ran out of {resource}"):
        try_open(endpoint)


@pytest.mark.parametrize(("lack", "resource"), [(no_descriptor, "file descriptors"), (no_thread, "threads")])
def test_a_name_that_can_not_be_resolved_for_a_lack_is_resolved_later(
    lack: Any, resource: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver()
    named = replace(endpoint, host="localhost")
    known = Path(endpoint.known_hosts)
    known.write_text(known.read_text().replace("127.0.0.1", "localhost"))
    what = "socket.getaddrinfo" if lack is no_descriptor else "threading.Thread.start"
    with monkeypatch.context() as patched:
        patched.setattr(what, lack)
        with pytest.raises(WorkerExhausted, match=f"this worker ran out of {resource}"):
            try_open(named, resolver=resolver)
    assert resolver.addresses("localhost", endpoint.port, timeout_seconds=LONG_SECONDS)


def test_what_is_odd_about_files_is_said_once(endpoint: Endpoint, listener: socket.socket) -> None:
    Path(endpoint.key_file).chmod(0o644)
    with Path(endpoint.known_hosts).open("a") as file:
        file.write("@pinned ts02 ssh-ed25519 AAAA\n")
    listener.close()
    said: list[str] = []
    client = SshClient(warn=said.append)
    for _ in range(2):
        with pytest.raises(Unreachable):
            client.open(endpoint, Deadline(LONG_SECONDS))
    assert said == [
        f"the key file {endpoint.key_file} can be read by others on this machine, and ssh would refuse it: "
        f"chmod 600 {endpoint.key_file}",
        f"{endpoint.known_hosts}:2: the line is passed over: the marker @pinned is not known",
    ]
