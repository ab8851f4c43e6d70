"""urls: a Redis URL and the environment -> where Redis is, how it is reached, and who asks."""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

DEFAULT_URL = "redis://127.0.0.1:6379/0"
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
URL_VARIABLE = "X2GOFLEET_REDIS_URL"
USERNAME_VARIABLE = "X2GOFLEET_REDIS_USERNAME"
PASSWORD_VARIABLE = "X2GOFLEET_REDIS_PASSWORD"
PASSWORD_FILE_VARIABLE = "X2GOFLEET_REDIS_PASSWORD_FILE"

FORMS = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB?ssl_ca_certs=FILE, unix:///PATH?db=DB, "
    "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB or redis+cluster://HOST:PORT,HOST:PORT"
)

_OPTIONS = {"db", "username", "password"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_PASSWORD_OPTION = re.compile(r"(?<=[?&_]password=)[^&#]*", re.IGNORECASE)
_SCHEMES = {
    "redis": ("node", False),
    "rediss": ("node", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}

log = logging.getLogger(__name__)


def url_from_environment() -> str:
    """Return X2GOFLEET_REDIS_URL, or the default URL on loopback."""
    return os.environ.get(URL_VARIABLE) or DEFAULT_URL


def redact_url(url: str) -> str:
    """Return ``url`` without its password, for messages."""
    url = _PASSWORD_OPTION.sub("***", url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return re.sub(r":[^:@]*@", ":***@", url) if "@" in url else url
    end = re.search(r"[/?#]", rest)
    authority, tail = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    if "@" not in authority and "@" in tail:
        # A password with one of / ? # in it: nobody can tell where it ends.
        return f"{scheme}://***@{tail.rpartition('@')[2]}"
    credentials, at, hosts = authority.rpartition("@")
    name, colon, _ = credentials.partition(":")
    return f"{scheme}://{name}{':***' if colon else ''}{at}{hosts}{tail}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks: a user name and password of Redis, "" where there is none; a password may come from a file.

    The file is read at each new connection, so that a password that was changed there is used.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""

    def read(self) -> str:
        """Return the password. Raises ValueError for a file of no use."""
        return self.password or (read_password(self.password_file) if self.password_file else "")

    def login(self) -> dict[str, str | None]:
        """Return username and password as redis-py's options. Raises ValueError for a file of no use."""
        return {"username": self.username or None, "password": self.read() or None}


def read_password(path: str) -> str:
    """Return the password that a file holds: its text without the line end.

    Raises ValueError where it can't be read or is empty. That others may read it is told in the log.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            password = file.read(65_536).rstrip("\r\n")
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(
            f"{PASSWORD_FILE_VARIABLE}: {path} can't be read: {why}. Put the password of Redis into it, alone on a line"
        ) from exc
    if not password:
        raise ValueError(f"{PASSWORD_FILE_VARIABLE}: {path} is empty. Put the password of Redis into it, on a line")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        log.warning("%s: %s may be read by everybody on this host: chmod 600 it", PASSWORD_FILE_VARIABLE, path)
    return password


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS, "" where not given: the CA that signed the server, and this client's certificate and key."""

    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a Redis URL says. ``kind`` is node, unix, sentinel or cluster; ``tls`` is None where it isn't used.

    ``hosts`` are those of a server, of the sentinels or of some nodes of a Cluster; ``master`` is the name that the
    sentinels know it by, ``sentinel_credentials`` are what they want themselves.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    master: str
    database: int
    credentials: Credentials
    tls: TlsFiles | None
    sentinel_credentials: Credentials = Credentials()

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Return what ``url`` and the environment say; the URL goes first.

        Raises ValueError for a URL of another form, and where a file that is named can't be used.
        """
        try:
            parsed = cls._parse(url)
        except ValueError as exc:
            raise ValueError(f"{redact_url(url)!r} is no Redis URL of this version: {exc}; use {FORMS}") from None
        if parsed.credentials.password_file:
            read_password(parsed.credentials.password_file)
        return parsed

    @classmethod
    def _parse(cls, url: str) -> RedisUrl:
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError("its scheme is none of " + ", ".join(_SCHEMES))
        kind, tls = _SCHEMES[scheme]
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("its host can't be understood") from None
        if "#" in url or ("@" not in parts.netloc and "@" in url and parts.scheme != "unix"):
            raise ValueError(
                "what is special in a password is to be percent-encoded: %2F, %3F, %23 and %40 for / ? # @"
            )
        credentials, _, netloc = parts.netloc.rpartition("@")
        name, _, password = credentials.partition(":")
        known = _OPTIONS | (_TLS_OPTIONS if tls else set()) | (_SENTINEL_OPTIONS if kind == "sentinel" else set())
        options = _options(parts.query, known)
        path, master, database = unquote(parts.path), "", options.get("db", "")
        hosts: tuple[tuple[str, int], ...] = ()
        if kind == "unix":
            if not path or netloc:
                raise ValueError("a unix URL has three slashes and the path of a socket")
        else:
            below = parts.path.removeprefix("/")
            if kind == "sentinel":
                master, _, below = below.partition("/")
                if not master:
                    raise ValueError("the name of the master is missing")
            path = ""
            database = database or below
            hosts = _hosts(netloc, SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT)
            if kind == "node" and len(hosts) > 1:
                raise ValueError("it names several hosts")
        if not re.fullmatch(r"[0-9]{0,6}", database):
            raise ValueError(f"the database {database!r} is no number")
        if kind == "cluster" and int(database or 0):
            raise ValueError("a Cluster has no database but 0")
        return cls(
            kind,
            hosts,
            path,
            unquote(master),
            int(database or 0),
            _credentials(
                unquote(name) or options.get("username", ""), unquote(password) or options.get("password", "")
            ),
            TlsFiles(*(options.get(f"ssl_{name}", "") for name in ("ca_certs", "certfile", "keyfile")))
            if tls
            else None,
            Credentials(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
        )


def _options(query: str, known: set[str]) -> dict[str, str]:
    try:
        given = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("what follows '?' is not NAME=VALUE&NAME=VALUE") from None
    for name in given:
        if name in ("ssl_cert_reqs", "ssl_check_hostname"):
            raise ValueError(f"{name} is refused, certificates are always verified: name your CA by ssl_ca_certs")
        if name not in known:
            raise ValueError(f"it has an unknown option {name[:40]!r}")
    return {name: values[-1] for name, values in given.items()}


def _hosts(netloc: str, default_port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for each in netloc.split(","):
        matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s]*))(?::([0-9]{1,5}))?", each)
        if matched is None or int(matched[3] or 0) > 65535:
            raise ValueError(f"{each.rpartition('@')[2]!r} is no HOST:PORT")
        host = matched[1] or matched[2]
        if not host and "," in netloc:
            raise ValueError("one of its hosts is empty")
        found.append((host or "localhost", int(matched[3] or default_port)))
    return tuple(found)


def _credentials(username: str, password: str) -> Credentials:
    username = username or os.environ.get(USERNAME_VARIABLE, "")
    if password:
        return Credentials(username, password)
    path = os.environ.get(PASSWORD_FILE_VARIABLE, "")
    if path:
        return Credentials(username, "", path)
    return Credentials(username, os.environ.get(PASSWORD_VARIABLE, ""))
