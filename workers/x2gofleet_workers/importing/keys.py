"""keys: which keys of a session profile say where its sessions are, and the ones that are mistaken for them."""

from __future__ import annotations

from x2gofleet_workers.importing.hosts import port_of
from x2gofleet_workers.importing.ini import IniFile, Section, quoted

READ = ("name", "host", "sshport", "user", "key", "directrdp", "usesshproxy")
AGENT_MODE = "broker-agent-query-mode"
NEVER_READ = {"hosts": "host", "hostname": "host", "port": "sshport", "ssh-port": "sshport", "ssh_port": "sshport"}
SINGLE = tuple(key for key in READ if key != "host")

_BY_CASE = {key.casefold(): key for key in (*READ, AGENT_MODE)}


def check_keys(file: IniFile, section: Section) -> None:
    """Refuse keys that look like one of those that are read, and that no original reads."""
    for key in file.keys(section):
        wanted = NEVER_READ.get(key.casefold()) or _BY_CASE.get(key.casefold(), key)
        if wanted != key:
            file.fail(section, key, f"nobody reads a key {key!r}", f"did you mean {wanted!r}?")


def check_text(file: IniFile, section: Section, keys: tuple[str, ...]) -> None:
    """Refuse values that are no text: bytes that are not UTF-8, control characters."""
    for key in keys:
        value = file.get(section, key) or ""
        try:
            value.encode()
        except UnicodeEncodeError:
            file.fail(section, key, "it is no UTF-8 text", "save the file as UTF-8")


def check_direct(file: IniFile, section: Section, name: str, *, proxy: bool) -> None:
    """Refuse a profile behind an SSH proxy: its hosts are meant as seen from there."""
    if proxy:
        file.fail(
            section,
            "usesshproxy",
            "the host is meant as seen from the SSH proxy, and workers connect to it directly",
            f"write the profile in fleet.toml: [profiles.{toml_key(name)}], and its servers with the addresses that "
            "workers reach",
        )


def ssh_port(file: IniFile, section: Section, text: str | None) -> int:
    """Return the port of a profile's hosts, 22 where none is given."""
    port = 22 if text is None else port_of(text)
    if port is None:
        file.fail(section, "sshport", f"{quoted(text or '')} is no port", "use a number from 1 to 65535")
    return port


def toml_key(name: str) -> str:
    """Return a name as a key of TOML."""
    if name and name.isascii() and name.replace("-", "").replace("_", "").isalnum():
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
