"""host_keys: what is known of a server's host key, and whether the key that it shows is accepted, as ssh decides it."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import paramiko

from x2gofleet.errors import HostKeyMismatch, HostKeyUnknown
from x2gofleet_workers.ssh.blobs import CERTIFICATE_SUFFIX, PublicKey
from x2gofleet_workers.ssh.certificates import HostCertificate
from x2gofleet_workers.ssh.endpoint import DEFAULT_PORT, Endpoint
from x2gofleet_workers.ssh.faults import describe, exhausted
from x2gofleet_workers.ssh.files import Identity, NotUsable, identity_of, read_file
from x2gofleet_workers.ssh.known_hosts import KnownHostsFile, Line, Marker

MAX_FILE_BYTES = 64 * 1024 * 1024
_BAD_LINES_NAMED = 20
# In ssh's order: the server takes the first that it has.
_ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
_CERTIFICATES = tuple(f"{name}{CERTIFICATE_SUFFIX}" for names in _ALGORITHMS.values() for name in names)

_REVOKED_REMEDY = "give the server another host key; or delete the line that revokes this one, if that is an error"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Named:
    """The lines of one name."""

    keys: tuple[Line, ...] = ()
    authorities: tuple[Line, ...] = ()
    revoked: tuple[Line, ...] = ()

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Named:
        by_marker: dict[Marker, list[Line]] = {marker: [] for marker in Marker}
        for line in lines:
            by_marker[line.marker].append(line)
        return cls(*(tuple(by_marker[marker]) for marker in Marker))


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What a known_hosts file says of an endpoint: under its name with the port, and then under its name alone."""

    endpoint: Endpoint
    named: tuple[Named, ...]
    now: Callable[[], float] = field(default=time.time, compare=False)

    @property
    def empty(self) -> bool:
        """Whether no key is known, and no authority."""
        return not any(named.keys or named.authorities for named in self.named)

    @property
    def keys(self) -> tuple[Line, ...]:
        """The lines with keys that count: those with the port, where there are some."""
        return next((named.keys for named in self.named if named.keys), ())

    def revocation(self, key: PublicKey) -> Line | None:
        """Return the line that revokes one of ``keys``, where there is one."""
        for named in self.named:
            for line in named.revoked:
                if line.key.blob == key.blob:
                    return line
            if named.keys:
                break
        return None

    def algorithms(self) -> list[str]:
        """Return the host key algorithms to ask for, the best first: those by which a known key can prove itself."""
        usable = {line.key.type for line in self.keys if not line.key.unusable and self.revocation(line.key) is None}
        found = [name for key_type, names in _ALGORITHMS.items() if key_type in usable for name in names]
        certified = any(not line.key.unusable for named in self.named for line in named.authorities)
        return [*_CERTIFICATES, *found] if certified else found

    def verify(self, key: PublicKey, certificate: HostCertificate | None, fingerprint: str) -> None:
        """Accept the key that a server has proven, by its certificate where it showed one; or raise HostKeyMismatch."""
        problem = ""
        if certificate is not None:
            problem = self._certificate_problem(key, certificate, fingerprint)
            if not problem:
                return
        for named in self.named:
            self._refuse_revoked(named, key, fingerprint)
            if any(line.key.blob == key.blob for line in named.keys):
                return
            if named.keys:
                break
        raise _mismatch(
            self.endpoint,
            f"shows the host key {fingerprint}, which is not the known one" + (f" ({problem})" if problem else ""),
        )

    def _certificate_problem(self, key: PublicKey, certificate: HostCertificate, fingerprint: str) -> str:
        for named in self.named:
            self._refuse_revoked(named, key, fingerprint)
            self._refuse_revoked(named, certificate.authority, fingerprint)
            if any(line.key.blob == certificate.authority.blob for line in named.authorities):
                return certificate.problem(canonical_host(self.endpoint.host), self.now())
        return "no @cert-authority line has the authority of its certificate"

    def _refuse_revoked(self, named: Named, key: PublicKey, fingerprint: str) -> None:
        for line in named.revoked:
            if line.key.blob == key.blob:
                raise HostKeyMismatch(
                    f"{self.endpoint.address} shows the host key {fingerprint}, which line {line.number} of "
                    f"{self.endpoint.known_hosts} revokes; no key was offered",
                    mend=_REVOKED_REMEDY,
                )


def _mismatch(endpoint: Endpoint, what: str) -> HostKeyMismatch:
    return HostKeyMismatch(f"{endpoint.address} {what}; no key was offered", mend=replace_remedy(endpoint))


def replace_remedy(endpoint: Endpoint) -> str:
    """Return how to replace the host key of a server in its known_hosts file."""
    path, name = shlex.quote(endpoint.known_hosts), shlex.quote(known_names(endpoint)[0])
    return (
        f"if the server was reinstalled, replace its line in {endpoint.known_hosts}: ssh-keygen -R {name} -f {path}, "
        f"then {_scan(endpoint)}; if not, somebody may be in between"
    )


