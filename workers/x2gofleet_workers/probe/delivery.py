"""delivery: how the probe's text gets to the polled server and is started there."""

from __future__ import annotations

from functools import cache
from importlib import resources

from x2gofleet_workers.probe.frames import encode_frame

PROBE_NAME = "x2gofleet-probe"

# Reads one frame S from stdin and runs its payload. In single quotes, without "!", backslash or newline, so that each
# login shell (sh, bash, dash, zsh, ksh, fish, csh, tcsh) hands it on unchanged.
LOADER = (
    "binmode STDIN;"
    "sub r{my($n)=@_;my$b=q();while(length($b)<$n){sysread(STDIN,$b,$n-length$b,length$b)or exit 3}$b}"
    "my$h=r(17);eval r(hex substr$h,9);die$@if$@"
)


@cache
def probe_text() -> bytes:
    """Return the Perl text that runs on the polled server."""
    return resources.files("x2gofleet_workers").joinpath("probe", "probe.pl").read_bytes()


def start_command(command: str, *, as_root: bool) -> str:
    """Return what is executed over SSH to start the probe.

    ``command``: ``auto`` starts the loader, which reads the text from stdin; ``wrapper`` names the installed probe,
    for a forced command. ``as_root``: the login is not root and must become root by sudo.
    """
    if command == "wrapper":
        return PROBE_NAME
    return f"exec {'sudo -n ' if as_root else ''}perl -e '{LOADER}'"


def first_input(command: str) -> bytes:
    """Return what is written to the probe's stdin before the first request: its text, unless it is installed there.

    An installed probe passes a text over, so that ``auto`` works with a forced command too.
    """
    return b"" if command == "wrapper" else encode_frame("S", 0, probe_text())
