"""rich_output: the same blocks in colour; the only import of rich, loaded where it is installed and of use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from x2gofleet.cli.tables import GAP, Block, Line, Table, left_out_note, wrapped

_STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "title": "bold", "": ""}


def console_for(file: TextIO) -> Console:
    """Return a console on ``file`` that takes texts as they are; it follows NO_COLOR and TERM."""
    return Console(file=file, highlight=False, markup=False, emoji=False)


def renderable(blocks: Iterable[Block], width: int) -> RenderableType:
    """Return blocks laid out for ``width`` columns."""
    parts: list[RenderableType] = []
    for block in blocks:
        parts += _table(block, width) if isinstance(block, Table) else [_line(block, width)]
    return Group(*parts)


def _line(line: Line, width: int) -> Text:
    return Text("\n".join(wrapped(line, width)), style=_STYLES[line.style])


def _table(table: Table, width: int) -> list[RenderableType]:
    fitted = table.fitted(width)
    drawn = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for column, size in zip(fitted.columns, fitted.widths, strict=True):
        drawn.add_column(
            Text(column.title), justify="right" if column.right else "left", width=size, overflow="fold", no_wrap=False
        )
    for row in fitted.rows:
        drawn.add_row(*(Text(cell.text, style=_STYLES[cell.style]) for cell in row))
    note = left_out_note(fitted)
    return [drawn, *([_line(note, width)] if note else [])]


class Frame:
    """Blocks chosen for the size they are drawn at, each time they are drawn."""

    def __init__(self, blocks: Callable[[int, int], list[Block]]) -> None:
        """``blocks`` is called with the columns and lines there is room for."""
        self._blocks = blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.size.height
        yield renderable(self._blocks(options.max_width, height), options.max_width)
