"""TLS with a private CA against a real server: what is verified, and how each failure tells to mend it."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.servers import VERSIONS
from tests.topologies import free_port
from tests.waiting import PATIENT, wait_until
from x2gofleet import FleetCache
from x2gofleet.cli import main
from x2gofleet.connection import unavailable
from x2gofleet.errors import CacheUnavailable, Unavailable

sys.path.insert(0, str(Path(__file__).parents[1]))
from links import KINDS, AnyLink, listening, silent

NOW = datetime.datetime.now(datetime.UTC)
YEAR = datetime.timedelta(days=365)


class Authority:
    """A CA of the test's own that signs for whom it is told to."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = (
            self._builder(subject, subject, self._key, NOW + YEAR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(NOW, until) - YEAR)
            .not_valid_after(until)
        )

    def sign(self, name: str, *names: str, until: datetime.datetime = NOW + YEAR) -> tuple[Path, Path]:
        """Return the files of a certificate and its key for host names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        known: list[x509.GeneralName] = []
        for each in names:
            try:
                known.append(x509.IPAddress(ipaddress.ip_address(each)))
            except ValueError:
                known.append(x509.DNSName(each))
        builder = self._builder(subject, self._certificate.subject, key, until)
        if known:
            builder = builder.add_extension(x509.SubjectAlternativeName(known), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = self._directory / f"{self._name}-{name}"
        files = stem.with_suffix(".crt"), stem.with_suffix(".key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


@functools.cache
def binary_with_tls() -> Path:
    """Return a server that speaks TLS: Debian's, or one that a Python package brings; skip the test without one."""
    found = [version.find() for version in (VERSIONS["redis-7.0"], *VERSIONS.values())]
    for binary in filter(None, found):
        # Without a certificate it ends at once, and says what it lacks: the certificate, or TLS.
        said = subprocess.run(
            [binary, "--port", "0", "--tls-port", str(free_port()), "--bind", "127.0.0.1", "--save", ""],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout
        if "No tls-cert-file configured" in said:
            return binary
    lacking = "no server of this host speaks TLS: apt-get install redis-server"
    if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
        pytest.fail(f"X2GOFLEET_REQUIRE_E2E=1, but {lacking}", pytrace=False)
    pytest.skip(lacking)


@dataclass
class TlsServer:
    """A real server with TLS on a port of its own."""

    port: int
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "fleet-ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "other-ca")


Start = Callable[..., TlsServer]


@pytest.fixture(scope="module")
def start(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers that show a certificate; they end with the tests."""
    running: list[subprocess.Popen[bytes]] = []

    def start_one(files: tuple[Path, Path], *, client_certificates: bool = False) -> TlsServer:
        port = free_port()
        options = {
            "port": 0,
            "tls-port": port,
            "bind": "127.0.0.1",
            "dir": tmp_path_factory.mktemp("server"),
            "save": "",
            "tls-cert-file": files[0],
            "tls-key-file": files[1],
            "tls-ca-cert-file": authority.file,
            "tls-auth-clients": "yes" if client_certificates else "no",
            "requirepass": "s3cret",
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen([binary_with_tls(), *arguments], stdout=subprocess.DEVNULL)
        running.append(process)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)
        return TlsServer(port, process)

    yield start_one
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(start: Start, authority: Authority) -> TlsServer:
    """One whose certificate is good for localhost and 127.0.0.1."""
    return start(authority.sign("good", "localhost", "127.0.0.1"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def refused(kind: str, url: str) -> CacheUnavailable:
    with AnyLink(kind, url) as link, pytest.raises(redis.exceptions.RedisError) as caught:
        link.exchange([("GET", "a")], seconds=5)
    told = unavailable(caught.value, "asking Redis")
    assert "s3cret" not in str(told)
    return told


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_commands_over_tls(kind: str, server: TlsServer, authority: Authority, host: str) -> None:
    url = f"rediss://:s3cret@{host}:{server.port}/2?ssl_ca_certs={authority.file}"
    big = b"x" * 300_000
    with AnyLink(kind, url, **PATIENT) as link:
        for _ in range(3):
            assert link.exchange([("SET", "a", big), ("GET", "a")]) == [b"OK", big]
        assert link.exchange([("CLIENT", "ID")]) == link.exchange([("CLIENT", "ID")]), "a connection is used again"
        assert link.keys("a*") == {b"a"}
        link.exchange([("DEL", "a")])


def test_a_reader_over_tls(server: TlsServer, authority: Authority) -> None:
    with FleetCache.from_url(f"rediss://:s3cret@localhost:{server.port}/0?ssl_ca_certs={authority.file}") as cache:
        assert cache.profiles() == ()


def test_a_ca_that_did_not_sign(kind: str, server: TlsServer, stranger: Authority) -> None:
    for option in ("", f"?ssl_ca_certs={stranger.file}"):
        told = refused(kind, f"rediss://:s3cret@localhost:{server.port}/0{option}")
        assert told.reason is Unavailable.TLS
        assert "was not signed by a CA that is trusted here: name the CA's file by ssl_ca_certs=FILE" in str(told)


def test_a_certificate_for_another_name(kind: str, start: Start, authority: Authority) -> None:
    elsewhere = start(authority.sign("elsewhere", "redis.example", "192.0.2.7"))
    for host in ("localhost", "127.0.0.1"):
        told = refused(kind, f"rediss://:s3cret@{host}:{elsewhere.port}/0?ssl_ca_certs={authority.file}")
        assert told.reason is Unavailable.TLS
        assert f"is for another name than '{host}'" in str(told)


def test_a_certificate_that_has_expired(kind: str, start: Start, authority: Authority) -> None:
    old = start(authority.sign("old", "localhost", until=NOW - datetime.timedelta(days=1)))
    told = refused(kind, f"rediss://:s3cret@localhost:{old.port}/0?ssl_ca_certs={authority.file}")
    assert told.reason is Unavailable.TLS
    assert "has expired: renew it" in str(told)


def test_a_server_that_wants_a_certificate_of_its_clients(
    kind: str, start: Start, authority: Authority, stranger: Authority
) -> None:
    strict = start(authority.sign("strict", "localhost"), client_certificates=True)
    url = f"rediss://:s3cret@localhost:{strict.port}/0?ssl_ca_certs={authority.file}"
    theirs = stranger.sign("client")
    for option in ("", f"&ssl_certfile={theirs[0]}&ssl_keyfile={theirs[1]}"):
        told = refused(kind, url + option)
        assert told.reason in (Unavailable.TLS, Unavailable.UNREACHABLE), told
        if told.reason is Unavailable.TLS:
            assert "give ssl_certfile and ssl_keyfile" in str(told)
    mine = authority.sign("client")
    with AnyLink(kind, f"{url}&ssl_certfile={mine[0]}&ssl_keyfile={mine[1]}", **PATIENT) as link:
        assert link.exchange([("PING",)]) == [b"PONG"]


@pytest.mark.parametrize(("name", "said"), [("", "wants one"), (":wrong", "refuses the user name or password")])
def test_a_missing_and_a_wrong_password(
    kind: str, server: TlsServer, authority: Authority, name: str, said: str
) -> None:
    at = f"{name}@" if name else ""
    told = refused(kind, f"rediss://{at}localhost:{server.port}/0?ssl_ca_certs={authority.file}")
    assert told.reason is Unavailable.AUTHENTICATION
    assert said in str(told)
    assert "wrong" not in str(told).lower().replace("wrongpass", "")


def test_a_port_that_does_not_speak_tls(kind: str, valkey_port: int, authority: Authority) -> None:
    told = refused(kind, f"rediss://localhost:{valkey_port}/0?ssl_ca_certs={authority.file}")
    assert told.reason in (Unavailable.TLS, Unavailable.UNREACHABLE)
    if told.reason is Unavailable.TLS:
        assert "does not speak TLS" in str(told)


@pytest.fixture
def valkey_port() -> Iterator[int]:
    """A server that answers a TLS hello with an error in plain text."""

    def plain(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"-ERR unknown command\r\n" * 10)

    with listening(plain) as port:
        yield port


def test_a_handshake_that_hangs_ends_with_the_time_for_connecting(kind: str, authority: Authority) -> None:
    with listening(silent) as port:
        told = refused(kind, f"rediss://localhost:{port}/0?ssl_ca_certs={authority.file}")
    assert told.reason is Unavailable.TIMEOUT
    assert "while agreeing on TLS; if it is no TLS port, give the TLS port of Redis, or redis://" in str(told)


def test_tls_to_a_real_server_without_it(kind: str, plain_port: int, authority: Authority) -> None:
    # Whether it answers depends on the random bytes of the hello: it does once there is a line feed among them.
    for _ in range(4):
        told = refused(kind, f"rediss://:s3cret@localhost:{plain_port}/0?ssl_ca_certs={authority.file}")
        assert told.reason in (Unavailable.TLS, Unavailable.TIMEOUT)
        assert "give the TLS port of Redis, or redis:// where there is none" in str(told)


@pytest.mark.parametrize("login", ["", ":s3cret@"])
def test_no_tls_to_a_tls_port(kind: str, server: TlsServer, login: str) -> None:
    told = refused(kind, f"redis://{login}localhost:{server.port}/0")
    assert told.reason is Unavailable.UNREACHABLE
    assert str(told).endswith("; if that is its TLS port, use rediss://")
    assert str(told).count("rediss://") == 1


def test_each_failure_is_said_by_the_command_and_nothing_else(
    start: Start, server: TlsServer, authority: Authority, plain_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    old = start(authority.sign("older", "localhost", until=NOW - datetime.timedelta(days=1)))
    trusted = f"?ssl_ca_certs={authority.file}"
    absent = "Is a Redis or Valkey running there?"
    for url, said, is_asked in (
        (f"rediss://:wrong@localhost:{server.port}/0{trusted}", "Redis refuses the user name or password", False),
        (f"rediss://:s3cret@localhost:{old.port}/0{trusted}", "has expired: renew it", False),
        (f"rediss://:s3cret@localhost:{server.port}/0", "was not signed by a CA that is trusted here", False),
        (f"redis://:s3cret@localhost:{server.port}/0", "if that is its TLS port, use rediss://", True),
        (f"rediss://:s3cret@localhost:{plain_port}/0{trusted}", "give the TLS port of Redis, or redis://", None),
        (f"redis://localhost:{free_port()}/0", "Connection refused", True),
    ):
        assert main(["status", "--redis-url", url]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert said in line
        assert "s3cret" not in line
        assert is_asked in (None, absent in line)


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server without TLS."""
    port = free_port()
    folder = tmp_path_factory.mktemp("plain")
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([binary_with_tls(), *arguments], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)
    yield port
    process.kill()
    process.wait()


def test_a_renewed_ca_file_is_read_again(kind: str, server: TlsServer, authority: Authority, tmp_path: Path) -> None:
    mine = tmp_path / "ca.pem"
    mine.write_bytes(Authority(tmp_path, "wrong-at-first").file.read_bytes())
    url = f"rediss://:s3cret@localhost:{server.port}/0?ssl_ca_certs={mine}"
    with AnyLink(kind, url, **PATIENT) as link:
        with pytest.raises(redis.exceptions.ConnectionError, match="ssl_ca_certs=FILE"):
            link.exchange([("PING",)])
        mine.write_bytes(authority.file.read_bytes())
        assert link.exchange([("PING",)]) == [b"PONG"]
