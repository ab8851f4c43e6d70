"""importing: the session profiles that a site has already -> servers and profiles of fleet.toml, as `[import]` asks.

x2gobroker's session profiles and the sessions file of X2Go Client are INI files that their own readers take with a
shrug: a key in the wrong case, a port they can't read, a comment behind a value lead to another server than was meant,
and nothing is said. Here each of these is an InventoryError with file, line, key, reason and remedy; what is accepted
means what x2gobroker 0.0.4.3 and python-x2go 0.6.1.3 read.
"""

from __future__ import annotations

import ast
import configparser
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from x2gofleet.errors import InventoryError
from x2gofleet.keys import is_server_id, is_username

Source = Literal["x2gobroker", "x2goclient"]

_READ = ("name", "host", "sshport", "user", "key", "directrdp")
_NEVER_READ = {"hosts": "host", "hostname": "host", "port": "sshport", "ssh-port": "sshport", "ssh_port": "sshport"}
_TRUE, _FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_PLAIN_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*\Z")
# The names that x2gobroker takes: before an address a single label, or a name with domain of which no part begins with
# a digit and the last is letters; as an address the latter, or letters alone.
_BROKER_LABEL = re.compile(rf"{_LABEL}\Z")
_BROKER_DOMAIN = re.compile(r"(?=.{1,254}\Z)(?:(?![0-9-])[A-Za-z0-9-]{1,63}(?<!-)\.?)+[A-Za-z]{2,}\Z")
# python-x2go takes a section for none of a profile where its name is a part of this word.
_CLIENT_NO_PROFILE = "embedded"
_INDENTED = re.compile(r"(?:\[.*\]|(?:name|host|sshport|user|key)\s*[=:].*)\Z")


@dataclass(frozen=True, slots=True)
class ImportedHost:
    """One server as a session profile names it; ``name`` is the address where the file gives only that."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ImportedProfile:
    """One session profile: ``name`` is the fleet's name for it, ``user`` and ``key`` are '' where none is fixed."""

    source: Source
    path: str
    name: str
    hosts: tuple[ImportedHost, ...]
    user: str
    key: str
    line: int
    host_line: int


def read_x2gobroker(path: str) -> tuple[ImportedProfile, ...]:
    """Read x2gobroker's session profiles (x2gobroker-sessionprofiles.conf); a profile's name is its section's.

    Profiles with ``directrdp`` on have no X2Go server and are left out. Raises InventoryError.
    """
    file = _IniFile(path)
    for section in file.sections():
        if section.casefold() in ("default", "defaults"):
            file.fail(
                section, "", "it is read as a profile of this name", "write [DEFAULT] for what all profiles share"
            )
        if section in _READ:
            reason = f"because of it x2gobroker ignores the key {section!r} of every profile"
            file.fail(section, "", reason, "give the profile another id")
    return tuple(_profiles(file, "x2gobroker", lambda section: section, _broker_hosts))


def read_x2goclient(path: str) -> tuple[ImportedProfile, ...]:
    """Read the sessions file of X2Go Client and python-x2go; a profile's name is its ``name``.

    Profiles with ``directrdp`` on have no X2Go server and are left out, as is [embedded]. Raises InventoryError.
    """
    file = _IniFile(path)
    if file.has_defaults():
        file.fail("DEFAULT", "", "python-x2go reads it as defaults, X2Go Client as a session", "write its keys out")
    for section in file.sections():
        if section != _CLIENT_NO_PROFILE and section in (*_parts_of(_CLIENT_NO_PROFILE), "none"):
            file.fail(section, "", "python-x2go does not take a section of this name for a profile", "rename it")
        for key in _READ:
            value = file.get(section, key)
            for character, who in (("%", "python-x2go replaces it"), ('"', "only X2Go Client takes it away")):
                if value is not None and character in value:
                    file.fail(section, key, f"{_quoted(value)} has a {character} in it, and {who}", "do without it")
            if value is not None and "\\" in value:
                reason = f"{_quoted(value)} has a \\ in it, and only X2Go Client takes it for an escape"
                file.fail(section, key, reason, "do without it")

    def named(section: str) -> str:
        name = file.get(section, "name")
        if not name:
            file.fail(section, "name", "the name is missing", "X2Go Client shows sessions by name: name=...")
        return name

    return tuple(_profiles(file, "x2goclient", named, _client_hosts))


