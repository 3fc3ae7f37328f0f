"""The files of a saved VM: written whole or not at all, and checked before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torpor.model.errors import SnapshotDamaged, SnapshotUnfit
from torpor.vmm.base import DEVICE_STATE, ENGINE_RECORD, MEMORY_FILE, Machine, RestoreSpec
from torpor.vmm.memory import sync_directory

NAMES = (MEMORY_FILE, DEVICE_STATE, ENGINE_RECORD)


@dataclass(frozen=True, slots=True)
class Maker:
    """What must be the same where a VM is saved and where it is restored."""

    engine: str
    acceleration: str
    architecture: str
    format: int
    """Of the device state; numbered by the engine."""
    cpu: str = ""
    """The processor the guest has seen; empty where it was an emulated one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The parts of a VM that its device state speaks of."""

    vcpus: int
    memory_mib: int
    drives: int
    has_tap: bool

    @property
    def machine(self) -> Machine:
        return Machine(self.vcpus, self.memory_mib)


@dataclass(frozen=True, slots=True)
class Draft:
    """New files beside their final names; see `draft`."""

    into: Path

    def path(self, name: str) -> Path:
        return self.into / f".{name}.new"

    def publish(self, maker: Maker, shape: Shape, version: str) -> None:
        """Make the memory file (already durable) and the device state the directory's. Blocking; raises OSError."""
        device = self.path(DEVICE_STATE).read_bytes()
        record = {
            "maker": asdict(maker), "shape": asdict(shape), "version": version,
            "memory_bytes": self.path(MEMORY_FILE).stat().st_size,
            "device_bytes": len(device), "device_sha256": hashlib.sha256(device).hexdigest(),
        }  # fmt: skip
        self.path(ENGINE_RECORD).write_text(json.dumps(record, indent=1))
        for name in (DEVICE_STATE, ENGINE_RECORD):
            _sync_file(self.path(name))
        for name in NAMES:
            self.path(name).replace(self.into / name)
        sync_directory(self.into)


@contextlib.contextmanager
def draft(into: Path) -> Iterator[Draft]:
    """Files to be written and published; what is not published when the block ends is removed."""
    new = Draft(into.absolute())  # another process writes there too
    try:
        yield new
    finally:
        for name in NAMES:
            with contextlib.suppress(OSError):
                new.path(name).unlink(missing_ok=True)


def check(spec: RestoreSpec, maker: Maker) -> None:
    """Say whether a snapshot can be restored. Blocking; reads the device state, not the memory.

    Raises:
        SnapshotDamaged: a file is missing, has another size than it was saved with, or cannot be understood.
        SnapshotUnfit: the files are whole, but of another engine or another machine; it says what to do.
    """
    record = _read_record(spec.snapshot)
    try:
        saved_by, shape = Maker(**record["maker"]), Shape(**record["shape"])
        _check_files(spec.snapshot, record)
    except (KeyError, TypeError) as error:
        raise SnapshotDamaged(f"the record of snapshot {spec.snapshot} is not understood") from error
    if (refusal := _refusal(saved_by, maker)) is not None:
        raise SnapshotUnfit(f"snapshot {spec.snapshot.name} {refusal}")
    wanted = shape_of(spec.machine, len(spec.drives), spec.tap is not None)
    if shape != wanted:
        raise SnapshotUnfit(f"snapshot {spec.snapshot.name} is of a VM with {shape}, not {wanted}")


def saved_version(snapshot: Path) -> str:
    """The version of the program that saved it; empty where it was not noted. Blocking; raises SnapshotDamaged."""
    version = _read_record(snapshot).get("version")
    return version if isinstance(version, str) else ""


def shape_of(machine: Machine, drives: int, has_tap: bool) -> Shape:
    return Shape(machine.vcpus, machine.memory_mib, drives, has_tap)


def _read_record(snapshot: Path) -> dict[str, Any]:
    try:
        record = json.loads((snapshot / ENGINE_RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise SnapshotDamaged(f"the record of snapshot {snapshot} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise SnapshotDamaged(f"the record of snapshot {snapshot} is not understood")
    return record


def _check_files(snapshot: Path, record: dict[str, Any]) -> None:
    try:
        memory_bytes = (snapshot / MEMORY_FILE).stat().st_size
        device = (snapshot / DEVICE_STATE).read_bytes()
    except OSError as error:
        raise SnapshotDamaged(f"snapshot {snapshot} is not whole: {error}") from error
    for name, found, saved in (
        (MEMORY_FILE, memory_bytes, record["memory_bytes"]),
        (DEVICE_STATE, len(device), record["device_bytes"]),
    ):
        if found != saved:
            raise SnapshotDamaged(f"{snapshot / name} has {found} bytes, not the {saved} it was saved with")
    if hashlib.sha256(device).hexdigest() != record["device_sha256"]:
        raise SnapshotDamaged(f"{snapshot / DEVICE_STATE} is not what was saved: its checksum differs")


def _refusal(saved: Maker, here: Maker) -> str | None:
    """Why a snapshot cannot be restored here, and what to do."""
    if (saved.engine, saved.acceleration) != (here.engine, here.acceleration):
        return (f"was saved by {saved.engine} with {saved.acceleration}, this is {here.engine} with "
                f"{here.acceleration}: start Torpor with that engine, or build the image again")  # fmt: skip
    if saved.architecture != here.architecture:
        return f"is of an {saved.architecture} machine, this is {here.architecture}: build the image again here"
    if saved.format != here.format:
        return (f"has device state of format {saved.format}, this Torpor reads format {here.format}: build the image "
                "again, or use the release that made it")  # fmt: skip
    if saved.cpu != here.cpu:
        return (f"was saved on a processor {saved.cpu or 'that nobody noted'}, this machine has {here.cpu}: use it on "
                "such a machine, or build the image again here")  # fmt: skip
    return None


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
