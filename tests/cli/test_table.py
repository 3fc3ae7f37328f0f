from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from torpor.cli.table import Column, lines

COLUMNS = (
    Column("ID", shorter=lambda cell: cell[:4]), Column("STATE"), Column("AGE", is_right=True),
    Column("PLACE", is_optional=True),
)  # fmt: skip
ROWS = [["abcdefgh", "RUNNING", "5m", "here"], ["ijklmnop", "-", "10m", "there"]]


def shown(width: int | None) -> list[str]:
    return [line.plain for line in lines(COLUMNS, ROWS, width)]


def test_a_pipe_gets_every_column_whole_and_no_trailing_space() -> None:
    assert shown(None) == [
        "ID        STATE    AGE  PLACE",
        "abcdefgh  RUNNING   5m  here",
        "ijklmnop  -        10m  there",
    ]


def test_a_narrow_terminal_loses_optional_columns_first_and_then_the_ends_of_cells() -> None:
    assert shown(28)[0] == "ID        STATE    AGE"
    assert shown(20) == ["ID    STATE    AGE", "abcd  RUNNING   5m", "ijkl  -        10m"]
    assert shown(1) == shown(20)


def test_states_have_colours_and_other_cells_have_none() -> None:
    (running,) = [span for span in lines(COLUMNS, ROWS, None)[1].spans if span.style]
    assert (running.start, running.end, running.style) == (10, 17, "green")


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12),
                         min_size=4, max_size=4), min_size=1, max_size=5))  # fmt: skip
def test_columns_line_up_whatever_the_letters_are(rows: list[list[str]]) -> None:
    found = lines(COLUMNS, rows, None)
    widths = [max([cell_len(column.title), *(cell_len(row[n]) for row in rows)]) for n, column in enumerate(COLUMNS)]
    for row, line in zip(rows, found[1:], strict=True):
        first, second, third, last = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        whole = f"{row[0]}{first}  {row[1]}{second}  {third}{row[2]}  {row[3]}{last}"
        assert line.plain == whole.rstrip()
