"""The table of user names, tests/data/user_names.json, as tests want it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from x2gofleet.usernames import is_username

_TABLE = json.loads((Path(__file__).parent.parent / "data" / "user_names.json").read_text())


@dataclass(frozen=True, slots=True)
class UserName:
    """A user name; ``key``: as keys have it, ``in_session_names``: as X2Go has it in names of sessions.

    ``x2goserver``: whether Debian's x2goserver makes sessions for it on SQLite.
    """

    text: str
    key: str
    in_session_names: str
    x2goserver: bool


NAMES = tuple(
    UserName(row["text"] * row.get("times", 1), row["key"], row["in_session_names"], row["x2goserver"])
    for row in _TABLE["names"]
)
NOT_NAMES = tuple((row["text"] * row.get("times", 1), str(row["reason"])) for row in _TABLE["not_names"])

_characters = st.characters(exclude_categories=("C", "Z"), exclude_characters=":/|*")
USERS = st.text(_characters, min_size=1, max_size=16).filter(is_username)
"""Names of all scripts."""


def label(case: UserName | tuple[str, str]) -> str:
    """Return what a test of a case is called."""
    text = case.text if isinstance(case, UserName) else case[0]
    return ascii(text)[1:-1] if len(text) <= 30 else f"{ascii(text)[1:11]}...{len(text)}"
