"""Key files that are no usable private key: each is told by what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
import pytest
from x2gofleet_workers.ssh.keys import load_key

from x2gofleet.errors import SetupError

NAMES = ("missing", "encrypted", "encrypted-pem", "garbage", "empty", "public", "folder")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    key = asyncssh.generate_private_key("ssh-ed25519")
    found = {name: folder / name for name in NAMES} | {"folder": folder, "good": folder / "good"}
    key.write_private_key(found["good"])
    key.write_private_key(found["encrypted"], passphrase="secret")
    key.write_private_key(found["encrypted-pem"], "pkcs8-pem", passphrase="secret")
    key.write_public_key(found["public"])
    found["garbage"].write_bytes(os.urandom(300))
    found["empty"].write_bytes(b"")
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "does not exist"),
        ("encrypted", "is encrypted"),
        ("encrypted-pem", "is encrypted"),
        ("garbage", "no private SSH key"),
        ("empty", "is empty"),
        ("public", "is a public key, not a private SSH key"),
        ("folder", "can't be read"),
    ],
)
def test_a_file_that_is_no_key(name: str, said: str, files: dict[str, Path]) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        load_key(str(files[name]))
    assert type(caught.value) is SetupError
    assert str(files[name]) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key(files: dict[str, Path]) -> None:
    assert load_key(str(files["good"])).key.get_name() == "ssh-ed25519"
