"""Files of every sort are read, or are said to be of no use in one line; nothing blocks, nothing is read for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from x2gofleet_workers.importing import READERS
from x2gofleet_workers.inventory import load_inventory

from tests.support.odd_files import LATIN_1, ODD, READ, GoodFile, OddFile
from x2gofleet.adapters.broker_settings import BrokerSettings, SettingsError
from x2gofleet.cli.acl import read_passwords
from x2gofleet.connection.urls import read_password
from x2gofleet.errors import InventoryError
from x2gofleet.files import NotToml, UnusableFile, load_toml, read_text_file

FLEET = """\
[defaults]
user = "root"
key_file = "/keys/id"
known_hosts = "/keys/known_hosts"
[servers.ts01]
host = "10.0.0.1"
"""
BROKER = "[pool]\nhost=ts01\n"
CLIENT = "[1]\nname=x\nhost=ts01\n"
LOGIN = FLEET.partition("[servers")[0]


def fleet_with(kind: str) -> Callable[[Path], object]:
    def load(path: Path) -> object:
        toml = path.with_name("of-import.toml")
        toml.write_text(f'[import]\n{kind} = "{path.name}"\n{LOGIN}')
        return load_inventory(toml).profiles

    return load


# Who reads a file: what is in a good one, how it is read, what is raised.
READERS_OF_FILES: dict[str, tuple[str, Callable[[Path], object], type[Exception]]] = {
    "fleet.toml": (FLEET, lambda path: load_inventory(path).targets, InventoryError),
    "profiles of x2gobroker": (BROKER, fleet_with("x2gobroker"), InventoryError),
    "sessions of X2Go Client": (CLIENT, fleet_with("x2goclient"), InventoryError),
    "settings of the adapter": ('namespace = "x"\n', lambda path: BrokerSettings.read(str(path), {}), SettingsError),
    "passwords of roles": ("reader=hush\n", read_passwords, ValueError),
    "a password": ("hush\n", lambda path: read_password(str(path)), ValueError),
}
COMMENTED = {name: entry for name, entry in READERS_OF_FILES.items() if name != "a password"}


@pytest.mark.parametrize("who", READERS_OF_FILES)
@pytest.mark.parametrize("odd", [*ODD, LATIN_1], ids=lambda odd: odd.name)
def test_an_odd_file_is_one_line_that_says_what_to_do(tmp_path: Path, odd: OddFile, who: str) -> None:
    text, read, error = READERS_OF_FILES[who]
    path = tmp_path / "file"
    odd.make(path, text)
    if odd is LATIN_1 and who in ("profiles of x2gobroker", "sessions of X2Go Client"):
        # Only a value that is used, and that is none, makes a profile that can't be used.
        assert read(path)
        return
    with pytest.raises(error) as caught:
        read(path)
    said = str(caught.value)
    limited = said.replace("65536 bytes", "16 MiB")
    assert odd.said in limited
    assert said.count("\n") == 0
    assert str(path) in said
    assert "hush" not in said
    if isinstance(caught.value, InventoryError):
        assert caught.value.path == str(path)
        assert caught.value.line == odd.line
        assert odd.remedy in caught.value.mend
        assert caught.value.mend
    # The remedy, applied: a text file of that name.
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text(text)
    assert read(path)


@pytest.mark.parametrize("who", COMMENTED)
@pytest.mark.parametrize("good", READ, ids=lambda good: good.name)
def test_what_looks_like_a_good_file_is_one(tmp_path: Path, good: GoodFile, who: str) -> None:
    text, read, _ = COMMENTED[who]
    plain, path = tmp_path / "plain", tmp_path / "file"
    plain.write_text(text)
    good.make(path, text)
    assert str(read(path)) == str(read(plain))


@pytest.mark.parametrize("good", READ, ids=lambda good: good.name)
def test_a_password_is_its_line(tmp_path: Path, good: GoodFile) -> None:
    path = tmp_path / "file"
    good.make(path, "hush\n")
    if good.name != "other scripts in comments":
        assert read_password(str(path)) == "hush"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file; run as an ordinary user")
@pytest.mark.parametrize("who", READERS_OF_FILES)
def test_a_file_that_may_not_be_read(tmp_path: Path, who: str) -> None:
    text, read, error = READERS_OF_FILES[who]
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0)
    with pytest.raises(error, match="Permission denied"):
        read(path)
    path.chmod(0o400)
    assert read(path)


@pytest.mark.parametrize("who", READERS_OF_FILES)
def test_an_empty_file(tmp_path: Path, who: str) -> None:
    _, read, error = READERS_OF_FILES[who]
    path = tmp_path / "file"
    path.write_text("")
    if who in ("settings of the adapter", "passwords of roles"):
        read(path)
        return
    with pytest.raises(error) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_text_file(path, max_bytes=100) == "x" * 100
    with pytest.raises(UnusableFile, match="larger than 99 bytes"):
        read_text_file(path, max_bytes=99)
    with pytest.raises(UnusableFile, match="zero byte"):
        read_text_file("a\0b")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = " + "[" * 100_000, 1),
        ("a = " + "{a=" * 100_000, 1),
        ("\na = " + "9" * 100_000, 2),
        ("# x\n" + "a." * 100_000 + "b = 1\n", 2),
        ("# x\n[" + "a . " * 100_000 + "b]\n", 2),
        ("[" + '"a".' * 100_000 + "b]\n", 1),
        ("[" + "'a' . " * 33 + "b]\n", 1),
        ("a = 1\na = 2\n", 2),
        ("a = \n", 1),
    ],
)
def test_a_text_that_is_no_toml(text: str, line: int) -> None:
    with pytest.raises(NotToml) as caught:
        load_toml(text)
    assert caught.value.line == line
    assert len(str(caught.value)) < 300


def test_names_with_dots_are_not_parts_of_a_key() -> None:
    text = "a = [" + ", ".join(f'"ts{number}.dept.example.org"' for number in range(1000)) + "]\n"
    assert len(load_toml(text)["a"]) == 1000
    assert load_toml("a = '" + "x." * 1000 + "'")


def test_readers_of_imports_raise_for_a_file_of_no_use(tmp_path: Path) -> None:
    for read in READERS.values():
        left_out: list[object] = []
        with pytest.raises(InventoryError):
            read(str(tmp_path), left_out)  # type: ignore[arg-type]
        assert left_out == []
