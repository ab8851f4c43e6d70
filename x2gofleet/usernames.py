r"""usernames: what a user name is, how it is written in a smaller alphabet, and which names may be one account.

A name is whatever the name service (NSS) of a polled server and X2Go accept: ``corp+alice``, ``CORP\alice``,
``alice@corp.example.org``, names in other scripts. It is kept and compared as it is, byte for byte, as NSS does. Only
where a key, a command line or a session's name has a smaller alphabet is it written in another way: here.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

MAX_BYTES = 256
"""How long a user name may be, in UTF-8. The probe reads as much of a record; Linux itself allows 255 bytes."""

RULE = (
    "write it as `getent passwd` prints it: at most 256 bytes of letters, digits and other printable characters, but "
    "no ':', '/', '|', '*' or space, and no '-' at the beginning"
)
"""How to fix a name that is not valid, for error messages."""

_SPECIAL = re.compile(rb"[^A-Za-z0-9._@-]")
_NOT_IN_SESSION_NAMES = re.compile(r"[^A-Za-z0-9._@-]")
_SHELL_SAFE = re.compile(r"[A-Za-z0-9._@+-]")
_SHOWN = 80
_REFUSED = {
    ":": "separates the fields of passwd",
    "/": "separates the parts of a path",
    "|": "separates the fields of X2Go's listings",
    " ": "X2Go's listings leave out",
    "*": "X2Go's listings print as a space",
}


def problem_of(text: object) -> str:
    """Return why ``text`` is not a user name, "" where it is one."""
    if not isinstance(text, str):
        return "it is not a text"
    if not text:
        return "it is empty"
    if not text.isprintable():
        return "it has a control character, a line break or another character that cannot be printed"
    for character, reason in _REFUSED.items():
        if character in text:
            return f"it has a {character!r}, which {reason}"
    if text[0] == "-":
        return "it begins with '-', as an option of a command"
    if len(text.encode()) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return ""


def is_username(text: object) -> bool:
    """Whether ``text`` may name a user: 1 to 256 bytes of printable UTF-8 that NSS and X2Go can keep apart."""
    return not problem_of(text)


def check_username(text: str) -> None:
    """Raise ValueError for what is not a user name: which one, why, and how to write it."""
    problem = problem_of(text)
    if problem:
        raise ValueError(f"{shown(text)} is no user name: {problem}; {RULE}")


def shown(text: object) -> str:
    """Return a name for a message: quoted, escaped and short."""
    quoted = repr(text)
    return quoted if len(quoted) <= _SHOWN else f"{quoted[:_SHOWN]}..."


def encode(username: str) -> str:
    """Return a valid name in the alphabet of keys and target ids: letters, digits, ``.``, ``_``, ``@``, ``-``, ``%``.

    Each other byte of the UTF-8, and an ``@`` at the beginning, is written ``%XX``: names of that alphabet without
    ``%`` stay as they are, and two names never become one. ``decode`` is the reverse.
    """
    text = _SPECIAL.sub(lambda found: b"%%%02X" % found[0][0], username.encode()).decode()
    return f"%40{text[1:]}" if text.startswith("@") else text


def decode(text: str) -> str:
    """Return the name that ``encode`` wrote so; whatever else it is, a text. Never raises."""
    return unquote(text, errors="replace") if "%" in text else text


def for_nested_shell(username: str) -> str:
    """Return a name for where x2gobroker puts it: unquoted into ``sh -c '...'``, which a login shell reads first."""
    return "".join(_for_nested_shell(character) for character in username)


def _for_nested_shell(character: str) -> str:
    if _SHELL_SAFE.match(character) or not character.isascii():
        return character
    # A quote ends the outer string, stands by itself, and begins it again.
    return "\\'\\''" if character == "'" else f"\\{character}"


def in_session_names(username: str) -> str:
    """Return a name as X2Go has it in the names of the user's sessions: it drops what is not in its alphabet there."""
    return _NOT_IN_SESSION_NAMES.sub("", username)


def user_of_desktop(line: str) -> str | None:
    """Return the user of a line ``user@:display`` of x2golistdesktops, None for another line.

    The user is everything before the last ``@:``: ``carol@corp.example.org@:72`` is of ``carol@corp.example.org``.
    """
    username, _, display = line.rpartition("@:")
    return username if is_username(username) and display.isascii() and display.isdigit() else None


def may_be_one_account(one: str, other: str) -> bool:
    r"""Whether two names may be of one account, as sssd, winbind and X2Go write them.

    They differ in case, in a domain (``CORP\alice``, ``corp+alice``, ``alice@corp.example.org``), in the form of
    composed characters, or in the backslash, which X2Go drops. Whether they are, the name service alone can say.
    """
    return not account_keys(one).isdisjoint(account_keys(other))


@lru_cache(maxsize=16384)
def account_keys(username: str) -> frozenset[str]:
    """Return what a name has in common with other names of the same account."""
    whole = folded(username)
    found = {whole, whole.replace("\\", "")}
    for name in (whole, whole.partition("@")[0]):
        found.add(name)
        found |= {name.rpartition(separator)[2] for separator in "\\+" if separator in name}
    return frozenset(found - {""})


def folded(text: str) -> str:
    """Return a text without the differences of case and of composed characters."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
