"""What is left on the machine that nobody needs: listed by `doctor`, removed by `gc`."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.options import machine_options, settings
from torpor.cli.output import err, json_option, print_json
from torpor.cli.table import Column, print_table
from torpor.cli.words import size
from torpor.config import Config
from torpor.host.setup.findings import Finding
from torpor.model.errors import TorporError
from torpor.ready import holder, sole_use

DAMAGE_REMEDY: Final = "Restore the files from a backup; or `torpor recover ID`, for an image `torpor deploy`."
COLUMNS: Final = (
    Column("KIND"), Column("NAME"), Column("ON DISK", is_optional=True, is_right=True),
    Column("DETAIL", is_optional=True),
)  # fmt: skip


@click.command(short_help="Remove what nobody needs any more.")
@click.option("--dry-run", is_flag=True, help="Only list it.")
@machine_options
@json_option
def gc(dry_run: bool, data_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """Remove processes, namespaces, rules, mounts, loop devices and files of Torpor that belong to no record.

    Suspended microVMs whose saved files are missing are ended. Works through the running service, and without one.
    Exit code 1 when something could not be removed.
    """
    chosen = settings(config, data_dir=data_dir)
    with err.status("looking at the machine"):
        found = leaks_of(chosen) if dry_run else collect(chosen)
    left = [each for each in found if not dry_run and not each["isRemoved"]]
    if as_json:
        print_json({"leaks": found, "removed": sum(each.get("isRemoved", False) for each in found)})
    else:
        _print(found, dry_run)
    raise SystemExit(1 if left else 0)


def leaks_of(config: Config) -> list[dict[str, Any]]:
    """The leaks, asked of the service where one runs. Raises TorporError."""
    if holder(config.data_dir) is not None:
        from torpor.cli.connection import connect

        items: list[dict[str, Any]] = connect(config.data_dir).ask("GET", "/leaks")["items"]
        return items
    from torpor.control import offline

    return [_members(asdict(leak)) for leak in asyncio.run(offline.find(config))]


def collect(config: Config) -> list[dict[str, Any]]:
    """Remove the leaks; each with what came of it. Raises TorporError."""
    if holder(config.data_dir) is not None:
        from torpor.cli.connection import connect

        items = connect(config.data_dir).ask("POST", "/gc")["items"]
    else:
        from torpor.control import offline

        with ExitStack() as stack:
            if config.data_dir.is_dir():
                stack.enter_context(sole_use(config.data_dir))
            items = [_members(asdict(each)) for each in asyncio.run(offline.collect(config))]
    return [{**each["leak"], "isRemoved": each["isRemoved"], "error": each["error"]} for each in items]


def findings(config: Config) -> list[Finding]:
    """For `doctor`: one for each leak, or one that says that there is none or why that is not known."""
    try:
        found = leaks_of(config)
    except (TorporError, OSError) as error:
        remedy = getattr(error, "remedy", "") or "Run this command as root."
        return [Finding("leaks", False, f"cannot be looked for: {error}", remedy, is_needed=False)]
    if not found:
        return [Finding("leaks", True, "none")]
    return [_finding(each) for each in found]


def _finding(leak: dict[str, Any]) -> Finding:
    if leak["kind"] == "damaged files":
        return Finding("damage", False, f"{leak['name']}: {leak['detail']}", DAMAGE_REMEDY, is_needed=False)
    remedy = "`torpor gc` removes it." if leak["isRemovable"] else ""
    return Finding("leak", False, _line(leak), remedy, is_needed=False)


def _line(leak: dict[str, Any]) -> str:
    more = ", ".join([*([leak["detail"]] if leak["detail"] else []), *([size(leak["bytes"])] if leak["bytes"] else [])])
    return f"{leak['kind']} {leak['name']}" + (f" ({more})" if more else "")


def _print(found: list[dict[str, Any]], dry_run: bool) -> None:
    rows = [(each["kind"], each["name"], size(each["bytes"]) if each["bytes"] else None, each["detail"])
            for each in found]  # fmt: skip
    print_table(COLUMNS, rows, empty="nothing to remove")
    if not found:
        return
    if dry_run:
        count = sum(each["isRemovable"] for each in found)
        err.print(f"{count} of {len(found)} would be removed: torpor gc", markup=False)
        return
    for each in found:
        if not each["isRemoved"]:
            err.print(f"not removed: {each['kind']} {each['name']}: {each['error']}", markup=False)
    err.print(f"removed {sum(each['isRemoved'] for each in found)} of {len(found)}", markup=False)


def _members(value: dict[str, Any]) -> dict[str, Any]:
    """Under the names that the API gives them."""
    return {_camel(name): _members(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
