"""SSH connections against servers that are broken in every way: the right error, in time, nothing leaked."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import psutil
import pytest
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.delivery import start_command
from x2gofleet_workers.probe.encoding import encode_begin, encode_data, encode_done, encode_section
from x2gofleet_workers.probe.frames import TO_PROBE, FrameDecoder
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
    SectionStatus,
)
from x2gofleet_workers.simulator import RunningSimulation, ServerHandle, running_simulation
from x2gofleet_workers.ssh import Deadline, Endpoint, ProbeChannel, SshClient
from x2gofleet_workers.ssh.command import CUT_AFTER_SECONDS

from tests.support.loops import LoopThread
from tests.waiting import wait_until
from x2gofleet.connection.resolving import Resolver
from x2gofleet.errors import (
    AuthenticationFailed,
    CommandMissing,
    ConnectionLost,
    DeadlineExceeded,
    HostKeyMismatch,
    HostKeyUnknown,
    LoginEnded,
    NotPermitted,
    NotProven,
    OutageError,
    PollError,
    ProofError,
    SetupError,
    Unreachable,
)

LONG_SECONDS = 20.0
SHORT_SECONDS = 0.4
# Less than LONG_SECONDS: what is woken does not wait for its deadline.
MARGIN_SECONDS = 15.0
Run = Callable[[Any], Awaitable[None]]
CLIENT = SshClient()
MAX_SECTION_BYTES = 64 * 1024 * 1024
PROBE = start_command("wrapper", as_root=False)
LOAD, MOUNTS, SESSIONS = (SectionRequest(kind) for kind in (SectionKind.LOAD, SectionKind.MOUNTS, SectionKind.SESSIONS))


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds + MARGIN_SECONDS, f"took {took:.2f} s of {seconds:g} s"


def asked(
    probe: ProbeChannel, *sections: SectionRequest, seconds: float = LONG_SECONDS, scope: Scope = Scope.SERVER
) -> list[Section]:
    decoder = AnswerDecoder(Request(scope, sections, max(1, int(seconds))), after=probe.decoder)
    return list(probe.exchange(decoder, Deadline(seconds)))


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(1, 5, directory=tmp_path) as running:
        yield running


@pytest.fixture
def server(simulation: RunningSimulation) -> ServerHandle:
    return simulation.server("ts01")


@pytest.fixture
def endpoint(simulation: RunningSimulation) -> Endpoint:
    return load_inventory(simulation.inventory).targets["ts01"].endpoint


def try_open(endpoint: Endpoint, seconds: float = LONG_SECONDS) -> None:
    CLIENT.open(endpoint, Deadline(seconds)).close()


# What is right


def test_a_connection_asks_again_and_again_and_is_closed(endpoint: Endpoint, server: ServerHandle) -> None:
    connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
    assert connection.alive
    probe = connection.start_probe(PROBE, Deadline(LONG_SECONDS))
    assert (probe.hello.uid, probe.hello.user, probe.hello.host) == (0, "root", "ts01")
    sessions, load = asked(probe, SESSIONS, LOAD)
    assert (sessions.kind, load.kind) == (SectionKind.SESSIONS, SectionKind.LOAD)
    assert sessions.status is SectionStatus.OK
    assert asked(probe, SectionRequest(SectionKind.SESSIONS, sessions.signature))[0].same
    assert probe.idle
    connection.close()
    assert not connection.alive
    wait_until(lambda: server.counters.open_connections == 0, "the server sees the end")
    with pytest.raises(ConnectionLost):
        asked(probe, LOAD)


def test_two_probes_share_a_connection(endpoint: Endpoint, server: ServerHandle) -> None:
    connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
    try:
        quick, slow = (connection.start_probe(PROBE, Deadline(LONG_SECONDS)) for _ in range(2))
        assert asked(quick, LOAD)
        assert asked(slow, MOUNTS)
        slow.close()
        assert asked(quick, LOAD)
    finally:
        connection.close()
    assert server.counters.connections == 1


# The simulator's faults

OPENING: dict[str, type[PollError]] = {
    "dead": Unreachable,
    "tarpit": DeadlineExceeded,
    "tarpit=0.05": DeadlineExceeded,
    "not-ssh": Unreachable,
    "auth": AuthenticationFailed,
    "hostkey": HostKeyMismatch,
}
ASKING: dict[str, tuple[type[PollError], ...]] = {
    "hang": (DeadlineExceeded,),
    "slow=30": (DeadlineExceeded,),
    "garbage": (NotProven,),
    "empty": (NotProven,),
    "dead": (ConnectionLost, OutageError),
    "auth": (ConnectionLost, OutageError),
}


@pytest.mark.parametrize("fault", OPENING)
def test_a_fault_that_keeps_from_connecting(fault: str, endpoint: Endpoint, server: ServerHandle) -> None:
    server.set_fault(fault)
    seconds = SHORT_SECONDS if OPENING[fault] is DeadlineExceeded else LONG_SECONDS
    with pytest.raises(PollError) as caught, in_time(seconds):
        try_open(endpoint, seconds)
    assert type(caught.value) is OPENING[fault]
    assert "\n" not in str(caught.value)
    server.clear_fault()
    try_open(endpoint)


@pytest.mark.parametrize("fault", ASKING)
def test_a_fault_that_comes_while_connected(fault: str, endpoint: Endpoint, server: ServerHandle) -> None:
    connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
    probe = connection.start_probe(PROBE, Deadline(LONG_SECONDS))
    server.set_fault(fault)
    seconds = SHORT_SECONDS if ASKING[fault] == (DeadlineExceeded,) else LONG_SECONDS
    with pytest.raises(ASKING[fault]), in_time(seconds):
        asked(probe, SESSIONS, LOAD, seconds=seconds)
    assert not probe.idle
    connection.close()


def test_each_of_the_simulators_ways_to_speak_garbage(endpoint: Endpoint, server: ServerHandle) -> None:
    server.set_fault("garbage")
    for _ in range(6):
        connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
        try:
            probe = connection.start_probe(PROBE, Deadline(LONG_SECONDS))
            with pytest.raises((ProofError, DeadlineExceeded)):
                asked(probe, SESSIONS, LOAD, seconds=SHORT_SECONDS)
        finally:
            connection.close()


def test_a_login_that_may_not_become_root(endpoint: Endpoint) -> None:
    connection = CLIENT.open(replace(endpoint, user="alice"), Deadline(LONG_SECONDS))
    try:
        with pytest.raises(NotPermitted, match=r"alice may not become root by sudo: sudo: a password is required"):
            connection.start_probe(start_command("auto", as_root=True), Deadline(LONG_SECONDS))
    finally:
        connection.close()


def poll_once(endpoint: Endpoint, seconds: float) -> None:
    connection = CLIENT.open(endpoint, Deadline(seconds))
    try:
        asked(connection.start_probe(PROBE, Deadline(seconds)), LOAD, seconds=0.1)
    finally:
        connection.close()


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def test_thirty_failed_opens_leak_nothing(endpoint: Endpoint, server: ServerHandle) -> None:
    try_open(endpoint)
    server.set_fault("tarpit")
    with pytest.raises(PollError):
        try_open(endpoint, 0.05)
    server.clear_fault()
    wait_until(lambda: server.counters.open_connections == 0, "the first connections are over")
    me = psutil.Process()
    fds, names = me.num_fds(), threads()
    for fault in ("dead", "tarpit", "not-ssh", "auth", "hostkey", "hang"):
        server.set_fault(fault)
        for _ in range(5):
            with pytest.raises(PollError):
                poll_once(endpoint, 0.1 if fault == "tarpit" else LONG_SECONDS)
    server.clear_fault()
    wait_until(lambda: threads() == names, f"threads {threads()} are {names} again")
    wait_until(lambda: gc.collect() >= 0 and me.num_fds() <= fds, f"{me.num_fds()} descriptors are {fds} again")


# Servers of the tests' own, below SSH


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accepts TCP connections and hands each to ``serve``; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    over = threading.Event()
    open_sockets: list[socket.socket] = []

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                accepted = listener.accept()[0]
                accepted.settimeout(LONG_SECONDS)
                open_sockets.append(accepted)
                serve(accepted)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join(LONG_SECONDS)
        for sock in (listener, *open_sockets):
            sock.close()


def packet(payload: bytes) -> bytes:
    """An unencrypted SSH packet (RFC 4253, section 6)."""
    padding = 8 - (len(payload) + 5) % 8 + 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def key_exchange(*lists: bytes) -> bytes:
    names = b"".join(struct.pack(">I", len(name)) + name for name in lists)
    return packet(b"\x14" + bytes(16) + names + bytes(5))


BANNER = b"SSH-2.0-test\r\n"
SAID: dict[str, bytes | None] = {
    "closes at once": b"",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "SSH 1": b"SSH-1.5-old\r\n",
    "a banner and the end": BANNER,
    "a banner and noise": BANNER + bytes(range(256)) * 8,
    "a packet of 4 GB": BANNER + b"\xff\xff\xff\xff" + bytes(64),
    "an empty packet": BANNER + packet(b""),
    "no common algorithm": BANNER + key_exchange(*[b"none-such"] * 8, b"", b""),
    "names that are no text": BANNER + key_exchange(*[b"\xff\xfe\xfd"] * 10),
    "a truncated key exchange": BANNER + packet(b"\x14" + bytes(20)),
    "an unasked reply": BANNER + packet(b"\x1f" + bytes(200)),
    "a disconnect": BANNER + packet(b"\x01" + struct.pack(">II", 11, 6) + b"go \x1b[m" + struct.pack(">I", 0)),
}


def at_port(endpoint: Endpoint, port: int, tmp_path: Path) -> Endpoint:
    """The same login at another port of 127.0.0.1, whose host key is taken to be known."""
    known = tmp_path / f"known-{port}"
    key = Path(endpoint.known_hosts).read_text().split(" ", 1)[1]
    known.write_text(f"[127.0.0.1]:{port} {key}")
    return replace(endpoint, host="127.0.0.1", port=port, known_hosts=str(known))


@pytest.mark.parametrize("said", SAID)
def test_servers_that_speak_no_proper_ssh_are_unreachable(said: str, endpoint: Endpoint, tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(SAID[said] or b"")
        # An end of file, not a reset, which could overtake the data.
        sock.shutdown(socket.SHUT_WR)

    with raw_server(serve) as port, pytest.raises(OutageError) as caught, in_time(3.0):
        try_open(at_port(endpoint, port, tmp_path), 3.0)
    assert "\x1b" not in str(caught.value)
    assert f"127.0.0.1 port {port}" in str(caught.value) or isinstance(caught.value, DeadlineExceeded)


@pytest.mark.parametrize("piece", [b"x", b"a line of a banner\n", b"x" * 4096])
def test_a_banner_that_does_not_end(piece: bytes, endpoint: Endpoint, tmp_path: Path) -> None:
    over = threading.Event()

    def drip(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.002):
                sock.sendall(piece)

    with raw_server(lambda sock: threading.Thread(target=drip, args=(sock,), daemon=True).start()) as port:
        try:
            with pytest.raises(OutageError), in_time(SHORT_SECONDS):
                try_open(at_port(endpoint, port, tmp_path), SHORT_SECONDS)
        finally:
            over.set()


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address of loopback that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


def test_an_address_that_swallows_packets(endpoint: Endpoint, tmp_path: Path) -> None:
    with black_hole() as (_, port), pytest.raises(OutageError, match="did not answer"), in_time(SHORT_SECONDS):
        try_open(at_port(endpoint, port, tmp_path), SHORT_SECONDS)


def test_of_several_addresses_one_that_swallows_packets_leaves_time_for_the_next(
    endpoint: Endpoint, server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with black_hole() as address:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in (address, (server.address, server.port))]
        resolver = Resolver()
        monkeypatch.setattr(resolver, "addresses", lambda *_, **__: found)
        SshClient(resolver=resolver).open(endpoint, Deadline(6.0)).close()


def test_a_name_that_does_not_resolve(endpoint: Endpoint, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("[no-such-host.invalid]:2222 " + Path(endpoint.known_hosts).read_text().split(" ", 1)[1])
    nowhere = replace(endpoint, host="no-such-host.invalid", port=2222, known_hosts=str(known))
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid.*DNS"):
        try_open(nowhere, 3.0)


# Keys


def test_no_host_key_is_known_then_nothing_is_sent(endpoint: Endpoint, server: ServerHandle, tmp_path: Path) -> None:
    for content in (None, b"", b"[127.0.0.1]:1 ssh-ed25519 AAAA\n", b"\xff\xfe\x00", b"what is this\n" * 3):
        known = tmp_path / "known"
        known.unlink(missing_ok=True)
        if content is not None:
            known.write_bytes(content)
        with pytest.raises(HostKeyUnknown) as caught:
            try_open(replace(endpoint, known_hosts=str(known)))
        assert str(known) in str(caught.value)
        assert "ssh-keyscan" in caught.value.mend
    with pytest.raises(HostKeyUnknown, match="can't be read"):
        try_open(replace(endpoint, known_hosts=str(tmp_path)))
    assert server.counters.connections == 0


def test_a_damaged_host_key_line_is_said(endpoint: Endpoint, server: ServerHandle, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} ssh-ed25519 not*base64!\n")
    with pytest.raises(HostKeyUnknown):
        try_open(replace(endpoint, known_hosts=str(known)))


def key_files(folder: Path) -> dict[str, Path]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    files = {name: folder / name for name in ("missing", "encrypted", "encrypted-pem", "garbage", "empty", "public")}
    key.write_private_key(files["encrypted"], passphrase="secret")
    key.write_private_key(files["encrypted-pem"], "pkcs8-pem", passphrase="secret")
    files["garbage"].write_bytes(os.urandom(300))
    files["empty"].write_bytes(b"")
    key.write_public_key(files["public"])
    return {**files, "folder": folder}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "does not exist"),
        ("encrypted", "is encrypted"),
        ("encrypted-pem", "is encrypted"),
        ("garbage", "no private SSH key"),
        ("empty", "is empty"),
        ("public", "not a private SSH key"),
        ("folder", "can't be read"),
    ],
)
def test_key_files_that_are_none(
    name: str, said: str, endpoint: Endpoint, server: ServerHandle, tmp_path: Path
) -> None:
    path = key_files(tmp_path)[name]
    with pytest.raises(SetupError, match=said) as caught:
        try_open(replace(endpoint, key_file=str(path)))
    assert type(caught.value) is SetupError
    assert str(path) in str(caught.value)
    assert server.counters.connections == 0


def test_another_key_is_refused_with_its_fingerprint(endpoint: Endpoint, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    other.write_private_key(tmp_path / "other")
    with pytest.raises(AuthenticationFailed, match=r"refused the key .*other \(SHA256:.*\) for root") as caught:
        try_open(replace(endpoint, key_file=str(tmp_path / "other")))
    assert "authorized_keys" in caught.value.mend


# An SSH server of the tests' own


class Scripted:
    """An asyncssh server in a thread, whose every command is one coroutine; notes who tried to log in."""

    def __init__(self, folder: Path, run: Run | None, **options: Any) -> None:
        self.logins: list[str] = []
        self.commands: list[str] = []
        self.over = 0
        host_keys = options.pop("server_host_keys", None) or [asyncssh.generate_private_key("ssh-ed25519")]
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / "id")
        scripted = self
        connections: list[asyncssh.SSHServerConnection] = []

        class Login(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                connections.append(conn)

            def begin_auth(self, username: str) -> bool:
                scripted.logins.append(username)
                return True

            def public_key_auth_supported(self) -> bool:
                return True

            def validate_public_key(self, username: str, key_: asyncssh.SSHKey) -> bool:
                return bool(key_.public_data == key.public_data)

        async def process(process: Any) -> None:
            scripted.commands.append(process.command)
            try:
                assert run is not None
                await run(process)
            except (asyncssh.Error, OSError):
                pass
            finally:
                scripted.over += 1

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                0,
                server_factory=Login,
                server_host_keys=host_keys,
                process_factory=process if run else None,
                encoding=None,
                **options,
            )

        self._connections = connections
        self._loop = LoopThread()
        self._acceptor = self._loop.run(listen(), LONG_SECONDS)
        self.port = self._acceptor.get_port()
        known = folder / "known"
        known.write_text("".join(f"[127.0.0.1]:{self.port} {each.export_public_key().decode()}" for each in host_keys))
        self.endpoint = Endpoint("127.0.0.1", self.port, "root", str(folder / "id"), str(known))

    def close(self) -> None:
        async def stop() -> None:
            self._acceptor.close()
            for each in self._connections:
                each.abort()
            await asyncio.gather(*(each.wait_closed() for each in self._connections), return_exceptions=True)

        self._loop.run(stop(), LONG_SECONDS)
        self._loop.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    """Starts servers of the test's own; ended with the test."""
    servers: list[Scripted] = []

    def start(run: Run | None = None, **options: Any) -> Scripted:
        servers.append(Scripted(tmp_path, run, **options))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


