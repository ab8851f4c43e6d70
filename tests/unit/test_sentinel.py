"""What sentinels say, made out without any of them."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from x2gofleet.connection.sentinel import Named, NoMaster, named, questions


def told(**facts: object) -> list[bytes]:
    given = {"name": "fleet", "ip": "10.0.0.1", "port": 6379, "flags": "master", "config_epoch": 3, **facts}
    return [str(word).replace("_epoch", "-epoch").encode() for item in given.items() for word in item]


MASTER: list[Any] = [b"10.0.0.1", b"6379"]


def test_a_sentinel_is_asked_for_address_and_state_at_once() -> None:
    assert questions("fleet") == [
        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fleet"),
        ("SENTINEL", "MASTER", "fleet"),
    ]


def test_a_master_that_is_up() -> None:
    assert named([MASTER, told()], "fleet") == Named(3, ("10.0.0.1", 6379))


@pytest.mark.parametrize("flags", ["s_down,master,disconnected", "s_down,o_down,master"])
def test_a_master_that_is_down(flags: str) -> None:
    with pytest.raises(NoMaster, match=r"sees the master 10\.0\.0\.1:6379 down \(s_down"):
        named([MASTER, told(flags=flags)], "fleet")


def test_a_master_that_a_failover_has_chosen_goes_before_the_old_one() -> None:
    chosen = named([[b"10.0.0.2", b"6379"], told(flags="s_down,o_down,master,failover_in_progress")], "fleet")
    assert chosen == Named(4, ("10.0.0.2", 6379))
    assert chosen > named([MASTER, told()], "fleet")


def test_a_service_that_the_sentinel_does_not_know() -> None:
    unknown = redis.exceptions.ResponseError("ERR No such master with that name")
    with pytest.raises(NoMaster, match=r"^knows no service 'fleet'$"):
        named([None, unknown], "fleet")


def test_a_sentinel_that_wants_a_password() -> None:
    refused = redis.exceptions.AuthenticationError("Authentication required.")
    with pytest.raises(NoMaster, match="Authentication required"):
        named([refused, refused], "fleet")
