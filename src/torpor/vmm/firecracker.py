"""The firecracker engine: VMs on KVM, the way AWS runs them.

A restored VM's memory is a private mapping of the snapshot's memory file, so all VMs of an image share its page cache.
A booted one has its memory to itself. Either is saved without Firecracker's help: see `FirecrackerVmm`.

The device state names drives and the tap as they were called when the VM was saved. In the jail they have the same
names in every VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm import jail, snapshot
from torpor.vmm.base import BootSpec, Probe, RestoreSpec
from torpor.vmm.cgroup import Limits
from torpor.vmm.cpu import model_for
from torpor.vmm.firecracker_api import BlockDevice, BootSource, MachineConfig, NetworkInterface
from torpor.vmm.firecracker_program import FirecrackerProgram, said, untested
from torpor.vmm.firecracker_vmm import API_FOLDER, API_SOCKET, METRICS, FirecrackerVmm
from torpor.vmm.jail import Access, Bind, Jail
from torpor.vmm.plan import CONSOLE, INITRAMFS_INSIDE, KERNEL_INSIDE, STATE_INSIDE, Boot, Plan, blank
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.process import Launch, VmmProcess, give_tap
from torpor.vmm.process_engine import ProcessEngine
from torpor.vmm.record import FIRECRACKER, LOG, ROOT, Record, firecracker_id, firecracker_name
from torpor.vmm.starting import MAX_CPUS_BESIDES, Wardens

DEVICE_STATE_FORMAT: Final = 1
"""Names of devices in the jail, their order, and what is attached; Firecracker numbers the rest of it."""
KVM: Final = "kvm"
START_TIMEOUT: Final = 30.0
"""Seconds for starting or loading a VM; 0.1 on KVM, some seconds where KVM itself is emulated."""
POLL: Final = 0.001
API_INSIDE: Final = "run"
OWN_LOG: Final = "firecracker.log"
OVERHEAD_BYTES: Final = 128 << 20
"""Memory of Firecracker beside the guest's: 5 MiB, and page cache that is not worth giving up at once."""
TASKS: Final = 16
"""Threads beside the vCPUs."""
BOOT_WORDS: Final = {
    "x86_64": "console=ttyS0 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd",
    "aarch64": "console=ttyS0 reboot=k panic=-1 pci=off",
}


