"""`./dev lab`: makes the lab, runs what is to be proven in it, brings the results out.

    ./dev lab [--only PART …] [--results FOLDER] [--timeout MINUTES]
    ./dev lab --shell
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tools.lab import results
from tools.lab.cargo import write_cargo
from tools.lab.disks import ROOT, Disks, Joinery
from tools.lab.machine import Machine
from tools.lab.parts import PARTS

from torpor.cli.machine import bars
from torpor.model.errors import TorporError

CACHE: Final = Path(os.environ.get("TORPOR_LAB_CACHE", Path.home() / ".cache/torpor-lab"))
DATA: Final = Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test"))
CONSOLE: Final = "console.log"


def main() -> int:
    """0 when everything that was to be proven is."""
    options = _options()
    if reason := why_not():
        print(f"./dev lab: {reason}", file=sys.stderr)
        return 2
    try:
        return run_lab(options)
    except TorporError as error:
        print(f"./dev lab: {error}", file=sys.stderr)
        return 1


def why_not() -> str | None:
    """Why this machine cannot make the lab; None when it can."""
    if platform.machine() != "x86_64":
        return "the lab is an emulated AMD processor and needs an x86-64 machine"
    return None if os.geteuid() == 0 else "making the lab's disks needs root"


def run_lab(options: argparse.Namespace) -> int:
    """Raises TorporError when the lab cannot be made or does not end by itself."""
    began = time.monotonic()
    with bars() as report:
        disks = asyncio.run(Joinery(CACHE, DATA, report).make())
    print(f"lab: disks are ready after {time.monotonic() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as folder:
        machine = _machine(disks, Path(folder), options.only)
        if options.shell:
            return machine.run_shell()
        return _prove(machine, options)


def _machine(disks: Disks, folder: Path, parts: list[str]) -> Machine:
    machine = Machine(disks, folder / "cargo.tar", folder / "scratch.xfs", folder / "results.tar")
    write_cargo(ROOT, {"parts": parts}, machine.cargo)
    asyncio.run(machine.make_own_disks())
    return machine


def _prove(machine: Machine, options: argparse.Namespace) -> int:
    folder: Path = options.results
    console = machine.results.with_name(CONSOLE)
    began = time.monotonic()
    trouble: TorporError | None = None
    with console.open("w") as log:

        def on_line(line: str) -> None:
            log.write(f"{line}\n")
            print(f"{time.monotonic() - began:6.1f}  {line}", flush=True)

        try:
            asyncio.run(machine.run(on_line, options.timeout * 60))
        except TorporError as error:
            trouble = error
    results.unpack(machine.results, folder)
    shutil.copyfile(console, folder / CONSOLE)
    report = results.read(folder, options.only)
    results.write_steps(report, folder)
    (folder / results.SUMMARY).write_text(report.summary())
    print(f"\n{report.summary()}\nlab: {time.monotonic() - began:.0f} s; logs and JUnit XML in {folder}", flush=True)
    if trouble is not None:
        raise trouble
    return 0 if report.is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev lab", description="Runs what needs a real KVM in an emulated machine.")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--results", type=Path, default=ROOT / "build/lab", help="where results and logs go")
    parser.add_argument("--timeout", type=float, default=20, help="minutes until the lab is given up")
    parser.add_argument("--shell", action="store_true", help="a prompt in the lab instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
