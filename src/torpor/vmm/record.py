"""What a run directory says about its VMM, so that the next control process can adopt it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from torpor.vmm.process import Identity, command_line, find, start_time
from torpor.vmm.snapshot import Shape

RECORD: Final = "vmm.json"
IDENTITY: Final = "vmm.pid"
LOG: Final = "vmm.log"
FIRECRACKER: Final = "firecracker"
"""What the program is called in its jail."""
ROOT: Final = "root"
"""Empty; the root of the VMM's jail is mounted over it where the host cannot see it."""
SAVED: Final = "device.saved"
"""Where the VMM writes its device state; the only file in the run directory that it may write besides its logs."""


@dataclass(frozen=True, slots=True)
class Record:
    """Written before the process starts; nothing in it changes afterwards."""

    acceleration: str
    version: str
    """Of the program."""
    shape: Shape
    uid: int
    """0: without a jail, as VMMs were started before there was one."""
    memory: Path | None
    """The file that the VMM maps as the guest's memory; None for memory of its own."""
    memory_device: int
    memory_inode: int
    is_shared: bool
    labels: Mapping[str, str] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        _write(run_dir / RECORD, json.dumps({**asdict(self), "memory": self.memory and str(self.memory)}))


def read_record(run_dir: Path) -> Record | None:
    """None when there is none or it is not whole."""
    try:
        found = json.loads((run_dir / RECORD).read_bytes())
        memory = found["memory"] and Path(found["memory"])
        return Record(**{"uid": 0, "version": "", **found, "memory": memory, "shape": Shape(**found["shape"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_identity(run_dir: Path, identity: Identity) -> None:
    _write(run_dir / IDENTITY, json.dumps(asdict(identity)))


def qemu_name(run_dir: Path) -> str:
    """The `-name` by which the QEMU of a run directory is found again."""
    return f"guest={escaped(run_dir)}"


def firecracker_name(run_dir: Path) -> str:
    """The first word of its command line, by which the Firecracker of a run directory is found again."""
    return str(run_dir / FIRECRACKER)


def firecracker_id(run_dir: Path) -> str:
    """Its `--id`, which may hold letters, digits and dashes."""
    return f"torpor-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:32]}"


def escaped(path: Path) -> str:
    """A path inside an option of QEMU that separates with commas."""
    return str(path).replace(",", ",,")


def find_process(run_dir: Path) -> Identity | None:
    """The living VMM of a run directory, of whichever engine. Blocking."""
    known = _read_identity(run_dir)
    if known is not None:
        is_same = start_time(known.pid) == known.start_time and _is_vmm_of(run_dir, command_line(known.pid))
        return known if is_same else None
    # A control process that died between starting a VMM and writing down its pid: look for it.
    pid = find(lambda words: _is_vmm_of(run_dir, words))
    started = start_time(pid) if pid is not None else None
    return Identity(pid, started) if pid is not None and started is not None else None


def _read_identity(run_dir: Path) -> Identity | None:
    try:
        return Identity(**json.loads((run_dir / IDENTITY).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_vmm_of(run_dir: Path, words: list[str]) -> bool:
    program = Path(words[0]).name if words else ""
    if program == FIRECRACKER:
        return words[0] == firecracker_name(run_dir)
    return "qemu" in program and qemu_name(run_dir) in words


def _write(path: Path, text: str) -> None:
    # Not fsynced: after a crash of the machine there is no process to adopt.
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
