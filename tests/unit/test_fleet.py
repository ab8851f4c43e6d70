"""PublishedFleet: what is written as JSON is what is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.errors import SnapshotCorrupt
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.keys import target_id
from x2gofleet.kinds import Kind

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
KINDS = st.frozensets(st.sampled_from(list(Kind)))


@st.composite
def fleets(draw: st.DrawFn) -> PublishedFleet:
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    servers = {
        name: PublishedServer(
            name,
            draw(TEXT),
            tuple(draw(st.lists(TEXT, max_size=3))),
            draw(st.floats(min_value=0.001, max_value=1000)),
            draw(st.booleans()),
        )
        for name in names
    }
    targets: dict[str, PublishedTarget] = {}
    for name in names:
        for username in draw(st.lists(st.none() | st.sampled_from(["alice", "bob@example.org"]), unique=True)):
            scope = "server" if username is None else "user"
            made = PublishedTarget(target_id(name, username), name, scope, username, draw(KINDS))
            targets[made.id] = made
    ids = st.lists(st.sampled_from(sorted(targets)), unique=True).map(tuple) if targets else st.just(())
    profiles = draw(st.dictionaries(TEXT, ids, max_size=4))
    return PublishedFleet(servers, targets, profiles, draw(TEXT), draw(st.frozensets(TEXT, max_size=3)))


@given(fleets())
def test_it_survives_json(fleet: PublishedFleet) -> None:
    for document in (fleet.to_json(), fleet.to_json().encode()):
        assert PublishedFleet.from_json(document, fleet.version) == fleet


@given(fleets())
def test_the_digest_is_of_the_content_alone(fleet: PublishedFleet) -> None:
    other = PublishedFleet(
        dict(reversed(fleet.servers.items())),
        dict(reversed(fleet.targets.items())),
        dict(reversed(fleet.profiles.items())),
        "another version",
        fleet.left_out,
    )
    assert other.digest() == fleet.digest()
    more = PublishedFleet(fleet.servers, fleet.targets, {**fleet.profiles, "one more profile than there can be": ()})
    assert more.digest() != fleet.digest()
    left_out = replace(fleet, left_out=fleet.left_out | {"one more profile than there can be"})
    assert left_out.digest() != fleet.digest()


EXAMPLE: dict[str, Any] = {
    "servers": {"ts01": {"hostname": "ts01", "labels": ["mate"], "weight": 1.0, "drain": False}},
    "targets": {"ts01": {"server": "ts01", "scope": "server", "username": None, "kinds": ["load", "sessions"]}},
    "profiles": {"mate": ["ts01"]},
}


def test_the_document_is_the_public_contract() -> None:
    fleet = PublishedFleet(
        {"ts01": PublishedServer("ts01", "ts01", ("mate",))},
        {"ts01": PublishedTarget("ts01", "ts01", "server", None, frozenset({Kind.SESSIONS, Kind.LOAD}))},
        {"mate": ("ts01",)},
    )
    assert json.loads(fleet.to_json()) == EXAMPLE


def broken(path: str, value: Any) -> str:
    """Return the example with one thing replaced, or removed where ``value`` is ..."""
    document = json.loads(json.dumps(EXAMPLE))
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "no json",
        "[]",
        "null",
        b"\xff\xfe",
        broken("servers", ...),
        broken("targets", ...),
        broken("profiles", ...),
        broken("servers.ts01.weight", "heavy"),
        broken("servers.ts01.hostname", ...),
        broken("targets.ts01.kinds", ["sofas"]),
        broken("targets.ts01.scope", ...),
        broken("targets", []),
    ],
)
def test_what_no_worker_wrote_is_refused(document: str | bytes) -> None:
    with pytest.raises(SnapshotCorrupt, match="the published inventory can't be read"):
        PublishedFleet.from_json(document, "1")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (broken("profiles.mate", ["ts01", "ts09"]), "ts09"),
        (broken("targets.ts01.server", "ts08"), "ts01"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_when_read_not_when_followed(document: str, said: str) -> None:
    with pytest.raises(SnapshotCorrupt, match=said):
        PublishedFleet.from_json(document, "1")
