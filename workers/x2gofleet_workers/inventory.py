"""inventory: fleet.toml, and what it imports -> a validated Fleet; errors say file, line, key, reason and remedy.

A target is one SSH login that is polled. A server of scope ``server`` is one target, named by its id; a profile or
server of scope ``user`` makes targets ``user@server``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from x2gofleet.errors import InventoryError
from x2gofleet.files import NotToml, UnusableFile, load_toml, read_text_file
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.keys import is_server_id, target_id
from x2gofleet.kinds import Kind
from x2gofleet.usernames import RULE, problem_of
from x2gofleet_workers.importing import READERS, Imported, ImportedProfile, LeftOut, merge
from x2gofleet_workers.importing.hosts import comparable
from x2gofleet_workers.shortages import Shortages
from x2gofleet_workers.ssh import Endpoint
from x2gofleet_workers.ssh.faults import exhausted

Scope = Literal["server", "user"]

MIN_TTL_SECONDS = 15.0
DEFAULT_DEADLINE_SECONDS = 10.0
_DEFAULT_INTERVALS = {Kind.SESSIONS: 5.0, Kind.LOAD: 5.0, Kind.MOUNTS: 60.0}
_USER_DESKTOPS_SECONDS = 30.0

log = logging.getLogger(__name__)

_LOGIN_KEYS = (
    *("user", "port", "key_file", "known_hosts", "scope", "command", "listing", "notices"),
    *("database_connection", "deadline"),
)
_SERVER_KEYS = (*_LOGIN_KEYS, "host", "hostname", "labels", "weight", "drain")
_PROFILE_KEYS = ("servers", "labels", "user", "key_file")
# What people expect to be there, without case and underscores.
_SSH_CONFIG = frozenset(
    ("proxyjump", "proxycommand", "jumphost", "bastion", "gateway", "sshconfig", "identityagent", "agent", "sshagent")
)
MAX_PROFILE_SERVERS = 1_000_000
_NAMES_SHOWN = 20
_HOST_MISSING = 'say where the server is: host = "10.0.0.1"'
_TABLES = ("defaults", "intervals", "ttls", "servers", "profiles", "import")


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the inventory; ``hostname`` is the name its session rows carry, "" where any will do."""

    id: str
    host: str
    port: int
    hostname: str
    labels: tuple[str, ...]
    weight: float
    drain: bool


@dataclass(frozen=True, slots=True)
class Target:
    """One SSH login that is polled; intervals and ttls in seconds, an interval of 0 switches a kind off.

    ``command``: ``auto`` sends the probe along, ``wrapper`` relies on an installed one. ``listing``: what the rows of
    a server's sessions are made from, ``records`` or ``command``. ``notices``: whether the probe looks for changes
    between polls and says so. ``database_connection``: whether the probe keeps one to PostgreSQL, ``standing``, or
    connects for ``each_poll``.
    """

    id: str
    server: str
    scope: Scope
    endpoint: Endpoint
    command: str
    listing: str
    notices: bool
    database_connection: str
    hostname: str
    deadline_seconds: float
    intervals: Mapping[Kind, float]
    ttls: Mapping[Kind, float]

    @property
    def username(self) -> str | None:
        """The one user whose sessions are listed, None in scope ``server``."""
        return self.endpoint.user if self.scope == "user" else None


