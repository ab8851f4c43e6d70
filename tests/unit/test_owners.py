"""Whose the rows of a listing are, and whether some may be a user's under another name."""

from __future__ import annotations

import pytest

from tests.integration.reader import row
from tests.support.user_names import NAMES, UserName, label
from x2gofleet import owners


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_user_s_lines_are_found_by_the_name_as_it_is(user: UserName) -> None:
    own, others = row(user.text, 50), row("somebody", 51) + row(f"x{user.text}", 52)
    assert owners.lines_of(own + others, user.text) == own.rstrip(b"\n")
    assert owners.users_of(own + others) == {user.text, "somebody", f"x{user.text}"}
    assert owners.other_names(own, user.text) == set()


@pytest.mark.parametrize(
    "listed", ["alice", "ALICE", "corp+alice", "CORP\\alice", "CORPalice", "alice@corp.example.org"]
)
def test_rows_of_another_name_of_the_account_are_noticed(listed: str) -> None:
    stdout = row("bob", 49) + row(listed, 50)
    for login in ("Alice", "CORP\\Alice", "alice@CORP.example.org"):
        if listed == "CORPalice" and login != "CORP\\Alice":
            continue
        assert owners.other_names(stdout, login) == {listed}
    assert owners.other_names(stdout, "carol") == set()
    assert owners.other_names(stdout, "alic") == set()


def test_finished_sessions_and_lines_that_are_no_rows_are_nobody_s() -> None:
    stdout = row("alice", 50, "F") + b"an error about alice\n||||||||||||\n"
    assert owners.other_names(stdout, "Alice") == set()


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_session_belongs_to_a_user_by_its_name(user: UserName) -> None:
    for name in (user.text, user.in_session_names):
        assert owners.belongs_to(f"{name}-50-1795000000_stDMATE_dp24", user.text)
        assert not owners.belongs_to(f"x{name}-50-1795000000_stDMATE_dp24", user.text)
    assert not owners.belongs_to(f"{user.text}-50-1795000000", user.text)


def test_names_of_sessions_tell_their_users_but_where_x2go_drops_characters_or_a_user_has_several_names() -> None:
    own, other = "alice-50-1795000000_stDMATE_dp24", "bob-51-1795000000_stDMATE_dp24"
    assert owners.session_names_tell([own, other], "alice")
    assert owners.session_names_tell([other], "alice")
    assert owners.session_names_tell([], "corp+alice")
    assert not owners.session_names_tell([own], "Alice")
    assert not owners.session_names_tell(["corpalice-50-1795000000_stDMATE_dp24"], "corp+alice")