def _scan(endpoint: Endpoint) -> str:
    return f"ssh-keyscan -p {endpoint.port} {shlex.quote(endpoint.host)} >> {shlex.quote(endpoint.known_hosts)}"


def known_names(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names under which ssh looks for an endpoint, the first with its port where that is not 22."""
    host = canonical_host(endpoint.host)
    return (host,) if endpoint.port == DEFAULT_PORT else (f"[{host}]:{endpoint.port}", host)


def canonical_host(host: str) -> str:
    """Return a host as ssh looks for it: in lower case, and an address in its usual form. Asks no name server."""
    if ":" in host or host[:1].isdigit():
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return socket.getnameinfo(found[0][4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0].lower()
        except (OSError, UnicodeError):
            pass
    return host.lower()


@dataclass(slots=True)
class _Parsed:
    identity: Identity
    file: KnownHostsFile
    found: dict[str, Named] = field(default_factory=dict)


class KnownHosts:
    """Parsed known_hosts files, read again when they change: a file of a thousand keys takes long to parse.

    Thread-safe. Lines that can't be used are logged once for each content of a file.
    """

    def __init__(self, warn: Callable[[str], None] = log.warning) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._parsed: dict[str, _Parsed] = {}

    def keys_of(self, endpoint: Endpoint) -> KnownKeys:
        """Return what is known of an endpoint, at least one usable key or authority; raises HostKeyUnknown."""
        path = endpoint.known_hosts
        add = f"compare the fingerprint, then: {_scan(endpoint)}"
        try:
            parsed = self._read(path)
        except FileNotFoundError:
            raise HostKeyUnknown(f"the file {path} does not exist", mend=add) from None
        except NotUsable as exc:
            raise HostKeyUnknown(
                f"{path} can't be read: it is {exc}", mend="have known_hosts in fleet.toml name a file"
            ) from exc
        except OSError as exc:
            raise HostKeyUnknown(
                f"the file {path} can't be read: {exc.strerror}", mend=f"let uid {os.geteuid()} read it"
            ) from exc
        names = known_names(endpoint)
        known = KnownKeys(endpoint, tuple(self._named(parsed, path, name) for name in names))
        if known.empty:
            raise HostKeyUnknown(f"{path} has no key of {names[0]}", mend=add)
        if not known.algorithms():
            raise _unusable(known, add)
        return known

    def _read(self, path: str) -> _Parsed:
        identity = identity_of(os.stat(path))
        with self._lock:
            parsed = self._parsed.get(path)
            if parsed is None or parsed.identity != identity:
                content = read_file(path, MAX_FILE_BYTES)
                parsed = self._parsed[path] = _Parsed(content.identity, KnownHostsFile(content.data))
                self._name_bad_lines(path, parsed.file)
            return parsed

    def _named(self, parsed: _Parsed, path: str, name: str) -> Named:
        with self._lock:
            named = parsed.found.get(name)
            if named is None:
                usable = [line for line in parsed.file.lines_of(name) if self._is_key(path, line)]
                named = parsed.found[name] = Named.of(usable)
            return named

    def _is_key(self, path: str, line: Line) -> bool:
        """Whether the numbers of a key make one; looked at for the hosts that are polled alone, as it takes long."""
        if line.key.unusable:
            return True
        try:
            paramiko.PKey.from_type_string(line.key.type, line.key.blob)
        except Exception as exc:
            if exhausted(exc) is not None:
                raise
            self._warn(f"{path}:{line.number}: the line is passed over: it has no key: {describe(exc)}")
            return False
        return True

    def _name_bad_lines(self, path: str, file: KnownHostsFile) -> None:
        bad = [
            *((line.number, line.reason) for line in file.bad),
            *(
                (line.number, line.key.unusable)
                for line in file.lines
                if line.key.unusable and line.marker is not Marker.REVOKED
            ),
        ]
        for number, reason in sorted(bad)[:_BAD_LINES_NAMED]:
            self._warn(f"{path}:{number}: the line is passed over: {reason}")
        if len(bad) > _BAD_LINES_NAMED:
            self._warn(f"{path}: {len(bad) - _BAD_LINES_NAMED} more line(s) are passed over")


def _unusable(known: KnownKeys, add: str) -> HostKeyUnknown | HostKeyMismatch:
    endpoint = known.endpoint
    for line in known.keys:
        revoked = known.revocation(line.key)
        if revoked is not None:
            return HostKeyMismatch(
                f"line {revoked.number} of {endpoint.known_hosts} revokes the host key of {endpoint.address}",
                mend=_REVOKED_REMEDY,
            )
    lines: Sequence[Line] = known.keys or [line for named in known.named for line in named.authorities]
    return HostKeyUnknown(
        f"{endpoint.known_hosts} has no usable key of {endpoint.address}: {lines[0].key.unusable}", mend=add
    )
