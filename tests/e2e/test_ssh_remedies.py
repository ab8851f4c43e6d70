"""What messages about known_hosts and keys say how to fix is done as they say, and then the login works."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from x2gofleet_workers.ssh import Endpoint, SshClient

from tests.support.key_files import case_of
from tests.support.sshd import Sshd, keygen, missing_ssh, patient, running_sshd
from tests.waiting import wait_until
from x2gofleet.errors import FleetError, HostKeyMismatch, HostKeyUnknown, SetupError

from .conftest import skip_without

DOCUMENT = Path(__file__).parents[2] / "docs" / "servers.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    skip_without(missing_ssh())
    folder = tmp_path_factory.mktemp("server")
    with running_sshd(
        [keygen(folder / "ed25519", "-t", "ed25519"), keygen(folder / "ecdsa", "-t", "ecdsa")]
    ) as running:
        yield running


@pytest.fixture
def endpoint(server: Sshd, tmp_path: Path) -> Endpoint:
    """A login that works, but for a known_hosts file, which is not there."""
    key = keygen(tmp_path / "a key", "-t", "ed25519")
    let_in(server, key)
    return Endpoint("127.0.0.1", server.port, server.user, str(key), str(tmp_path / "known hosts"))


def let_in(server: Sshd, key: Path) -> None:
    with server.authorized_keys.open("a") as file:
        file.write(key.with_name(f"{key.name}.pub").read_text())


def login(endpoint: Endpoint, said: list[str] | None = None) -> None:
    warned: list[str] = []
    SshClient(warn=(warned if said is None else said).append).open(endpoint, patient()).close()


def remedy_of(endpoint: Endpoint, error: type[FleetError]) -> str:
    with pytest.raises(error) as caught:
        login(endpoint)
    return str(caught.value).partition(caught.value.mend)[1]


def shell(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def trust(endpoint: Endpoint) -> None:
    shell(remedy_of(endpoint, HostKeyUnknown).partition("then: ")[2])


def test_a_host_key_that_is_not_known(endpoint: Endpoint) -> None:
    trust(endpoint)
    login(endpoint)


def test_another_host_key(endpoint: Endpoint, tmp_path: Path) -> None:
    other = keygen(tmp_path / "other", "-t", "ed25519").with_suffix(".pub").read_text()
    Path(endpoint.known_hosts).write_text(f"[127.0.0.1]:{endpoint.port} {other}")
    found = re.search(r"(ssh-keygen -R .*), then (ssh-keyscan .*); if not", remedy_of(endpoint, HostKeyMismatch))
    assert found
    shell(found[1])
    shell(found[2])
    login(endpoint)


def test_a_revoked_host_key(endpoint: Endpoint) -> None:
    trust(endpoint)
    known = Path(endpoint.known_hosts)
    good = known.read_text()
    keys = [line.partition(" ")[2] for line in good.splitlines() if not line.startswith("#")]
    known.write_text(good + "".join(f"@revoked * {key}\n" for key in keys))
    assert "delete the line that revokes this one" in remedy_of(endpoint, HostKeyMismatch)
    known.write_text("".join(line for line in known.read_text().splitlines(True) if not line.startswith("@revoked")))
    login(endpoint)


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_a_passphrase(form: str, endpoint: Endpoint, server: Sshd, tmp_path: Path) -> None:
    trust(endpoint)
    key = keygen(tmp_path / "locked", "-t", "ecdsa", "-m", form, "-N", "secret")
    let_in(server, key)
    locked = replace(endpoint, key_file=str(key))
    # What would be typed.
    shell(remedy_of(locked, SetupError).partition("passphrase: ")[2] + " -P secret")
    login(locked)


@pytest.mark.parametrize(
    "name", ["DSA", "of a security key", "cut off in the middle", "a line is missing", "empty", "something else"]
)
def test_a_file_without_a_usable_key(name: str, endpoint: Endpoint, server: Sshd, tmp_path: Path) -> None:
    trust(endpoint)
    path = case_of(name).write(tmp_path, server.user)
    bad = replace(endpoint, key_file=str(path))
    found = re.search(
        r"make a new key: (ssh-keygen .* -f (\S+)), set key_file to it, and add", remedy_of(bad, SetupError)
    )
    assert found
    shell(found[1])
    let_in(server, Path(found[2]))
    login(replace(endpoint, key_file=found[2]))


def test_a_public_key(endpoint: Endpoint) -> None:
    trust(endpoint)
    remedy = remedy_of(replace(endpoint, key_file=f"{endpoint.key_file}.pub"), SetupError)
    login(replace(endpoint, key_file=remedy.partition("private key: ")[2]))


def test_a_key_that_others_may_read(endpoint: Endpoint) -> None:
    trust(endpoint)
    Path(endpoint.key_file).chmod(0o644)
    said: list[str] = []
    login(endpoint, said)
    assert len(said) == 1
    shell(said[0].partition("refuse it: ")[2])
    login(endpoint, said)
    assert len(said) == 1


def test_a_key_in_puttys_format(endpoint: Endpoint, tmp_path: Path) -> None:
    if shutil.which("puttygen") is None:
        skip_without("not installed: puttygen (putty-tools); run tests/e2e/setup.sh")
    trust(endpoint)
    putty = tmp_path / "id.ppk"
    subprocess.run(["puttygen", endpoint.key_file, "-O", "private", "-o", putty], check=True, capture_output=True)
    remedy = remedy_of(replace(endpoint, key_file=str(putty)), SetupError)
    shell(remedy.partition("convert it: ")[2].partition(", and set")[0])
    login(replace(endpoint, key_file=f"{putty}.openssh"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_tunnel_of_the_document(endpoint: Endpoint, server: Sshd, tmp_path: Path) -> None:
    text = DOCUMENT.read_text().partition("## Servers behind a gate")[2]
    tunnel, scan = re.search(r"^ExecStart=(.*)$", text, re.M), re.search(r"^\$ (ssh-keyscan .*)$", text, re.M)
    assert tunnel
    assert scan
    port = free_port()
    known_hosts = tmp_path / "known_hosts"
    gate_key = keygen(tmp_path / "id_gate", "-t", "ed25519")
    with running_sshd([keygen(tmp_path / "gate", "-t", "ed25519")]) as gate:
        restricted = f'restrict,port-forwarding,permitopen="localhost:{server.port}" '
        gate.authorized_keys.write_text(restricted + gate_key.with_suffix(".pub").read_text())
        shell(f"ssh-keyscan -p {gate.port} 127.0.0.1 >> {known_hosts}")
        places = {
            "/etc/x2gofleet/known_hosts": str(known_hosts),
            "/etc/x2gofleet/id_gate": str(gate_key),
            "-p 22 ": f"-p {gate.port} ",
            "2201": str(port),
            "ts01.internal:22": f"localhost:{server.port}",
            "x2gofleet@gate.example.org": f"{gate.user}@127.0.0.1",
        }
        commands = []
        for command in (tunnel[1], scan[1]):
            for old, new in places.items():
                command = command.replace(old, new)
            commands.append(command)
        process = subprocess.Popen(commands[0].split(), stdin=subprocess.DEVNULL, stderr=sys.stderr)
        try:
            wait_until(lambda: process.poll() is not None or answers(port), "the tunnel")
            assert process.poll() is None
            shell(commands[1])
            login(Endpoint("127.0.0.1", port, server.user, endpoint.key_file, str(known_hosts)))
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
