"""One machine for the contract of engines: the same verbs for simulated VMs and for real ones."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from support.vmm_guest import Guest, RealGuest, SimulatedGuest, Wire
from torpor.model.errors import VmmFailed
from torpor.vmm import BootSpec, Drive, Engine, Machine, RestoreSpec, Tap, Vmm
from torpor.vmm.firecracker import FirecrackerEngine
from torpor.vmm.firecracker_program import FirecrackerProgram, find_program
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.qemu import QemuEngine
from torpor.vmm.qemu_command import TCG
from torpor.vmm.simulated import Faults, SimulatedEngine, SimulatedVmm

MACHINE = Machine(vcpus=2, memory_mib=256)
DISK_BYTES = 1 << 20
ACCELERATION = os.environ.get("TORPOR_TEST_ACCELERATION", TCG)
"""Of the qemu engine; the lab, which has a KVM that works, says kvm."""
WIRE_PREFIX = f"vmmtest-{os.getpid()}"
_numbers = itertools.count(1)


def run_dir(place: Path) -> Path:
    """Of the VMM in a place. Its name is its own: the VMM's cgroup is called so too."""
    return place / f"run-{place.name}"


@dataclass(frozen=True)
class Vm:
    """A VM, its guest, and the place of its files."""

    vmm: Vmm
    guest: Guest
    place: Path
    tap: Tap | None

    @property
    def run_dir(self) -> Path:
        return run_dir(self.place)

    @property
    def disk(self) -> Path:
        return self.place / "disk"


@dataclass(frozen=True)
class Saved:
    """A saved VM: what the engine wrote and the disk beside it."""

    snapshot: Path
    disk: Path

    def copy(self, to: Path) -> Saved:
        shutil.copytree(self.snapshot, to)
        return replace(self, snapshot=to)


class World(ABC):
    """Makes VMs of one engine and removes whatever is left of them."""

    engine: Engine

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._vms: list[Vm] = []

    async def boot(self) -> Vm:
        place, tap = self.new_place()
        (place / "disk").write_bytes(bytes(DISK_BYTES))
        artefacts = self.artefacts()
        spec = BootSpec(
            MACHINE, artefacts.kernel, artefacts.initramfs, "quiet", [Drive(place / "disk")], tap, run_dir(place),
            place / "memory", {"test": "yes"},
        )  # fmt: skip
        return self.known(await self.engine.boot(spec), place, tap)

    async def restore(self, saved: Saved) -> Vm:
        """A clone of a saved VM; paused."""
        place, tap = self.new_place()
        shutil.copyfile(saved.disk, place / "disk")
        spec = RestoreSpec(MACHINE, saved.snapshot, [Drive(place / "disk")], tap, run_dir(place), {"test": "yes"})
        return self.known(await self.engine.restore(spec), place, tap)

    async def resume(self, saved: Saved) -> Vm:
        """A clone of a saved VM; running."""
        vm = await self.restore(saved)
        await vm.vmm.unpause()
        return vm

    async def save(self, vm: Vm) -> Saved:
        """Pause a VM and save it; it stays paused."""
        await vm.vmm.pause()
        saved = Saved(self.new_folder("snapshot"), self.folder / f"disk-{next(_numbers)}")
        await vm.vmm.save(saved.snapshot)
        shutil.copyfile(vm.disk, saved.disk)
        return saved

    async def adopt(self, vm: Vm) -> Vm | None:
        """What the engine of today finds in the run directory of a VM."""
        found = await self.engine.adopt(vm.run_dir)
        return None if found is None else self.known(found, vm.place, vm.tap)

    def new_folder(self, name: str) -> Path:
        folder = self.folder / f"{name}-{next(_numbers)}"
        folder.mkdir()
        return folder

    async def close(self) -> None:
        for vm in self._vms:
            with contextlib.suppress(asyncio.CancelledError):  # one that was let go of
                await vm.vmm.end()
            self._remove_wire(vm.place)

    @abstractmethod
    def artefacts(self) -> ProbeArtefacts: ...
    @abstractmethod
    def die(self, vm: Vm) -> None:
        """Let a VMM die as in a crash."""

    @abstractmethod
    def hang(self, vm: Vm) -> None:
        """Let a VMM stop answering."""

    @abstractmethod
    def go_on(self, vm: Vm) -> None:
        """Let a VMM that hangs answer again."""

    @abstractmethod
    async def restart(self) -> None:
        """The control process goes and another one comes: VMs live on, objects do not."""

    @abstractmethod
    def full_folder(self, vm: Vm) -> contextlib.AbstractContextManager[Path]:
        """A folder in which the VM cannot be saved for lack of space."""

    @abstractmethod
    def _wire(self, place: Path) -> Tap | None: ...
    @abstractmethod
    def _remove_wire(self, place: Path) -> None: ...
    @abstractmethod
    def _guest(self, vmm: Vmm, place: Path) -> Guest: ...

    def new_place(self) -> tuple[Path, Tap | None]:
        place = self.new_folder("vm")
        return place, self._wire(place)

    def known(self, vmm: Vmm, place: Path, tap: Tap | None) -> Vm:
        vm = Vm(vmm, self._guest(vmm, place), place, tap)
        self._vms.append(vm)
        return vm


