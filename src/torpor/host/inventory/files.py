"""Files and directories of one Torpor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torpor.host.files import DOOMED_SUFFIX, DRAFT_SUFFIX, remove_directory
from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import Estate
from torpor.host.layout import BASE, COLD_MEMORY, LIVE_DISK, MicrovmFiles
from torpor.host.places import read_note
from torpor.host.simulated_ledger import Ledger, read
from torpor.host.simulated_vm import SAVED
from torpor.model.ids import MicrovmId
from torpor.vmm.probe import MEMO
from torpor.vmm.process import start_time

UNFINISHED: Final = (DRAFT_SUFFIX, DOOMED_SUFFIX)


def files(estate: Estate) -> list[Holding]:
    """Blocking."""
    parts = (_run_directories, _microvms, _snapshots, _builds, _exports, simulated_files)
    return [holding for part in parts for holding in part(estate)]


def remove_files(estate: Estate, holding: Holding) -> None:
    """Repeating it does nothing. Raises OSError."""
    if holding.kind is Kind.SIMULATED_VM:
        ledger = Ledger(estate.simulated / "live.ndjson")
        ledger.open()
        ledger.strike(MicrovmId(holding.name))
        ledger.close()
        return
    path = Path(holding.name)
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif holding.kind is Kind.RUN_DIRECTORY:
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_directory(path)


def _run_directories(estate: Estate) -> Iterator[Holding]:
    for path in _entries(estate.layout.run_dir):
        note = read_note(path)
        yield Holding(Kind.RUN_DIRECTORY, str(path), (f"run:{path}",), f"of {note.owner}" if note else "")
    for path in _entries(estate.run_root):
        if path != estate.layout.run_dir and path.name != MEMO:
            is_probe = path.name.startswith("probe-")  # the service that made it is ready, so it is done with it
            keys = () if is_probe else ("service", *run_keys(estate))
            yield Holding(Kind.FILE, str(path), keys, "left by a probe" if is_probe else "left by the endpoints")


def run_keys(estate: Estate) -> list[str]:
    """Of all run directories that there are."""
    return [f"run:{path}" for path in _entries(estate.layout.run_dir)]


def _microvms(estate: Estate) -> Iterator[Holding]:
    for path in _entries(estate.layout.microvms):
        name, in_flux = path.name, f"flux:{path.name}"
        if name.endswith(UNFINISHED):
            yield Holding(Kind.FILE, str(path), (f"flux:{name.rpartition('.')[0]}",), "half removed", taken(path))
            continue
        yield Holding(Kind.MICROVM, str(path), (f"microvm:{name}", in_flux), "", taken(path))
        if path.is_dir():
            yield from _parts(path, in_flux)


def _parts(path: Path, in_flux: str) -> Iterator[Holding]:
    """What a microVM's directory holds besides its newest generation, or what it was launched from."""
    microvm = MicrovmFiles(path)
    latest, placed = microvm.latest(), f"placed:{path.name}"
    keys: tuple[str, ...]
    for part in _entries(path):
        if part == latest:
            continue
        if part.name in (LIVE_DISK, COLD_MEMORY):
            keys, what = (placed, in_flux), "of a VM that does not run"
        elif part.name == BASE:
            keys, what = (placed, in_flux, *(() if latest else (f"microvm:{path.name}",))), "an image it has left"
        elif part.name.endswith(UNFINISHED):
            keys, what = (in_flux,), "half written or half removed"
        elif part.name.startswith("gen-"):
            keys, what = (f"base:{path.name}:{part.name}", in_flux), "an older generation"
        else:
            keys, what = (in_flux,), "nothing that Torpor writes"
        yield Holding(Kind.FILE, str(part), keys, what, taken(part), within=str(path))


def _snapshots(estate: Estate) -> Iterator[Holding]:
    for path in _entries(estate.layout.snapshots):
        # A snapshot has its name a moment before its build's record says so.
        keys = (f"snapshot:{path.name}", f"build:{path.name}")
        is_doomed = path.name.endswith(UNFINISHED)
        yield Holding(Kind.FILE if is_doomed else Kind.SNAPSHOT, str(path), keys, "half removed" if is_doomed else "",
                      taken(path))  # fmt: skip


def _exports(estate: Estate) -> Iterator[Holding]:
    """Stages of commands that are gone; `exports` says what their names mean."""
    for parent in (estate.layout.exports, estate.simulated / "exports"):
        for path in _entries(parent):
            process, _, started = path.name.partition("-")[0].partition("@")
            is_there = bool(started) and start_time(int(process)) == int(started)
            yield Holding(Kind.FILE, str(path), ("service", "command") if is_there else (),
                          "of an export or import that was cut short", taken(path))  # fmt: skip


def _builds(estate: Estate) -> Iterator[Holding]:
    for path in _entries(estate.layout.builds):
        name = path.name
        while name.endswith(UNFINISHED):
            name = name.rpartition(".")[0]
        yield Holding(Kind.BUILD, str(path), (f"build:{name}",), "", taken(path))


def simulated_files(estate: Estate) -> Iterator[Holding]:
    """Of the simulated machine."""
    for microvm_id in read(estate.simulated / "live.ndjson"):
        name = str(microvm_id)
        yield Holding(Kind.SIMULATED_VM, name, (f"microvm:{name}", f"flux:{name}"), "lives")
    for path in _entries(estate.simulated / "microvms"):
        if path.name.endswith(SAVED):
            name = path.name.removesuffix(SAVED)
            yield Holding(Kind.MICROVM, str(path), (f"microvm:{name}", f"flux:{name}"), "", taken(path))
        else:
            yield Holding(Kind.FILE, str(path), (), "half written", taken(path))
    for path in _entries(estate.simulated / "snapshots"):
        keys = (f"snapshot:{path.name}", f"build:{path.name}")
        yield Holding(Kind.SNAPSHOT, str(path), keys, "", taken(path))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def taken(path: Path) -> int:
    """Bytes that a file or a directory takes on the disk, shared ones included. Things that vanish count nothing."""
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_blocks * 512
        return sum(taken(each) for each in path.iterdir())
    except OSError:
        return 0
