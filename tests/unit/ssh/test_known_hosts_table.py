"""The table of known_hosts files, without a server: what is accepted of which key, and what is said of each line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from x2gofleet_workers.ssh import Endpoint
from x2gofleet_workers.ssh.blobs import CERTIFICATE_SUFFIX, plain_type
from x2gofleet_workers.ssh.certificates import certificate_from_blob
from x2gofleet_workers.ssh.host_keys import KnownHosts

from tests.support.known_hosts import SERVERS, Case, case_of, cases, keys, names
from x2gofleet.errors import HostKeyMismatch, HostKeyUnknown

DOCUMENT = Path(__file__).parents[3] / "docs" / "servers.md"


def decide(known_hosts: KnownHosts, case: Case, path: Path) -> None:
    """Do what a connection does, with a server that has the keys of the case; raises as it does."""
    known = known_hosts.keys_of(Endpoint(case.host, case.port, "root", "id", str(path)))
    certificate = keys().certificates.get(case.server)
    for algorithm in known.algorithms():
        for name in SERVERS[case.server]:
            if keys().known(name).type != plain_type(algorithm):
                continue
            if not algorithm.endswith(CERTIFICATE_SUFFIX):
                known.verify(keys().known(name), None, "SHA256:test")
                return
            if certificate is not None:
                known.verify(keys().known(name), certificate_from_blob(certificate.public_data), "SHA256:test")
                return
    raise HostKeyMismatch(f"has no host key of the known types ({', '.join(known.algorithms())})")


@pytest.mark.parametrize("name", names())
def test_what_is_accepted_and_said(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    if case.kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read every file; run as an ordinary user")
    path = case.write(tmp_path)
    warned: list[str] = []
    known_hosts = KnownHosts(warned.append)
    for _ in range(2):
        if case.ours == "accepts":
            decide(known_hosts, case, path)
        else:
            with pytest.raises((HostKeyMismatch, HostKeyUnknown)) as caught:
                decide(known_hosts, case, path)
            assert case.error in str(caught.value)
    # Once, however often the file is used.
    assert len(warned) == len(case.warns), warned
    for said, expected in zip(warned, case.warns, strict=True):
        number, _, reason = expected.partition(": ")
        assert said.startswith(f"{path}:{number}: the line is passed over: ")
        assert reason in said


def test_a_bad_line_costs_no_other_line(tmp_path: Path) -> None:
    """Every bad line of the table before, behind and between the lines of two hosts."""
    bad = b"".join(
        line + b"\n"
        for case in map(case_of, names())
        if case.warns and case.server == "all" and "byte order" not in case.name
        for number, line in enumerate(case.content.split(b"\n"), 1)
        if any(warn.startswith(f"{number}: ") for warn in case.warns)
    )
    assert bad.count(b"\n") > 25
    good = case_of("one line")
    content = bad + good.content + bad + good.content.replace(b"ts01", b"ts03") + bad
    for host in ("ts01.example.org", "ts03.example.org"):
        case = replace(good, content=content, host=host)
        decide(KnownHosts(lambda text: None), case, case.write(tmp_path))


def test_the_document_has_every_difference_from_ssh() -> None:
    section = DOCUMENT.read_text().partition("## known_hosts and key files")[2].partition("**Key files**")[0]
    rows = {line for line in section.split("\n") if line.startswith("| ") and not line.startswith("| known_hosts")}
    assert rows == {f"| {case.name} | {case.ssh} | {case.ours} | {case.why} |" for case in cases() if case.why}
