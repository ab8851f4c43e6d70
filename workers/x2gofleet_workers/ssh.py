"""ssh: one persistent, verified SSH connection per target, and the probe's channels on it.

The only module that imports paramiko. Every wait has the poll's deadline, and the deadline is also enforced from
outside, by cutting the connection: some of paramiko's own waits have no timeout.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko

from x2gofleet.connection.resolving import Resolver
from x2gofleet.errors import (
    AuthenticationFailed,
    CommandMissing,
    ConnectionLost,
    DeadlineExceeded,
    HostKeyMismatch,
    HostKeyUnknown,
    NotPermitted,
    NotProven,
    PollError,
    SetupError,
    Unreachable,
)
from x2gofleet_workers.proof import show
from x2gofleet_workers.shell_probe import MAX_NOISE_BYTES, Answer, Hello, Request, Section, parse_hello

_LOG_CHANNEL = "x2gofleet_workers.paramiko"
logging.getLogger(_LOG_CHANNEL).setLevel(logging.CRITICAL)

_resolver = Resolver()

TCP_USER_TIMEOUT_MS = 15_000
_STDERR_KEPT_BYTES = 4096
_STDERR_DRAINED_SECONDS = 0.5
_STATUS_WAIT_SECONDS = 2.0
_CUT_AFTER_SECONDS = 0.5
_END_SECONDS = 2.0
_WEAK_ALGORITHMS = {
    "kex": ["diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1", "diffie-hellman-group1-sha1"],
    "ciphers": ["aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc"],
    "macs": ["hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96"],
    "keys": ["ssh-rsa", "ssh-dss"],
    "pubkeys": ["ssh-rsa", "ssh-dss"],
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom to log in."""

    host: str
    port: int
    user: str
    key_file: str
    known_hosts: str


class Deadline:
    """A point in monotonic time at which a poll ends, whatever it is doing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds
        self._cancelled = False
        self._sock: socket.socket | None = None

    def watch(self, sock: socket.socket) -> None:
        """Have ``cancel`` cut this socket."""
        self._sock = sock
        if self._cancelled:
            _shut(sock)

    def cancel(self) -> None:
        """Let the deadline pass now, and wake whoever waits for the socket."""
        self._cancelled, self._at = True, time.monotonic()
        if self._sock is not None:
            _shut(self._sock)

    @property
    def at(self) -> float:
        """Monotonic time of the deadline."""
        return self._at

    def left(self) -> float:
        """Seconds left; raises DeadlineExceeded when there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._at

    def exceeded(self) -> DeadlineExceeded:
        """Return the error to raise when the deadline has passed."""
        return DeadlineExceeded(f"no complete answer within {self.seconds:g} s")