class FirecrackerEngine(ProcessEngine[FirecrackerVmm]):
    """Firecracker on KVM."""

    name = "firecracker"

    def __init__(
        self, program: FirecrackerProgram, artefacts: ProbeArtefacts, work_dir: Path, known: Probe | None = None,
        wardens: Wardens | None = None,
    ) -> None:  # fmt: skip
        """`known` is what an earlier probe of this boot of the machine found."""
        super().__init__(KVM, artefacts, work_dir, known, wardens)
        self._program = program

    def program(self) -> Path:
        """The file that runs."""
        return self._program.path

    def version(self) -> str:
        """Version and place of the program."""
        return str(self._program)

    def caveat(self) -> str:
        """See `ProcessEngine`."""
        return untested(self._program.version)

    async def boot(self, spec: BootSpec) -> FirecrackerVmm:
        """Start a VM; its vCPUs run when this returns. Raises VmmFailed."""
        # Firecracker boots the same kernel uncompressed.
        kernel = self._artefacts.vmlinux if spec.kernel == self._artefacts.kernel else spec.kernel
        command_line = f"{BOOT_WORDS.get(platform.machine(), '')} {spec.command_line}".strip()
        return await self._start(Plan.of_boot(spec, None, Boot(kernel, spec.initramfs, command_line)))

    async def restore(self, spec: RestoreSpec) -> FirecrackerVmm:
        """Start a VM from a snapshot; it is paused when this returns. Raises VmmFailed, SnapshotDamaged."""
        await asyncio.to_thread(snapshot.check, spec, self._maker())
        return await self._start(Plan.of_restore(spec))

    def _vmm(self, process: VmmProcess, record: Record, run_dir: Path) -> FirecrackerVmm:
        return FirecrackerVmm(process, record, run_dir, self._maker(), self._wardens)

    def _maker(self) -> snapshot.Maker:
        return snapshot.Maker(self.name, KVM, platform.machine(), DEVICE_STATE_FORMAT, model_for(KVM))

    def _record(self, plan: Plan, uid: int) -> Record:
        return plan.record(KVM, said(self._program.version), uid)

    def _jail(self, plan: Plan, uid: int) -> Jail:
        written = [METRICS, OWN_LOG]
        for name in written:
            blank(plan.run_dir / name)
        (plan.run_dir / API_FOLDER).mkdir(mode=0o700, exist_ok=True)
        (plan.run_dir / API_FOLDER / API_SOCKET).unlink(missing_ok=True)
        binds = [
            Bind(self._program.path, FIRECRACKER, Access.RUN),
            Bind(plan.run_dir / API_FOLDER, API_INSIDE, Access.WRITE),
            *(Bind(plan.run_dir / name, name, Access.WRITE) for name in written),
            *plan.binds(),
        ]
        if plan.state is not None:
            binds.append(Bind(plan.state, STATE_INSIDE.name, Access.READ))
        return Jail(uid, plan.run_dir / ROOT, tuple(binds), (jail.KVM, jail.TUN, jail.URANDOM))

    def _limits(self, plan: Plan) -> Limits:
        memory = (plan.machine.memory_mib << 20) + OVERHEAD_BYTES
        return Limits(plan.machine.vcpus + MAX_CPUS_BESIDES, memory, plan.machine.vcpus + TASKS)

    def _outfit(self, plan: Plan, uid: int, opened: contextlib.ExitStack) -> Launch:
        if plan.tap is not None:
            give_tap(plan.tap, uid)
        words = [
            firecracker_name(plan.run_dir), "--id", firecracker_id(plan.run_dir),
            "--api-sock", f"/{API_INSIDE}/{API_SOCKET}", "--log-path", f"/{OWN_LOG}", "--level", "Warn",
            "--metrics-path", f"/{METRICS}",
        ]  # fmt: skip
        # The serial port is Firecracker's output. What a restored guest says there for hours must not fill the host.
        console = plan.run_dir / CONSOLE if plan.boot is not None else Path("/dev/null")
        return Launch(words, {}, plan.run_dir / LOG, (), console, f"/{FIRECRACKER}")

    def _logs(self, run_dir: Path) -> tuple[Path, ...]:
        return run_dir / LOG, run_dir / OWN_LOG

    async def _settle(self, vmm: FirecrackerVmm, plan: Plan) -> None:
        await _answering(vmm)
        # The socket is where it should be, made before any guest code ran; from now on it stays that one.
        await asyncio.to_thread(os.chown, plan.run_dir / API_FOLDER, 0, 0)
        if plan.state is not None:
            await vmm.load(self._program, plan.state.parent, START_TIMEOUT)
        if plan.boot is not None:
            await _configure(vmm, plan, plan.boot)
            await vmm.api.start(START_TIMEOUT)


async def _answering(vmm: FirecrackerVmm) -> None:
    """Wait for the API. Raises VmmFailed."""
    last = ""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                try:
                    await vmm.api.state()
                    return
                except VmmFailed as failure:
                    if vmm.is_gone:
                        raise
                    last = str(failure)
                await asyncio.sleep(POLL)
    except TimeoutError as error:
        raise VmmFailed(f"its API did not answer within {START_TIMEOUT:g} s: {last}") from error


async def _configure(vmm: FirecrackerVmm, plan: Plan, boot: Boot) -> None:
    api = vmm.api
    await api.set_machine(MachineConfig(plan.machine.vcpus, plan.machine.memory_mib))
    await api.set_boot_source(BootSource(str(KERNEL_INSIDE), str(INITRAMFS_INSIDE), boot.command_line))
    for drive in plan.drives_inside():
        await api.add_drive(BlockDevice(drive.path.name, str(drive.path), drive.read_only))
    if plan.tap is not None:
        await api.add_network(NetworkInterface("net", plan.tap.device, plan.tap.guest_mac))
    await api.add_entropy()