READERS: Mapping[str, Callable[[str], tuple[ImportedProfile, ...]]] = {
    "x2gobroker": read_x2gobroker,
    "x2goclient": read_x2goclient,
}
"""What `[import]` may hold, and the function that reads the file that it names."""


@dataclass(slots=True)
class Imported:
    """What imported profiles come to, in the form of fleet.toml, over what stands in that.

    ``origins``: the file, line and key name that a table came from, by its place: ``("servers", "ts01")``.
    """

    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[str, str], tuple[str, int, str]] = field(default_factory=dict)


def merge(
    imported: Iterable[ImportedProfile], servers: Mapping[str, Any], profiles: Mapping[str, Any], default_port: int
) -> Imported:
    """Bring imported profiles into the tables ``servers`` and ``profiles`` of a fleet.toml, whose own settings win.

    A host is the server of fleet.toml whose id or ``hostname`` is its name, with or without the domain, or whose
    ``host`` and ``port`` it has; else it becomes a server of its own. Its id is the name without the domain where no
    other has that, else the whole name, an IPv6 address with ``-`` for ``:``. Raises InventoryError.
    """
    everything = list(imported)
    merged = Imported(servers=dict(servers), profiles=dict(profiles))
    known = _Servers(merged, everything, default_port)
    named: dict[str, ImportedProfile] = {}
    for profile in everything:
        where = "name" if profile.source == "x2goclient" else ""
        if profile.name in named or profile.name in profiles:
            twin = named.get(profile.name)
            other = f"{twin.path}:{twin.line}" if twin else "[profiles] of the inventory"
            _fail(profile, where, profile.line, f"{profile.name!r} is a profile in {other} too", "rename one of them")
        named[profile.name] = profile
        ids = [known.id_of(profile, host) for host in profile.hosts]
        for name, host in zip(ids, profile.hosts, strict=True):
            if ids.count(name) > 1:
                _fail(profile, "host", profile.host_line, f"{host.name} is named twice, as {name}", "name each once")
        table: dict[str, Any] = {"servers": ids}
        if profile.source == "x2goclient" and profile.user and profile.key:
            table.update(user=profile.user, key_file=profile.key)
        merged.profiles[profile.name] = table
        merged.origins["profiles", profile.name] = profile.path, profile.line, profile.name
    known.log_in_as_users()
    return merged