class _Reaper:
    """One thread that cuts connections whose deadline has passed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, _Guard]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def guard(self, guard: _Guard) -> None:
        with self._condition:
            heapq.heappush(self._heap, (guard.at, next(self._order), guard))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="x2gofleet-deadlines", daemon=True)
                self._thread.start()
            if self._heap[0][2] is guard:
                self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._heap and self._heap[0][2].sock is None:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._condition.wait()
                    continue
                wait = self._heap[0][0] - time.monotonic()
                if wait > 0:
                    self._condition.wait(wait)
                    continue
                guard = heapq.heappop(self._heap)[2]
            guard.cut()


class _Guard:
    """The deadline of one poll on one socket; released when the poll ends in time."""

    __slots__ = ("at", "sock")

    def __init__(self, at: float, sock: socket.socket) -> None:
        self.at = at
        self.sock: socket.socket | None = sock

    def cut(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            _shut(sock)


_reaper = _Reaper()


@contextmanager
def _guarded(sock: socket.socket, deadline: Deadline, *, grace_seconds: float = 0.0) -> Iterator[None]:
    guard = _Guard(deadline.at + grace_seconds, sock)
    _reaper.guard(guard)
    try:
        yield
    finally:
        guard.sock = None


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _end(transport: paramiko.Transport, sock: socket.socket) -> None:
    """Cut a connection, wait for its thread, then close it.

    In this order: a descriptor closed under a thread that is about to wait for it may be another's by then.
    """
    _shut(sock)
    if transport.is_alive():
        transport.join(_END_SECONDS)
    transport.close()
    sock.close()


class _Transport(paramiko.Transport):
    # paramiko wakes each idle connection ten times a second to see whether it was closed; here a connection is closed
    # by shutting its socket down, which wakes the reader at once. A test guards this private name.
    _active_check_timeout = 60.0


class SshConnection:
    """A logged-in SSH connection. Not thread-safe: one poll at a time, but ``close`` may come from anywhere."""

    def __init__(self, transport: paramiko.Transport, sock: socket.socket, endpoint: Endpoint) -> None:
        self._transport = transport
        self._sock = sock
        self.endpoint = endpoint

    @classmethod
    def open(cls, endpoint: Endpoint, deadline: Deadline) -> SshConnection:
        """Connect, verify the host key, log in. Raises a PollError; leaves nothing open when it fails."""
        key = _load_key(endpoint)
        known = _known_keys(endpoint)
        sock = _connect(endpoint, deadline)
        try:
            with _guarded(sock, deadline):
                transport = _negotiate(sock, endpoint, known, deadline)
                try:
                    _authenticate(transport, endpoint, key, deadline)
                except BaseException:
                    _end(transport, sock)
                    raise
        except BaseException:
            _shut(sock)
            sock.close()
            raise
        return cls(transport, sock, endpoint)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as is known."""
        return bool(self._transport.is_active())

    def start_probe(self, command: str, deadline: Deadline) -> ProbeChannel:
        """Execute ``command`` on a channel of its own and read the probe's greeting."""
        try:
            with _guarded(self._sock, deadline, grace_seconds=_CUT_AFTER_SECONDS):
                channel = self._transport.open_session(timeout=deadline.left())
                try:
                    channel.settimeout(deadline.left())
                    channel.exec_command(command)
                    probe = ProbeChannel(channel, self._sock, self.endpoint)
                    probe.read_hello(deadline)
                except BaseException:
                    _close(channel)
                    raise
                return probe
        except PollError:
            raise
        except Exception as exc:
            if deadline.passed():
                raise deadline.exceeded() from exc
            raise ConnectionLost(f"the probe could not be started: {_text(exc)}") from exc

    def close(self) -> None:
        """Cut the connection and end its thread."""
        _end(self._transport, self._sock)


class ProbeChannel:
    """A running probe: asked again and again, one request at a time."""

    def __init__(self, channel: paramiko.Channel, sock: socket.socket, endpoint: Endpoint) -> None:
        self._channel, self._sock, self._endpoint = channel, sock, endpoint
        self._early = b""
        self._stderr = b""
        self.hello = Hello(-1, "", "")
        self.requests = 0
        self.idle = True

    def read_hello(self, deadline: Deadline) -> None:
        """Read up to the greeting; what shells print before it is noise."""
        noise = b""
        while True:
            data = self._receive(deadline)
            if not data:
                raise self._ended(noise, deadline)
            noise += data
            *lines, rest = noise.split(b"\n")
            for index, line in enumerate(lines):
                hello = parse_hello(line)
                if hello is not None:
                    self.hello = hello
                    self._early = b"\n".join([*lines[index + 1 :], rest])
                    return
            if len(noise) > MAX_NOISE_BYTES:
                raise NotProven(f"the login prints more than {MAX_NOISE_BYTES} bytes before the probe greets")

    def _ended(self, noise: bytes, deadline: Deadline) -> PollError:
        """Return the error for a probe that ended before it greeted, by what the server said."""
        # The exit status comes after the end of the output.
        self._channel.status_event.wait(min(_STATUS_WAIT_SECONDS, deadline.left()))
        self._drain_stderr()
        said = show(self._stderr.strip() or noise.strip())
        # -1: the channel was closed without one.
        status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else -1
        user = self._endpoint.user
        # Before sudo's refusals: sudo too may say that there is no such command.
        if status == 127 or "not found" in said:
            return CommandMissing(
                f"the login could not start the probe: {said or 'command not found'}",
                mend="install the probe, or sudo, whichever is not found (docs/servers.md)",
            )
        if "sudo" in said or "password is required" in said:
            return NotPermitted(
                f"{user} may not become root by sudo: {said}",
                mend=f"let {user} run the probe by sudo without a password (docs/servers.md), or log in as root",
            )
        if status < 0:
            return ConnectionLost(f"the login ended before the probe greeted: {said or 'nothing was said'}")
        return NotPermitted(
            f"the login of {user} did not run the probe (exit status {status}): {said or 'nothing was said'}",
            mend=f"give {user} a shell that runs commands, or the probe as forced command (docs/servers.md)",
        )

    def ask(self, request: Request, deadline: Deadline) -> Iterator[tuple[Section, Answer]]:
        """Send a request; yield each section as it arrives, with the answer so far; ends after the end mark.

        Raises DeadlineExceeded, ConnectionLost and NotProven; then the channel can't be used any more.
        """
        self.requests += 1
        self.idle = False
        self._stderr = b""
        answer = Answer(request)
        try:
            # Waits for data end at the deadline by themselves, at the cost of this channel alone; the other probe's
            # connection is cut only where paramiko does not come back from sending.
            with _guarded(self._sock, deadline, grace_seconds=_CUT_AFTER_SECONDS):
                self._channel.settimeout(deadline.left())
                self._channel.sendall(request.line())
                data, self._early = self._early, b""
                while not answer.done:
                    if not data:
                        data = self._receive(deadline)
                        if not data:
                            self._drain_stderr()
                            raise ConnectionLost(
                                f"the probe ended in the middle of an answer: {self.stderr or 'nothing was said'}"
                            )
                    for section in answer.feed(data):
                        self._drain_stderr()
                        yield section, answer
                    data = b""
                if answer.uid != self.hello.uid:
                    raise NotProven(f"the probe greeted as uid {self.hello.uid} and answered as uid {answer.uid}")
                self.idle = True
        except PollError:
            raise
        except Exception as exc:
            if deadline.passed():
                raise deadline.exceeded() from exc
            raise ConnectionLost(f"the connection ended in the middle of a poll: {_text(exc)}") from exc

    @property
    def stderr(self) -> str:
        """What the commands of this request said on stderr, as one line of plain text."""
        return show(self._stderr)

    @property
    def stderr_bytes(self) -> bytes:
        """What the commands of this request said on stderr: its last 4096 bytes."""
        return self._stderr

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            self._stderr = (self._stderr + self._channel.recv_stderr(32768))[-_STDERR_KEPT_BYTES:]

    def _receive(self, deadline: Deadline) -> bytes:
        while True:
            # Now and then stderr is emptied while stdout is waited for: a command must not block on a full one.
            self._channel.settimeout(min(_STDERR_DRAINED_SECONDS, deadline.left()))
            try:
                data: bytes = self._channel.recv(65536)
            except TimeoutError:
                self._drain_stderr()
                continue
            if not data and deadline.passed():
                raise deadline.exceeded()
            self._drain_stderr()
            return data

    def close(self) -> None:
        """End the probe: it reads end of input."""
        _close(self._channel)


