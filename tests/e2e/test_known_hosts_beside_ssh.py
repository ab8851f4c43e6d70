"""The table of known_hosts files beside the real ssh, on a real sshd: ours decides as it does, or says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from x2gofleet_workers.ssh import Endpoint, SshClient

from tests.support.known_hosts import SERVERS, case_of, keys, names
from tests.support.sshd import OneAddress, Sshd, missing_ssh, patient, running_sshd, ssh
from x2gofleet.errors import HostKeyMismatch, HostKeyUnknown

from .conftest import skip_without

WAITS_SECONDS = 3.0


class Servers:
    """The servers of the table, started when first asked for."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._running: dict[str, Sshd] = {}
        keys().private["login"] = keys().private["other2-ed25519"]
        self.login = keys().write("login", folder)

    def __getitem__(self, name: str) -> Sshd:
        if name not in self._running:
            made = keys().certificates.get(name)
            certificate = b"" if made is None else made.export_certificate()
            public = keys().private["login"].export_public_key().decode().strip()
            host_keys = [keys().write(key, self._folder) for key in SERVERS[name]]
            self._running[name] = self._stack.enter_context(
                running_sshd(host_keys, certificate=certificate, authorized=[public])
            )
        return self._running[name]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    skip_without(missing_ssh())
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("name", names())
def test_ours_decides_as_ssh_does(name: str, servers: Servers, tmp_path: Path) -> None:
    case = case_of(name)
    if case.kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read every file; run as an ordinary user")
    path = case.write(tmp_path)
    server = servers[case.server]
    seconds = WAITS_SECONDS if case.ssh == "waits" else 120
    said = ssh(server, str(path), servers.login, host=case.host, port=case.port, seconds=seconds)
    verdict = "waits" if said is None else "accepts" if said.host_key else "refuses"
    assert verdict == case.ssh, said and said.text
    if said is not None:
        assert said.login == said.host_key, said.text

    client = SshClient(resolver=OneAddress(server.port), warn=lambda text: None)  # type: ignore[arg-type]
    endpoint = Endpoint(case.host, case.port, server.user, str(servers.login), str(path))
    if case.ours == "accepts":
        client.open(endpoint, patient()).close()
    else:
        with pytest.raises((HostKeyMismatch, HostKeyUnknown)) as caught:
            client.open(endpoint, patient())
        assert case.error in str(caught.value)
