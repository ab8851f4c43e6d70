"""tables: rows -> a layout that fits a width, and plain text of it; rich_output.py makes the coloured one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from x2gofleet.cli.text import cell_width, fold
from x2gofleet.text import clean

GAP = 2
_LEAST = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; ``style`` is one of good, bad, warn, dim or ''."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Of the columns that don't fit the highest ``rank`` goes first, rank 0 never.

    On a terminal a cell wider than ``limit`` is folded.
    """

    title: str
    rank: int = 0
    right: bool = False
    limit: int = 200


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of cells, and how wide each column is once it was fitted.

    ``noted``: whether a line below says which columns were left out.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    widths: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    noted: bool = True

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]]) -> Table:
        """Build a table; texts are made harmless here."""
        return cls(
            tuple(columns),
            tuple(
                tuple(
                    Cell(clean(cell)) if isinstance(cell, str) else Cell(clean(cell.text), cell.style) for cell in row
                )
                for row in rows
            ),
        )

    def fitted(self, width: int | None) -> Table:
        """Return the table with as many columns as ``width`` has room for; None: all, at their full width."""
        natural = [
            max([cell_width(column.title), *(cell_width(row[index].text) for row in self.rows)])
            for index, column in enumerate(self.columns)
        ]
        if width is None:
            return replace(self, widths=tuple(natural))
        natural = [min(size, column.limit) for size, column in zip(natural, self.columns, strict=True)]
        kept = list(range(len(self.columns)))
        while _total(natural[index] for index in kept) > width:
            worst = max(kept, key=lambda index: self.columns[index].rank)
            if self.columns[worst].rank == 0:
                break
            kept.remove(worst)
        while (excess := _total(natural[index] for index in kept) - width) > 0:
            widest = max(kept, key=lambda index: natural[index])
            if natural[widest] <= _LEAST:
                break
            second = max((natural[index] for index in kept if index != widest), default=_LEAST)
            natural[widest] = max(_LEAST, natural[widest] - excess, min(second, natural[widest] - 1))
        return Table(
            tuple(self.columns[index] for index in kept),
            tuple(tuple(row[index] for index in kept) for row in self.rows),
            tuple(natural[index] for index in kept),
            tuple(column.title for index, column in enumerate(self.columns) if index not in kept),
            self.noted,
        )

    def first(self, rows: int) -> Table:
        """Return the table with its first rows only."""
        return replace(self, rows=self.rows[:rows])


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text below or above a table; wrapped at words, continued ``indent`` columns further in."""

    text: str
    style: str = ""
    indent: int = 0


Block = Table | Line


def _total(widths: Iterable[int]) -> int:
    sizes = list(widths)
    return sum(sizes) + GAP * (len(sizes) - 1)


def wrapped(line: Line, width: int | None) -> list[str]:
    """Return the lines that ``line`` takes at ``width``."""
    text = clean(line.text)
    if width is None or cell_width(text) <= width:
        return [text]
    lines = textwrap.wrap(text, max(20, width), subsequent_indent=" " * line.indent, break_on_hyphens=False)
    return [piece for words in lines for piece in fold(words, max(20, width))]


def left_out_note(table: Table) -> Line | None:
    """Return a line that names the columns for which there was no room."""
    if not table.left_out or not table.noted:
        return None
    return Line(f"(no room for: {', '.join(title.lower() for title in table.left_out)}; --json has all)", "dim")


def plain_table(table: Table, width: int | None) -> list[str]:
    """Return a table as aligned lines of text."""
    fitted = table.fitted(width)
    header = tuple(Cell(column.title) for column in fitted.columns)
    lines = []
    for row in (header, *fitted.rows):
        pieces = [list(fold(cell.text, size)) for cell, size in zip(row, fitted.widths, strict=True)]
        for parts in zip_longest(*pieces, fillvalue=""):
            cells = zip(parts, fitted.columns, fitted.widths, strict=True)
            lines.append((" " * GAP).join(_padded(*cell) for cell in cells).rstrip())
    note = left_out_note(fitted)
    return lines + (wrapped(note, width) if note else [])


def _padded(text: str, column: Column, width: int) -> str:
    blanks = " " * (width - cell_width(text))
    return blanks + text if column.right else text + blanks


def height_of(blocks: Iterable[Block], width: int | None) -> int:
    """Return how many lines blocks take at ``width``."""
    return sum(len(plain_table(b, width) if isinstance(b, Table) else wrapped(b, width)) for b in blocks)


def plain(blocks: Iterable[Block], width: int | None = None) -> str:
    """Return blocks as text without colours; ``width`` None is for pipes and files: nothing is folded or left out."""
    lines: list[str] = []
    for block in blocks:
        lines += plain_table(block, width) if isinstance(block, Table) else wrapped(block, width)
    return "\n".join(lines)
