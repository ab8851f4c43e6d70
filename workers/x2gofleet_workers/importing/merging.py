"""merging: imported profiles over what stands in fleet.toml, whose own settings win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from x2gofleet.errors import InventoryError
from x2gofleet.keys import is_server_id
from x2gofleet_workers.importing.hosts import comparable, is_address, without_dot
from x2gofleet_workers.importing.ini import quoted
from x2gofleet_workers.importing.model import ImportedHost, ImportedProfile, LeftOut

Address = tuple[str, int]


@dataclass(slots=True)
class Imported:
    """What imported profiles come to, in the form of fleet.toml, over what stands in that.

    ``origins``: the file, line and key name that a table came from, by its place: ``("servers", "ts01")``.
    ``left_out``: the profiles that are not used, in the order in which they were found to be so.
    """

    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[str, str], tuple[str, int, str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def merge(
    imported: Iterable[ImportedProfile],
    left_out: Iterable[LeftOut],
    servers: Mapping[str, Any],
    profiles: Mapping[str, Any],
    default_port: object,
) -> Imported:
    """Bring imported profiles into the tables ``servers`` and ``profiles`` of a fleet.toml, whose own settings win.

    A profile that fleet.toml has itself is taken from there. A host is the server of fleet.toml whose id or
    ``hostname`` is its name, with or without the domain, or whose ``host`` and ``port`` it has; else it is the server
    of an earlier profile with its address and port; else it becomes a server of its own. Its id is the name without the
    domain where no other has that, else the whole name, an IPv6 address with ``-`` for ``:``. Names are not looked up.
    A profile for which that can't be done is left out.
    """
    merged = Imported(servers=dict(servers), profiles=dict(profiles))
    merged.left_out = [each for each in left_out if each.name not in profiles]
    wanted = _without_twins([profile for profile in imported if profile.name not in profiles], merged)
    known = _Servers(merged, wanted, default_port)
    for profile in wanted:
        try:
            ids = known.ids_of(profile)
        except InventoryError as exc:
            merged.left_out.append(LeftOut(profile.name, exc))
            continue
        table: dict[str, Any] = {"servers": ids}
        if profile.source == "x2goclient" and profile.user and profile.key:
            table.update(user=profile.user, key_file=profile.key)
        merged.profiles[profile.name] = table
        merged.origins["profiles", profile.name] = profile.path, profile.line, profile.name
    known.log_in_as_users()
    return merged


def _without_twins(profiles: list[ImportedProfile], merged: Imported) -> list[ImportedProfile]:
    """Return the profiles of which no other, used or not, has the name: which is meant could not be said."""
    counts = Counter(profile.name for profile in profiles)
    doubtful = {each.name for each in merged.left_out}
    first: dict[str, ImportedProfile] = {}
    for profile in profiles:
        twin = first.setdefault(profile.name, profile)
        if twin is not profile:
            reason = f"{quoted(profile.name)} is a profile in {twin.path}:{twin.line} too"
            where = "name" if profile.source == "x2goclient" else ""
            error = _error(profile, where, profile.line, reason, "rename one of them")
            merged.left_out.append(LeftOut(profile.name, error))
    return [profile for profile in profiles if counts[profile.name] == 1 and profile.name not in doubtful]


class _Servers:
    """Finds the server that a host is, among those of fleet.toml and of earlier profiles, or makes it."""

    def __init__(self, merged: Imported, imported: Iterable[ImportedProfile], default_port: object) -> None:
        self._merged = merged
        self._own = {name: table for name, table in merged.servers.items() if isinstance(table, dict)}
        self._made: dict[str, ImportedHost] = {}
        self._at: dict[Address, str] = {}
        self._called: dict[str, list[str]] = {}
        self._called_short: dict[str, list[tuple[str, str]]] = {}
        self._own_at: dict[Address, list[str]] = {}
        for own, table in self._own.items():
            names = dict.fromkeys(_plain(str(name)) for name in (own, table.get("hostname") or own))
            for name in names:
                self._called.setdefault(name, []).append(own)
                self._called_short.setdefault(_short(name), []).append((name, own))
            if "host" in table:
                port = table.get("port", default_port)
                address = comparable(str(table["host"])), port if isinstance(port, int) else 0
                self._own_at.setdefault(address, []).append(own)
        shorts = Counter(_short(name) for name in {_plain(host.name) for each in imported for host in each.hosts})
        self._shared = {short for short, count in shorts.items() if count > 1}

    def ids_of(self, profile: ImportedProfile) -> list[str]:
        """Return the ids of a profile's servers, and make those that are new; raises InventoryError and makes none."""
        found: dict[str, ImportedHost] = {}
        places: dict[Address, str] = {}
        for host in profile.hosts:
            name = self._id_of(profile, host, found, places)
            if name not in self._own:
                places.setdefault(_place(host), name)
            twin = found.setdefault(name, host)
            # ts01 and ts01.example.org at one address are one server; other names may be meant for two.
            if twin is not host and not _same_but_for_domain(_plain(twin.name), _plain(host.name)):
                _fail(profile, f"{host.name} is named twice, as {name}", "name each server once")
        for name, host in found.items():
            self._keep(profile, name, host)
        return list(found)

    def _id_of(
        self,
        profile: ImportedProfile,
        host: ImportedHost,
        found: Mapping[str, ImportedHost],
        places: Mapping[Address, str],
    ) -> str:
        own = self._listed(profile, host)
        if own is not None:
            self._check_filling(profile, own, host)
            return own
        address = _place(host)
        earlier = places.get(address) or self._at.get(address)
        if earlier is not None:
            return earlier
        name = self._new_id(host)
        if name in self._merged.servers or name in found:
            twin = self._made.get(name) or found.get(name)
            reason = f"{host.name} ({host.address} port {host.port}) would get the id {name}, which "
            reason += f"{twin.name} ({twin.address} port {twin.port}) has" if twin else "another server has"
            _fail(
                profile,
                reason,
                f"give it the same address in each profile, or list it as a server of its own: {_table_of(host)}",
            )
        if not is_server_id(name):
            _fail(
                profile,
                f"{quoted(host.name)} makes no server id",
                f"list it under one of up to 64 letters, digits, '.', '_', '-': {_table_of(host)}",
            )
        return name

    def _keep(self, profile: ImportedProfile, name: str, host: ImportedHost) -> None:
        own = self._own.get(name)
        if own is not None:
            if "host" not in own and name not in self._made:
                self._made[name] = host
                self._at[_place(host)] = name
                given = {"host": without_dot(host.address), "port": host.port}
                self._merged.servers[name] = {**given, **self._merged.servers[name]}
        elif name not in self._made:
            self._made[name] = host
            self._at[_place(host)] = name
            self._merged.servers[name] = {"host": without_dot(host.address), "port": host.port}
            self._merged.origins["servers", name] = profile.path, profile.host_line, f"{profile.name}.host"

    def _listed(self, profile: ImportedProfile, host: ImportedHost) -> str | None:
        """Return the id of the server of fleet.toml that a host is."""
        name = _plain(host.name)
        found = self._called.get(name, [])
        for address in dict.fromkeys((_place(host), (comparable(host.name), host.port))):
            found = found or self._own_at.get(address, [])
        if not found and _short(name) not in self._shared:
            alike = self._called_short.get(_short(name), [])
            found = list(dict.fromkeys(own for each, own in alike if _same_but_for_domain(name, each)))
        if len(found) > 1:
            reason = f"{host.name} may be each of the servers {', '.join(found)}"
            _fail(profile, reason, "give these servers ids and hostnames that differ")
        return found[0] if found else None

    def _check_filling(self, profile: ImportedProfile, own: str, host: ImportedHost) -> None:
        """Refuse another address for a server of fleet.toml that does not state its own."""
        if "host" in self._own[own]:
            return
        made = self._made.get(own)
        if made is not None and _place(made) != _place(host):
            reason = f"{own} has the address {made.address} port {made.port} in another profile"
            _fail(profile, reason, f'say which is right: [servers.{own}] with host = "{host.address}"')
        others = [*self._own_at.get(_place(host), ()), self._at.get(_place(host), own)]
        other = next((each for each in others if each != own), None)
        if other is not None:
            reason = f"{own} would have the address {host.address} port {host.port}, which {other} has"
            _fail(profile, reason, f"say where it is: [servers.{own}] with host = ..., or take that table out")

    def log_in_as_users(self) -> None:
        """Give servers of which only profiles with a user and key tell their login: no other one is needed."""
        naming: dict[object, list[dict[str, Any]]] = {}
        for table in self._merged.profiles.values():
            if isinstance(table, dict):
                for name in _texts(table.get("servers")):
                    naming.setdefault(name, []).append(table)
        for name in self._made:
            tables = naming.get(name, [])
            if name not in self._own and tables and all("user" in table for table in tables):
                login: dict[str, Any] = {key: tables[0][key] for key in ("user", "key_file") if key in tables[0]}
                self._merged.servers[name] = {**self._merged.servers[name], **login, "scope": "user"}

    def _new_id(self, host: ImportedHost) -> str:
        name = _plain(host.name)
        if is_address(name):
            return name.replace(":", "-").strip("-")
        return name if _short(name) in self._shared else _short(name)


def _error(profile: ImportedProfile, key: str, line: int, reason: str, remedy: str) -> InventoryError:
    return InventoryError(profile.path, reason, line=line, key=f"[{profile.name}] {key}".strip(), mend=remedy)


def _fail(profile: ImportedProfile, reason: str, remedy: str) -> NoReturn:
    raise _error(profile, "host", profile.host_line, reason, remedy)


def _table_of(host: ImportedHost) -> str:
    return f'[servers.ID] with host = "{without_dot(host.address)}" and port = {host.port}'


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _place(host: ImportedHost) -> Address:
    return comparable(host.address), host.port


def _plain(name: str) -> str:
    return without_dot(name).casefold()


def _short(name: str) -> str:
    return name if is_address(name) else name.partition(".")[0]


def _same_but_for_domain(one: str, other: str) -> bool:
    return _short(one) == _short(other) and (_short(one) == one or _short(other) == other)
