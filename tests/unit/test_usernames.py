"""User names: what they are, how they are written elsewhere, and which may be one account: a table of them."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given

from tests.support.user_names import NAMES, NOT_NAMES, USERS, UserName, label
from x2gofleet import usernames


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_name_is_taken_and_written_elsewhere_as_the_table_says(user: UserName) -> None:
    assert usernames.is_username(user.text)
    usernames.check_username(user.text)
    assert usernames.encode(user.text) == user.key
    assert usernames.decode(user.key) == user.text
    assert usernames.in_session_names(user.text) == user.in_session_names


@pytest.mark.parametrize("case", NOT_NAMES, ids=label)
def test_what_is_no_name_is_refused_with_what_reason_and_remedy(case: tuple[str, str]) -> None:
    text, reason = case
    assert not usernames.is_username(text)
    with pytest.raises(ValueError, match="is no user name") as caught:
        usernames.check_username(text)
    assert reason in str(caught.value)
    assert str(caught.value).endswith(usernames.RULE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, 5, b"alice", ["alice"]])
def test_what_is_no_text_is_no_name(value: object) -> None:
    assert usernames.problem_of(value) == "it is not a text"


def test_names_and_keys_of_the_table_are_as_many() -> None:
    assert len({user.key for user in NAMES}) == len({user.text for user in NAMES}) == len(NAMES)


@given(USERS)
def test_any_name_is_encoded_reversibly_into_the_alphabet_of_keys(name: str) -> None:
    key = usernames.encode(name)
    assert usernames.decode(key) == name
    assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@%-")
    assert not key.startswith("@")


@pytest.mark.parametrize("text", ["%", "%4", "%zz", "%FF", "%C3%28", "a%00b", "%41"])
def test_whatever_stands_in_a_key_is_decoded(text: str) -> None:
    assert isinstance(usernames.decode(text), str)


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_name_reaches_the_agent_through_x2gobroker_s_two_shells(user: UserName) -> None:
    command = f"printf %s {usernames.for_nested_shell(user.text)} end"
    through = subprocess.run(
        ["sh", "-c", f"sh -c '{command}'"], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert through.stdout.decode() == user.text + "end"
    assert shlex.split(shlex.split(f"sh -c '{command}'")[2]) == ["printf", "%s", user.text, "end"]


def test_plain_names_reach_the_agent_as_they_are() -> None:
    for name in ("alice", "corp+alice", "carol@corp.example.org", "l" * 80):
        assert usernames.for_nested_shell(name) == name


@pytest.mark.parametrize(
    ("line", "user"),
    [
        ("alice@:50", "alice"),
        ("carol@corp.example.org@:72", "carol@corp.example.org"),
        ("CORP\\alice@:72", "CORP\\alice"),
        ("corp+alice@:72", "corp+alice"),
        ("john doe@:72", None),
        ("Алиса@:1", "Алиса"),
        ("a@:1@:2", None),
        ("@:72", None),
        ("alice@:", None),
        ("alice@:x", None),
        ("alice@:²", None),
        ("a|b@:7", None),
        ("carol@corp.example.org", None),
    ],
)
def test_the_user_of_a_desktop_is_what_stands_before_the_last_at_and_colon(line: str, user: str | None) -> None:
    assert usernames.user_of_desktop(line) == user


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("alice", "Alice"),
        ("alice", "ALICE@CORP.EXAMPLE.ORG"),
        ("alice", "alice@corp.example.org"),
        ("alice", "CORP\\alice"),
        ("alice", "corp+Alice"),
        ("CORP\\alice", "alice@corp.example.org"),
        ("CORP\\alice", "corp+alice"),
        ("CORP\\alice", "CORPalice"),
        ("jürgen", "JU\u0308RGEN"),
        ("corp\\alice@other", "alice"),
    ],
)
def test_names_that_may_be_one_account(one: str, other: str) -> None:
    assert usernames.may_be_one_account(one, other)
    assert usernames.may_be_one_account(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("alice", "bob"), ("user1", "user10"), ("corp+user1", "corp+user2"), ("alice", "corp+bob")]
)
def test_names_that_are_not_one_account(one: str, other: str) -> None:
    assert not usernames.may_be_one_account(one, other)