@dataclass(frozen=True, slots=True)
class Fleet:
    """A validated inventory.

    ``imported`` are the further files that it was read from, ``left_out`` the names of the profiles in them that are
    not used, ``warnings`` what is to be said of those.
    """

    path: str
    servers: Mapping[str, Server]
    targets: Mapping[str, Target]
    profiles: Mapping[str, tuple[str, ...]]
    imported: tuple[str, ...] = field(default=(), compare=False)
    left_out: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def published(self) -> PublishedFleet:
        """Return what readers need of it; the version is a digest of that and of how targets are polled."""
        fleet = PublishedFleet(
            {
                server.id: PublishedServer(
                    server.id, server.hostname or server.id, server.labels, server.weight, server.drain
                )
                for server in self.servers.values()
            },
            {
                target.id: PublishedTarget(
                    target.id, target.server, target.scope, target.username, frozenset(polled_kinds(target))
                )
                for target in self.targets.values()
            },
            self.profiles,
            left_out=self.left_out,
        )
        return replace(fleet, version=self._digest(fleet))

    def _digest(self, published: PublishedFleet) -> str:
        # Without the paths of keys, which differ from one machine to another. `listing` only where it is set: workers
        # of versions without it must come to the same digest for the same file. True: that the file has an interval of
        # sessions, which had another default.
        polled = [
            (
                *(target.id, target.endpoint.host, target.endpoint.port, target.endpoint.user, target.command),
                *((target.listing,) if target.listing != "records" else ()),
                *(() if target.notices else ("no notices",)),
                *(() if target.database_connection == "standing" else (target.database_connection,)),
                *(target.hostname, target.deadline_seconds, True),
                *(target.intervals[kind] for kind in Kind),
                *(target.ttls[kind] for kind in Kind),
            )
            for target in self.targets.values()
        ]
        return hashlib.blake2b(f"{published.to_json()}{json.dumps(polled)}".encode(), digest_size=8).hexdigest()


def polled_kinds(target: Target) -> tuple[Kind, ...]:
    """Return the kinds that a target is polled for by itself."""
    return tuple(kind for kind in Kind if target.intervals[kind] > 0)


def load_inventory(path: str | Path) -> Fleet:
    """Read and validate fleet.toml and the files that it imports; raises InventoryError."""
    name = str(path)
    try:
        text = read_text_file(path)
    except UnusableFile as exc:
        remedy = "give one by --inventory; docs/inventory.md shows an example" if exc.missing else exc.remedy
        raise InventoryError(name, exc.reason, line=exc.line, mend=remedy) from None
    return parse_inventory(text, name)


def parse_inventory(text: str, path: str = "fleet.toml") -> Fleet:
    """Validate the text of a fleet.toml; relative paths in it are relative to ``path``'s folder.

    What it imports is read.
    """
    try:
        raw = load_toml(text)
    except NotToml as exc:
        raise InventoryError(path, f"it is no TOML: {exc.reason}", line=exc.line, mend="see https://toml.io") from None
    return _Reader(text, path).fleet(raw)


