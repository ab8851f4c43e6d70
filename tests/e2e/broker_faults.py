"""Agents that fail the broker in every way, while the worker's polls of the same server go on."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .broker import HOME, USER, BrokerDaemon
from .broker_site import Site
from .namespace import wait_until
from .realserver import RealX2GoServer

Fault = Callable[[Site, RealX2GoServer, int], contextlib.AbstractContextManager[None]]
"""Of a site, the agent of a server at a port fails, until the end of the context."""


@contextmanager
def agent_sshd(server: RealX2GoServer, port: int, *, frozen: bool = False) -> Iterator[None]:
    """Run another sshd of a server, for the broker alone; ``frozen``: it takes connections and says nothing."""
    log = server.namespace.disk / "var/log/agent-sshd.log"
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/harness_config", "-p", str(port)]
    process = server.namespace.spawn(command, log=log)
    wait_until(lambda: f"listening on 127.0.0.1 port {port}." in log.read_text(errors="replace"), "the agent's sshd")
    listeners = [found.pid for found in server.processes() if found.command.endswith(f"-p {port}")]
    listeners += [
        found.pid for found in server.processes() if "[listener]" in found.command and str(port) in found.command
    ]
    if frozen:
        for pid in listeners:
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in listeners:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # What started it (nsenter) stopped when it did.
        process.send_signal(signal.SIGCONT)
        process.wait(15)


@contextmanager
def known(site: Site, key_of: RealX2GoServer | None, port: int) -> Iterator[None]:
    """Let the broker know a host key for a port, that of ``key_of``."""
    file = site.broker.namespace.path(f"{HOME}/.ssh/known_hosts")
    before = file.read_text()
    names = ",".join(f"[{name}]:{port}" for name in ("127.0.0.1", *site.servers))
    if key_of is not None:
        file.write_text(f"{before}{names} {key_of.known_hosts_line.split(' ', 1)[1]}\n")
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def key_options(site: Site, server: RealX2GoServer, options: str | None) -> Iterator[None]:
    """Let the broker's key in with other options, or not at all (None)."""
    key = site.broker.namespace.path(f"{HOME}/.ssh/id_rsa.pub").read_text().strip()
    server.revoke(USER)
    if options is not None:
        server.authorize(USER, key, options)
    try:
        yield
    finally:
        if options is not None:
            server.revoke(USER)
        server.authorize(USER, key)


@contextmanager
def no_fault(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    with known(site, server, port), agent_sshd(server, port):
        yield


@contextmanager
def unknown_host_key(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    with known(site, None, port), agent_sshd(server, port):
        yield


@contextmanager
def other_host_key(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    other = next(each for each in site.servers.values() if each is not server)
    with known(site, other, port), agent_sshd(server, port):
        yield


@contextmanager
def key_refused(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    with key_options(site, server, None), no_fault(site, server, port):
        yield


@contextmanager
def no_key_file(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    key = site.broker.namespace.path(f"{HOME}/.ssh/id_rsa")
    key.rename(key.with_name("id_rsa.away"))
    try:
        with no_fault(site, server, port):
            yield
    finally:
        key.with_name("id_rsa.away").rename(key)


@contextmanager
def connection_refused(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    with known(site, server, port):
        yield


@contextmanager
def hung_sshd(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    with known(site, server, port), agent_sshd(server, port, frozen=True):
        yield


@contextmanager
def lost_packets(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
    """Nobody takes the connection, nor refuses it: the queue of a socket that listens is full."""
    with known(site, server, port), socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", port))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


def _forced(command: str) -> Fault:
    """Have another command run in the place of the agent's."""

    @contextmanager
    def fault(site: Site, server: RealX2GoServer, port: int) -> Iterator[None]:
        with key_options(site, server, f'command="{command}"'), no_fault(site, server, port):
            yield

    return fault


FAULTS: dict[str, Fault] = {
    "unknown host key": unknown_host_key,
    "other host key": other_host_key,
    "key refused": key_refused,
    "connection refused": connection_refused,
    "lost packets": lost_packets,
    "hung sshd": hung_sshd,
    "hung agent": _forced("sleep 600"),
    "agent that fails": _forced("echo FAILED"),
    "agent that is no text": _forced("printf 'OK\\n\\377\\376|x\\n'"),
    "agent that talks nonsense": _forced("printf 'OK\\nno|row\\na:b:c\\n'"),
    "agent that closes": _forced("false"),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came over HTTP."""

    status: int
    text: str


def reply_or_none(daemon: BrokerDaemon, username: str, profile: str, *, grace_seconds: float = 3.0) -> Reply | None:
    """Select a session; None where the broker went on to later requests and this one was left without a reply."""
    form = urllib.parse.urlencode(
        {"user": username, "login": username, "password": "", "task": "selectsession", "sid": profile}
    )
    head = f"POST /plain/inifile/ HTTP/1.1\r\nHost: broker\r\nConnection: close\r\nContent-Length: {len(form)}\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        client.sendall(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode())
        # The daemon has one thread: what was sent before these were answered has been dealt with.
        for _ in range(2):
            daemon.select("mallory", profile)
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            if not selector.select(grace_seconds):
                return None
        answer = b""
        while data := client.recv(65536):
            answer += data
    head_text, _, body = answer.decode().partition("\r\n\r\n")
    return Reply(int(head_text.split()[1]), body)


def ask_at_once(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Run calls at once, each in a thread; returns the seconds that each took, raises what one raised."""
    seconds = [0.0] * len(calls)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        began = time.monotonic()
        try:
            calls[number]()
        except BaseException as exc:
            errors.append(exc)
        seconds[number] = time.monotonic() - began

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return seconds


def daemons(site: Site) -> list[int]:
    """The processes of x2gobroker-daemon on the broker's machine."""
    return [found.pid for found in site.broker.namespace.processes() if found.command.startswith("x2gobroker-daemon")]
