"""Who called what."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import microvm_id
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import fail, json_option, print_json
from torpor.cli.table import Column, print_table

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLUMNS: Final = (
    Column("TIME (UTC)"), Column("WHO"), Column("CALL"), Column("ON", shorter=lambda cell: cell[:16]),
    Column("ANSWER"), Column("FROM", is_optional=True),
)  # fmt: skip


@click.command(short_help="Show who called what.")
@click.option("-n", "--lines", "count", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="At most so many, the newest.")
@click.option("--since", help="Only of the last 30m, 12h, 7d, …")
@click.option("--event", "name", help="Only calls of an operation, for example RunMicrovm.")
@click.option("--microvm", help="Only calls on a microVM.")
@click.option("--failed", is_flag=True, help="Only refused and failed calls.")
@data_dir_option
@json_option
def audit(count: int, since: str | None, name: str | None, microvm: str | None, failed: bool, data_dir: Path | None,
          as_json: bool) -> None:  # fmt: skip
    """Show the records of calls of the API, newest first; refused ones too. With --json as CloudTrail shapes them."""
    service = connect(data_dir)
    query: dict[str, Any] = {"since": _since(since), "eventName": name, "failed": "true" if failed else None,
             "microvmId": microvm_id(service, microvm) if microvm else None}  # fmt: skip
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < count:
        page = service.ask("GET", "/audit", maxResults=min(count - len(found), 1000), nextToken=cursor, **query)
        found += page["items"]
        cursor = page["nextToken"]
        if cursor is None:
            break
    if as_json:
        print_json(found)
    else:
        print_table(COLUMNS, [_row(each) for each in found], empty="no such calls are recorded")


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        fail(f"{text!r} is no span of time", "Write it as 30m, 12h or 7d.")
    return int(time.time()) - int(found[1]) * UNITS[found[2]]


def _row(record: dict[str, Any]) -> tuple[str | None, ...]:
    at = datetime.fromisoformat(record["eventTime"]).strftime("%Y-%m-%d %H:%M:%S")
    given, answered = record.get("requestParameters") or {}, record.get("responseElements") or {}
    on = given.get("microvmIdentifier") or answered.get("microvmId") or _name(
        given.get("imageIdentifier") or answered.get("imageArn") or given.get("name") or given.get("logGroupName"))
    who = record["userIdentity"].get("arn", "")
    return (at, who.rpartition(":")[2] or "nobody known", record["eventName"], on, record.get("errorCode", "ok"),
            record["sourceIPAddress"])  # fmt: skip


def _name(arn: str | None) -> str | None:
    return arn.rpartition(":")[2] if arn and arn.startswith("arn:") else arn
