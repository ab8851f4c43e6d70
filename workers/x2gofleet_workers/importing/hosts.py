"""hosts: the value of ``host`` in a session profile, as x2gobroker and as python-x2go read it."""

from __future__ import annotations

import ast
import ipaddress
import re
from typing import NoReturn

from x2gofleet_workers.importing.ini import IniFile, Section, quoted
from x2gofleet_workers.importing.model import ImportedHost

_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_PLAIN_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,254}}\Z){_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*\.?\Z")
# The names that x2gobroker takes: before an address a single label, or a name with domain of which no part begins with
# a digit and the last is letters; as an address the latter, or letters alone.
_BROKER_LABEL = re.compile(rf"{_LABEL}\Z")
_BROKER_USUAL_DOMAIN = re.compile(r"(?=.{1,254}\Z)(?:[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,}\Z")
_BROKER_PART = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}")
_LETTERS = re.compile(r"[A-Za-z]{2,}\Z")


def broker_hosts(file: IniFile, section: Section, value: str, port: int) -> tuple[ImportedHost, ...]:
    """Read a list of ``name``, ``name (address)`` and ``name (address:port)``."""
    value = value.strip()
    entries = value.split(",")
    if value.startswith("[") and value.endswith("]"):
        listed = _literal(value)
        if listed is None:
            _brackets(file, section, value, "x2gobroker and python-x2go evaluate")
        # x2gobroker leaves the entries of such a list as they are: a space makes another name.
        entries = listed
        if any(entry != entry.strip() for entry in entries):
            file.fail(section, "host", f"{quoted(value)} has spaces around a name", "take them out")
    # x2gobroker passes over what is empty, such as behind a comma at the end.
    entries = [entry.strip() for entry in entries if entry.strip()]
    _some(file, section, entries)
    return _once(file, section, tuple(_broker_host(file, section, entry, port) for entry in entries))


def client_hosts(file: IniFile, section: Section, value: str, port: int) -> tuple[ImportedHost, ...]:
    """Read a list of names and addresses."""
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        who = "x2gobroker and python-x2go evaluate" if _literal(value) is None else "python-x2go alone evaluates"
        _brackets(file, section, value, who)
    entries = [entry.strip() for entry in value.split(",")]
    _some(file, section, [entry for entry in entries if entry])
    if "" in entries:
        file.fail(section, "host", f"{quoted(value)} has an empty host in it", "take the extra comma out")
    for entry in entries:
        _plain_host(file, section, entry, "the port as sshport")
    return _once(file, section, tuple(ImportedHost(entry, entry, port) for entry in entries))


def port_of(text: str) -> int | None:
    """Return a port, None where the text is none."""
    if re.fullmatch(r"[0-9]{1,5}", text) is None:
        return None
    return int(text) if 1 <= int(text) <= 65535 else None


def is_address(text: str) -> bool:
    """Whether this is an IP address, without a zone."""
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return _is_ipv6(text)
    return True


def comparable(address: str) -> str:
    """Return an address or a name so that two spellings of one are equal; nothing is looked up."""
    if is_address(address):
        return str(ipaddress.ip_address(address))
    return without_dot(address).casefold()


def without_dot(name: str) -> str:
    """Return a name without the dot at its end; that of a name without a domain stays, as it means another name."""
    return name[:-1] if name.endswith(".") and "." in name[:-1] else name


def _brackets(file: IniFile, section: Section, value: str, who: str) -> NoReturn:
    reason = f"{quoted(value)} begins and ends with a bracket, which {who} as Python"
    file.fail(section, "host", reason, "write names and addresses without brackets, split by commas")


def _some(file: IniFile, section: Section, entries: list[str]) -> None:
    if not entries:
        file.fail(section, "host", "the host is empty", "name the server: host=ts01.example.org")


