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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm import snapshot
from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE, BootSpec, Drive, Machine, Probe, RestoreSpec, Tap
from torpor.vmm.probe import ProbeArtefacts, probe_by_booting
from torpor.vmm.process import Identity, Launch, VmmProcess, in_namespace, open_tap, spawn
from torpor.vmm.qemu_command import DEVICE_STATE_FORMAT, MAX_DRIVES, TCG, CommandLine, MemoryFile, Start, variant
from torpor.vmm.qemu_record import IDENTITY, LOG, MONITOR, Record, find_process, read_record, write_identity
from torpor.vmm.qemu_vmm import QemuVmm
from torpor.vmm.tsc import tsc_khz

START_TIMEOUT: Final = 20.0
"""Seconds from starting QEMU to its first answer; 0.03 measured, more on a machine that swaps."""
DYING: Final = 1.0
"""Seconds between the end of a VMM's monitor and that of its process."""
LOADING: Final = "inmigrate"
LOADING_POLL: Final = 0.002
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class _Plan:
    """One VM to start."""

    machine: Machine
    memory: MemoryFile
    drives: tuple[Drive, ...]
    tap: Tap | None
    run_dir: Path
    labels: Mapping[str, str]
    kernel: Start | None
    """For a boot; a restore has a device state."""
    state: Path | None


