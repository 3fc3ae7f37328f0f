"""`./dev bench many`: start, list, doctor and gc with hundreds of sleeping microVMs and a thousand records.

One real microVM is launched, suspended and copied with reflinks; copies of its record make up the rest, TERMINATED ones
included. Afterwards everything that was added is removed again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tools.bench.cycles import APPLICATION, IMAGE, has_image
from tools.bench.service import TORPOR, service, torpor

from torpor.cli.service import running
from torpor.config import DEFAULT_DATA_DIR, Config
from torpor.host.files import clone_file
from torpor.host.layout import MicrovmFiles
from torpor.model.ids import MicrovmId, new_endpoint_label, new_microvm_id
from torpor.model.microvm import Microvm, MicrovmState
from torpor.store import Database, microvms

CLONED = ("memory", "disk")


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    ports = (options.api_port, options.s3_port, options.endpoint_port)
    if running(options.data_dir) is not None:
        raise SystemExit(f"a service runs with {options.data_dir}: torpor down")  # its records are multiplied
    with service(options.data_dir, options.engine, ports) as found:
        if not has_image(found):
            torpor(options.data_dir, "deploy", str(APPLICATION), "--name", IMAGE, "--memory", "512")
        original = torpor(options.data_dir, "run", IMAGE, "--idle", "28800").splitlines()[-1]
        torpor(options.data_dir, "suspend", original)
    added, copied = _timed(lambda: asyncio.run(_add(options, MicrovmId(original))))
    try:
        figures = {"suspended": options.suspended, "records": options.records, "copies_s": copied} | _measure(
            options, added, ports)
    finally:
        asyncio.run(_remove(options, added))
    with service(options.data_dir, options.engine, ports):
        torpor(options.data_dir, "terminate", original)
    if options.json:
        print(json.dumps(figures))
        return 0
    table = Table(title=f"{options.suspended} suspended, {options.records} records", title_justify="left")
    table.add_column("what")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console(highlight=False).print(table)
    return 0


def _measure(options: argparse.Namespace, added: list[Microvm], ports: tuple[int, ...]) -> dict[str, Any]:
    api, s3, endpoints = (str(port) for port in ports)
    figures: dict[str, Any] = {}

    def measure(name: str, *words: str) -> str:
        said, figures[name] = _timed(lambda: torpor(options.data_dir, *words))
        return said

    measure("start_s", "up", "--detach", "--engine", options.engine, "--api-port", api, "--s3-port", s3,
            "--endpoint-port", endpoints)  # fmt: skip
    try:
        listed = json.loads(measure("ls_s", "ls", "--json"))
        assert len(listed) >= options.suspended, len(listed)
        assert len(json.loads(measure("ls_all_s", "ls", "--all", "--json"))) >= options.records
        figures["leaks"] = len(json.loads(measure("gc_dry_run_s", "gc", "--dry-run", "--json"))["leaks"])
        _, figures["doctor_s"] = _timed(lambda: subprocess.run(
            [*TORPOR, "doctor", "--data-dir", str(options.data_dir)], capture_output=True, check=False))
        measure("resume_one_s", "resume", added[0].microvm_id)
        measure("suspend_one_s", "suspend", added[0].microvm_id)
    finally:
        measure("stop_s", "down")
    measure("gc_dry_run_stopped_s", "gc", "--dry-run", "--json")
    return figures


async def _add(options: argparse.Namespace, original: MicrovmId) -> list[Microvm]:
    database = Database(Config(data_dir=options.data_dir).database_url)
    try:
        record = await database.read(lambda connection: microvms.get(connection, original))
        assert record is not None
        source = MicrovmFiles(options.data_dir / "volume/microvms" / original).latest()
        assert source is not None
        added = [replace(record, microvm_id=new_microvm_id(), endpoint_label=new_endpoint_label())
                 for _ in range(options.records - 1)]  # fmt: skip
        asleep, ended = added[: options.suspended - 1], added[options.suspended - 1 :]
        for microvm in asleep:
            _copy(source, options.data_dir / "volume/microvms" / microvm.microvm_id / source.name)
        gone = [replace(each, state=MicrovmState.TERMINATED, terminated_at=each.last_active_at) for each in ended]
        await database.write(lambda connection: [microvms.insert(connection, each) for each in (*asleep, *gone)])
        return [*asleep, *gone]
    finally:
        await database.close()


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name in CLONED:
            clone_file(path, target / path.name)
        else:
            shutil.copy(path, target / path.name)


async def _remove(options: argparse.Namespace, added: list[Microvm]) -> None:
    database = Database(Config(data_dir=options.data_dir).database_url)
    ids = [each.microvm_id for each in added]
    try:
        await database.write(lambda connection: connection.execute(
            microvms.microvms.delete().where(microvms.microvms.c.microvm_id.in_(ids))))
    finally:
        await database.close()
    for microvm_id in ids:
        shutil.rmtree(options.data_dir / "volume/microvms" / microvm_id, ignore_errors=True)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), round(time.perf_counter() - started, 3)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench many", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--suspended", type=int, default=200)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--endpoint-port", type=int, default=443)
    parser.add_argument("--api-port", type=int, default=7060)
    parser.add_argument("--s3-port", type=int, default=7061)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