class _Servers:
    """Finds the server that a host is, among those of fleet.toml and of earlier profiles, or makes it."""

    def __init__(self, merged: Imported, imported: Iterable[ImportedProfile], default_port: int) -> None:
        self._merged, self._default_port = merged, default_port
        self._own = {name: table for name, table in merged.servers.items() if isinstance(table, dict)}
        self._made: dict[str, ImportedHost] = {}
        names = {host.name.casefold() for profile in imported for host in profile.hosts}
        self._shared = {short for short in map(_short, names) if sum(_short(name) == short for name in names) > 1}

    def id_of(self, profile: ImportedProfile, host: ImportedHost) -> str:
        own = self._listed(profile, host)
        if own is not None:
            self._fill(profile, own, host)
            return own
        for name, made in self._made.items():
            if (made.address.casefold(), made.port) == (host.address.casefold(), host.port):
                return name
        name = self._new_id(host)
        if name in self._merged.servers:
            twin = self._made.get(name)
            reason = f"{host.name} ({host.address} port {host.port}) would get the id {name}, which "
            reason += f"{twin.name} ({twin.address} port {twin.port}) has" if twin else "another server has"
            _fail(
                profile, "host", profile.host_line, reason, "list it as a server of its own: [servers.ID], host = ..."
            )
        if not is_server_id(name):
            _fail(profile, "host", profile.host_line, f"{host.name!r} makes no server id", "list it under [servers.ID]")
        self._made[name] = host
        self._merged.servers[name] = {"host": host.address, "port": host.port}
        self._merged.origins["servers", name] = profile.path, profile.host_line, f"{profile.name}.host"
        return name

    def _listed(self, profile: ImportedProfile, host: ImportedHost) -> str | None:
        """Return the id of the server of fleet.toml that a host is."""
        name = host.name.casefold()
        called = {
            own: {own.casefold(), *([str(table["hostname"]).casefold()] if table.get("hostname") else [])}
            for own, table in self._own.items()
        }
        found = [own for own, names in called.items() if name in names]
        found = found or [
            own
            for own, table in self._own.items()
            if str(table.get("host", "")).casefold() in (host.address.casefold(), name)
            and table.get("port", self._default_port) == host.port
        ]
        if not found and _short(name) not in self._shared:
            found = [own for own, names in called.items() if any(_same_but_for_domain(name, each) for each in names)]
        if len(found) > 1:
            reason = f"{host.name} may be each of the servers {', '.join(found)}"
            _fail(profile, "host", profile.host_line, reason, "give these servers ids and hostnames that differ")
        return found[0] if found else None

    def _fill(self, profile: ImportedProfile, own: str, host: ImportedHost) -> None:
        """Give a server of fleet.toml the address that it does not state itself."""
        if "host" in self._own[own]:
            return
        table = self._merged.servers[own]
        made = self._made.setdefault(own, host)
        if (made.address, made.port) != (host.address, host.port):
            reason = f"{own} has the address {made.address} port {made.port} in another profile"
            _fail(profile, "host", profile.host_line, reason, f"say which is right: [servers.{own}] with host = ...")
        self._merged.servers[own] = {"host": host.address, "port": host.port, **table}

    def log_in_as_users(self) -> None:
        """Give servers of which only profiles with a user and key tell their login: no other one is needed."""
        tables = [table for table in self._merged.profiles.values() if isinstance(table, dict)]
        for name in self._made:
            naming = [table for table in tables if name in _listed(table.get("servers"))]
            if name not in self._own and naming and all("user" in table for table in naming):
                login: dict[str, Any] = {key: naming[0][key] for key in ("user", "key_file") if key in naming[0]}
                self._merged.servers[name] = {**self._merged.servers[name], **login, "scope": "user"}

    def _new_id(self, host: ImportedHost) -> str:
        name = host.name.casefold()
        if _is_address(name):
            return name.replace(":", "-").strip("-")
        return name if _short(name) in self._shared else _short(name)


def _profiles(
    file: _IniFile, source: Source, named: Callable[[str], str], hosts: Callable[..., tuple[ImportedHost, ...]]
) -> Iterable[ImportedProfile]:
    seen: dict[str, int] = {}
    for section in file.sections():
        if source == "x2goclient" and section == _CLIENT_NO_PROFILE:
            continue
        file.check_keys(section)
        if file.flag(section, "directrdp"):
            continue
        name, user, key = named(section), file.get(section, "user") or "", file.get(section, "key") or ""
        if not name.isprintable() or name != name.strip():
            file.fail(section, "name", f"{_quoted(name)} is no profile name", "use printable characters")
        if name in seen:
            reason = f"line {seen[name]} has a profile named {_quoted(name)} too, and python-x2go renames both"
            file.fail(section, "name", reason, "give each its own name")
        seen[name] = file.line(section, "name" if source == "x2goclient" else "")
        port = file.get(section, "sshport")
        number = 22 if port is None else _port(port)
        if number is None:
            file.fail(section, "sshport", f"{_quoted(port or '')} is no port", "use a number from 1 to 65535")
        found = hosts(file, section, number)
        names = [host.name.casefold() for host in found]
        for twin in names:
            if names.count(twin) > 1:
                file.fail(section, "host", f"{twin} is named twice", "name each server once")
        fixed = source == "x2goclient" and user and key
        if fixed and not is_username(user):
            file.fail(section, "user", f"{_quoted(user)} is no user name", "use letters, digits, '.', '_', '-' and '@'")
        if fixed and not key.startswith(("/", "~/")):
            file.fail(section, "key", f"{_quoted(key)} is no full path", "write it from / or ~/ on")
        yield ImportedProfile(
            source, file.path, name, found, user, key, file.line(section, ""), file.line(section, "host")
        )


