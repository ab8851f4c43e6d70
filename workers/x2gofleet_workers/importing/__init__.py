"""importing: the session profiles that a site has already -> servers and profiles of fleet.toml, as `[import]` asks.

x2gobroker's session profiles and the sessions file of X2Go Client are INI files that their own readers take with a
shrug: a key in the wrong case, a port they can't read, a comment behind a value lead to another server than was meant,
and nothing is said. Here a profile with one of these is left out, with file, line, key, reason and remedy; what is
accepted means what x2gobroker 0.0.4.3, and python-x2go 0.6.1.3 or X2Go Client's QSettings, read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from x2gofleet_workers.importing.merging import Imported, merge
from x2gofleet_workers.importing.model import ImportedHost, ImportedProfile, LeftOut
from x2gofleet_workers.importing.x2gobroker import read_x2gobroker
from x2gofleet_workers.importing.x2goclient import read_x2goclient

__all__ = [
    "READERS",
    "Imported",
    "ImportedHost",
    "ImportedProfile",
    "LeftOut",
    "merge",
    "read_x2gobroker",
    "read_x2goclient",
]

READERS: Mapping[str, Callable[[str, list[LeftOut] | None], tuple[ImportedProfile, ...]]] = {
    "x2gobroker": read_x2gobroker,
    "x2goclient": read_x2goclient,
}
"""What `[import]` may name, and the function that reads the file."""
