"""broker_hosts: which servers of the fleet the hosts of an x2gobroker session profile are; pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from x2gofleet.fleet import PublishedFleet, PublishedServer


@dataclass(frozen=True, slots=True)
class BrokerHost:
    """One entry of ``host =``: the name, and the address and port that the broker connects to."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class BrokerProfile:
    """A session profile as x2gobroker reads it, as far as it says which servers are meant."""

    backend: str
    id: str
    hosts: tuple[BrokerHost, ...]

    @classmethod
    def from_broker(cls, backend: str, profile_id: str, profile: Mapping[str, Any]) -> BrokerProfile:
        """Read what ``X2GoBroker.get_profile`` returns: ``host``, ``sshport``, ``host=NAME`` and ``sshport=NAME``."""
        names = profile.get("host") or ()
        default = _port(profile.get("sshport"), 22)
        return cls(
            backend,
            profile_id,
            tuple(
                BrokerHost(name, str(profile.get(f"host={name}", name)), _port(profile.get(f"sshport={name}"), default))
                for name in ([names] if isinstance(names, str) else names)
            ),
        )

    def host_at(self, address: str, port: object) -> BrokerHost | None:
        """Return the host that a selected session is on, by what the broker tells its client; None where unknown."""
        found = [host for host in self.hosts if address in (host.address, host.name)]
        # Where all domains are one, the broker gives it to names that have none.
        found = found or [host for host in self.hosts if "." not in host.name and address.startswith(f"{host.name}.")]
        exact = [host for host in found if host.port == _port(port, -1)]
        return next(iter(exact or found), None)


@dataclass(frozen=True, slots=True)
class Mapped:
    """The fleet's profile that answers for a broker's profile, and the server id of each of its host names."""

    fleet_profile: str
    servers: Mapping[str, str]

    def host_of(self, server: str) -> str | None:
        """Return the broker's name of a server, None where the broker's profile does not have it."""
        return next((host for host, found in self.servers.items() if found == server), None)


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Why no profile of the fleet can answer for a broker's profile, and how to fix it."""

    reason: str


def map_profile(profile: BrokerProfile, fleet: PublishedFleet) -> Mapped | Unmapped:
    """Return which of the fleet's profiles answers for one of the broker's.

    The one of the same name, where it has all of the broker's hosts; else the smallest that has, one that is not polled
    as a user if there is any. Hosts are found by id or host name, as written or without the domain; a profile of one
    server answers for a broker's profile of the same name with one host, whatever the two call it, unless that is
    another server of the fleet. An answer that lacks a host would be a wrong one: then there is none.
    """
    if not profile.hosts:
        return Unmapped("it has no host")
    if profile.id in fleet.left_out:
        return Unmapped("it is left out of the inventory: `x2gofleet-worker check` says why")
    named = profile.id in fleet.profiles
    # What is polled as one user tells nothing of the others.
    ranks = {
        name: (any(fleet.targets[target].username is not None for target in targets), len(targets), name)
        for name, targets in fleet.profiles.items()
    }
    order = [profile.id] if named else []
    order += sorted((name for name in ranks if name != profile.id), key=lambda name: ranks[name])
    lacking: list[str] = []
    for name in order:
        members = list(dict.fromkeys(fleet.targets[target].server for target in fleet.profiles[name]))
        servers = [fleet.servers[member] for member in members]
        found = {host.name: _server_of(host, servers) for host in profile.hosts}
        if name == profile.id and len(servers) == len(profile.hosts) == 1:
            only = profile.hosts[0]
            if _server_of(only, fleet.servers.values()) in (None, servers[0].id):
                return Mapped(name, {only.name: servers[0].id})
        paired = {host: server for host, server in found.items() if server is not None}
        if len(paired) == len(profile.hosts) == len(set(paired.values())):
            return Mapped(name, paired)
        if name == profile.id:
            lacking = [host for host in found if host not in paired]
    if named:
        return Unmapped(
            f"the fleet's profile {profile.id!r} has no server for {', '.join(lacking) or 'each host'}: "
            "add it to the inventory, or let `hostname` of a server be what the broker calls it"
        )
    hosts = ", ".join(host.name for host in profile.hosts)
    return Unmapped(f"the fleet has no profile {profile.id!r}, nor one with all of {hosts}: add it to the inventory")


def _server_of(host: BrokerHost, servers: Iterable[PublishedServer]) -> str | None:
    known = [(server.id, {_known_as(server.id), _known_as(server.hostname)}) for server in servers]
    for name in dict.fromkeys((_known_as(host.name), _known_as(host.address))):
        exact = [server for server, own in known if name in own]
        loose = [server for server, own in known if _may_be(name, own)]
        for found in (exact, loose):
            if len(found) == 1:
                return found[0]
    return None


def _known_as(name: str) -> str:
    # The id of an imported server that only has an IPv6 address is that, with `-` for `:`.
    return name.casefold().replace(":", "-")


def _may_be(name: str, own: Iterable[str]) -> bool:
    """Whether a name, with or without its domain, is one of a machine's; two domains that differ are two machines."""
    if _is_address(name):
        return False
    alike = [each for each in own if not _is_address(each) and _short(each) == _short(name)]
    return bool(alike) and not any("." in each and "." in name and each != name for each in alike)


def _short(name: str) -> str:
    return name.partition(".")[0]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _port(value: object, default: int) -> int:
    try:
        return int(str(value))
    except ValueError:
        return default
