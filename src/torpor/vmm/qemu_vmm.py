"""One QEMU process and the VM in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torpor.vmm.plan import SAVED_INSIDE
from torpor.vmm.process import VmmProcess
from torpor.vmm.process_vmm import KIB, PAUSE_TIMEOUT, SAVE_TIMEOUT, ProcessVmm
from torpor.vmm.qmp import COMMAND_TIMEOUT, Qmp
from torpor.vmm.record import SAVED, Record
from torpor.vmm.snapshot import Maker
from torpor.vmm.starting import Wardens

MONITOR: Final = "monitor"
PAUSED: Final = "paused"
STALLED: Final = "io-error"
"""What QEMU does by itself when the host has no room for a write to a disk: it stops the VM and keeps the write.
Pausing such a VM does not change the word."""


class QemuVmm(ProcessVmm):
    """See `base.Vmm`."""

    def __init__(self, process: VmmProcess, record: Record, run_dir: Path, maker: Maker, wardens: Wardens) -> None:
        super().__init__(process, record, run_dir, maker, wardens)
        self._monitor = Qmp(run_dir / MONITOR)
        self._is_held = False
        """Paused by us: nothing but `unpause` may let it run."""

    async def state(self, timeout: float = COMMAND_TIMEOUT) -> str:
        """QEMU's word for what the VM does: `running`, `paused`, `inmigrate`, `internal-error`, … Raises VmmFailed."""
        answer = await self._monitor.command("query-status", timeout=timeout)
        return str(answer["status"])

    async def is_paused(self) -> bool:
        """Whether it has started and its vCPUs stand still. Raises VmmFailed."""
        return await self.state() in (PAUSED, STALLED)

    async def console(self) -> str:
        """The last 64 KiB that a restored VM wrote on its console; a booted one has a file. Raises VmmFailed."""
        answer = await self._monitor.command("ringbuf-read", device="console", size=64 * KIB)
        return str(answer)

    async def pause(self) -> None:
        """Stop the vCPUs and flush the disks. Pausing a paused VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            self._is_held = True
            await self._monitor.command("stop", timeout=PAUSE_TIMEOUT)

    async def unpause(self) -> None:
        """Let the vCPUs run. Unpausing a running VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            await self._monitor.command("cont")
            self._is_held = False

    async def retry_stalled(self) -> bool:
        """See `base.Vmm`."""
        async with self._one_at_a_time:
            if self._is_held or await self.state() != STALLED:
                return False
            await self._monitor.command("cont")
            return True

    async def end(self) -> None:
        """End the process and wait until it is gone. Ending twice does nothing."""
        await super().end()
        (self._run_dir / MONITOR).unlink(missing_ok=True)

    async def _save_devices(self) -> None:
        # Made for Xen, whose toolstack moves memory itself: the state of every device but RAM, in the format that
        # -incoming reads, only without the section that names the machine. Nothing of the VM changes.
        where = str(SAVED_INSIDE if self._record.uid else self._run_dir / SAVED)
        await self._monitor.command("xen-save-devices-state", timeout=SAVE_TIMEOUT, filename=where, live=False)

    async def _version(self) -> str:
        answer = await self._monitor.command("query-version")
        qemu = answer["qemu"]
        return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"

    def _close(self) -> None:
        self._monitor.close()
