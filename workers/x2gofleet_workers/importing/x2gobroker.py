"""x2gobroker: the session profiles of x2gobroker's backend ``inifile``, as x2gobroker 0.0.4.3 reads them."""

from __future__ import annotations

from x2gofleet.errors import InventoryError
from x2gofleet_workers.importing.hosts import broker_hosts
from x2gofleet_workers.importing.ini import IniFile, Section, quoted
from x2gofleet_workers.importing.keys import (
    AGENT_MODE,
    READ,
    SINGLE,
    check_direct,
    check_keys,
    check_text,
    ssh_port,
    toml_key,
)
from x2gofleet_workers.importing.model import ImportedProfile, LeftOut

_DIRECT_MODES = ("", "ssh", "none")


def read_x2gobroker(path: str, left_out: list[LeftOut] | None = None) -> tuple[ImportedProfile, ...]:
    """Read x2gobroker's session profiles (x2gobroker-sessionprofiles.conf); a profile's name is its section's.

    Profiles with ``directrdp`` on have no X2Go server and are passed over.

    Args:
        path: the file.
        left_out: gets each profile that can't be used, in place of an exception.

    Raises:
        InventoryError: the file can't be used, or one of its profiles where ``left_out`` is None.
    """
    file = IniFile(path)
    found: list[ImportedProfile] = []
    for section in file.sections.values():
        try:
            profile = _profile(file, section)
        except InventoryError as exc:
            if left_out is None:
                raise
            left_out.append(LeftOut(section.name, exc))
            continue
        if profile is not None:
            found.append(profile)
    return tuple(found)


def _profile(file: IniFile, section: Section) -> ImportedProfile | None:
    _check_section(file, section)
    if file.flag(section, "directrdp"):
        return None
    check_direct(file, section, section.name, proxy=file.flag(section, "usesshproxy"))
    mode = file.get(section, AGENT_MODE) or ""
    if mode.casefold() not in _DIRECT_MODES:
        file.fail(
            section,
            AGENT_MODE,
            f"with {quoted(mode)} x2gobroker asks another machine than the hosts for sessions",
            f"use SSH, or write the profile in fleet.toml: [profiles.{toml_key(section.name)}]",
        )
    port = ssh_port(file, section, file.get(section, "sshport"))
    value = file.get(section, "host")
    if value is None:
        reason = "the host is missing, and x2gobroker takes localhost"
        file.fail(section, "host", reason, "name the server: host=ts01.example.org")
    hosts = broker_hosts(file, section, value, port)
    user, key = file.get(section, "user") or "", file.get(section, "key") or ""
    line, host_line = max(section.line, 1), file.line(section, "host")
    return ImportedProfile("x2gobroker", file.path, section.name, hosts, user, key, line, host_line)


def _check_section(file: IniFile, section: Section) -> None:
    if section.fault is not None:
        raise section.fault
    if section.name.casefold() in ("default", "defaults"):
        reason, remedy = "it is read as a profile of this name", "write [DEFAULT] for what all profiles share"
        file.fail(section, "", reason, remedy)
    for key in (*READ, AGENT_MODE):
        named_alike = file.sections.get(key)
        if named_alike is not None and key in file.keys(section):
            reason = f"because of it x2gobroker ignores the key {key!r} of every profile"
            file.fail(named_alike, "", reason, "give the profile another id")
    file.check_continuations(section, SINGLE, READ)
    check_keys(file, section)
    check_text(file, section, (*READ, AGENT_MODE))
