"""The table of key files, without a server: which are read, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from x2gofleet_workers.ssh.keys import KeyFiles

from tests.support.key_files import case_of, cases, names, public_line
from x2gofleet.errors import SetupError

DOCUMENT = Path(__file__).parents[3] / "docs" / "servers.md"


@pytest.mark.parametrize("name", names())
def test_what_is_read_and_said(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    if case.kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read every file; run as an ordinary user")
    path = case.write(tmp_path, "root")
    warned: list[str] = []
    files = KeyFiles(warned.append)
    # What a server refuses is read all the same.
    if case.ours == "accepts" or case.error == "refused the key":
        for _ in range(2):
            login = files.load(str(path))
        name = "other" if "second key" in case.change else case.key
        assert f"{login.key.get_name()} {login.key.get_base64()}" == public_line(name)
        assert login.key.can_sign()
        assert (login.certified is not None) == (case.beside in ("cert", "expired cert"))
        assert len(warned) == bool(case.warns)
        assert all(case.warns in text for text in warned)
        return
    with pytest.raises(SetupError) as caught:
        files.load(str(path))
    assert type(caught.value) is SetupError
    assert f"{path} " in str(caught.value)
    assert case.error in str(caught.value)
    assert case.remedy in caught.value.mend
    assert "secret" not in str(caught.value)
    assert warned == []


def test_the_document_has_every_difference_from_ssh() -> None:
    section = DOCUMENT.read_text().partition("**Key files**")[2].partition("\n## ")[0]
    rows = {line for line in section.split("\n") if line.startswith("| ") and not line.startswith("| key file")}
    assert rows == {f"| {case.name} | {case.ssh} | {case.ours} | {case.why} |" for case in cases() if case.why}
