"""What the commands print: tables for people, JSON for programs, one line to standard error when something is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
STATE_COLOURS = {
    "RUNNING": "green", "SUSPENDED": "blue", "PENDING": "yellow", "SUSPENDING": "yellow", "TERMINATING": "yellow",
    "TERMINATED": "dim", "CREATED": "green", "UPDATED": "green", "SUCCESSFUL": "green", "ACTIVE": "green",
    "FAILED": "red", "CREATE_FAILED": "red", "UPDATE_FAILED": "red", "DELETE_FAILED": "red",
}  # fmt: skip


def json_option(command: Any) -> Any:
    """`--json`: the same facts as one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table of the rows, or the sentence `empty` when there are none."""
    found = [[_cell(value) for value in row] for row in rows]
    if not found:
        err.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in found:
        table.add_row(*row)
    # A pipe gets whole cells, never cut to an imagined width.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


def fail(message: str, remedy: str = "") -> NoReturn:
    """End the command with exit code 1."""
    err.print(f"[red]error:[/red] {_escaped(message)}")
    if remedy:
        err.print(_escaped(remedy))
    raise SystemExit(1)


def seconds(value: float) -> str:
    """`0.134 s`, `4.2 s`, `3 min 05 s`."""
    if value < 1:
        return f"{value:.3f} s"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def size(value: float | None) -> str:
    """Bytes as people read them, in binary units."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(moment: datetime, now: datetime) -> str:
    """`12s`, `5m`, `3h`, `2d` since a moment."""
    passed = max(0, int((now - moment).total_seconds()))
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if passed < limit:
            return f"{passed // divisor}{unit}"
    return f"{passed // 86400}d"


def _cell(value: Any) -> str:
    text = "-" if value is None else _escaped(str(value))
    colour = STATE_COLOURS.get(text)
    return f"[{colour}]{text}[/{colour}]" if colour else text


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
