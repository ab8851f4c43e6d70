"""docs/inventory.md: its examples are good inventories, and it names every setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from x2gofleet_workers import inventory
from x2gofleet_workers.importing import READERS
from x2gofleet_workers.inventory import parse_inventory

from x2gofleet.kinds import Kind

TEXT = (Path(__file__).parents[2] / "docs" / "inventory.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}")[2].partition("\n## ")[0]


def documented(title: str) -> set[str]:
    """The keys in the first column of a section's table."""
    return set(re.findall(r"^\| `(\w+)` \|", section(title), re.MULTILINE))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_good(example: str) -> None:
    assert parse_inventory(example).targets


def test_the_first_example_comes_to_what_is_said_below_it() -> None:
    fleet = parse_inventory(EXAMPLES[0])
    assert set(fleet.targets) == {"ts01", "ts02", "alice@ts01"}
    assert fleet.profiles == {"mate": ("ts01", "ts02"), "alice-desktop": ("alice@ts01",)}


def test_every_setting_is_in_its_table() -> None:
    login = set(inventory._LOGIN_KEYS)
    assert documented("[defaults]") == login
    assert documented("[servers.ID]") == set(inventory._SERVER_KEYS) - login
    assert documented("[profiles.NAME]") == set(inventory._PROFILE_KEYS)
    assert documented("[import]") == {*READERS, "strict"}
    assert documented("[intervals]") == {kind.value for kind in Kind}


def test_the_default_intervals_are_the_real_ones() -> None:
    text = EXAMPLES[0].replace("[intervals]\nsessions = 2\nmounts = 30\n", "")
    fleet = parse_inventory(text)
    rows = re.findall(r"^\| `(\w+)` \| `(\d+)`.*? \| (`\d+`|not polled) \|", section("[intervals]"), re.MULTILINE)
    assert {kind for kind, _, _ in rows} == {kind.value for kind in Kind}
    for kind, server, user in rows:
        assert fleet.targets["ts01"].intervals[Kind(kind)] == float(server), kind
        meant = 0.0 if user == "not polled" else float(user.strip("`"))
        assert fleet.targets["alice@ts01"].intervals[Kind(kind)] == meant, kind
