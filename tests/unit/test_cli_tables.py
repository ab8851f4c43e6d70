"""tables: what fits which width, and that the plain and the coloured table say the same."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.cli.rich_output import console_for, renderable
from x2gofleet.cli.tables import Block, Cell, Column, Line, Table, height_of, plain
from x2gofleet.cli.text import cell_width

COLUMNS = (
    Column("USER", limit=20),
    Column("SESSION"),
    Column("AGE", rank=1, right=True),
    Column("STARTED", rank=2),
)
ROW = ("alice", "alice-50-1763800000_stDMATE_dp24", "1.2 s", "2026-11-22 20:24")


def table(*rows: tuple[str | Cell, ...]) -> Table:
    return Table.of(COLUMNS, rows or (ROW,))


def coloured(blocks: list[Block], width: int, *, colour: bool = False) -> str:
    file = io.StringIO()
    console = console_for(file)
    console.width = width
    if colour:
        console = type(console)(
            file=file, width=width, force_terminal=True, color_system="standard", highlight=False, markup=False
        )
    console.print(renderable(blocks, width))
    return file.getvalue()


def test_everything_is_aligned_where_there_is_room() -> None:
    assert plain([table(ROW, ("bob", "b", "12 min", ""))]).splitlines() == [
        "USER   SESSION                              AGE  STARTED",
        "alice  alice-50-1763800000_stDMATE_dp24   1.2 s  2026-11-22 20:24",
        "bob    b                                 12 min",
    ]


def test_the_least_important_column_goes_first_and_is_named() -> None:
    assert plain([table()], 50).splitlines() == [
        "USER   SESSION                             AGE",
        "alice  alice-50-1763800000_stDMATE_dp24  1.2 s",
        "(no room for: started; --json has all)",
    ]


def test_what_can_not_be_left_out_is_folded() -> None:
    lines = plain([table()], 30).splitlines()
    assert lines[:3] == [
        "USER   SESSION",
        "alice  alice-50-1763800000_stD",
        "       MATE_dp24",
    ]
    assert " ".join(lines[3:]) == "(no room for: age, started; --json has all)"


def test_a_pipe_gets_every_column_in_full() -> None:
    wide = ("a" * 300, *ROW[1:])
    assert plain([table(wide)]).splitlines()[1].split() == ["a" * 300, ROW[1], "1.2", "s", "2026-11-22", "20:24"]


cells = st.text(max_size=40)


@given(st.lists(st.tuples(cells, cells, cells, cells), max_size=4), st.integers(30, 120))
def test_no_line_is_ever_wider_than_the_terminal(rows: list[tuple[str, ...]], width: int) -> None:
    built = Table.of(COLUMNS, rows)
    lines = plain([built], width).split("\n")
    assert all(cell_width(line) <= width for line in lines)
    assert len(lines) == height_of([built], width)


@given(st.lists(st.tuples(*[st.text("ab[]/ü山", max_size=40)] * 4), max_size=4), st.integers(30, 120))
def test_the_coloured_table_says_what_the_plain_one_says(rows: list[tuple[str, ...]], width: int) -> None:
    built = Table.of(COLUMNS, rows)

    def stripped(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()

    assert stripped(coloured([built], width)) == stripped(plain([built], width))


def test_markup_and_escape_sequences_of_servers_are_text() -> None:
    hostile = table(("[bold red]x[/]", "\x1b]0;title\x07\x1b[2J", ":smile:", "[link=http://x]y"))
    for text in (plain([hostile], 100), coloured([hostile], 100)):
        assert "[bold red]x[/]" in text
        assert ":smile:" in text
        assert "[link=http://x]y" in text
        assert "\x1b" not in text
        assert "\x07" not in text


def test_styles_are_colours_only_where_rich_draws() -> None:
    styled = table((Cell("alice", "bad"), *ROW[1:]))
    assert "\x1b" not in plain([styled])
    assert "\x1b[1;31malice" in coloured([styled], 100, colour=True)


def test_lines_are_wrapped_at_words() -> None:
    line = Line("ts03: the server refused the key /etc/x2gofleet/id_ed25519", indent=2)
    assert plain([line], 40).splitlines() == ["ts03: the server refused the key", "  /etc/x2gofleet/id_ed25519"]
    assert plain([line]) == line.text
    path = Line("ts03: refused the key /etc/x2go-fleet/id-rsa", indent=2)
    assert plain([path], 33).splitlines() == ["ts03: refused the key", "  /etc/x2go-fleet/id-rsa"]


@given(st.text(min_size=1), st.integers(20, 60))
def test_no_line_of_text_is_wider_than_the_terminal(text: str, width: int) -> None:
    assert all(cell_width(line) <= width for line in plain([Line(text, indent=2)], width).split("\n"))


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    styled: list[Block] = [table((Cell("alice", "good"), *ROW[1:]))]
    assert "\x1b[32m" in coloured(styled, 100)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in coloured(styled, 100)


def test_the_plain_parts_do_not_import_rich() -> None:
    code = "import sys; sys.modules['rich'] = None; import x2gofleet.cli.app, x2gofleet.cli.live"
    subprocess.run([sys.executable, "-c", code], check=True)
