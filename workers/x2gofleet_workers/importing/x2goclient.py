"""x2goclient: the sessions file of X2Go Client (QSettings) and of python-x2go 0.6.1.3 (configparser)."""

from __future__ import annotations

from x2gofleet.errors import InventoryError
from x2gofleet.usernames import RULE, problem_of
from x2gofleet_workers.importing.hosts import client_hosts
from x2gofleet_workers.importing.ini import DEFAULT, FALSE, IniFile, Section, quoted
from x2gofleet_workers.importing.keys import READ, check_direct, check_keys, check_text, ssh_port
from x2gofleet_workers.importing.model import ImportedProfile, LeftOut
from x2gofleet_workers.importing.qsettings import Ambiguous, decode_value

# python-x2go takes a section for none of a profile where its name is a part of this word.
_NO_PROFILE = "embedded"
_NO_PROFILES = {"none"} | {
    _NO_PROFILE[start:end] for start in range(len(_NO_PROFILE)) for end in range(start + 1, len(_NO_PROFILE) + 1)
}
_SINGLE = READ


def read_x2goclient(path: str, left_out: list[LeftOut] | None = None) -> tuple[ImportedProfile, ...]:
    """Read the sessions file of X2Go Client and python-x2go; a profile's name is its ``name``.

    Profiles with ``directrdp`` on have no X2Go server and are passed over, as are [embedded] and sections that have
    neither name nor host: they are another program's.

    Args:
        path: the file.
        left_out: gets each profile that can't be used, in place of an exception.

    Raises:
        InventoryError: the file can't be used, or one of its profiles where ``left_out`` is None.
    """
    file = IniFile(path)
    found: list[ImportedProfile] = []
    named: dict[str, tuple[Section, int]] = {}
    for section in file.sections.values():
        if section.name == _NO_PROFILE or not (section.fault or {"name", "host"} & {*section.values}):
            continue
        try:
            profile = _profile(file, section)
            if profile is None:
                continue
            line = file.line(section, "name")
            twin = named.setdefault(profile.name, (section, line))
            if twin[0] is not section:
                reason = f"line {twin[1]} has a profile named {quoted(profile.name)} too, and python-x2go renames both"
                file.fail(section, "name", reason, "give each its own name")
        except InventoryError as exc:
            if left_out is None:
                raise
            left_out.append(LeftOut(_name_of(file, section), exc))
            continue
        found.append(profile)
    return tuple(found)


def _profile(file: IniFile, section: Section) -> ImportedProfile | None:
    if section.fault is not None:
        raise section.fault
    if section.name in _NO_PROFILES:
        file.fail(section, "", "python-x2go does not take a section of this name for a profile", "rename it")
    file.check_continuations(section, _SINGLE, READ)
    check_keys(file, section)
    check_text(file, section, READ)
    _check_defaults(file, section)
    values = {key: _value(file, section, key) for key in READ}
    if _flag(file, section, "directrdp"):
        return None
    name = values["name"]
    if not name:
        file.fail(section, "name", "the name is missing", "X2Go Client shows sessions by name: name=...")
    if not name.isprintable() or name != name.strip():
        file.fail(section, "name", f"{quoted(name)} is no profile name", "use printable characters")
    check_direct(file, section, name, proxy=_flag(file, section, "usesshproxy"))
    user, key = values["user"] or "", values["key"] or ""
    port = ssh_port(file, section, values["sshport"])
    if values["host"] is None:
        reason = "the host is missing, and python-x2go takes server.mydomain"
        file.fail(section, "host", reason, "name the server: host=ts01.example.org")
    hosts = client_hosts(file, section, values["host"], port)
    if user and key:
        if problem := problem_of(user):
            file.fail(section, "user", f"{quoted(user)} is no user name: {problem}", RULE)
        if not key.startswith(("/", "~/")) or not key.isprintable():
            file.fail(section, "key", f"{quoted(key)} is no full path", "write it from / or ~/ on")
    line, host_line = max(section.line, 1), file.line(section, "host")
    return ImportedProfile("x2goclient", file.path, name, hosts, user, key, line, host_line)


def _value(file: IniFile, section: Section, key: str) -> str | None:
    value = file.get(section, key)
    if value is None:
        return None
    if "%" in value:
        file.fail(section, key, f"{quoted(value)} has a % in it, and python-x2go replaces it", "do without it")
    try:
        return decode_value(value)
    except Ambiguous as exc:
        file.fail(section, key, f"{quoted(value)}: {exc.reason}", exc.remedy)


def _flag(file: IniFile, section: Section, key: str) -> bool:
    value = file.get(section, key) or "false"
    if value.casefold() in FALSE and value.casefold() not in ("0", "false"):
        file.fail(section, key, f"{quoted(value)} is true to X2Go Client", "write false")
    return file.flag(section, key)


def _check_defaults(file: IniFile, section: Section) -> None:
    for key in READ:
        if key in file.defaults.values and key not in section.values:
            reason = f"[{DEFAULT}] has it, python-x2go reads it as a default, X2Go Client as a session"
            file.fail(section, key, reason, "write its keys out in each profile")


def _name_of(file: IniFile, section: Section) -> str:
    """Return the name that a profile of no use is asked about by."""
    value = section.values.get("name")
    try:
        return decode_value(value.text) if value is not None and value.text else section.name
    except Ambiguous:
        return value.text if value is not None else section.name
