"""Fleets of ten thousand servers: read in time that grows with their number, published in a bounded document."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers import inventory
from x2gofleet_workers.inventory import Fleet, parse_inventory

from x2gofleet.errors import InventoryError
from x2gofleet.fleet import PublishedFleet

LOGIN = '[defaults]\nuser = "root"\nkey_file = "/keys/id"\nknown_hosts = "/keys/known_hosts"\n'
MANY = 10_000
BYTES_OF_A_SERVER = 400


def own_servers(number: int, _: Path) -> str:
    """Servers of fleet.toml, in one profile by label, in one by name, and in none."""
    servers = "".join(
        f'[servers.ts{each}]\nhost = "10.{each >> 16}.{each >> 8 & 255}.{each & 255}"\nlabels = ["mate", "l1"]\n'
        for each in range(number)
    )
    names = ", ".join(f'"ts{each}"' for each in range(number))
    return f'{LOGIN}{servers}[profiles.all]\nlabels = ["mate", "l1"]\n[profiles.named]\nservers = [{names}]\n'


def imported_servers(number: int, folder: Path) -> str:
    """A profile for each server, one of all, and as many in fleet.toml that they are."""
    profiles = "".join(f"[p{each}]\nname=P {each}\nhost=ts{each}.example.org\n" for each in range(number))
    everybody = ",\n  ".join(f"ts{each}.example.org" for each in range(number))
    (folder / "profiles").write_text(f"{profiles}[all]\nhost={everybody}\n")
    listed = "".join(f"[servers.ts{each}]\nweight = 2.0\n" for each in range(0, number, 2))
    return f'[import]\nx2gobroker = "profiles"\n{LOGIN}{listed}'


def imported_users(number: int, folder: Path) -> str:
    """A user on each server, and as many profiles that are left out."""
    users = "".join(f"[{each}]\nname=u{each}\nhost=ts{each}\nuser=u\nkey=/k\n" for each in range(number))
    odd = "".join(f"[o{each}]\nname=o{each}\nhost=\n" for each in range(number))
    (folder / "sessions").write_text(users + odd)
    return f'[import]\nx2goclient = "sessions"\n{LOGIN}'


SHAPES: list[Callable[[int, Path], str]] = [own_servers, imported_servers, imported_users]


def loaded(text: str, folder: Path) -> Fleet:
    return parse_inventory(text, str(folder / "fleet.toml"))


def calls(text: str, folder: Path) -> int:
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(counted)
    try:
        loaded(text, folder)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_four_times_the_servers_cost_four_times_as_much(shape: Callable[[int, Path], str], tmp_path: Path) -> None:
    small = calls(shape(250, tmp_path), tmp_path)
    large = calls(shape(1000, tmp_path), tmp_path)
    assert large <= 4.4 * small


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_ten_thousand_servers(shape: Callable[[int, Path], str], tmp_path: Path) -> None:
    fleet = loaded(shape(MANY, tmp_path), tmp_path)
    assert len(fleet.servers) == len(fleet.targets) == MANY
    published = fleet.published()
    document = published.to_json()
    assert len(document) < MANY * BYTES_OF_A_SERVER
    assert PublishedFleet.from_json(document, published.version) == published
    if shape is imported_users:
        assert len(fleet.warnings) == len(fleet.left_out) == MANY


def test_a_small_file_does_not_come_to_a_large_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inventory, "MAX_PROFILE_SERVERS", 100)
    servers = "".join(f'[servers.ts{each}]\nhost = "h{each}"\nlabels = ["mate"]\n' for each in range(10))
    profiles = "".join(f'[profiles.p{each}]\nlabels = ["mate"]\n' for each in range(11))
    with pytest.raises(InventoryError, match="name servers more than 100 times") as caught:
        loaded(LOGIN + servers + profiles, tmp_path)
    assert caught.value.key == "profiles.p10"
    assert loaded(LOGIN + servers + profiles.partition("[profiles.p10]")[0], tmp_path)


def test_a_message_is_one_short_line_whatever_a_file_holds(tmp_path: Path) -> None:
    wide = "x" * 100_000
    texts = [
        f"{wide} = 1\n",
        f'"a\\nb" = 1\n{LOGIN}',
        f'{LOGIN}[servers."a\\u001b[31m\\n"]\nhost = "h"\n',
        f'{LOGIN}[servers.a]\nhost = "{wide} "\n[profiles."{wide}"]\nservers = ["{wide}"]\n',
        f'{LOGIN}[servers.a]\nhost = "a"\nport = 1{"0" * 4000}\n',
        f'{LOGIN}[servers.a]\nhost = "a"\nport = 0x{"f" * 90_000}\n',
        f'{LOGIN}[servers.a]\nhost = "a"\nweight = 1e999\n',
        f'{LOGIN}[servers.a]\nhost = "a"\nweight = nan\n',
        f'{LOGIN}[servers.büro]\nhost = "a"\n',
        f'{LOGIN}[servers."büro"]\nhost = "a"\n',
        LOGIN
        + "".join(f'[servers.s{each}]\nhost = "h{each}"\n' for each in range(1000))
        + '[profiles.p]\nservers = ["?"]\n',
    ]
    for text in texts:
        with pytest.raises(InventoryError) as caught:
            loaded(text, tmp_path)
        assert str(caught.value).isprintable(), text[:100]
        assert len(str(caught.value)) < 2500
        assert caught.value.mend


def test_names_in_other_scripts_are_names_of_profiles_and_labels(tmp_path: Path) -> None:
    text = f'{LOGIN}[servers.a]\nhost = "bücher.example"\nlabels = ["東京"]\n[profiles."Büro 😀"]\nlabels = ["東京"]\n'
    fleet = loaded(text, tmp_path)
    assert fleet.profiles == {"Büro 😀": ("a",)}
    published = fleet.published()
    assert PublishedFleet.from_json(published.to_json(), published.version) == published
