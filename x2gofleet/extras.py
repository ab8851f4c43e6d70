"""extras: what to install where an optional package is missing, for error messages.

x2gofleet is on no package index, so that anybody could register its name there: a command that is suggested names the
packages that are needed, never x2gofleet.
"""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path

_EXTRA = re.compile(r"extra == ['\"]([a-z]+)['\"]")


def how_to_install(extra: str) -> str:
    """Return what to do to have what an extra of x2gofleet needs: a shell command for this Python where pip can do it.

    Args:
        extra: a name of ``[project.optional-dependencies]`` in pyproject.toml, as "worker".
    """
    packages = _requirements(extra)
    if packages and util.find_spec("pip") is not None and not _managed_by_the_system():
        return shlex.join([sys.executable, "-m", "pip", "install", *packages])
    return f"install x2gofleet from its wheel or checkout with the extra {extra!r}, as docs/install.md says"


def _requirements(extra: str) -> list[str]:
    """Return what a reader and the extra need; nothing where x2gofleet runs without having been installed."""
    try:
        listed = metadata.requires("x2gofleet") or []
    except metadata.PackageNotFoundError:
        return []
    found = (text.partition(";") for text in listed)
    return [package.strip() for package, _, marker in found if not marker or extra in _EXTRA.findall(marker)]


def _managed_by_the_system() -> bool:
    """Whether pip refuses to install into this Python (PEP 668), as Debian's outside of a venv."""
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    return sys.prefix == sys.base_prefix and marker.exists()
