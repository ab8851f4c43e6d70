"""urls: a Redis URL and the environment -> where Redis is, how it is reached, and who asks.

A URL is taken apart here and not by urllib.parse.urlsplit, as what that accepts differs between Python versions. No
error repeats a part of a URL that may be a password: of a URL that is not understood, only the scheme is shown.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from x2gofleet.files import UnusableFile, read_text_file

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

_open_to_all: set[str] = set()
"""Password files that the log has said others may read."""

_OPTIONS = frozenset(("db", "username", "password"))
_SENTINEL_OPTIONS = frozenset(("sentinel_username", "sentinel_password"))
_TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
_SHOWN_OPTIONS = _TLS_OPTIONS | {"db"}
# Options of redis-py's URLs: such a name is certainly no part of a password.
_OPTIONS_OF_OTHERS = frozenset(
    (
        *("cache_config", "client_name", "decode_responses", "encoding", "health_check_interval", "max_connections"),
        *("protocol", "retry_on_timeout", "socket_connect_timeout", "socket_keepalive", "socket_timeout", "timeout"),
        *("ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers", "ssl_min_version"),
    )
)
_MAX_PASSWORD_BYTES = 65_536
_ENCODE = "what is special in a password is to be percent-encoded: %2F, %3F, %23 and %40 for / ? # @"
_HOST_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]\s]*))(?::([0-9]{1,5}))?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
    """Return ``url`` for messages, without user name and password; of one that is not understood, only the scheme."""
    try:
        parts = _Parts.of(url)
    except ValueError:
        scheme = url.strip().partition("://")[0]
        return f"{scheme}://***" if scheme in _SCHEMES and "://" in url else "***"
    options = "&".join(f"{name}={value if name in _SHOWN_OPTIONS else '***'}" for name, value in parts.options.items())
    login = "***@" if parts.login else ""
    return f"{parts.scheme}://{login}{parts.netloc}{parts.path}{'?' if options else ''}{options}"


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
        password = read_text_file(path, max_bytes=_MAX_PASSWORD_BYTES).rstrip("\n")
        mode = Path(path).stat().st_mode
    except (UnusableFile, OSError) as exc:
        why = exc.reason if isinstance(exc, UnusableFile) else exc.strerror
        raise ValueError(
            f"{PASSWORD_FILE_VARIABLE}: {path} can't be used: {why}. Put the password of Redis into it, alone on a line"
        ) from None
    if not password:
        raise ValueError(f"{PASSWORD_FILE_VARIABLE}: {path} is empty. Put the password of Redis into it, on a line")
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        _open_to_all.discard(path)
    elif path not in _open_to_all:
        # Each new connection reads the file.
        _open_to_all.add(path)
        log.warning("%s: %s may be read by everybody on this host: chmod 600 it", PASSWORD_FILE_VARIABLE, path)
    return password


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS, "" where not given: the CA that signed the server, and this client's certificate and key."""

    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a URL, ``scheme://username:password@netloc/path?options``, and what they say, percent-decoded."""

    scheme: str
    login: tuple[str, str] | None = field(repr=False)
    netloc: str
    path: str
    hosts: tuple[tuple[str, int], ...]
    socket_path: str
    master: str
    database: int
    options: dict[str, str] = field(repr=False)

    @property
    def kind(self) -> str:
        return _SCHEMES[self.scheme][0]

    @property
    def tls(self) -> bool:
        return _SCHEMES[self.scheme][1]

    @classmethod
    def of(cls, url: str) -> _Parts:
        """Take ``url`` apart. Raises ValueError, which repeats nothing that may be a password."""
        url = url.strip()
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError("its scheme is none of " + ", ".join(_SCHEMES))
        if not _is_utf8(url):
            raise ValueError("it is not UTF-8 text")
        if _CONTROL.search(url):
            raise ValueError("it has a control character, such as the end of a line")
        if "#" in rest:
            raise ValueError(_ENCODE)
        kind, tls = _SCHEMES[scheme]
        address, _, query = rest.partition("?")
        authority, slash, below = address.partition("/")
        login, at, netloc = authority.rpartition("@")
        # An @ behind the hosts may end a password that has one of / ? in it. The path of a socket may have one, too.
        if "@" in below + query and (kind != "unix" or authority):
            raise ValueError(_ENCODE)
        if "@" in login and kind in ("sentinel", "cluster"):
            raise ValueError(f"a user name and password come once, before the first host, and {_ENCODE}")
        known = _OPTIONS | (_TLS_OPTIONS if tls else set()) | (_SENTINEL_OPTIONS if kind == "sentinel" else set())
        options = _options(query, known)
        path, master = slash + below, ""
        if kind == "unix":
            if not below or netloc:
                raise ValueError("a unix URL has three slashes and the path of a socket")
            below = ""
        elif kind == "sentinel":
            master, _, below = below.partition("/")
            if not master:
                raise ValueError("the name of the master is missing")
        hosts = () if kind == "unix" else _hosts(netloc, kind)
        database = _database(below, options.get("db", ""), kind)
        username, _, password = (_decoded(part) for part in login.partition(":"))
        socket_path = _decoded(path) if kind == "unix" else ""
        known_login = (username, password) if at else None
        return cls(scheme, known_login, netloc, path, hosts, socket_path, _decoded(master), database, options)


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
            parts = _Parts.of(url)
        except ValueError as exc:
            raise ValueError(f"{redact_url(url)!r} is not a valid Redis URL: {exc}; use {FORMS}") from None
        options = parts.options
        username, password = parts.login or ("", "")
        credentials = _credentials(username or options.get("username", ""), password or options.get("password", ""))
        if credentials.password_file:
            read_password(credentials.password_file)
        files = TlsFiles(*(options.get(name, "") for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")))
        return cls(
            parts.kind,
            parts.hosts,
            parts.socket_path,
            parts.master,
            parts.database,
            credentials,
            files if parts.tls else None,
            Credentials(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("what it percent-encodes is not UTF-8 text") from None


def _database(path: str, option: str, kind: str) -> int:
    for text, where in ((path, "behind the hosts and /"), (option, "behind db=")):
        if not re.fullmatch("[0-9]{0,6}", text):
            raise ValueError(f"the database, {where}, is not a number")
    database = int(option or path or 0)
    if kind == "cluster" and database:
        raise ValueError("a Cluster has no database but 0")
    return database


def _options(query: str, known: frozenset[str]) -> dict[str, str]:
    """Return the options after ``?``: decoded as forms are, so that + is a space."""
    found: dict[str, str] = {}
    for each in query.split("&") if query else ():
        name, equals, value = (_decoded(part.replace("+", " ")) for part in each.partition("="))
        if not equals:
            raise ValueError("what follows '?' is not NAME=VALUE&NAME=VALUE")
        if name in ("ssl_cert_reqs", "ssl_check_hostname"):
            raise ValueError(f"{name} is refused, certificates are always verified: name your CA by ssl_ca_certs")
        if name not in known:
            named = f" {name!r}" if name in _OPTIONS_OF_OTHERS | _SENTINEL_OPTIONS | _TLS_OPTIONS else ""
            raise ValueError(f"it has an unknown option{named}; known here are {', '.join(sorted(known))}")
        found[name] = value
    return found


def _hosts(netloc: str, kind: str) -> tuple[tuple[str, int], ...]:
    each = netloc.split(",")
    if kind == "node" and len(each) > 1:
        raise ValueError("it names several hosts")
    default_port = SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    return tuple(_host(text, f"host {number} of {len(each)}", default_port) for number, text in enumerate(each, 1))


def _host(text: str, which: str, default_port: int) -> tuple[str, int]:
    matched = _HOST_PORT.fullmatch(text)
    if matched is None or not 1 <= int(matched[3] or default_port) <= 65535:
        raise ValueError(f"{which} is not HOST:PORT, with a port from 1 to 65535 and [ ] around an IPv6 address")
    if matched[1] is not None and not _is_ipv6(matched[1].replace("%25", "%", 1)):
        raise ValueError(f"{which} has [ ] around something other than an IPv6 address")
    # RFC 6874 writes the % before a zone as %25.
    host = re.sub("%25(?=.)", "%", matched[1] or "") or matched[2]
    if not host and which != "host 1 of 1":
        raise ValueError(f"{which} is empty")
    return host or "localhost", int(matched[3] or default_port)


def _is_ipv6(text: str) -> bool:
    """Whether this is an IPv6 address, perhaps with a zone: ``fe80::1%eth0``."""
    address, percent, zone = text.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, UnicodeError, ValueError):
        return False
    return not percent or _ZONE.fullmatch(zone) is not None


def _credentials(username: str, password: str) -> Credentials:
    username = username or os.environ.get(USERNAME_VARIABLE, "")
    if password:
        return Credentials(username, password)
    path = os.environ.get(PASSWORD_FILE_VARIABLE, "")
    if path:
        return Credentials(username, "", path)
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if not _is_utf8(password):
        raise ValueError(f"{PASSWORD_VARIABLE} is not UTF-8 text")
    return Credentials(username, password)