class QemuEngine:
    """QEMU with one acceleration; `auto` finds out which."""

    name = "qemu"

    def __init__(
        self, acceleration: str, artefacts: ProbeArtefacts, work_dir: Path, known: Probe | None = None
    ) -> None:
        """`known` is what an earlier probe of this boot of the machine found."""
        self.acceleration = acceleration
        self._artefacts = artefacts
        self._work_dir = work_dir
        self._known = known
        self._clock_words: str | None = None

    async def probe(self) -> Probe:
        """Boot a small VM with a deadline and say whether it lived; asked once, remembered after that."""
        if self._known is None:
            self._known = await probe_by_booting(self, self._artefacts, self._work_dir)
        return self._known

    def version(self) -> str:
        """The file that runs; raises SetupMissing."""
        return variant(platform.machine(), self.acceleration).binary()

    async def boot(self, spec: BootSpec) -> QemuVmm:
        """Start a VM; its vCPUs run when this returns. Raises VmmFailed."""
        command_line = f"{await self._clock()} {spec.command_line}".strip()
        plan = _Plan(
            spec.machine, MemoryFile(spec.memory_file, is_shared=True), tuple(spec.drives), spec.tap, spec.run_dir,
            spec.labels, Start(spec.kernel, spec.initramfs, command_line), None,
        )  # fmt: skip
        try:
            await asyncio.to_thread(_make_memory, spec.memory_file, spec.machine)
            return await self._start(plan)
        except BaseException as error:
            spec.memory_file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise VmmFailed(f"the memory file {spec.memory_file} could not be made: {error}") from error
            raise

    async def restore(self, spec: RestoreSpec) -> QemuVmm:
        """Start a VM from a snapshot; it is paused when this returns. Raises VmmFailed, SnapshotDamaged."""
        await asyncio.to_thread(snapshot.check, spec, self._maker())
        memory = MemoryFile(spec.snapshot / MEMORY_FILE, is_shared=False)
        plan = _Plan(
            spec.machine, memory, tuple(spec.drives), spec.tap, spec.run_dir, spec.labels, None,
            spec.snapshot / DEVICE_STATE,
        )  # fmt: skip
        return await self._start(plan)

    async def adopt(self, run_dir: Path) -> QemuVmm | None:
        """Take over the living VMM of a run directory; None when it is gone."""
        record = read_record(run_dir)
        identity = await asyncio.to_thread(find_process, run_dir)
        if record is None or identity is None:
            return None
        try:
            process = VmmProcess(identity, run_dir / LOG)
        except VmmFailed:
            return None
        return QemuVmm(process, record, run_dir, self._maker(record.acceleration))

    def _maker(self, acceleration: str | None = None) -> snapshot.Maker:
        return snapshot.Maker(self.name, acceleration or self.acceleration, platform.machine(), DEVICE_STATE_FORMAT)

    async def _clock(self) -> str:
        """Kernel words that spare an emulated guest the calibration of its clock, which is where boots hang."""
        if self._clock_words is None:
            khz = await asyncio.to_thread(tsc_khz) if self.acceleration == TCG else None
            self._clock_words = f"tsc_early_khz={khz} lpj={2 * khz}" if khz else ""
        return self._clock_words

    async def _start(self, plan: _Plan) -> QemuVmm:
        if len(plan.drives) > MAX_DRIVES:
            raise VmmFailed(f"a VM has at most {MAX_DRIVES} drives, not {len(plan.drives)}")
        spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn, plan))
        try:
            identity, record = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait([spawning])
            if not spawning.exception():
                await _end(VmmProcess(spawning.result()[0], plan.run_dir / LOG))
            raise
        process = VmmProcess(identity, plan.run_dir / LOG)
        vmm = QemuVmm(process, record, plan.run_dir, self._maker())
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(vmm.end)
            try:
                await _answered(vmm)
            except VmmFailed as error:
                raise VmmFailed(f"QEMU did not start: {await _own_end(process) or error}") from error
            undo.pop_all()
        return vmm

    def _spawn(self, plan: _Plan) -> tuple[Identity, Record]:
        """Blocking. Raises VmmFailed, SetupMissing."""
        work = partial(self._spawn_here, plan)
        try:
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            return in_namespace(plan.tap.netns, work) if plan.tap is not None else work()
        except OSError as error:
            raise VmmFailed(f"a VMM in {plan.run_dir} could not be started: {error}") from error

    def _spawn_here(self, plan: _Plan) -> tuple[Identity, Record]:
        with contextlib.ExitStack() as opened:
            tap = opened.enter_context(_open_fd(open_tap(plan.tap))) if plan.tap is not None else None
            state = opened.enter_context(_open_fd(os.open(plan.state, os.O_RDONLY))) if plan.state is not None else None
            monitor = opened.enter_context(_listening(plan.run_dir / MONITOR))
            command = CommandLine(
                self.acceleration, plan.machine, plan.memory, plan.drives, plan.tap, tap, monitor, plan.run_dir,
                plan.kernel or Start(state_fd=state),
            )  # fmt: skip
            record = self._record(plan)
            (plan.run_dir / IDENTITY).unlink(missing_ok=True)
            record.write(plan.run_dir)
            fds = [fd for fd in (tap, state, monitor) if fd is not None]
            identity = spawn(Launch(command.words(), ENVIRONMENT, plan.run_dir / LOG, fds))
            write_identity(plan.run_dir, identity)
        return identity, record

    def _record(self, plan: _Plan) -> Record:
        status = plan.memory.path.stat()
        shape = snapshot.shape_of(plan.machine, len(plan.drives), plan.tap is not None)
        return Record(
            self.acceleration, shape, plan.memory.path, status.st_dev, status.st_ino, plan.memory.is_shared,
            dict(plan.labels),
        )  # fmt: skip


async def _answered(vmm: QemuVmm) -> None:
    """Wait until QEMU answers and has loaded what it had to load. Raises VmmFailed."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            # QEMU has loaded before it answers, unless the disk is slow; there is no event to wait for.
            while await vmm.state(timeout=START_TIMEOUT) == LOADING:  # noqa: ASYNC110
                await asyncio.sleep(LOADING_POLL)
    except TimeoutError as error:
        raise VmmFailed(f"QEMU did not finish loading within {START_TIMEOUT:g} s") from error


async def _own_end(process: VmmProcess) -> str | None:
    """How a process that fails to answer ended by itself; None when it still lives."""
    try:
        async with asyncio.timeout(DYING):
            return await process.exited()
    except TimeoutError:
        return None


async def _end(process: VmmProcess) -> None:
    process.kill()
    await process.exited()


def _make_memory(path: Path, machine: Machine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(machine.memory_mib << 20)


@contextlib.contextmanager
def _open_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[int]:
    """A listening socket made here, so that connecting to it waits for QEMU instead of polling for it."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        yield listener.fileno()
