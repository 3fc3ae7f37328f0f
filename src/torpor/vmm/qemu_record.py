"""What a run directory says about its VMM, so that the next control process can adopt it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from torpor.vmm.process import Identity, command_line, find, start_time
from torpor.vmm.qemu_command import name_of
from torpor.vmm.snapshot import Shape

RECORD: Final = "vmm.json"
IDENTITY: Final = "vmm.pid"
MONITOR: Final = "monitor"
LOG: Final = "vmm.log"


@dataclass(frozen=True, slots=True)
class Record:
    """Written before the process starts; nothing in it changes afterwards."""

    acceleration: str
    shape: Shape
    memory: Path
    memory_device: int
    memory_inode: int
    is_shared: bool
    labels: Mapping[str, str] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        _write(run_dir / RECORD, json.dumps({**asdict(self), "memory": str(self.memory)}, indent=1))


def read_record(run_dir: Path) -> Record | None:
    """None when there is none or it is not whole."""
    try:
        found = json.loads((run_dir / RECORD).read_bytes())
        return Record(**{**found, "memory": Path(found["memory"]), "shape": Shape(**found["shape"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_identity(run_dir: Path, identity: Identity) -> None:
    _write(run_dir / IDENTITY, json.dumps(asdict(identity)))


def find_process(run_dir: Path) -> Identity | None:
    """The living VMM of a run directory. Blocking."""
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
    return bool(words) and "qemu" in words[0] and name_of(run_dir) in words


def _write(path: Path, text: str) -> None:
    # Not fsynced: after a crash of the machine there is no process to adopt.
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
