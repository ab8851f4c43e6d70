"""programs: what the programs of x2gofleet have in common: command lines, and where their output goes."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn

from x2gofleet.text import CleanFormatter, clean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors, and those of its subcommands, are a line that any terminal may show."""

    def error(self, message: str) -> NoReturn:
        """Print usage and error on stderr, and exit with 2."""
        super().error(clean(message))


def prepare_output() -> None:
    """Have a program's own output fit its streams and terminals: what logs warn of, and characters that a stream lacks.

    Records go where they went (stderr, unless logging is configured), cleaned.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            try:
                reconfigure(errors="replace")
            except ValueError:
                continue
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(CleanFormatter())
