"""The host keys that known_hosts files have of an address, and when a file is read again."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
from x2gofleet_workers.ssh import Endpoint, host_keys
from x2gofleet_workers.ssh.host_keys import KnownHosts
from x2gofleet_workers.ssh.known_hosts import KnownHostsFile

from x2gofleet.errors import HostKeyUnknown

PORT = 2222


def public_key(kind: str = "ssh-ed25519") -> str:
    return asyncssh.generate_private_key(kind).export_public_key().decode().strip()


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return Endpoint("ts01", PORT, "root", "id", str(tmp_path / "known_hosts"))


def write(endpoint: Endpoint, *lines: str) -> None:
    Path(endpoint.known_hosts).write_text("".join(f"{line}\n" for line in lines))


def test_the_keys_of_an_address_by_type(endpoint: Endpoint) -> None:
    first, second = public_key(), public_key("ecdsa-sha2-nistp256")
    write(endpoint, f"[ts01]:2222 {first}", f"[ts01]:2222 {second}", f"ts01 {public_key()}", f"[ts02]:2222 {first}")
    found = KnownHosts().keys_of(endpoint)
    assert [f"{line.key.type} {base64.b64encode(line.key.blob).decode()}" for line in found.keys] == [first, second]
    assert found.algorithms() == ["ssh-ed25519", "ecdsa-sha2-nistp256"]


def test_the_default_port_is_written_without_a_number(endpoint: Endpoint) -> None:
    write(endpoint, f"ts01 {public_key()}", f"[ts02]:2222 {public_key()}")
    assert KnownHosts().keys_of(replace(endpoint, port=22)).keys
    # As for ssh, a name without port is one of every port.
    assert KnownHosts().keys_of(endpoint).keys
    with pytest.raises(HostKeyUnknown, match=r"has no key of ts02"):
        KnownHosts().keys_of(replace(endpoint, host="ts02", port=22))
    with pytest.raises(HostKeyUnknown, match=r"has no key of \[ts02\]:2223"):
        KnownHosts().keys_of(replace(endpoint, host="ts02", port=2223))


@pytest.mark.parametrize("content", [None, b"", b"[ts01]:1 ssh-ed25519 AAAA\n", b"\xff\xfe\x00", b"what is this\n" * 3])
def test_no_key_is_known(content: bytes | None, endpoint: Endpoint) -> None:
    if content is not None:
        Path(endpoint.known_hosts).write_bytes(content)
    with pytest.raises(HostKeyUnknown) as caught:
        KnownHosts().keys_of(endpoint)
    assert endpoint.known_hosts in str(caught.value)
    assert caught.value.mend.endswith(f"ssh-keyscan -p {PORT} ts01 >> {endpoint.known_hosts}")


def test_a_folder_in_place_of_the_file(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(HostKeyUnknown, match="can't be read"):
        KnownHosts().keys_of(replace(endpoint, known_hosts=str(tmp_path)))


def test_a_file_is_parsed_once_and_again_when_it_changes(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def counting(data: bytes) -> KnownHostsFile:
        parsed.append(data)
        return KnownHostsFile(data)

    monkeypatch.setattr(host_keys, "KnownHostsFile", counting)
    known, line = KnownHosts(), f"[ts01]:2222 {public_key()}"
    write(endpoint, line)
    for _ in range(3):
        known.keys_of(endpoint)
    assert len(parsed) == 1
    write(endpoint, line, "# a comment")
    known.keys_of(endpoint)
    assert len(parsed) == 2
    os.unlink(endpoint.known_hosts)
    with pytest.raises(HostKeyUnknown):
        known.keys_of(endpoint)