def _close(channel: paramiko.Channel) -> None:
    with suppress(paramiko.SSHException, EOFError, OSError):
        channel.close()


def _text(exc: BaseException) -> str:
    return show(str(exc).encode()) or type(exc).__name__


def _load_key(endpoint: Endpoint) -> paramiko.PKey:
    path = endpoint.key_file
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        raise SetupError(f"the key file {path} does not exist", mend="mend key_file in fleet.toml") from None
    except OSError as exc:
        raise SetupError(f"the key file {path} can't be read: {exc.strerror}") from exc
    except paramiko.PasswordRequiredException as exc:
        raise _encrypted(path) from exc
    except (paramiko.SSHException, ValueError, TypeError) as exc:
        if "password" in str(exc):
            raise _encrypted(path) from exc
        raise SetupError(f"the key file {path} is no private SSH key: {_text(exc)}") from exc
    except Exception as exc:
        raise SetupError(f"the key file {path} can't be used: {type(exc).__name__}: {_text(exc)}") from exc


def _encrypted(path: str) -> SetupError:
    return SetupError(
        f"the key file {path} is encrypted", mend="use a key without a passphrase: ssh-keygen -t ed25519 -N ''"
    )


def _known_name(endpoint: Endpoint) -> str:
    return endpoint.host if endpoint.port == 22 else f"[{endpoint.host}]:{endpoint.port}"