HELLO = b"x2gofleet-probe 2 uid=0 user=root host=ts01\n"


def answering(answer: Callable[[Any, int, Request], Awaitable[None]], hello: bytes = HELLO) -> Run:
    """A probe that greets and hands each request on as (process, its number, request)."""

    async def run(process: Any) -> None:
        process.stdout.write(hello)
        frames = FrameDecoder(TO_PROBE)
        while data := await process.stdin.read(65536):
            frames.feed(data)
            while (frame := frames.next_frame()) is not None:
                await answer(process, frame.request, Request.decode(frame.payload))

    return run


def load_answer(number: int) -> bytes:
    return encode_section(Section(kind=SectionKind.LOAD, stdout=b"x"), Scope.SERVER, number) + encode_done(
        0, "ts01", number
    )


async def well(process: Any, number: int, request: Request) -> None:
    process.stdout.write(load_answer(number))


def test_a_host_key_that_is_not_the_known_one_gets_no_login(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    server = scripted(answering(well))
    known = Path(server.endpoint.known_hosts)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(HostKeyMismatch, match=r"shows the host key SHA256:.*not the known one; no key was offered"):
        try_open(server.endpoint)
    assert server.logins == []


def test_a_known_key_of_a_type_that_the_server_has_not(scripted: Callable[..., Scripted]) -> None:
    server = scripted(answering(well))
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    Path(server.endpoint.known_hosts).write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(HostKeyMismatch, match=r"no host key of the known types \(ecdsa-sha2-nistp256\)"):
        try_open(server.endpoint)
    assert server.logins == []


@pytest.mark.parametrize("kinds", [["ssh-rsa"], ["ecdsa-sha2-nistp256"], ["ssh-ed25519", "ssh-rsa"]])
def test_host_keys_of_every_usual_type(kinds: list[str], scripted: Callable[..., Scripted]) -> None:
    server = scripted(answering(well), server_host_keys=[asyncssh.generate_private_key(kind) for kind in kinds])
    try_open(server.endpoint)
    assert server.logins == ["root"]


def test_of_two_host_keys_the_known_one_is_asked_for(scripted: Callable[..., Scripted]) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ssh-rsa")]
    server = scripted(answering(well), server_host_keys=keys)
    known = keys[1].export_public_key().decode()
    Path(server.endpoint.known_hosts).write_text(f"[127.0.0.1]:{server.port} {known}")
    try_open(server.endpoint)


WEAK: dict[str, dict[str, Any]] = {
    "kex": {"kex_algs": ["diffie-hellman-group14-sha1"]},
    "kex group exchange": {"kex_algs": ["diffie-hellman-group-exchange-sha1"]},
    "cipher": {"encryption_algs": ["aes128-cbc", "aes256-cbc"]},
    "mac": {"mac_algs": ["hmac-sha1", "hmac-md5"], "encryption_algs": ["aes128-ctr"]},
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_algorithms_are_refused_before_any_login(name: str, scripted: Callable[..., Scripted]) -> None:
    server = scripted(answering(well), **WEAK[name])
    with pytest.raises(Unreachable, match="does not speak SSH as expected"):
        try_open(server.endpoint)
    assert server.logins == []


@pytest.mark.parametrize("algorithm", ["ssh-rsa", "ssh-dss"])
def test_sha_1_signatures_of_host_keys_are_refused(algorithm: str, endpoint: Endpoint, tmp_path: Path) -> None:
    modern = (b"aes256-ctr", b"aes256-ctr", b"hmac-sha2-256", b"hmac-sha2-256", b"none", b"none", b"", b"")
    offer = key_exchange(b"curve25519-sha256@libssh.org,ecdh-sha2-nistp256", algorithm.encode(), *modern)
    known = tmp_path / "known"
    with raw_server(lambda sock: sock.sendall(BANNER + offer)) as port:
        key = asyncssh.generate_private_key("ssh-rsa").export_public_key().decode()
        known.write_text(f"[127.0.0.1]:{port} {key}")
        weak = replace(endpoint, host="127.0.0.1", port=port, known_hosts=str(known))
        with pytest.raises(HostKeyMismatch, match="no host key of the known types"):
            try_open(weak, 5.0)


def exiting(status: int, stdout: bytes = b"", stderr: bytes = b"") -> Run:
    async def run(process: Any) -> None:
        process.stdout.write(stdout)
        process.stderr.write(stderr)
        process.stdout.write_eof()
        # The status comes late, as it does from a busy server.
        await asyncio.sleep(0.05)
        process.exit(status)

    return run


async def aborting(process: Any) -> None:
    process.channel.get_connection().abort()


ENDED: dict[str, tuple[Run, type[PollError], str]] = {
    "no such command": (exiting(127, b"", b"sh: 1: x2gofleet-probe: not found\n"), CommandMissing, "not found"),
    "status 127 alone": (exiting(127), CommandMissing, "command not found"),
    "sudo": (exiting(1, b"", b"sudo: a password is required\n"), NotPermitted, "password is required"),
    "nologin": (exiting(1, b"This account is currently not available.\n"), NotPermitted, "currently not available"),
    "status 0": (exiting(0), LoginEnded, "exit status 0"),
    "cut": (aborting, ConnectionLost, "be started|before the probe greeted"),
    "protocol 3": (answering(well, HELLO.replace(b" 2 ", b" 3 ")), NotProven, "speaks protocol 3"),
    "terminal codes": (exiting(1, b"\x1b[31mno\n\x07way"), LoginEnded, "no \ufffdway"),
}


@pytest.mark.parametrize("name", ENDED)
def test_a_probe_that_does_not_start(name: str, scripted: Callable[..., Scripted]) -> None:
    run, error, said = ENDED[name]
    connection = CLIENT.open(scripted(run).endpoint, Deadline(LONG_SECONDS))
    try:
        with pytest.raises(PollError, match=said) as caught:
            connection.start_probe("x2gofleet-probe", Deadline(LONG_SECONDS))
    finally:
        connection.close()
    assert type(caught.value) is error
    assert "\x1b" not in str(caught.value)


def test_a_server_that_runs_no_commands(scripted: Callable[..., Scripted]) -> None:
    connection = CLIENT.open(scripted(None).endpoint, Deadline(LONG_SECONDS))
    try:
        with pytest.raises(ConnectionLost, match="the probe could not be started"):
            connection.start_probe("x2gofleet-probe", Deadline(LONG_SECONDS))
    finally:
        connection.close()


def test_a_probe_that_never_greets_is_closed_and_leaves_the_connection_to_others(
    scripted: Callable[..., Scripted],
) -> None:
    calls: list[int] = []

    async def run(process: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            await process.stdin.read()
        else:
            await answering(well)(process)

    server = scripted(run)
    connection = CLIENT.open(server.endpoint, Deadline(LONG_SECONDS))
    try:
        first = connection.start_probe("x2gofleet-probe", Deadline(LONG_SECONDS))
        with pytest.raises(DeadlineExceeded), in_time(SHORT_SECONDS):
            connection.start_probe("x2gofleet-probe", Deadline(SHORT_SECONDS))
        wait_until(lambda: server.over == 1, "the second probe is over")
        assert first.hello.uid == 0
    finally:
        connection.close()


def test_noise_before_the_greeting_is_passed_over_up_to_a_limit(scripted: Callable[..., Scripted]) -> None:
    noise = b"Welcome!\nx2gofleet-probe is here\n" + b"\xff" * 1000 + b"\n"
    connection = CLIENT.open(scripted(answering(well, noise + HELLO)).endpoint, Deadline(LONG_SECONDS))
    try:
        assert asked(connection.start_probe("x", Deadline(LONG_SECONDS)), LOAD)[0].stdout == b"x"
    finally:
        connection.close()


@pytest.mark.parametrize("line", [b"x", b"noise\n"])
def test_endless_noise_is_cut_off(line: bytes, scripted: Callable[..., Scripted]) -> None:
    async def run(process: Any) -> None:
        while True:
            process.stdout.write(line * 5000)
            await process.stdout.drain()

    connection = CLIENT.open(scripted(run).endpoint, Deadline(LONG_SECONDS))
    try:
        with pytest.raises(NotProven, match="hello within 65536 bytes"), in_time(5.0):
            connection.start_probe("x", Deadline(LONG_SECONDS))
    finally:
        connection.close()


def test_a_flood_on_stderr_blocks_nobody_and_little_of_it_is_kept(scripted: Callable[..., Scripted]) -> None:
    async def run(process: Any, number: int, request: Request) -> None:
        for line in range(200):
            process.stderr.write(b"%06d warning: " % line + b"x" * 20_000 + b"\n")
            await process.stderr.drain()
        process.stdout.write(load_answer(number))

    connection = CLIENT.open(scripted(answering(run)).endpoint, Deadline(LONG_SECONDS))
    try:
        probe = connection.start_probe("x", Deadline(LONG_SECONDS))
        assert asked(probe, LOAD)[0].stdout == b"x"
        assert len(probe.stderr) <= 200
    finally:
        connection.close()


def test_a_flood_on_stdout_is_cut_off(scripted: Callable[..., Scripted]) -> None:
    sent = [0]

    async def run(process: Any, number: int, request: Request) -> None:
        process.stdout.write(encode_begin(Begin(SectionKind.LOAD), number))
        while True:
            process.stdout.write(encode_data("D", b"x" * 65536, number))
            sent[0] += 65536
            await process.stdout.drain()

    connection = CLIENT.open(scripted(answering(run)).endpoint, Deadline(LONG_SECONDS))
    try:
        probe = connection.start_probe("x", Deadline(LONG_SECONDS))
        with pytest.raises(NotProven, match="at most"):
            asked(probe, LOAD)
    finally:
        connection.close()
    assert sent[0] < MAX_SECTION_BYTES * 1.5


def test_a_flood_between_polls_stops_at_the_window(scripted: Callable[..., Scripted]) -> None:
    sent = [0]

    async def run(process: Any) -> None:
        process.stdout.write(HELLO)
        while True:
            process.stdout.write(b"x" * 65536)
            sent[0] += 65536
            await process.stdout.drain()

    connection = CLIENT.open(scripted(run).endpoint, Deadline(LONG_SECONDS))
    try:
        probe = connection.start_probe("x", Deadline(LONG_SECONDS))
        seen = -1
        while seen != sent[0]:
            seen = sent[0]
            time.sleep(0.1)
        assert seen < 8 * 1024 * 1024
        with pytest.raises(NotProven):
            asked(probe, LOAD)
    finally:
        connection.close()


def test_a_hung_slow_probe_costs_its_channel_alone(scripted: Callable[..., Scripted]) -> None:
    async def run(process: Any, number: int, request: Request) -> None:
        if request.sections != (MOUNTS,):
            process.stdout.write(load_answer(number))

    server = scripted(answering(run))
    connection = CLIENT.open(server.endpoint, Deadline(LONG_SECONDS))
    try:
        quick, slow = (connection.start_probe("x", Deadline(LONG_SECONDS)) for _ in range(2))
        with pytest.raises(DeadlineExceeded), in_time(SHORT_SECONDS):
            asked(slow, MOUNTS, seconds=SHORT_SECONDS)
        slow.close()
        wait_until(lambda: server.over == 1, "the hung probe is over")
        # Longer than the reaper would wait before it cuts what does not come back.
        time.sleep(CUT_AFTER_SECONDS + 0.2)
        assert asked(quick, LOAD)
    finally:
        connection.close()


def test_sections_are_yielded_as_they_arrive(scripted: Callable[..., Scripted]) -> None:
    may_go_on = threading.Event()

    async def run(process: Any, number: int, request: Request) -> None:
        process.stdout.write(encode_section(Section(kind=SectionKind.LOAD, stdout=b"1"), Scope.USER, number))
        while not may_go_on.is_set():
            await asyncio.sleep(0.01)
        mounts = Section(kind=SectionKind.MOUNTS, stdout=b"2", exit_status=0)
        process.stdout.write(encode_section(mounts, Scope.USER, number) + encode_done(0, "a", number))

    connection = CLIENT.open(scripted(answering(run)).endpoint, Deadline(LONG_SECONDS))
    try:
        probe = connection.start_probe("x", Deadline(LONG_SECONDS))
        answer = AnswerDecoder(Request(Scope.USER, (LOAD, MOUNTS), 9))
        sections = probe.exchange(answer, Deadline(LONG_SECONDS))
        section = next(sections)
        assert (section.stdout, answer.done) == (b"1", False)
        may_go_on.set()
        assert [section.stdout for section in sections] == [b"2"]
    finally:
        connection.close()


def test_a_trickle_does_not_outlast_the_deadline(scripted: Callable[..., Scripted]) -> None:
    async def run(process: Any, number: int, request: Request) -> None:
        process.stdout.write(encode_begin(Begin(SectionKind.LOAD), number))
        while True:
            process.stdout.write(encode_data("D", b"x", number))
            process.stderr.write(b"y")
            await asyncio.sleep(0.01)

    connection = CLIENT.open(scripted(answering(run)).endpoint, Deadline(LONG_SECONDS))
    try:
        probe = connection.start_probe("x", Deadline(LONG_SECONDS))
        with pytest.raises(DeadlineExceeded), in_time(SHORT_SECONDS):
            asked(probe, LOAD, seconds=SHORT_SECONDS)
    finally:
        connection.close()


# From outside


def test_close_wakes_a_blocked_reader_at_once(endpoint: Endpoint, server: ServerHandle) -> None:
    connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
    probe = connection.start_probe(PROBE, Deadline(LONG_SECONDS))
    server.set_fault("hang")
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(asked, probe, LOAD)
        wait_until(lambda: server.counters.running_polls == 1, "the request is at the server")
        with in_time(0.0):
            connection.close()
            with pytest.raises(ConnectionLost):
                blocked.result(LONG_SECONDS)


@pytest.mark.parametrize("where", ["tarpit", "black hole"])
def test_cancel_wakes_whoever_is_connecting(
    where: str, endpoint: Endpoint, server: ServerHandle, tmp_path: Path
) -> None:
    deadline = Deadline(LONG_SECONDS)
    with black_hole() as (_, port), ThreadPoolExecutor(1) as pool:
        server.set_fault("tarpit")
        place = endpoint if where == "tarpit" else at_port(endpoint, port, tmp_path)
        blocked = pool.submit(CLIENT.open, place, deadline)
        if where == "tarpit":
            wait_until(lambda: server.counters.open_connections == 1, "it is connected")
        else:
            wait_until(lambda: deadline.is_watching, "it is connecting")
        with in_time(0.0):
            deadline.cancel()
            with pytest.raises(OutageError):
                blocked.result(LONG_SECONDS)
    late = Deadline(LONG_SECONDS)
    late.cancel()
    with pytest.raises(OutageError), in_time(0.0):
        CLIENT.open(endpoint, late)


def switches(thread: threading.Thread) -> int:
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


def test_an_idle_connection_does_not_wake(endpoint: Endpoint) -> None:
    """Guards the private name that ssh/transport.py sets: paramiko alone wakes each connection ten times a second."""
    assert paramiko.Transport._active_check_timeout == 0.1
    before = set(threading.enumerate())
    connection = CLIENT.open(endpoint, Deadline(LONG_SECONDS))
    try:
        connection.start_probe(PROBE, Deadline(LONG_SECONDS))
        (reader,) = [thread for thread in set(threading.enumerate()) - before if isinstance(thread, paramiko.Transport)]
        assert connection._sock.gettimeout() == 60.0
        time.sleep(0.1)
        counted = switches(reader)
        time.sleep(1.0)
        assert switches(reader) - counted <= 1
    finally:
        connection.close()
