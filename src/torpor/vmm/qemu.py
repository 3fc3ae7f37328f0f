"""The qemu engine: real VMs on any Linux machine, with KVM where it works and software emulation elsewhere.

Guest memory never goes through QEMU's migration stream. The memory file is mapped by QEMU: shared when a VM boots,
privately when it is restored. Saving asks QEMU for the state of the devices alone, and makes the memory file from a
clone of the mapped one and the pages that the process has made its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm import jail, snapshot
from torpor.vmm.base import BootSpec, Probe, RestoreSpec
from torpor.vmm.cgroup import Limits
from torpor.vmm.cpu import model_for
from torpor.vmm.jail import Access, Bind, Jail
from torpor.vmm.plan import CONSOLE, CONSOLE_INSIDE, INITRAMFS_INSIDE, KERNEL_INSIDE, MEMORY_INSIDE, Boot, Plan, blank
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.process import Launch, VmmProcess, open_fd, open_tap
from torpor.vmm.process_engine import ProcessEngine
from torpor.vmm.qemu_command import DEVICE_STATE_FORMAT, KVM, MAX_DRIVES, TCG, CommandLine, MemoryFile, Start, variant
from torpor.vmm.qemu_vmm import MONITOR, QemuVmm
from torpor.vmm.record import LOG, ROOT, Record
from torpor.vmm.starting import MAX_CPUS_BESIDES, Wardens
from torpor.vmm.tsc import tsc_khz

START_TIMEOUT: Final = 20.0
"""Seconds from starting QEMU to its first answer; 0.03 measured, more on a machine that swaps."""
LOADING: Final = "inmigrate"
LOADING_POLL: Final = 0.002
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
SYSTEM: Final = Path("/usr")
"""Holds QEMU, its libraries and its firmware."""
OUTSIDE_SYSTEM: Final = ("lib", "lib64", "lib32")
"""Links into SYSTEM where the file system is merged."""
LINKER_CACHE: Final = Path("/etc/ld.so.cache")
OVERHEAD_BYTES: Final = {KVM: 256 << 20, TCG: 1280 << 20}
"""Memory of QEMU beside the guest's; emulation keeps up to 1 GiB of translated code."""
TASKS: Final = 128
"""Threads beside the vCPUs; up to 64 of them are for disks."""


