"""Preparing the machine and saying what is wrong with it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, out, print_json
from torpor.config import load
from torpor.host import setup as room
from torpor.host.setup.progress import PlainLines, Report
from torpor.host.setup.progress import Progress as StepProgress
from torpor.model.errors import TorporError


@click.command()
@data_dir_option
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A TOML file of settings.")
@click.option("--check", is_flag=True, help="Only look; exit code 1 when something is missing.")
@json_option
def setup(data_dir: Path | None, config: Path | None, check: bool, as_json: bool) -> None:
    """Prepare this machine: packages, guest kernel and system, container bases, volume, certificates. Idempotent."""
    settings = load(config, data_dir=data_dir)
    if check:
        findings = asyncio.run(room.check(settings))
        _print_findings(findings, as_json)
        raise SystemExit(0 if all(each.is_ok for each in findings) else 1)
    with bars() as report:
        prepared = _guarded(room.prepare(settings, report))
    if as_json:
        print_json({name: str(getattr(prepared, name)) for name in prepared.__dataclass_fields__})
    else:
        err.print(f"[green]ready:[/green] kernel {prepared.kernel_version}, data in {settings.data_dir}")


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Look at this machine and at what setup made; say what is missing and how to get it."""
    settings = load(None, data_dir=data_dir)

    async def both() -> list[Any]:
        return [*await room.examine(settings), *await room.check(settings)]

    findings = asyncio.run(both())
    _print_findings(findings, as_json)
    raise SystemExit(0 if all(each.is_ok for each in findings) else 1)


@click.command("import-base")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("name")
@data_dir_option
def import_base(source: Path, name: str, data_dir: Path | None) -> None:
    """Make an OCI layout or image archive the container base NAME, for FROM lines of Dockerfiles."""
    with bars() as report:
        _guarded(room.import_base(load(None, data_dir=data_dir), source, name, report))
    err.print(f"[green]imported[/green] {name}; Dockerfiles can say FROM {name}")


class bars:  # noqa: N801 - used like a function: `with bars() as report`
    """A progress bar per step on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn(),
            console=err,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Report:
        if not sys.stderr.isatty():
            return PlainLines(lambda line: click.echo(line, err=True))
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, step: StepProgress) -> None:
        task = self._tasks.get(step.step)
        if task is None:
            task = self._tasks[step.step] = self._progress.add_task(step.step, total=None, detail="")
        fraction = 1.0 if step.is_done else step.fraction
        total = None if fraction is None else 1.0
        self._progress.update(task, total=total, completed=fraction or 0.0, detail=step.detail)
        if step.is_done:
            self._progress.stop_task(task)


def _guarded(work: Any) -> Any:
    try:
        return asyncio.run(work)
    except TorporError as error:
        fail(str(error), "`torpor doctor` says what else is missing.")


def _print_findings(findings: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print_json([{"what": f.what, "ok": f.is_ok, "detail": f.detail, "remedy": f.remedy} for f in findings])
        return
    width = max((len(f.what) for f in findings), default=0)
    for found in findings:
        mark = "[green]ok[/green]     " if found.is_ok else "[red]missing[/red]"
        out.print(f"{mark}  {found.what:<{width}}  {found.detail}".replace("\\", "\\\\"))
        if not found.is_ok and found.remedy:
            out.print(f"         {'':<{width}}  → {found.remedy}")


