"""The table of key files beside the real ssh, on a real sshd: ours logs in where it does, or says why not."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from x2gofleet_workers.ssh import Endpoint, SshClient

from tests.support.key_files import authority, case_of, cases, names, public_line
from tests.support.sshd import OneAddress, Sshd, keygen, login_name, missing_ssh, patient, running_sshd, ssh
from x2gofleet.errors import AuthenticationFailed, SetupError

from .conftest import skip_without

HOST, PORT = "ts01.example.org", 22
WAITS_SECONDS = 3.0


class Servers:
    """A server that lets in every key of the table, and one that lets in certificates of the authority alone."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        host_key = keygen(folder / "host_key", "-t", "ed25519")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"{HOST} {host_key.with_suffix('.pub').read_text()}")
        keys = [line for line in map(public_line, sorted({case.key for case in cases()})) if line]
        trusted = authority().export_public_key()
        self._by_trust = {
            "key": stack.enter_context(running_sshd([host_key], authorized=keys)),
            "ca": stack.enter_context(running_sshd([host_key], authority=trusted)),
        }

    def __getitem__(self, trusts: str) -> Sshd:
        return self._by_trust[trusts]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    skip_without(missing_ssh())
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp("host"))


def ssh_version() -> tuple[int, ...]:
    said = subprocess.run(["ssh", "-V"], capture_output=True, check=True).stderr.decode()
    found = re.match(r"OpenSSH_(\d+)\.(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("name", names())
def test_ours_logs_in_where_ssh_does(name: str, servers: Servers, tmp_path: Path) -> None:
    case = case_of(name)
    if case.kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read every file; run as an ordinary user")
    path = case.write(tmp_path, login_name())
    server = servers[case.trusts]
    expected = case.ssh
    if case.ssh_since and ssh_version() >= tuple(map(int, case.ssh_since.split("."))):
        expected = "accepts"
    seconds = WAITS_SECONDS if case.ssh == "waits" else 120
    said = ssh(server, str(servers.known_hosts), path, host=HOST, port=PORT, seconds=seconds)
    verdict = "waits" if said is None else "accepts" if said.login else "refuses"
    assert verdict == expected, said and said.text

    client = SshClient(resolver=OneAddress(server.port), warn=lambda text: None)  # type: ignore[arg-type]
    endpoint = Endpoint(HOST, PORT, server.user, str(path), str(servers.known_hosts))
    if case.ours == "accepts":
        client.open(endpoint, patient()).close()
    else:
        with pytest.raises((SetupError, AuthenticationFailed)) as caught:
            client.open(endpoint, patient())
        assert case.error in str(caught.value)
