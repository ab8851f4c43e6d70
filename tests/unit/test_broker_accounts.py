"""By which name the rows have the sessions of a login, and when only a live agent can say."""

from __future__ import annotations

import os
import pwd
import threading

import pytest

from tests.support.clocks import ManualClock
from tests.unit.test_broker_answers import line, standing, view
from x2gofleet.adapters.broker_accounts import Account, Accounts, canonical_name


def accounts(known: dict[str, str] | None = None, **more: object) -> Accounts:
    names = known or {}
    return Accounts(look_up=lambda login: names.get(login), **more)  # type: ignore[arg-type]


def of(user: str, host: str = "ts01") -> list[str]:
    return [line(f"{user}-50-1795000000_stDMATE_dp24", host=host, user=user)]


def test_a_login_with_sessions_by_its_name_is_that_account() -> None:
    asked: list[str] = []
    made = Accounts(look_up=lambda login: asked.append(login))
    assert made.of(view({"ts01": standing("ts01", of("alice"))}), "alice") == Account("alice")
    assert asked == []


@pytest.mark.parametrize("login", ["Alice", "alice@corp.example.org", "CORP\\alice", "asmith"])
def test_this_host_s_name_service_says_by_which_name_the_rows_are(login: str) -> None:
    shown = view({"ts01": standing("ts01", of("bob")), "ts02": standing("ts02", of("alice", "ts02"))})
    assert accounts({login: "alice"}).of(shown, login) == Account("alice")


@pytest.mark.parametrize("known", [{}, {"Alice": "Alice"}])
def test_where_a_row_may_be_of_the_account_its_server_is_to_be_asked(known: dict[str, str]) -> None:
    shown = view({"ts01": standing("ts01", of("bob")), "ts02": standing("ts02", of("alice", "ts02"))})
    assert accounts(known).of(shown, "Alice") == Account(None, ("ts02",))


def test_a_name_that_nothing_is_known_of_is_not_said_to_have_no_sessions() -> None:
    shown = view({"ts01": standing("ts01", of("bob"))})
    assert accounts().of(shown, "carol") == Account(None)
    assert accounts({"carol": "carol"}).of(shown, "carol") == Account("carol")


def test_a_name_that_was_in_a_listing_is_an_account_s_for_an_hour() -> None:
    clock = ManualClock()
    made = accounts(monotonic=clock)
    made.of(view({"ts01": standing("ts01", of("carol"))}), "bob")
    empty = view({"ts01": standing("ts01", [])})
    assert made.of(empty, "carol") == Account("carol")
    clock.now += 3601
    assert made.of(empty, "carol") == Account(None)


def test_what_a_live_agent_listed_is_remembered() -> None:
    made, shown = accounts(), view({"ts01": standing("ts01", of("alice"))})
    assert made.of(shown, "asmith") == Account(None)
    made.learn("asmith", ["alice"])
    assert made.of(shown, "asmith") == Account("alice")


def test_a_user_s_own_target_is_of_that_login_whatever_its_rows_say() -> None:
    assert accounts().of(view({"ts01": standing("ts01", of("a"), username="alice")}), "alice") == Account("alice")
    assert accounts().of(view({"ts01": standing("ts01", [], username="alice")}), "alice") == Account("alice")


def test_the_name_service_is_asked_once_per_login_until_its_answer_is_old() -> None:
    clock, asked = ManualClock(), []

    def look_up(login: str) -> str | None:
        asked.append(login)
        return None if login == "nobody-knows" else login

    made, empty = Accounts(look_up=look_up, monotonic=clock), view({"ts01": standing("ts01", [])})
    for _ in range(3):
        made.of(empty, "alice")
        made.of(empty, "nobody-knows")
    assert asked == ["alice", "nobody-knows"]
    clock.now += 31
    made.of(empty, "alice")
    made.of(empty, "nobody-knows")
    assert asked == ["alice", "nobody-knows", "nobody-knows"]
    clock.now += 300
    made.of(empty, "alice")
    assert asked[3:] == ["alice"]


def test_a_name_service_that_hangs_is_waited_for_once() -> None:
    answer, asked = threading.Event(), []

    def look_up(login: str) -> str | None:
        asked.append(login)
        answer.wait()
        return login

    made, empty = Accounts(look_up=look_up, limit_seconds=0.01), view({"ts01": standing("ts01", [])})
    try:
        for login in ("alice", "bob", "alice"):
            assert made.of(empty, login) == Account(None)
        assert asked == ["alice"]
    finally:
        answer.set()


def test_the_name_of_an_account_is_that_of_its_uid() -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    assert canonical_name(me) == me
    for login in ("no-such-user-here", "", "a\0b", "\ud800"):
        assert canonical_name(login) is None
