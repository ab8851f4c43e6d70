"""results: what a command answers, and how it reaches the terminal, a pipe or a script."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TextIO

from x2gofleet.cli.tables import Block, Line, plain, wrapped
from x2gofleet.errors import FleetError
from x2gofleet.text import clean, json_text

ANSWERED, NEGATIVE, USAGE, UNAVAILABLE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Result:
    """A command's answer: for people, for scripts, what else to tell on stderr, and the exit status."""

    document: dict[str, Any]
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = field(default=())
    exit_status: int = ANSWERED


class UnknownServer(FleetError):
    """The inventory has no server of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no server {name!r} in the inventory; known: {', '.join(known)}")


def load_rich() -> ModuleType | None:
    """Return the module that draws with rich, or None where rich is not installed."""
    try:
        from x2gofleet.cli import rich_output
    except ImportError:
        return None
    return rich_output


def show(result: Result, *, as_json: bool) -> None:
    """Print a result: its document, or its blocks as fits stdout; notes go to stderr."""
    if as_json:
        print(json_text(result.document, indent=2))
    elif result.blocks:
        _show_blocks(result.blocks, sys.stdout)
    sys.stdout.flush()
    for note in result.notes:
        tell(note)


def _show_blocks(blocks: Sequence[Block], file: TextIO) -> None:
    if not file.isatty():
        print(plain(blocks), file=file)
        return
    rich_output = load_rich()
    if rich_output is None:
        print(plain(blocks, shutil.get_terminal_size().columns), file=file)
        return
    console = rich_output.console_for(file)
    console.print(rich_output.renderable(blocks, console.width))


def tell(text: str, *, wrap: bool = True) -> None:
    """Print one line on stderr; on a terminal it is wrapped at words, unless there is something in it to be copied."""
    width = shutil.get_terminal_size().columns if wrap and sys.stderr.isatty() else None
    for line in wrapped(Line(f"x2gofleet: {clean(text)}", indent=2), width):
        print(line, file=sys.stderr)
