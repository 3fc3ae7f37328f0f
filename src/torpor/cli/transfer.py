"""What the commands that read and write archives share: stages, progress, totals."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from torpor.cli.output import err
from torpor.vmm.process import start_time

compress_option = click.option("--compress", type=click.Choice(["auto", "zstd", "none"]), default="auto",
                               show_default=True, help="auto: zstd where it is installed.")  # fmt: skip


def stage_name() -> str:
    """A name by which `gc` tells whether the command that made the stage still runs."""
    return f"{os.getpid()}@{start_time(os.getpid())}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def removed_afterwards(stage: Path) -> Iterator[Path]:
    """The stage goes when the block ends, however it ends."""
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def data_bytes(*places: Path) -> int:
    """What of all files below is data and not a hole."""
    files = (path for place in places if place.exists() for path in (place, *place.rglob("*")))
    return sum(path.lstat().st_blocks * 512 for path in files if path.is_file())


@contextlib.contextmanager
def progress(what: str, total: Any) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; called with the bytes that went by."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True),
               TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total if isinstance(total, int) and total > 0 else None)
        yield lambda count: bar.advance(task, count)