def _hosts_of(file: _IniFile, section: str, *, python_lists: bool) -> list[str]:
    value = file.get(section, "host")
    if value is None:
        who = "x2gobroker takes localhost" if python_lists else "python-x2go takes server.mydomain"
        file.fail(section, "host", f"the host is missing, and {who}", "name the server: host=ts01.example.org")
    value = value.strip()
    entries = value.split(",")
    if value.startswith("[") and value.endswith("]"):
        listed = _literal(value)
        if not python_lists or listed is None:
            who = "x2gobroker and python-x2go evaluate" if listed is None else "python-x2go alone evaluates"
            reason = f"{_quoted(value)} begins and ends with a bracket, which {who} as Python"
            file.fail(section, "host", reason, "write names and addresses without brackets, split by commas")
        # x2gobroker leaves the entries of such a list as they are: a space makes another name.
        entries = [entry for entry in listed if entry]
        if any(entry != entry.strip() for entry in entries):
            file.fail(section, "host", f"{_quoted(value)} has spaces around a name", "take them out")
    entries = [entry.strip() for entry in entries]
    if not any(entries):
        file.fail(section, "host", "the host is empty", "name the server: host=ts01.example.org")
    if "" in entries:
        file.fail(section, "host", f"{_quoted(value)} has an empty host in it", "take the extra comma out")
    return entries


def _broker_hosts(file: _IniFile, section: str, port: int) -> tuple[ImportedHost, ...]:
    return tuple(_broker_host(file, section, entry, port) for entry in _hosts_of(file, section, python_lists=True))


def _broker_host(file: _IniFile, section: str, entry: str, default_port: int) -> ImportedHost:
    """Read ``name``, ``name (address)`` or ``name (address:port)``."""

    def fail(reason: str, mend: str) -> NoReturn:
        file.fail(section, "host", f"{_quoted(entry)}: {reason}", mend)

    if entry.count("(") != entry.count(")") or entry.count("(") > 1:
        fail("the parentheses don't match", "write name (address:port)")
    if "(" not in entry:
        _plain_host(file, section, entry, "name (address:port)")
        return ImportedHost(entry, entry, default_port)
    parts = re.fullmatch(r"([^ ]+) \(([^ ()]+)\)", entry)
    if parts is None:
        fail("x2gobroker reads no address from it", "write name, one space, and (address) or (address:port)")
    name, text = parts[1], parts[2]
    if _BROKER_LABEL.match(name) is None and _BROKER_DOMAIN.match(name) is None:
        fail(
            f"{name} is no name with which x2gobroker takes an address: it would use the name in its place",
            "use letters, digits and '-', of a domain's parts none that begins with a digit",
        )
    if text.startswith("["):
        fail("x2gobroker drops an address in brackets", "write an IPv6 address without them, as in 2001:db8::1:22")
    if text.startswith("::"):
        fail("x2gobroker takes the colons at its beginning away", "write the address out, as in 0:0:0:0:0:0:0:1:22")
    address, port = text, default_port
    head, colon, tail = text.rpartition(":")
    if colon and re.fullmatch(r"[0-9]+", tail):
        # Of an IPv6 address too, where its last group is a decimal number.
        if head.count(":") and not _is_ipv6(head):
            mend = f"say the port: {text}:{default_port}" if _is_ipv6(text) else "write an IP address"
            fail(f"x2gobroker takes the last {tail} for a port, and {head} is no address", mend)
        given = _port(tail)
        if given is None:
            fail(f"{tail} is no port", "use a number from 1 to 65535")
        address, port = head, given
    elif colon and not _is_ipv6(text):
        fail(f"{_quoted(tail)} is no port", "write (address:port) with a number from 1 to 65535")
    if not (_is_address(address) or _BROKER_DOMAIN.match(address)):
        fail(
            f"{address} is no address that x2gobroker takes: it would use {name} in its place",
            "write an IP address, or a name of whose parts none begins with a digit and the last is letters",
        )
    return ImportedHost(name, address, port)


