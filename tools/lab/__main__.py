"""`./dev lab`: makes the lab, runs what is to be proven in it, brings the results out.

    ./dev lab [--only PART …] [--results FOLDER] [--timeout MINUTES]
    ./dev lab --shell | --prepare
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from tools.lab import results
from tools.lab.cargo import write_cargo
from tools.lab.disks import ROOT, Joinery
from tools.lab.inside import BEGINS
from tools.lab.machine import Machine
from tools.lab.parts import PARTS

from torpor.cli.machine import bars
from torpor.model.errors import TorporError

CACHE: Final = Path(os.environ.get("TORPOR_LAB_CACHE", Path.home() / ".cache/torpor-lab"))
DATA: Final = Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test"))
CONSOLE: Final = "console.log"
INTERRUPTED: Final = 130
PANIC: Final = "Kernel panic"
FAILED: Final = "] FAILED "
"""As in `tests/vmm/test_contract.py::test_…[firecracker] FAILED [ 36%]`."""
STARTS: Final = 2
"""How often the lab is started when the emulated machine goes down."""


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
    except KeyboardInterrupt:
        print("./dev lab: ended", file=sys.stderr)
        return INTERRUPTED


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
    if options.prepare:
        return 0
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as folder:
        place = Path(folder)
        machine = Machine(disks, place / "cargo.tar", place / "scratch.xfs", place / "results.tar")
        if options.shell:
            _load(machine, [])
            return machine.run_shell()
        return _prove(machine, options)


def _load(machine: Machine, parts: list[str]) -> None:
    write_cargo(ROOT, {"parts": parts}, machine.cargo)
    asyncio.run(machine.make_own_disks())


def _prove(machine: Machine, options: argparse.Namespace) -> int:
    """Start the lab, and again for what is left when the emulated machine itself went down; judge what came out."""
    folder: Path = options.results
    results.clear(folder)
    began = time.monotonic()
    left, has_failed = list(options.only), False
    with (folder / CONSOLE).open("w") as log:
        for start in range(STARTS):
            _load(machine, left)
            console, trouble = Console(log, began), None
            rest = options.timeout * 60 - (time.monotonic() - began)
            try:
                asyncio.run(machine.run(console.on_line, rest))
            except TorporError as error:
                trouble = error
            has_failed |= console.has_failed
            results.unpack(machine.results, folder)
            left = results.left_of(folder, options.only)
            went_down = console.has_begun and (console.has_panic or trouble is not None)
            if not left or not went_down or start + 1 == STARTS or time.monotonic() - began > options.timeout * 30:
                break
            # The kernel of the emulated machine, not Torpor.
            console.on_line(f"lab: the emulated machine went down; started again for {', '.join(left)}")
    report = results.read(folder, options.only)
    results.write_steps(report, folder)
    (folder / results.SUMMARY).write_text(report.summary())
    print(f"\n{report.summary()}\nlab: {time.monotonic() - began:.0f} s; logs and JUnit XML in {folder}", flush=True)
    if report.is_good and not has_failed:
        return 0
    if has_failed and not report.has_failed:
        print("lab: a test failed before the emulated machine went down (console.log)", flush=True)
    elif went_down:
        print("lab: the emulated machine went down each time before the tests had ended", flush=True)
    elif trouble is not None:
        raise trouble
    return 1


@dataclass
class Console:
    """What the machine says: shown with the seconds since the beginning, kept, and looked through for its end."""

    log: TextIO
    began: float
    has_panic: bool = False
    has_begun: bool = False
    """It was up, and had begun with what was ordered."""
    has_failed: bool = False
    """A test has, as pytest says while it goes on."""

    def on_line(self, line: str) -> None:
        self.has_panic |= PANIC in line
        self.has_begun |= BEGINS in line
        self.has_failed |= FAILED in line
        self.log.write(f"{line}\n")
        print(f"{time.monotonic() - self.began:6.1f}  {line}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev lab", description="Runs what needs a real KVM in an emulated machine.")
    names = [part.name for part in PARTS]
    default = [part.name for part in PARTS if part.is_default]
    parser.add_argument("--only", nargs="+", choices=names, default=default, metavar="PART",
                        help=f"of {', '.join(names)}; else {', '.join(default)}")
    parser.add_argument("--results", type=Path, default=ROOT / "build/lab", help="where results and logs go")
    parser.add_argument("--timeout", type=float, default=60, help="minutes until the lab is given up")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--shell", action="store_true", help="a prompt in the lab instead")
    instead.add_argument("--prepare", action="store_true", help="make the lab's disks and start nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
