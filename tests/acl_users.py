"""Users of x2gofleet's roles on a test's Redis."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit, urlunsplit

import redis

from x2gofleet.acl import Role, parse_version, rules


def with_credentials(url: str, username: str, password: str) -> str:
    """Return ``url`` with a user and a password."""
    parts = urlsplit(url)
    login = f"{quote(username, safe='')}:{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}"))


@contextmanager
def user_of(admin: redis.Redis, url: str, namespace: str, role: Role, *, may_eval: bool = True) -> Iterator[str]:
    """Make a user of a role, for one namespace; yields ``url`` with its credentials. It goes at the end."""
    name, password = f"{namespace}-{role.value}-{secrets.token_hex(4)}", secrets.token_hex(16)
    granted = rules(
        role,
        namespace=namespace,
        server_version=parse_version(admin.info("server")["redis_version"]),
        password_sha256=hashlib.sha256(password.encode()).hexdigest(),
        may_eval=may_eval,
    )
    admin.execute_command("ACL", "SETUSER", name, *granted)
    try:
        yield with_credentials(url, name, password)
    finally:
        admin.execute_command("ACL", "DELUSER", name)
