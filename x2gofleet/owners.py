"""owners: whose the rows of a listing are, and whether some may be a user's under another name of the account."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from x2gofleet.rows import SessionInfo
from x2gofleet.usernames import account_keys, folded, in_session_names, may_be_one_account

_AFTER_USER = re.compile(r"-\d+-\d+_st")
_STATUS, _USER = 4, 11


def lines_of(stdout: bytes, username: str) -> bytes:
    """Return the lines that may be this user's: parsing the others would cost ten times as much."""
    try:
        field = f"|{username}|".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b""
    return b"\n".join([line for line in stdout.split(b"\n") if field in line])


def of_own_target(rows: Sequence[SessionInfo], username: str) -> Sequence[SessionInfo]:
    """Return the rows of a user's own target that are that user's: those of any name, where none has this user's."""
    return [row for row in rows if may_be_one_account(row.username, username)] or rows


def users_of(stdout: bytes) -> set[str]:
    """Return the users that the unfinished rows of a listing of sessions are of, as X2Go names them."""
    rows = (line.split(b"|", _USER + 1) for line in stdout.split(b"\n"))
    names = {fields[_USER] for fields in rows if len(fields) > _USER + 1 and fields[_STATUS] != b"F"}
    return {name.decode("utf-8", "surrogateescape") for name in names}


def other_names(stdout: bytes, username: str) -> set[str]:
    """Return the other names in a listing of sessions that may be of the account of ``username``."""
    text = folded(stdout.decode("utf-8", "surrogateescape"))
    keys = account_keys(username)
    # Nearly always there is none: so much is found out without a look at each row.
    if not any(key in text for key in keys) and (
        "\\" not in text or not any(key in text.replace("\\", "") for key in keys)
    ):
        return set()
    return {name for name in users_of(stdout) if name != username and may_be_one_account(name, username)}


def user_in(session_name: str) -> str | None:
    """Return the user that the name of a session, ``USER-DISPLAY-EPOCH_st...``, begins with; None of another text."""
    found = _AFTER_USER.search(session_name)
    return session_name[: found.start()] if found else None


def session_names_tell(session_names: Iterable[str], username: str) -> bool:
    """Whether the names of sessions, among others', tell which are this user's; else their rows have to be looked at.

    They do not for a name that they cannot hold, nor where the user may have another name on the server.
    """
    names = set(session_names)
    if in_session_names(username) != username:
        return not names
    users = {user_in(name) or "" for name in names}
    return username in users or not any(may_be_one_account(user, username) for user in users)


def belongs_to(session_name: str, username: str) -> bool:
    """Whether a session is that user's, by its name, from which X2Go leaves out some characters of the user's.

    ``corp+alice`` and ``corpalice`` are the same there: only the session's row tells them apart.
    """
    return any(
        session_name.startswith(name) and _AFTER_USER.match(session_name, len(name)) is not None
        for name in {username, in_session_names(username)}
    )
