"""Preparing the machine and saying what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from torpor.cli.gc import findings as leaks
from torpor.cli.options import machine_options, settings
from torpor.cli.output import err, fail, json_option, out, print_json
from torpor.config import Config
from torpor.host.setup.check import check as check_setup
from torpor.host.setup.doctor import examine
from torpor.host.setup.engines import engines as engine_findings
from torpor.host.setup.findings import Finding
from torpor.host.setup.imports import import_base as import_container_base
from torpor.host.setup.prepare import prepare
from torpor.host.setup.progress import PlainLines, Report
from torpor.host.setup.progress import Progress as StepProgress
from torpor.model.errors import TorporError
from torpor.ready import holder, named

BAR_WIDTH: Final = 20
MARKS: Final = {"leak": "[yellow]leaked [/yellow]", "damage": "[red]damaged[/red]"}
"""Of findings that are not about something missing."""


@click.command(short_help="Prepare this machine; idempotent.")
@machine_options
@click.option("--check", is_flag=True, help="Only look; exit code 1 when something is missing.")
@json_option
def setup(data_dir: Path | None, config: Path | None, check: bool, as_json: bool) -> None:
    """Prepare this machine: packages, guest kernel and system, container bases, volume, certificates. Idempotent."""
    chosen = settings(config, data_dir=data_dir)
    if check:
        _conclude(asyncio.run(check_setup(chosen)), as_json)
    with bars() as report:
        prepared = _guarded(prepare(chosen, report))
    if as_json:
        print_json({name: str(getattr(prepared, name)) for name in prepared.__dataclass_fields__})
    else:
        err.print(f"[green]ready:[/green] kernel {prepared.kernel_version}, data in {escape(str(chosen.data_dir))}")


@click.command(short_help="Say what this machine lacks and how to get it.")
@machine_options
@json_option
def doctor(data_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """Look at this machine and at what setup made; say what is missing and how to get it, and what leaked.

    A leak is something of Torpor's that belongs to no record: `torpor gc` removes it. Exit code 1 when something that
    Torpor needs is missing.
    """
    chosen = settings(config, data_dir=data_dir)

    async def both() -> list[Finding]:
        return [*await engine_findings(chosen), *await examine(chosen), *await check_setup(chosen)]

    found = asyncio.run(both())
    _conclude(_with_service(chosen, [*leaks(chosen), *found]), as_json)


@click.command("import-base", short_help="Bring in a container base for FROM lines.")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("name")
@machine_options
def import_base(source: Path, name: str, data_dir: Path | None, config: Path | None) -> None:
    """Make an OCI layout or image archive the container base NAME, for FROM lines of Dockerfiles."""
    with bars() as report:
        _guarded(import_container_base(settings(config, data_dir=data_dir), source, name, report))
    err.print(f"[green]imported[/green] {escape(name)}; Dockerfiles can say FROM {escape(name)}")


class bars:  # noqa: N801 - used like a function: `with bars() as report`
    """A progress bar per step on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=BAR_WIDTH), TimeElapsedColumn(),
            # What a step does now is cut at the edge of a narrow terminal rather than broken into lines.
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=err,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Report:
        if not err.is_terminal:
            return PlainLines(lambda line: click.echo(line, err=True))
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        # Elsewhere than on a terminal it was never started, and stopping would print an empty line.
        if err.is_terminal:
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
        fail(str(error), getattr(error, "remedy", "") or "`torpor doctor` says what else is missing.")


def _with_service(config: Config, findings: Sequence[Finding]) -> list[Finding]:
    """A first finding about the service; ports that it listens on itself are as they should be."""
    process = holder(config.data_dir)
    if process is None:
        return [Finding("service", True, f"not running with {config.data_dir}"), *findings]
    own = f"taken; Torpor, {named(process)}, runs"
    known = [replace(f, is_ok=True, detail=own, remedy="") if f.what.endswith(" port") else f for f in findings]
    return [Finding("service", True, f"running, {named(process)}"), *known]


def _conclude(findings: Sequence[Finding], as_json: bool) -> None:
    """Print the findings and end the command: 1 when something needed is missing."""
    if as_json:
        print_json([
            {"what": f.what, "ok": f.is_ok, "needed": f.is_needed, "detail": f.detail, "remedy": f.remedy}
            for f in findings
        ])  # fmt: skip
    else:
        _print_findings(findings)
    raise SystemExit(1 if any(f.is_needed and not f.is_ok for f in findings) else 0)


def _print_findings(findings: Sequence[Finding]) -> None:
    width = max((len(f.what) for f in findings), default=0)
    for found in findings:
        mark = "[green]ok[/green]     " if found.is_ok else (
            "[red]missing[/red]" if found.is_needed else "[yellow]without[/yellow]")  # fmt: skip
        if found.what in MARKS:
            mark = MARKS[found.what]
        out.print(f"{mark}  {escape(found.what):<{width}}  {escape(found.detail)}")
    remedies: dict[str, list[str]] = {}
    for found in findings:
        if not found.is_ok and found.remedy:
            whats = remedies.setdefault(found.remedy, [])
            if found.what not in whats:
                whats.append(found.what)
    for remedy, whats in remedies.items():
        out.print(f"→ {escape(', '.join(whats))}: {escape(remedy)}")