def _once(file: IniFile, section: Section, hosts: tuple[ImportedHost, ...]) -> tuple[ImportedHost, ...]:
    seen: set[str] = set()
    for host in hosts:
        name = without_dot(host.name).casefold()
        if name in seen:
            file.fail(section, "host", f"{name} is named twice", "name each server once")
        seen.add(name)
    return hosts


def _broker_host(file: IniFile, section: Section, entry: str, default_port: int) -> ImportedHost:
    def fail(reason: str, remedy: str) -> NoReturn:
        file.fail(section, "host", f"{quoted(entry)}: {reason}", remedy)

    if entry.count("(") != entry.count(")") or entry.count("(") > 1:
        fail("the parentheses don't match", "write name (address:port)")
    if "(" not in entry:
        _plain_host(file, section, entry, "name (address:port)")
        return ImportedHost(entry, entry, default_port)
    parts = re.fullmatch(r"([^ \n]+) \(([^ ()\n]+)\)", entry)
    if parts is None:
        fail("x2gobroker reads no address from it", "write name, one space, and (address) or (address:port)")
    name, text = parts[1], parts[2]
    if _BROKER_LABEL.match(name) is None and not _is_broker_domain(name):
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
            remedy = f"say the port: {text}:{default_port}" if _is_ipv6(text) else "write an IP address"
            fail(f"x2gobroker takes the last {tail} for a port, and {head} is no address", remedy)
        given = port_of(tail)
        if given is None:
            fail(f"{tail} is no port", "use a number from 1 to 65535")
        address, port = head, given
    elif colon and not _is_ipv6(text):
        fail(f"{quoted(tail)} is no port", "write (address:port) with a number from 1 to 65535")
    if not (is_address(address) or _is_broker_domain(address)):
        fail(
            f"{address} is no address that x2gobroker takes: it would use {name} in its place",
            "write an IP address, or a name of whose parts none begins with a digit and the last is letters",
        )
    return ImportedHost(name, address, port)


def _plain_host(file: IniFile, section: Section, entry: str, way: str) -> None:
    """Refuse what is neither a host name nor an IP address."""
    if is_address(entry) or (_HOST_NAME.match(entry) and not re.fullmatch(r"[0-9.]+", entry)):
        return
    reason = f"{quoted(entry)} is neither a host name nor an IP address"
    file.fail(section, "host", reason, _remedy(entry, way))


def _remedy(entry: str, way: str) -> str:
    if re.search(r"\s[#;]", entry):
        return "a comment needs a line of its own"
    if "\n" in entry:
        return "write a comma behind each name but the last"
    if entry.startswith("["):
        return "write an IPv6 address without brackets"
    if re.fullmatch(r"[^:]+:\d+", entry):
        return f"write {way}"
    if "@" in entry:
        return "write the user as user="
    if not entry.isascii():
        try:
            if len(entry) > 253:
                return "write its name in ASCII"
            return f"write its name in ASCII: {entry.encode('idna').decode('ascii')}"
        except UnicodeError:
            return "write its name in ASCII"
    return "list each server by itself"


def _is_broker_domain(text: str) -> bool:
    """Whether x2gobroker takes this for a name with domain: parts, each with a dot behind it or none, and letters.

    Its own expression takes exponential time for some texts.
    """
    if _BROKER_USUAL_DOMAIN.match(text):
        return True
    if not 3 <= len(text) <= 254:
        return False
    reached = {0}
    for start in range(len(text)):
        part = _BROKER_PART.match(text, start) if start in reached else None
        if part is None:
            continue
        if start and _LETTERS.match(text, start):
            return True
        ends = [end for end in range(start + 1, part.end() + 1) if text[end - 1] != "-"]
        reached.update(ends)
        reached.update(end + 1 for end in ends if text[end : end + 1] == ".")
    return False


def _literal(text: str) -> list[str] | None:
    # A long text costs the parser much, and nests deep: nobody writes such a list.
    if len(text) > 65_536:
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text
