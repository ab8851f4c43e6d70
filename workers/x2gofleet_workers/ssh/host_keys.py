"""host_keys: the host keys that are known of an address, from known_hosts files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import paramiko

from x2gofleet.errors import HostKeyUnknown
from x2gofleet_workers.ssh.endpoint import Endpoint
from x2gofleet_workers.ssh.faults import describe

HostKeysByType = Mapping[str, paramiko.PKey]


class KnownHosts:
    """Parsed known_hosts files, read again when they change: a file of a thousand keys takes long to parse."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parsed: dict[str, tuple[tuple[int, ...], paramiko.HostKeys]] = {}

    def keys_of(self, endpoint: Endpoint) -> HostKeysByType:
        """Return the known host keys of an address by key type, at least one; raises HostKeyUnknown."""
        name, path = endpoint.known_name, endpoint.known_hosts
        add = f"compare the fingerprint, then: ssh-keyscan -p {endpoint.port} {endpoint.host} >> {path}"
        try:
            hosts = self._read(path)
        except FileNotFoundError:
            raise HostKeyUnknown(f"the file {path} does not exist", mend=add) from None
        except OSError as exc:
            raise HostKeyUnknown(f"the file {path} can't be read: {exc.strerror}") from exc
        except Exception as exc:
            raise HostKeyUnknown(f"the file {path} holds what is no host key: {describe(exc)}", mend=add) from exc
        found = hosts.lookup(name)
        keys = {key_type: found[key_type] for key_type in found} if found else {}
        if not keys:
            raise HostKeyUnknown(f"{path} has no key of {name}", mend=add)
        return keys

    def _read(self, path: str) -> paramiko.HostKeys:
        stat = Path(path).stat()
        identity = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
        with self._lock:
            parsed = self._parsed.get(path)
            if parsed is None or parsed[0] != identity:
                parsed = self._parsed[path] = (identity, paramiko.HostKeys(path))
            return parsed[1]