class InventoryFile:
    """Follows the files that a Fleet was read from. What can't be used is refused, and the old inventory stays.

    ``published`` is what readers are told of the inventory in force. Its version orders inventories: the time of the
    newest file in ms (of the change, where it was seen: by ``now_ms``, the clock of Redis, where that is known), then a
    digest of the content.
    """

    def __init__(
        self,
        fleet: Fleet,
        now_ms: Callable[[], int | None] = lambda: None,
        shortages: Shortages | None = None,
    ) -> None:
        self._fleet, self._now_ms = fleet, now_ms
        self._shortages = shortages or Shortages()
        self._files = (fleet.path, *fleet.imported)
        self._seen = self._settling = _identities(self._files)
        self._look = False
        times_ns = [identity[0] for identity in self._seen if identity]
        stamp_ms = max(times_ns) // 1_000_000 if times_ns else int(time.time() * 1000)
        self.published = _versioned(fleet, stamp_ms)
        self.error = ""
        self.warnings = fleet.warnings
        for warning in fleet.warnings:
            log.warning("%s", warning)

    def look_again(self) -> None:
        """Have the next ``changed`` read the files whether they look changed or not."""
        self._look = True

    def changed(self) -> Fleet | None:
        """Return the inventory where the files hold another one now; None where not, or where it can't be used.

        To be called now and then: a changed file is read at the first call that finds it as the call before did.
        """
        identity = _identities(self._files)
        settled, self._settling = identity == self._settling, identity
        # A part of a file that is being written may be a good inventory of fewer servers.
        if not self._look and (identity == self._seen or not settled):
            return None
        self._seen, asked, self._look = identity, self._look, False
        try:
            fleet = load_inventory(self._fleet.path)
        except InventoryError as exc:
            lack = exhausted(exc)
            if lack is not None:
                # The file is not at fault: read it again at the next call.
                self._look = True
                self._shortages.occurred(lack, f"the changed inventory {exc.path} can't be read")
                return None
            if asked or str(exc) != self.error:
                log.error("the changed inventory is refused, the one before stays in force: %s", exc)
            self.error = str(exc)
            # The file at fault may be one that the inventory in force does not import.
            self._follow((self._fleet.path, *self._fleet.imported, exc.path))
            return None
        self.error = ""
        for warning in fleet.warnings:
            if asked or warning not in self.warnings:
                log.warning("%s", warning)
        self.warnings = fleet.warnings
        self._follow((fleet.path, *fleet.imported))
        if fleet == self._fleet:
            self._fleet = fleet
            return None
        self._fleet = fleet
        self.published = _versioned(fleet, self._now_ms() or int(time.time() * 1000))
        return fleet

    def _follow(self, files: tuple[str, ...]) -> None:
        files = tuple(dict.fromkeys(files))
        if files != self._files:
            # Of files that were followed before, what was read is what was seen then.
            known = dict(zip(self._files, self._seen, strict=True))
            self._files = files
            now = _identities(files)
            self._seen = tuple(known.get(name, found) for name, found in zip(files, now, strict=True))
            self._settling = now


def _versioned(fleet: Fleet, stamp_ms: int) -> PublishedFleet:
    published = fleet.published()
    return replace(published, version=f"{stamp_ms:013d}-{published.version}")


