"""Keys: every literal pinned, because brokers and other languages read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.user_names import NAMES as USER_NAMES
from tests.support.user_names import NOT_NAMES, USERS, UserName, label
from x2gofleet.keys import Keys, is_server_id, server_of, target_id, user_of
from x2gofleet.kinds import Kind

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)


def test_every_key_of_the_default_namespace() -> None:
    keys = Keys()
    assert {
        "snapshot": [keys.snapshot("ts01", kind) for kind in Kind],
        "of a user": keys.snapshot("alice@ts01", Kind.DESKTOPS),
        "state": keys.state("ts01"),
        "lease": keys.lease("ts01"),
        "fence": keys.fence("ts01"),
        "workers": keys.workers(),
        "worker": keys.worker("host-4711"),
        "fleet": keys.fleet(),
        "fresh": keys.fresh(),
        "changes": keys.changes(),
        "uuid": keys.uuid("6c3f"),
        "requests": keys.refresh_requests("host-4711"),
        "answers": keys.refresh_answers("0123456789abcdef"),
    } == {
        "snapshot": [
            "x2gofleet:{ts01}:sessions",
            "x2gofleet:{ts01}:desktops",
            "x2gofleet:{ts01}:mounts",
            "x2gofleet:{ts01}:load",
        ],
        "of a user": "x2gofleet:{alice@ts01}:desktops",
        "state": "x2gofleet:{ts01}:state",
        "lease": "x2gofleet:{ts01}:lease",
        "fence": "x2gofleet:{ts01}:fence",
        "workers": "x2gofleet:workers",
        "worker": "x2gofleet:worker:host-4711",
        "fleet": "x2gofleet:fleet",
        "fresh": "x2gofleet:fresh",
        "changes": "x2gofleet:changes",
        "uuid": "x2gofleet:uuid:6c3f",
        "requests": "x2gofleet:refresh:worker:host-4711",
        "answers": "x2gofleet:refresh:answer:0123456789abcdef",
    }


def test_another_namespace_is_the_prefix_of_every_key() -> None:
    keys = Keys("site:a")
    made = [
        keys.snapshot("ts01", Kind.LOAD),
        *(method("ts01") for method in (keys.state, keys.lease, keys.fence, keys.worker, keys.uuid)),
        *(method("x") for method in (keys.refresh_requests, keys.refresh_answers)),
        keys.workers(),
        keys.fleet(),
        keys.fresh(),
        keys.changes(),
    ]
    assert all(key.startswith("site:a:") for key in made)
    assert len(set(made)) == len(made)


@given(NAMES, st.none() | USERS)
def test_all_keys_of_a_target_share_a_cluster_slot(server: str, username: str | None) -> None:
    target = target_id(server, username)
    keys = Keys()
    made = [
        *(keys.snapshot(target, kind) for kind in Kind),
        *(method(target) for method in (keys.state, keys.lease, keys.fence)),
    ]
    # What Redis Cluster hashes: the text between the first { and the first } after it.
    assert {key.partition("{")[2].partition("}")[0] for key in made} == {target}


@given(NAMES, st.none() | USERS)
def test_a_target_id_tells_its_server_and_user(server: str, username: str | None) -> None:
    target = target_id(server, username)
    assert (server_of(target), user_of(target)) == (server, username)


def test_target_ids() -> None:
    assert target_id("ts01") == "ts01"
    assert target_id("ts01", "alice") == "alice@ts01"
    assert target_id("ts01", "alice@example.org") == "alice@example.org@ts01"


@pytest.mark.parametrize("server", ["", "a{b", "a}b", "a@b", "a:b", "a b", "a/b", "ä", "a\n", "x" * 65])
def test_what_is_no_server_id(server: str) -> None:
    assert not is_server_id(server)
    with pytest.raises(ValueError, match="is no server id"):
        target_id(server)


@pytest.mark.parametrize("user", USER_NAMES, ids=label)
def test_keys_of_a_user_hold_the_encoded_name(user: UserName) -> None:
    target = target_id("ts01", user.text)
    assert target == f"{user.key}@ts01"
    assert (server_of(target), user_of(target)) == ("ts01", user.text)
    key = Keys().snapshot(target, Kind.DESKTOPS)
    assert key == f"x2gofleet:{{{user.key}@ts01}}:desktops"
    assert key.isascii()
    assert key.count("{") == key.count("}") == 1


@pytest.mark.parametrize("case", NOT_NAMES, ids=label)
def test_what_is_no_user_name(case: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="is no user name"):
        target_id("ts01", case[0])


@pytest.mark.parametrize("namespace", ["", "a{b}", "a b", "a*", "a\n", "ä", "x" * 65])
def test_what_is_no_namespace(namespace: str) -> None:
    with pytest.raises(ValueError, match="is no namespace"):
        Keys(namespace)
