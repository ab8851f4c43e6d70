"""docs/schema.md is the public contract: it names every key, field, script and outcome, and its example is read."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import x2gofleet
from x2gofleet.fleet import PublishedFleet
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import SCHEMA_VERSION, Snapshot
from x2gofleet.store import Outcome, Store

DOCUMENT = (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")
LUA = Path(x2gofleet.__file__).parent / "lua"


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    """Return what is in backticks in the first column of the tables of ``text``."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_it_names_every_key_and_no_other() -> None:
    keys = Keys("NS")
    places = {
        "target": "<target>",
        "server": "<server>",
        "worker_id": "<id>",
        "session_uuid": "<session_uuid>",
        "request_id": "<request>",
    }
    made = set()
    for name in dir(keys):
        method = None if name.startswith("_") else getattr(keys, name)
        if not inspect.ismethod(method):
            continue
        arguments = [places[each] for each in inspect.signature(method).parameters if each != "kind"]
        if "kind" in inspect.signature(method).parameters:
            made.add(method(*arguments, Kind.LOAD).removesuffix("load") + "<kind>")
        else:
            made.add(method(*arguments))
    assert first_cells(section("Keys")) == {key.replace("NS", "{ns}", 1) for key in made}


def test_it_names_every_field_of_a_snapshot_and_no_other() -> None:
    read = set(re.findall(r'(?:fields\[|stored\()b"(\w+)"', inspect.getsource(Snapshot.from_hash)))
    assert len(read) == 12
    written = set(re.findall(r'\*\("(\w+)",', inspect.getsource(Store.store)))
    script = code(LUA / "store.lua").partition("redis.call('HSET', KEYS[2],")[2].partition("unpack")[0]
    written |= set(re.findall(r"'(\w+)',", script))
    assert read < written
    assert first_cells(section("A snapshot")) == written


def test_it_names_every_field_of_a_state_and_no_other() -> None:
    written = {what for script in LUA.glob("*.lua") for what in re.findall(r"kind \.\. '\.(\w+)'", script.read_text())}
    assert first_cells(section("A state")) == written
    assert "`host_name`" in section("A state")


def test_it_names_every_script_and_outcome() -> None:
    text = section("Leases and fences")
    assert first_cells(text) == {script.stem for script in LUA.glob("*.lua")}
    for outcome in Outcome:
        scripts = {script.stem for script in LUA.glob("*.lua") if f"'{outcome.value}'" in code(script)}
        told = {
            re.findall(r"`(\w+)`", line)[0]
            for line in text.splitlines()
            if line.startswith("| `") and f"`{outcome.value}`" in line.split("|")[3]
        }
        assert told == scripts, outcome


def code(script: Path) -> str:
    """Return a script without its comments."""
    return re.sub(r"--.*", "", script.read_text(encoding="utf-8"))


def test_it_is_of_this_version() -> None:
    assert f"Version {SCHEMA_VERSION};" in DOCUMENT
    assert f"version of this schema: {SCHEMA_VERSION}" in DOCUMENT


def test_its_inventory_is_read_and_written_alike() -> None:
    example = re.findall(r"```json\n(.*?)```", section("The published inventory"), re.DOTALL)[0]
    fleet = PublishedFleet.from_json(example, "1")
    assert json.loads(fleet.to_json()) == json.loads(example)
    assert {target.scope for target in fleet.targets.values()} == {"server", "user"}