def _client_hosts(file: _IniFile, section: str, port: int) -> tuple[ImportedHost, ...]:
    found = []
    for entry in _hosts_of(file, section, python_lists=False):
        _plain_host(file, section, entry, "the port as sshport")
        found.append(ImportedHost(entry, entry, port))
    return tuple(found)


def _plain_host(file: _IniFile, section: str, entry: str, way: str) -> None:
    """Refuse what is neither a host name nor an IP address."""
    if _is_address(entry) or (_HOST_NAME.match(entry) and not re.fullmatch(r"[0-9.]+", entry)):
        return
    reason = f"{_quoted(entry)} is neither a host name nor an IP address"
    mend = "list each server by itself"
    if re.search(r"\s[#;]", entry):
        mend = "a comment needs a line of its own"
    elif entry.startswith("["):
        mend = "write an IPv6 address without brackets"
    elif re.fullmatch(r"[^:]+:\d+", entry):
        mend = f"write {way}"
    elif "@" in entry:
        mend = "write the user as user="
    file.fail(section, "host", reason, mend)


class _IniFile:
    """An INI file as configparser reads it with case kept and no interpolation; knows the line of each key."""

    def __init__(self, path: str) -> None:
        self.path = path
        text = self._text()
        self._lines = text.split("\n")
        self._parser = configparser.RawConfigParser()
        self._parser.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            self._parser.read_string(text, path)
        except configparser.DuplicateSectionError as exc:
            self._refuse(f"[{exc.section}]", exc.lineno, "the section is in the file twice", "make them one")
        except configparser.DuplicateOptionError as exc:
            key = f"[{exc.section}] {exc.option}"
            self._refuse(key, exc.lineno, "the key is in its section twice", "take one out")
        except configparser.MissingSectionHeaderError as exc:
            self._refuse("", exc.lineno, "there is no [section] before it", "begin a profile: [id]")
        except configparser.ParsingError as exc:
            line = exc.errors[0][0] if exc.errors else None
            self._refuse("", line, "it is neither [section] nor key=value", "correct it, or make it a comment by a #")
        for section in self.sections():
            if not section.strip() or section != section.strip() or not section.isprintable():
                self.fail(
                    section, "", f"{_quoted(section)} is no name for a section", "write it without spaces around it"
                )
        self._refuse_continuations()

    def _text(self) -> str:
        try:
            raw = Path(self.path).read_bytes()
        except FileNotFoundError:
            self._refuse("", None, "there is no such file", "correct [import] in the inventory, or put the file there")
        except OSError as exc:
            mend = f"see that it is a file that uid {os.getuid()} may read"
            self._refuse("", None, f"it can't be read: {exc.strerror or exc}", mend)
        if raw.startswith(b"\xef\xbb\xbf"):
            self._refuse("", 1, "it begins with a byte order mark", "save it as UTF-8 without one")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            self._refuse("", raw.count(b"\n", 0, exc.start) + 1, "it is no UTF-8 text", "save it as UTF-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _refuse_continuations(self) -> None:
        """Refuse lines that are indented, and so are taken for more of the value above."""
        for section in ("DEFAULT", *self.sections()):
            for key, value in self._items(section).items():
                more = value.split("\n")[1:]
                wrong = next((part for part in more if key in _READ or _INDENTED.match(part)), None)
                if wrong is not None:
                    reason = f"{_quoted(wrong)} is indented, and so is taken for more of {key}"
                    self.fail(section, key, reason, "begin the line without a space", after=wrong)

    def sections(self) -> list[str]:
        return self._parser.sections()

    def has_defaults(self) -> bool:
        return any(self._header(line) == "DEFAULT" for line in self._lines)

    def get(self, section: str, key: str) -> str | None:
        """Return a value as the originals read it, [DEFAULT] counted in; None where there is none."""
        return self._parser.get(section, key, fallback=None)

    def flag(self, section: str, key: str) -> bool:
        value = (self.get(section, key) or "0").casefold()
        if value not in (*_TRUE, *_FALSE):
            self.fail(section, key, f"{_quoted(value)} is neither true nor false", "write true or false")
        return value in _TRUE

    def check_keys(self, section: str) -> None:
        """Refuse keys that look like one of those that are read, and that no original reads."""
        for key in self._items(section):
            wanted = _NEVER_READ.get(key.casefold())
            if key not in _READ and key.casefold() in _READ:
                wanted = key.casefold()
            if wanted is not None:
                self.fail(section, key, f"nobody reads a key {key!r}", f"did you mean {wanted!r}?")

    def _items(self, section: str) -> dict[str, str]:
        return dict(self._parser.items(section) if section != "DEFAULT" else self._parser.defaults())

    @staticmethod
    def _header(line: str) -> str | None:
        found = re.match(r"\[(.+)\]", line.strip())
        return found[1] if found and not line.strip().startswith(("#", ";")) else None

    def line(self, section: str, key: str, after: str = "") -> int:
        """Return the line of a key of a section, else that of the key in [DEFAULT], else of the section."""
        found = dict.fromkeys((section, "DEFAULT"), 0)
        current: str | None = None
        for number, text in enumerate(self._lines, 1):
            header = self._header(text)
            if header is not None and text[:1].strip():
                current = header
                if current == section:
                    found[""] = number
            elif current in (section, "DEFAULT") and re.match(rf"\s*{re.escape(key)}\s*[=:]", text) and key:
                found[current] = found[current] or number
        number = found[section] or (found["DEFAULT"] if key else 0) or found.get("", 0) or 1
        if after:
            rest = enumerate(self._lines[number:], number + 1)
            number = next((at for at, text in rest if text.strip() == after), number)
        return number

    def fail(self, section: str, key: str, reason: str, mend: str, *, after: str = "") -> NoReturn:
        self._refuse(f"[{section}] {key}".strip(), self.line(section, key, after), reason, mend)

    def _refuse(self, key: str, line: int | None, reason: str, mend: str) -> NoReturn:
        raise InventoryError(self.path, reason, line=line, key=key, mend=mend) from None


def _fail(profile: ImportedProfile, key: str, line: int, reason: str, mend: str) -> NoReturn:
    name = f"[{profile.name}] {key}".strip()
    raise InventoryError(profile.path, reason, line=line, key=name, mend=mend)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _port(text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,5}", text) is None:
        return None
    return int(text) if 1 <= int(text) <= 65535 else None


def _literal(text: str) -> list[str] | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _parts_of(word: str) -> set[str]:
    return {word[start:end] for start in range(len(word)) for end in range(start + 1, len(word) + 1)} - {word}


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return _is_ipv6(text)
    return True


def _short(name: str) -> str:
    return name if _is_address(name) else name.partition(".")[0]


def _same_but_for_domain(one: str, other: str) -> bool:
    return _short(one) == _short(other) and (_short(one) == one or _short(other) == other)


def _quoted(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:79] + "…"
