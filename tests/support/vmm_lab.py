"""What is made once for all tests of an engine, where the engine can be tested: a volume, a guest, a saved VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.vmm_guest import guest_artefacts, has_everything
from support.vmm_world import (
    WIRE_PREFIX,
    FirecrackerWorld,
    QemuWorld,
    RealWorld,
    Saved,
    SimulatedWorld,
    World,
    firecracker_program,
)
from torpor.host.network import namespace
from torpor.model.errors import SetupMissing
from torpor.vmm import process
from torpor.vmm.auto import KVM_DEVICE
from torpor.vmm.firecracker import FirecrackerEngine
from torpor.vmm.probe import ProbeArtefacts


@dataclass(frozen=True)
class Lab:
    """What is made once for all tests of an engine."""

    name: str
    folder: Path
    artefacts: ProbeArtefacts | None

    def new_world(self) -> World:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        if self.artefacts is None:
            return SimulatedWorld(folder)
        return WORLDS[self.name](folder, self.artefacts)


WORLDS: dict[str, type[RealWorld]] = {"qemu": QemuWorld, "firecracker": FirecrackerWorld}


@contextlib.contextmanager
def lab(name: str, folder: Path) -> Iterator[Lab]:
    """Everything an engine's tests need; nothing is left of it."""
    if name == "simulated":
        yield Lab(name, folder, None)
        return
    with reflink_volume(folder) as volume:
        yield Lab(name, volume, asyncio.run(guest_artefacts()))
        assert _left_behind(volume) == []


def _left_behind(folder: Path) -> list[str]:
    """Processes, namespaces and mounts of these tests, those of nobody else on the machine."""
    lines = {pid: process.command_line(int(pid.name)) for pid in Path("/proc").glob("[0-9]*")}
    found = [f"process {pid.name}" for pid, words in lines.items() if any(str(folder) in word for word in words)]
    found += [str(path) for path in namespace.NAMESPACES.glob(f"{WIRE_PREFIX}-*")]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return found + [place for place in mounts if place.startswith(f"{folder}/")]


@contextlib.contextmanager
def reflink_volume(folder: Path) -> Iterator[Path]:
    """A small XFS in a file."""
    image, volume = folder / "volume.xfs", folder / "v"
    with image.open("wb") as file:
        file.truncate(4 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    volume.mkdir()
    subprocess.run(["mount", "-o", "loop", image, volume], check=True)
    try:
        yield volume
    finally:
        subprocess.run(["umount", volume], check=True)
        image.unlink()


def why_not(name: str) -> str | None:
    """Why an engine cannot be tested here; None when it can."""
    if name == "simulated":
        return None
    missing = has_everything(name)
    return missing if missing is not None or name == "qemu" else _why_no_firecracker()


def _why_no_firecracker() -> str | None:
    try:
        program = firecracker_program()
    except SetupMissing as missing:
        return missing.what
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"there is no {KVM_DEVICE}"
    with tempfile.TemporaryDirectory() as folder:
        engine = FirecrackerEngine(program, asyncio.run(guest_artefacts()), Path(folder))
        probe = asyncio.run(engine.probe())
    return None if probe.works else probe.reason


async def saved_base(world: World) -> Saved:
    """A VM that has booted and holds something, saved."""
    vm = await world.boot()
    await vm.guest.put("who", "base")
    await vm.guest.put_on_disk("base disk")
    await vm.guest.scribble(0)
    saved = await world.save(vm)
    await vm.vmm.end()
    return saved
