"""Tables for people. A pipe gets every column whole; a narrow terminal gets fewer columns and shorter cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.cells import cell_len
from rich.text import Text

from torpor.cli.output import err, out

GAP: Final = "  "
STATE_COLOURS: Final = {
    "RUNNING": "green", "SUSPENDED": "blue", "PENDING": "yellow", "SUSPENDING": "yellow", "TERMINATING": "yellow",
    "TERMINATED": "dim", "CREATING": "yellow", "UPDATING": "yellow", "DELETING": "yellow", "IN_PROGRESS": "yellow",
    "CREATED": "green", "UPDATED": "green", "SUCCESSFUL": "green", "ACTIVE": "green", "INACTIVE": "dim",
    "FAILED": "red", "CREATE_FAILED": "red", "UPDATE_FAILED": "red", "DELETE_FAILED": "red",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    is_optional: bool = False
    """Left out when the terminal is too narrow; of several the last one first."""
    shorter: Callable[[str], str] | None = None
    """Makes its cells shorter when leaving out was not enough."""
    is_right: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table of the rows, or to standard error the sentence `empty` when there are none."""
    if not rows:
        err.print(empty, markup=False)
        return
    cells = [["-" if value is None else str(value) for value in row] for row in rows]
    for line in lines(columns, cells, out.width if out.is_terminal else None):
        out.print(line)


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[Text]:
    """The table's lines, at most `width` cells wide if that can be had."""
    columns, rows = _fitted(list(columns), [list(row) for row in rows], width)
    widths = _widths(columns, rows)
    found = [_line([column.title for column in columns], columns, widths, lambda _: "bold")]
    return found + [_line(row, columns, widths, lambda cell: STATE_COLOURS.get(cell, "")) for row in rows]


def _fitted(columns: list[Column], rows: list[list[str]], width: int | None) -> tuple[list[Column], list[list[str]]]:
    while width is not None and sum(_widths(columns, rows)) + len(GAP) * (len(columns) - 1) > width:
        optional = [number for number, column in enumerate(columns) if column.is_optional]
        long = [number for number, column in enumerate(columns) if column.shorter]
        if optional:
            del columns[optional[-1]]
            rows = [row[: optional[-1]] + row[optional[-1] + 1 :] for row in rows]
        elif long:
            shorter = columns[long[-1]].shorter
            assert shorter is not None
            columns[long[-1]] = replace(columns[long[-1]], shorter=None)
            rows = [[shorter(cell) if n == long[-1] else cell for n, cell in enumerate(row)] for row in rows]
        else:
            break
    return columns, rows


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(cell_len(column.title), *(cell_len(row[number]) for row in rows)) for number, column in enumerate(columns)
    ]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int],
          style: Callable[[str], str]) -> Text:  # fmt: skip
    line = Text()
    for cell, column, width in zip(cells, columns, widths, strict=True):
        space = " " * (width - cell_len(cell))
        line.append(space if column.is_right else "").append(cell, style(cell))
        line.append(("" if column.is_right else space) + GAP)
    line.rstrip()
    return line