def _identities(paths: Iterable[str]) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_identity(path) for path in paths)


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Reader:
    """Validates one document; knows where in the text each key stands."""

    def __init__(self, text: str, path: str) -> None:
        self._lines = text.split("\n")
        self._path = path
        self._raw: dict[str, Any] = {}
        self._imported = Imported()
        self._warnings: list[str] = []

    def fleet(self, raw: dict[str, Any]) -> Fleet:
        self._raw = raw
        self._known((), raw, _TABLES)
        for name in raw:
            self._table((), raw, name)
        files = self._files_to_import(raw)
        strict = self._strict(raw)
        if files:
            raw = self._raw = self._with_imported(raw, files)
            if strict:
                self._raise_left_out()
        defaults = self._table((), raw, "defaults")
        self._known(("defaults",), defaults, _LOGIN_KEYS)
        intervals, ttls = self._seconds(raw, "intervals"), self._seconds(raw, "ttls")
        tables = self._table((), raw, "servers")
        if not tables:
            self._raise_left_out()
            reason = "there is no server" + (
                f", nor a profile with one in {', '.join(files.values())}" if files else ""
            )
            self._fail(("servers",), "", reason, 'add one: [servers.ts01] with host = "10.0.0.1"')
        servers: dict[str, Server] = {}
        logins: dict[str, dict[str, Any]] = {}
        targets: dict[str, Target] = {}
        by_server: dict[str, str] = {}
        addresses: dict[tuple[str, int], str] = {}
        for name in tables:
            table = self._table(("servers",), tables, name)
            servers[name] = self._server(name, table, defaults)
            logins[name] = {**defaults, **table}
            self._twin(servers[name], addresses)
            where = ("servers", name)
            scope, user = self._scope(where, logins[name]), self._user(where, logins[name])
            target = self._target(where, servers[name], logins[name], scope, user, intervals, ttls)
            targets[target.id] = target
            by_server[name] = target.id
        profiles: dict[str, tuple[str, ...]] = {}
        by_label: dict[str, list[str]] = {}
        for labelled in servers.values():
            for label in dict.fromkeys(labelled.labels):
                by_label.setdefault(label, []).append(labelled.id)
        members = 0
        profile_tables = self._table((), raw, "profiles")
        for name in profile_tables:
            table = self._table(("profiles",), profile_tables, name)
            if not name or not name.isprintable():
                self._fail(("profiles", name), "", f"{_shown(name)} is no profile name", "use printable characters")
            chosen = self._profile_servers(name, table, servers, by_label)
            members += len(chosen)
            if members > MAX_PROFILE_SERVERS:
                reason = f"with this one the profiles name servers more than {MAX_PROFILE_SERVERS} times"
                self._fail(("profiles", name), "", reason, "use fewer profiles, or profiles of fewer servers")
            if "user" not in table:
                if "key_file" in table:
                    self._fail(("profiles", name), "key_file", "a key_file needs a user", "say whose key it is")
                profiles[name] = tuple(by_server[server] for server in chosen)
                continue
            made: dict[str, Target] = {}
            for server in chosen:
                login = dict(logins[server])
                login.update((key, table[key]) for key in ("user", "key_file") if key in table)
                user = self._user(("profiles", name), login)
                target = self._target(("profiles", name), servers[server], login, "user", user, intervals, ttls)
                twin = targets.get(target.id)
                if twin is not None and twin.endpoint != target.endpoint:
                    reason = f"{target.id} is polled with another key_file already ({twin.endpoint.key_file})"
                    self._clash(name, reason, "use one key for one user on one server", strict=strict)
                    break
                made[target.id] = twin or target
            else:
                targets.update(made)
                profiles[name] = tuple(made)
        used = {target for ids in profiles.values() for target in ids}
        polled_as_users = {target.server for target in targets.values() if target.scope == "user"}
        kept = {
            name: target
            for name, target in targets.items()
            if target.scope == "user" or name in used or target.server not in polled_as_users
        }
        left_out = self._imported.left_out
        if left_out and not kept:
            self._raise_left_out()
        return Fleet(
            self._path,
            servers,
            kept,
            profiles,
            tuple(files.values()),
            frozenset(each.name for each in left_out),
            tuple(f"{each.error}. The profile {_shown(each.name)} is left out" for each in left_out)
            + tuple(self._warnings),
        )

    def _strict(self, raw: dict[str, Any]) -> bool:
        strict = self._table((), raw, "import").get("strict", False)
        if not isinstance(strict, bool):
            self._fail(("import",), "strict", f"{_shown(strict)} is not a boolean", "use true or false")
        return strict

    def _raise_left_out(self) -> None:
        """Raise what is wrong with the first profile that was left out, if there is one."""
        if self._imported.left_out:
            raise self._imported.left_out[0].error

    def _clash(self, name: str, reason: str, remedy: str, *, strict: bool) -> None:
        """Leave out an imported profile that what stands before it rules out; one of fleet.toml is an error."""
        try:
            self._fail(("profiles", name), "key_file", reason, remedy)
        except InventoryError as exc:
            if strict or ("profiles", name) not in self._imported.origins:
                raise
            self._imported.left_out.append(LeftOut(name, exc))

    def _files_to_import(self, raw: dict[str, Any]) -> dict[str, str]:
        """Return the full path of each file of [import], by its kind."""
        table = self._table((), raw, "import")
        self._known(("import",), table, (*READERS, "strict"))
        keys = [key for key in table if key in READERS]
        return {key: self._full_path(("import",), key, self._text(("import",), table, key)) for key in keys}

    def _with_imported(self, raw: dict[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
        """Return the document with the imported servers and profiles in it."""
        found: list[ImportedProfile] = []
        left_out: list[LeftOut] = []
        for key, path in files.items():
            found.extend(READERS[key](path, left_out))
        port = self._table((), raw, "defaults").get("port", 22)
        servers, profiles = self._table((), raw, "servers"), self._table((), raw, "profiles")
        self._imported = merge(found, left_out, servers, profiles, port)
        return {**raw, "servers": self._servers_with_host(), "profiles": self._imported.profiles}

    def _servers_with_host(self) -> dict[str, Any]:
        """Return the servers but for those whose address only a profile that was left out may have said."""
        servers = self._imported.servers
        if not self._imported.left_out:
            return servers
        lacking = [name for name, table in servers.items() if isinstance(table, dict) and "host" not in table]
        for name in lacking:
            line = self._nearest_line(("servers", name), "")
            reason = "host is missing, as the profiles that name this server are left out"
            error = InventoryError(self._path, reason, line=line, key=f"servers.{name}", mend=_HOST_MISSING)
            self._warnings.append(f"{error}. The server {name!r} is left out")
        return {name: table for name, table in servers.items() if name not in lacking}

    def _full_path(self, where: tuple[str, ...], key: str, value: str) -> str:
        try:
            return str((Path(self._path).parent / Path(value).expanduser()).absolute())
        except RuntimeError:
            return self._fail(where, key, f"{_shown(value)}: there is no such user", "write the path without '~'")

    def _server(self, name: str, table: dict[str, Any], defaults: dict[str, Any]) -> Server:
        where = ("servers", name)
        if not is_server_id(name):
            self._fail(where, "", f"{_shown(name)} is no server id", "use letters, digits, '.', '_' and '-'")
        self._known(where, table, _SERVER_KEYS)
        if "host" not in table:
            self._fail(where, "", "host is missing", _HOST_MISSING)
        port = {**defaults, **table}.get("port", 22)
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            self._fail(self._owner(where, "port"), "port", f"{_shown(port)} is no port", "use a number from 1 to 65535")
        weight = table.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1000:
            self._fail(where, "weight", f"{_shown(weight)} is no weight", "use a number above 0, 1.0 is normal")
        drain = table.get("drain", False)
        if not isinstance(drain, bool):
            self._fail(
                where, "drain", f"{_shown(drain)} is neither true nor false", "write true or false without quotes"
            )
        host = self._text(where, table, "host")
        if re.search(r"[\s/@\[\]]", host) or host.count(":") == 1:
            self._fail(
                where, "host", f"{_shown(host)} is no address", 'a name or an IP address alone; see "port", "user"'
            )
        hostname = self._text(where, table, "hostname") if "hostname" in table else ""
        return Server(
            name,
            host,
            port,
            hostname,
            self._texts(where, table, "labels"),
            float(weight),
            drain,
        )

    def _twin(self, server: Server, addresses: dict[tuple[str, int], str]) -> None:
        other = addresses.setdefault((comparable(server.host), server.port), server.id)
        if other != server.id:
            reason = f"{other} has the address {server.host} port {server.port} too"
            self._fail(("servers", server.id), "host", reason, "give each server its own address")

    def _target(
        self,
        where: tuple[str, ...],
        server: Server,
        login: dict[str, Any],
        scope: Scope,
        user: str,
        intervals: Mapping[Kind, float],
        ttls: Mapping[Kind, float],
    ) -> Target:
        paths = {}
        for key in ("key_file", "known_hosts"):
            if key not in login:
                self._fail(
                    where, "", f"{key} is missing", f'set it here or in [defaults]: {key} = "/etc/x2gofleet/..."'
                )
            value = self._text(self._owner(where, key), login, key)
            paths[key] = self._full_path(self._owner(where, key), key, value)
        command = login.get("command", "auto")
        if command not in ("auto", "wrapper"):
            owner = self._owner(where, "command")
            self._fail(owner, "command", f"{_shown(command)} is no way to run the probe", 'use "auto" or "wrapper"')
        listing = login.get("listing", "records")
        if listing not in ("records", "command"):
            owner = self._owner(where, "listing")
            self._fail(owner, "listing", f"{_shown(listing)} is not a valid listing", 'use "records" or "command"')
        notices = login.get("notices", True)
        if not isinstance(notices, bool):
            self._fail(
                self._owner(where, "notices"), "notices", f"{_shown(notices)} is not a boolean", "use true or false"
            )
        database_connection = login.get("database_connection", "standing")
        if database_connection not in ("standing", "each_poll"):
            self._fail(
                self._owner(where, "database_connection"),
                "database_connection",
                f"{_shown(database_connection)} is not a way to connect to the database",
                'use "standing" or "each_poll"',
            )
        deadline = login.get("deadline", DEFAULT_DEADLINE_SECONDS)
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not 1 <= deadline <= 300:
            owner = self._owner(where, "deadline")
            self._fail(
                owner, "deadline", f"{_shown(deadline)} is no deadline", "use seconds from 1 to 300, 10 is normal"
            )
        chosen = _intervals(intervals, scope)
        return Target(
            target_id(server.id, user if scope == "user" else None),
            server.id,
            scope,
            Endpoint(server.host, server.port, user, paths["key_file"], paths["known_hosts"]),
            command,
            listing,
            notices,
            database_connection,
            server.hostname,
            float(deadline),
            chosen,
            self._ttls(ttls, chosen),
        )

    def _ttls(self, ttls: Mapping[Kind, float], intervals: Mapping[Kind, float]) -> dict[Kind, float]:
        found = {}
        for kind, interval in intervals.items():
            # A kind that is only polled on request is kept as long as one that is polled twice a minute.
            found[kind] = ttls.get(kind, max(MIN_TTL_SECONDS, 3 * (interval or _USER_DESKTOPS_SECONDS)))
            if found[kind] <= interval:
                reason = f"{found[kind]:g} s is not longer than the interval of {interval:g} s"
                self._fail(("ttls",), kind.value, reason, "a snapshot must outlive the next poll: use 3 times as long")
        return found

    def _seconds(self, raw: dict[str, Any], name: str) -> dict[Kind, float]:
        table = self._table((), raw, name)
        self._known((name,), table, [kind.value for kind in Kind])
        found = {}
        for key, value in table.items():
            low, high = (0, 86400) if name == "intervals" else (1, 7 * 86400)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                self._fail(
                    (name,), key, f"{_shown(value)} is no number of seconds", f"use a number from {low} to {high}"
                )
            if name == "intervals" and key == Kind.SESSIONS and value == 0:
                self._fail(
                    (name,), key, "sessions can't be switched off: the other kinds use their connection", "use 2"
                )
            if name == "intervals" and 0 < value < 0.1:
                self._fail(
                    (name,), key, f"{_shown(value)} is too short", "use 0.1 s or more, or 0 to switch the kind off"
                )
            found[Kind(key)] = float(value)
        return found

    def _profile_servers(
        self,
        name: str,
        table: dict[str, Any],
        servers: Mapping[str, Server],
        by_label: Mapping[str, list[str]],
    ) -> list[str]:
        where = ("profiles", name)
        self._known(where, table, _PROFILE_KEYS)
        if ("servers" in table) == ("labels" in table):
            self._fail(where, "", "give one of servers and labels", 'for example servers = ["ts01"]')
        if "servers" in table:
            chosen = list(self._texts(where, table, "servers"))
            for server in chosen:
                if server not in servers:
                    self._fail(where, "servers", f"there is no server {_shown(server)}", _nearest(server, servers))
            if len(set(chosen)) != len(chosen):
                self._fail(where, "servers", "a server is named twice", "name each once")
        else:
            labels = dict.fromkeys(self._texts(where, table, "labels"))
            found = dict.fromkeys(server for label in labels for server in by_label.get(label, ()))
            # In the order of the servers.
            chosen = list(found) if len(labels) == 1 else [server for server in servers if server in found]
        if not chosen:
            key = "servers" if "servers" in table else "labels"
            self._fail(where, key, "the profile has no server", "name at least one, or a label that a server has")
        return chosen

    def _scope(self, where: tuple[str, ...], login: dict[str, Any]) -> Scope:
        scope = login.get("scope", "server")
        if scope not in ("server", "user"):
            self._fail(self._owner(where, "scope"), "scope", f"{_shown(scope)} is no scope", 'use "server" or "user"')
        return cast(Scope, scope)

    def _user(self, where: tuple[str, ...], login: dict[str, Any]) -> str:
        if "user" not in login:
            self._fail(where, "", "user is missing", 'say as whom to log in, here or in [defaults]: user = "root"')
        user = self._text(self._owner(where, "user"), login, "user")
        problem = problem_of(user)
        if problem:
            self._fail(self._owner(where, "user"), "user", f"{_shown(user)} is no user name: {problem}", RULE)
        return user

    def _owner(self, where: tuple[str, ...], key: str) -> tuple[str, ...]:
        """Return the table that a merged value stands in."""
        table: Any = self._raw
        for name in where:
            table = table[name]
        return where if key in table else ("defaults",)

    def _table(self, where: tuple[str, ...], raw: dict[str, Any], name: str) -> dict[str, Any]:
        value = raw.get(name, {})
        if not isinstance(value, dict):
            path = ".".join((*where, name))
            self._fail(where, name, f"{name} is no table", f"write it as [{path}]")
        return cast(dict[str, Any], value)

    def _text(self, where: tuple[str, ...], table: dict[str, Any], key: str) -> str:
        value = table[key]
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self._fail(where, key, f"{_shown(value)} is no text", "write it in quotes")
        return value.strip()

    def _texts(self, where: tuple[str, ...], table: dict[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self._fail(where, key, f"{_shown(value)} is no list of texts", f'for example {key} = ["mate"]')
        return tuple(value)

    def _known(self, where: tuple[str, ...], table: dict[str, Any], known: Iterable[str]) -> None:
        names = list(known)
        for key in table:
            if key.lower().replace("_", "").replace("-", "") in _SSH_CONFIG:
                reason = f"{key!r} is not supported: ssh_config, agents, ProxyJump and ProxyCommand are not used"
                self._fail(where, key, reason, 'docs/servers.md, "Servers behind a gate", shows what to do instead')
            if key not in names:
                self._fail(where, key, f"{_shown(key)} is no setting here", _nearest(key, names))

    def _line(self, where: tuple[str, ...], key: str) -> int | None:
        """Return the line of a key, or of its table's header where ``key`` is empty."""
        current: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line)
            if header:
                current = tuple(
                    part.strip().strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[^.]+', header[1])
                )
                if current == where and not key:
                    return number
                if key and current[: len(where) + 1] == (*where, key):
                    return number
            elif key and current == where and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
                return number
        return None

    def _fail(self, where: tuple[str, ...], key: str, reason: str, mend: str) -> NoReturn:
        name = ".".join((*where, key) if key else where)
        origin = self._imported.origins.get((where[0], where[1])) if len(where) > 1 else None
        if origin is not None:
            path, line, what = origin
            raise InventoryError(path, f"as {name}: {reason}", line=line, key=what, mend=mend)
        raise InventoryError(self._path, reason, line=self._nearest_line(where, key), key=name, mend=mend)

    def _nearest_line(self, where: tuple[str, ...], key: str) -> int | None:
        """Return the line of a key, else of its table, else of the table or key that holds it."""
        line = self._line(where, key) if key else None
        while line is None and where:
            line = self._line(where, "") or self._line(where[:-1], where[-1])
            where = where[:-1]
        return line


def _shown(value: Any) -> str:
    """Return a value for a message: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:79] + "…"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there are none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"known: {', '.join(names[:_NAMES_SHOWN])}{more}"


def _intervals(chosen: Mapping[Kind, float], scope: Scope) -> dict[Kind, float]:
    desktops = 0.0 if scope == "server" else _USER_DESKTOPS_SECONDS
    found: dict[Kind, float] = {**_DEFAULT_INTERVALS, Kind.DESKTOPS: desktops, **chosen}
    if scope == "user":
        found[Kind.LOAD] = 0.0
    return found