class _KnownHosts:
    """Parsed known_hosts files, read again when they change: a file of a thousand keys takes long to parse."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parsed: dict[str, tuple[tuple[int, ...], paramiko.HostKeys]] = {}

    def read(self, path: str) -> paramiko.HostKeys:
        """Return the keys of a file; raises what reading and parsing it raise."""
        found = Path(path).stat()
        identity = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
        with self._lock:
            known = self._parsed.get(path)
            if known is None or known[0] != identity:
                known = self._parsed[path] = (identity, paramiko.HostKeys(path))
            return known[1]


_known_hosts = _KnownHosts()


def _known_keys(endpoint: Endpoint) -> dict[str, paramiko.PKey]:
    """Return the known host keys of an address by key type."""
    name, path = _known_name(endpoint), endpoint.known_hosts
    add = f"compare the fingerprint, then: ssh-keyscan -p {endpoint.port} {endpoint.host} >> {path}"
    try:
        hosts = _known_hosts.read(path)
    except FileNotFoundError:
        raise HostKeyUnknown(f"the file {path} does not exist", mend=add) from None
    except OSError as exc:
        raise HostKeyUnknown(f"the file {path} can't be read: {exc.strerror}") from exc
    except Exception as exc:
        raise HostKeyUnknown(f"the file {path} holds what is no host key: {_text(exc)}", mend=add) from exc
    found = hosts.lookup(name)
    keys = {kind: found[kind] for kind in found} if found else {}
    if not keys:
        raise HostKeyUnknown(f"{path} has no key of {name}", mend=add)
    return keys


def _connect(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    where = f"{endpoint.host} port {endpoint.port}"
    try:
        addresses = _resolver.addresses(endpoint.host, endpoint.port, timeout_seconds=deadline.left())
    except OSError as exc:
        raise Unreachable(f"{where}: {exc}", mend="see whether the name is right and DNS answers") from exc
    failure: OSError | None = None
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        deadline.watch(sock)
        try:
            # One address that swallows packets leaves time for the others.
            sock.settimeout(deadline.left() / (len(addresses) - tried))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if isinstance(failure, TimeoutError) and deadline.passed():
        raise Unreachable(f"{where} did not answer within {deadline.seconds:g} s") from failure
    reason = (failure.strerror or str(failure)) if failure else "the name has no address"
    raise Unreachable(f"{where}: {reason}", mend="see whether the server and its sshd run") from failure


def _key_types(known: dict[str, paramiko.PKey]) -> list[str]:
    """Return the host key algorithms to ask for: those by which a known key can prove itself."""
    types: list[str] = []
    for kind in known:
        types += ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]
    return types


def _negotiate(
    sock: socket.socket, endpoint: Endpoint, known: dict[str, paramiko.PKey], deadline: Deadline
) -> paramiko.Transport:
    where = f"{endpoint.host} port {endpoint.port}"
    transport = _Transport(sock, disabled_algorithms=_WEAK_ALGORITHMS)
    transport.set_log_channel(_LOG_CHANNEL)
    transport.banner_timeout = transport.handshake_timeout = deadline.left()
    try:
        options = transport.get_security_options()
        options.key_types = [kind for kind in _key_types(known) if kind in options.key_types]
        transport.start_client(timeout=deadline.left())
        if not transport.is_active() or transport.get_remote_server_key() is None:
            raise deadline.exceeded()
        offered = transport.get_remote_server_key()
        expected = known.get(offered.get_name())
        if expected is None or expected.asbytes() != offered.asbytes():
            raise HostKeyMismatch(
                f"{where} shows the host key {offered.fingerprint}, which is not the known one; no key was offered",
                mend=f"if the server was reinstalled, replace its line in {endpoint.known_hosts}; if not, somebody "
                "may be in between",
            )
    except PollError:
        _end(transport, sock)
        raise
    except Exception as exc:
        # Of any class: paramiko hands on whatever its reading of the server's packets raised.
        _end(transport, sock)
        if isinstance(exc, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(exc):
            raise HostKeyMismatch(
                f"{where} has no host key of the known types ({', '.join(known)})",
                mend=f"if the server was reinstalled, replace its line in {endpoint.known_hosts}",
            ) from exc
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise Unreachable(f"{where} does not speak SSH as expected: {_text(exc)}") from exc
    return transport


def _authenticate(transport: paramiko.Transport, endpoint: Endpoint, key: paramiko.PKey, deadline: Deadline) -> None:
    where = f"{endpoint.host} port {endpoint.port}"
    mend = f"add the public key of {endpoint.key_file} to authorized_keys of {endpoint.user} on the server"
    transport.auth_timeout = deadline.left()
    try:
        left = transport.auth_publickey(endpoint.user, key)
    except paramiko.AuthenticationException as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise AuthenticationFailed(
            f"{where} refused the key {endpoint.key_file} ({key.fingerprint}) for {endpoint.user}", mend=mend
        ) from exc
    except Exception as exc:
        if deadline.passed():
            raise deadline.exceeded() from exc
        raise ConnectionLost(f"{where} ended the connection while logging in: {_text(exc)}") from exc
    if left:
        raise AuthenticationFailed(
            f"{where} wants more than a key of {endpoint.user}: {', '.join(left)}",
            mend="allow a login by public key alone for this account",
        )
