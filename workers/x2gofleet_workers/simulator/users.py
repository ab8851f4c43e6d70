"""The users of a simulated fleet: one pool for all servers, so that users have sessions on several of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

_NAMES = (
    "alice", "bob", "john_doe", "carla", "dmitri", "eve", "frida", "li_wei", "gustav", "hannah",
    "ivan", "svc_backup", "jean-luc", "karim", "lena", "mo_salah", "nadia", "olga", "pedro", "quinn",
    "rosa", "sam.vimes", "tove", "uma", "viktor", "wanda", "xenia", "yusuf", "zoe", "ann_marie",
)  # fmt: skip
_FIRST_UID = 1000
_SYSTEM_UID = 990
_OTHER_FIRST_UID = 20000
_OTHER_UIDS = 30000


def user_pool(size: int) -> tuple[str, ...]:
    """Return ``size`` user names, always the same ones in the same order."""
    made_up = tuple(f"{_NAMES[index % len(_NAMES)]}_{index}" for index in range(len(_NAMES), size))
    return _NAMES[:size] + made_up


def uid_of(username: str) -> int:
    """Return the uid of a login: 0 for root, 990 for the worker's own account, from 1000 for everyone else."""
    if username == "root":
        return 0
    if username == "x2gofleet":
        return _SYSTEM_UID
    if username in _NAMES:
        return _FIRST_UID + _NAMES.index(username)
    return _OTHER_FIRST_UID + zlib.crc32(username.encode()) % _OTHER_UIDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """As whom a command runs on a simulated server."""

    username: str
    uid: int

    @classmethod
    def named(cls, username: str) -> Login:
        """Return the login of ``username`` with its uid."""
        return cls(username=username, uid=uid_of(username))

    @property
    def is_root(self) -> bool:
        """True where x2golistsessions_root would list anything."""
        return self.uid == 0


ROOT = Login(username="root", uid=0)
