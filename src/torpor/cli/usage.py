"""What was used, and what the same would have cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import name_of
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, json_option, print_json
from torpor.cli.table import Column, print_table
from torpor.cli.words import seconds, size

KINDS: Final = ("image", "microvm", "account", "day")


@click.command(short_help="Show what was used, and what AWS would charge.")
@click.option("--by", type=click.Choice(KINDS), default="image", show_default=True, help="What is summed up.")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="From so many days ago on.")
@data_dir_option
@json_option
def usage(by: str, days: int, data_dir: Path | None, as_json: bool) -> None:
    """Show what microVMs and images used, what AWS would charge for the same, and what sleeping saved.

    vCPU-s and GB-s are the configured size for as long as it ran, and what was used above it. READ and WRITTEN are
    snapshots, STORED is what suspended microVMs and images take. SAVED is what the time asleep would have cost awake.
    """
    service = connect(data_dir)
    found = service.ask("GET", "/usage", by=by, since=int(time.time()) - days * 86400)
    if as_json:
        print_json(found)
        return
    rows = [(_name(each[by], by), *_cells(each)) for each in found["items"]]
    if len(rows) > 1:
        rows.append(("total", *_cells(found["total"])))
    print_table(_columns(by), rows, empty="nothing has been used yet")
    if rows:
        err.print(f"since {found['since']} (UTC), at the configured prices (us-east-1, ARM by default)", markup=False)


def _columns(by: str) -> tuple[Column, ...]:
    return (
        Column(by.upper(), shorter=lambda cell: cell[:16]), Column("RUNNING", is_right=True),
        Column("ASLEEP", is_right=True), Column("VCPU-S", is_right=True), Column("GB-S", is_right=True),
        Column("READ", is_right=True, is_optional=True), Column("WRITTEN", is_right=True, is_optional=True),
        Column("STORED", is_right=True, is_optional=True), Column("AWS", is_right=True), Column("SAVED", is_right=True),
    )  # fmt: skip


def _cells(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        seconds(each["runningSeconds"]), seconds(each["asleepSeconds"]),
        f"{each['vcpuSeconds'] + each['vcpuSecondsAbove']:.1f}", f"{each['gbSeconds'] + each['gbSecondsAbove']:.1f}",
        size(each["readBytes"]), size(each["writtenBytes"]), f"{each['storedGbHours']:.3f} GB-h",
        _dollars(each["awsDollars"]), _dollars(each["savedDollars"]),
    )  # fmt: skip


def _name(name: str, by: str) -> str:
    if by == "image":
        return name_of(name)
    return name or "(others)"


def _dollars(value: float) -> str:
    return f"${value:.2f}" if value >= 1 else f"${value:.5f}"
