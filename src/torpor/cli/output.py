"""What the commands print: JSON for programs, one line to standard error when something is wrong."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape


class Terminal(Console):
    """Colours only where somebody sees them (never with NO_COLOR); no line is broken by us."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """The one place for it is `main`."""
        raise BrokenPipeError


out = Terminal()
err = Terminal(stderr=True)


def json_option(command: Any) -> Any:
    """`--json`: the same facts as one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """For streams: one document a line."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False))


def fail(message: str, remedy: str = "") -> NoReturn:
    """End the command with exit code 1."""
    err.print(f"[red]error:[/red] {escape(message)}")
    if remedy:
        err.print(escape(remedy))
    raise SystemExit(1)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