class QemuEngine(ProcessEngine[QemuVmm]):
    """QEMU with one acceleration; `auto` finds out which."""

    name = "qemu"

    def __init__(
        self, acceleration: str, artefacts: ProbeArtefacts, work_dir: Path, known: Probe | None = None,
        wardens: Wardens | None = None,
    ) -> None:  # fmt: skip
        """`known` is what an earlier probe of this boot of the machine found."""
        super().__init__(acceleration, artefacts, work_dir, known, wardens)
        self._clock_words: str | None = None

    def program(self) -> Path:
        """The file that runs. Raises SetupMissing."""
        return Path(variant(platform.machine(), self.acceleration).binary())

    async def boot(self, spec: BootSpec) -> QemuVmm:
        """Start a VM; its vCPUs run when this returns. Raises VmmFailed."""
        command_line = f"{await self._clock()} {spec.command_line}".strip()
        plan = Plan.of_boot(spec, spec.memory_file, Boot(spec.kernel, spec.initramfs, command_line))
        try:
            await asyncio.to_thread(_make_memory, spec)
            return await self._start(plan)
        except BaseException as error:
            spec.memory_file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise VmmFailed(f"the memory file {spec.memory_file} could not be made: {error}") from error
            raise

    async def restore(self, spec: RestoreSpec) -> QemuVmm:
        """Start a VM from a snapshot; it is paused when this returns. Raises VmmFailed, SnapshotDamaged."""
        await asyncio.to_thread(snapshot.check, spec, self._maker(self.acceleration))
        return await self._start(Plan.of_restore(spec))

    def _vmm(self, process: VmmProcess, record: Record, run_dir: Path) -> QemuVmm:
        return QemuVmm(process, record, run_dir, self._maker(record.acceleration), self._wardens)

    def _maker(self, acceleration: str) -> snapshot.Maker:
        cpu = model_for(acceleration)
        return snapshot.Maker(self.name, acceleration, platform.machine(), DEVICE_STATE_FORMAT, cpu)

    async def _clock(self) -> str:
        """Kernel words that spare an emulated guest the calibration of its clock, which is where boots hang."""
        if self._clock_words is None:
            khz = await asyncio.to_thread(tsc_khz) if self.acceleration == TCG else None
            self._clock_words = f"tsc_early_khz={khz} lpj={2 * khz}" if khz else ""
        return self._clock_words

    def _record(self, plan: Plan, uid: int) -> Record:
        if len(plan.drives) > MAX_DRIVES:
            raise VmmFailed(f"a VM has at most {MAX_DRIVES} drives, not {len(plan.drives)}")
        return plan.record(self.acceleration, "", uid)

    def _jail(self, plan: Plan, uid: int) -> Jail:
        binds = [Bind(SYSTEM, SYSTEM.name, Access.RUN), *plan.binds()]
        links = {}
        for name in OUTSIDE_SYSTEM:
            place = Path("/", name)
            if place.is_symlink():
                links[name] = str(place.readlink())
            elif place.is_dir():
                binds.append(Bind(place, name, Access.RUN))
        if LINKER_CACHE.exists():
            binds.append(Bind(LINKER_CACHE, str(LINKER_CACHE.relative_to("/")), Access.READ))
        if plan.boot is not None:
            blank(plan.run_dir / CONSOLE)
            binds.append(Bind(plan.run_dir / CONSOLE, CONSOLE_INSIDE.name, Access.WRITE))
        devices = (jail.NULL, jail.URANDOM, *((jail.KVM,) if self.acceleration == KVM else ()))
        return Jail(uid, plan.run_dir / ROOT, tuple(binds), devices, links)

    def _read_only(self, plan: Plan) -> tuple[Path, Path] | None:
        # QEMU opens a memory file for writing even when it maps it privately.
        return None if plan.memory is None or plan.boot is not None else (MEMORY_INSIDE, plan.memory)

    def _limits(self, plan: Plan) -> Limits:
        memory = (plan.machine.memory_mib << 20) + OVERHEAD_BYTES[self.acceleration]
        return Limits(plan.machine.vcpus + MAX_CPUS_BESIDES, memory, plan.machine.vcpus + TASKS)

    def _outfit(self, plan: Plan, uid: int, opened: contextlib.ExitStack) -> Launch:
        tap = opened.enter_context(open_fd(open_tap(plan.tap))) if plan.tap is not None else None
        state = opened.enter_context(open_fd(os.open(plan.state, os.O_RDONLY))) if plan.state is not None else None
        monitor = opened.enter_context(_listening(plan.run_dir / MONITOR))
        begin = Start(state_fd=state)
        if plan.boot is not None:
            begin = Start(KERNEL_INSIDE, INITRAMFS_INSIDE, plan.boot.command_line)
        command = CommandLine(
            self.acceleration, plan.machine, MemoryFile(MEMORY_INSIDE, is_shared=plan.boot is not None),
            plan.drives_inside(), plan.tap, tap, monitor, plan.run_dir, begin,
        )  # fmt: skip
        fds = [fd for fd in (tap, state, monitor) if fd is not None]
        return Launch(command.words(), ENVIRONMENT, plan.run_dir / LOG, fds)

    async def _settle(self, vmm: QemuVmm, plan: Plan) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                # QEMU has loaded before it answers, unless the disk is slow; there is no event to wait for.
                while await vmm.state(timeout=START_TIMEOUT) == LOADING:  # noqa: ASYNC110
                    await asyncio.sleep(LOADING_POLL)
        except TimeoutError as error:
            raise VmmFailed(f"QEMU did not finish loading within {START_TIMEOUT:g} s") from error


def _make_memory(spec: BootSpec) -> None:
    spec.memory_file.parent.mkdir(parents=True, exist_ok=True)
    with spec.memory_file.open("wb") as file:
        file.truncate(spec.machine.memory_mib << 20)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[int]:
    """A listening socket made here, so that connecting to it waits for QEMU instead of polling for it."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        yield listener.fileno()
