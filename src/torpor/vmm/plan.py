"""One VM to start, as its VMM sees it: the files of the host and the names they have in the jail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE, BootSpec, Drive, Machine, RestoreSpec, Tap
from torpor.vmm.jail import Access, Bind
from torpor.vmm.record import SAVED, Record
from torpor.vmm.snapshot import Shape, shape_of

CONSOLE: Final = "console"
KERNEL_INSIDE: Final = Path("/kernel")
INITRAMFS_INSIDE: Final = Path("/initramfs")
MEMORY_INSIDE: Final = Path("/memory")
STATE_INSIDE: Final = Path("/device")
CONSOLE_INSIDE: Final = Path("/console")
SAVED_INSIDE: Final = Path("/device.saved")


@dataclass(frozen=True, slots=True)
class Boot:
    kernel: Path
    initramfs: Path
    command_line: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All paths are the host's."""

    machine: Machine
    drives: tuple[Drive, ...]
    tap: Tap | None
    run_dir: Path
    labels: Mapping[str, str]
    memory: Path | None
    """The file that is mapped as guest memory; None where the VMM has memory of its own."""
    boot: Boot | None
    """A restore has a device state instead."""
    state: Path | None

    @classmethod
    def of_boot(cls, spec: BootSpec, memory: Path | None, boot: Boot) -> Plan:
        return cls(spec.machine, tuple(spec.drives), spec.tap, spec.run_dir, spec.labels, memory, boot, None)

    @classmethod
    def of_restore(cls, spec: RestoreSpec) -> Plan:
        return cls(
            spec.machine, tuple(spec.drives), spec.tap, spec.run_dir, spec.labels, spec.snapshot / MEMORY_FILE, None,
            spec.snapshot / DEVICE_STATE,
        )  # fmt: skip

    @property
    def shape(self) -> Shape:
        return shape_of(self.machine, len(self.drives), self.tap is not None)

    def drives_inside(self) -> tuple[Drive, ...]:
        """The drives under their names in the jail, which are the same in every VM of this shape."""
        return tuple(Drive(Path(f"/drive{number}"), each.read_only) for number, each in enumerate(self.drives))

    def binds(self) -> list[Bind]:
        """The files every engine needs. The ones to be written in the run directory must be there: see `blank`."""
        inside = zip(self.drives, self.drives_inside(), strict=True)
        found = [Bind(host.path, _name(jailed.path), _access(host)) for host, jailed in inside]
        found.append(Bind(self.run_dir / SAVED, _name(SAVED_INSIDE), Access.WRITE))
        if self.memory is not None:
            access = Access.WRITE if self.boot is not None else Access.READ
            found.append(Bind(self.memory, _name(MEMORY_INSIDE), access))
        if self.boot is not None:
            found.append(Bind(self.boot.kernel, _name(KERNEL_INSIDE), Access.READ))
            found.append(Bind(self.boot.initramfs, _name(INITRAMFS_INSIDE), Access.READ))
        return found

    def record(self, acceleration: str, version: str, uid: int) -> Record:
        """Raises OSError."""
        status = self.memory.stat() if self.memory is not None else None
        device, inode = (status.st_dev, status.st_ino) if status is not None else (0, 0)
        is_shared = self.boot is not None and self.memory is not None
        return Record(acceleration, version, self.shape, uid, self.memory, device, inode, is_shared, dict(self.labels))


def blank(path: Path) -> None:
    """An empty file that only root, and whom it is given to, can read. Raises OSError."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)


def _name(inside: Path) -> str:
    return str(inside.relative_to("/"))


def _access(drive: Drive) -> Access:
    return Access.READ if drive.read_only else Access.WRITE