class SimulatedWorld(World):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.faults = Faults()
        self.running: dict[Path, SimulatedVmm] = {}
        self.engine = SimulatedEngine(faults=self.faults, running=self.running)

    def artefacts(self) -> ProbeArtefacts:
        return ProbeArtefacts(self.folder / "kernel", self.folder / "vmlinux", self.folder / "initramfs")

    def die(self, vm: Vm) -> None:
        assert isinstance(vm.vmm, SimulatedVmm)
        vm.vmm.die("killed by signal 9 (SIGKILL)")

    def hang(self, vm: Vm) -> None:
        for action in ("pause", "unpause", "save"):
            self.faults.fail_next(action, VmmFailed("the VMM did not answer in time"))

    def go_on(self, vm: Vm) -> None:
        self.faults.mend()

    async def restart(self) -> None:
        self.engine = SimulatedEngine(faults=self.faults, running=self.running)

    @contextlib.contextmanager
    def full_folder(self, vm: Vm) -> Iterator[Path]:
        self.faults.fail_next("save", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        yield self.new_folder("full")

    def _wire(self, place: Path) -> Tap | None:
        return None

    def _remove_wire(self, place: Path) -> None:
        pass

    def _guest(self, vmm: Vmm, place: Path) -> Guest:
        assert isinstance(vmm, SimulatedVmm)
        return SimulatedGuest(vmm, place / "disk")


class RealWorld(World):
    """VMs with a process."""

    def __init__(self, folder: Path, artefacts: ProbeArtefacts) -> None:
        super().__init__(folder)
        self._artefacts = artefacts
        self._wires: dict[Path, Wire] = {}
        self.engine = self.new_engine()

    @abstractmethod
    def new_engine(self) -> Engine: ...

    def artefacts(self) -> ProbeArtefacts:
        return self._artefacts

    def die(self, vm: Vm) -> None:
        os.kill(vm.vmm.pid, signal.SIGKILL)

    async def restart(self) -> None:
        for vm in self._vms:
            await vm.vmm.forget()
        self._vms = [vm for vm in self._vms if not self._is_alive(vm)]
        self.engine = self.new_engine()

    def hang(self, vm: Vm) -> None:
        os.kill(vm.vmm.pid, signal.SIGSTOP)

    def go_on(self, vm: Vm) -> None:
        os.kill(vm.vmm.pid, signal.SIGCONT)

    def wire_of(self, vm: Vm) -> Wire:
        return self._wires[vm.place]

    @contextlib.contextmanager
    def full_folder(self, vm: Vm) -> Iterator[Path]:
        # Room for the device state and a part of the memory: the failure comes in the middle.
        folder = self.new_folder("full")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "torpor-test", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)

    async def close(self) -> None:
        await super().close()
        for wire in self._wires.values():
            wire.remove()

    @staticmethod
    def _is_alive(vm: Vm) -> bool:
        return Path(f"/proc/{vm.vmm.pid}").exists()

    def _wire(self, place: Path) -> Tap | None:
        self._wires[place] = Wire.make(f"{WIRE_PREFIX}-{next(_numbers)}")
        return self._wires[place].tap

    def _remove_wire(self, place: Path) -> None:
        if wire := self._wires.pop(place, None):
            wire.remove()

    def _guest(self, vmm: Vmm, place: Path) -> Guest:
        return RealGuest(self._wires[place])


class QemuWorld(RealWorld):
    def new_engine(self) -> QemuEngine:
        return QemuEngine(ACCELERATION, self._artefacts, self.folder / "engine")


class FirecrackerWorld(RealWorld):
    def new_engine(self) -> FirecrackerEngine:
        return FirecrackerEngine(firecracker_program(), self._artefacts, self.folder / "engine")


def firecracker_program() -> FirecrackerProgram:
    """That of TORPOR_FIRECRACKER, else the one in PATH. Raises SetupMissing."""
    place = os.environ.get("TORPOR_FIRECRACKER")
    return find_program(Path(place) if place else None)
