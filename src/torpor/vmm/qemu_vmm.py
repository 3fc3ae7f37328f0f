"""One QEMU process and the VM in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from torpor.model.errors import SaveFailed, VmmFailed
from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE
from torpor.vmm.blocking import in_thread
from torpor.vmm.memory import Checkpoint, GuestMemory, MemoryNotFound, save_memory
from torpor.vmm.process import VmmProcess
from torpor.vmm.qemu_record import MONITOR, Record
from torpor.vmm.qmp import COMMAND_TIMEOUT, Qmp
from torpor.vmm.snapshot import Draft, Maker, draft

PAUSE_TIMEOUT: Final = 30.0
"""Seconds; pausing flushes the disks to the host's."""
SAVE_TIMEOUT: Final = 120.0
"""Seconds; 8 GiB of dirty memory on a disk of 100 MB/s."""
RUNNING: Final = "running"
KIB: Final = 1024


class QemuVmm:
    """See `base.Vmm`."""

    def __init__(self, process: VmmProcess, record: Record, run_dir: Path, maker: Maker) -> None:
        self._process = process
        self._record = record
        self._run_dir = run_dir
        self._maker = maker
        self._monitor = Qmp(run_dir / MONITOR)
        self._one_at_a_time = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def state(self, timeout: float = COMMAND_TIMEOUT) -> str:
        """QEMU's word for what the VM does: `running`, `paused`, `inmigrate`, `internal-error`, … Raises VmmFailed."""
        answer = await self._monitor.command("query-status", timeout=timeout)
        return str(answer["status"])

    async def console(self) -> str:
        """The last 64 KiB that a restored VM wrote on its console; a booted one has a file. Raises VmmFailed."""
        answer = await self._monitor.command("ringbuf-read", device="console", size=64 * KIB)
        return str(answer)

    async def pause(self) -> None:
        """Stop the vCPUs and flush the disks. Pausing a paused VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            await self._monitor.command("stop", timeout=PAUSE_TIMEOUT)

    async def unpause(self) -> None:
        """Let the vCPUs run. Unpausing a running VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            await self._monitor.command("cont")

    async def save(self, into: Path) -> int:
        """See `base.Vmm.save`."""
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(SAVE_TIMEOUT):
                    with draft(into) as new:
                        return await self._save(new)
            except TimeoutError as error:
                raise SaveFailed(f"saving into {into} took more than {SAVE_TIMEOUT:g} s") from error
            except (OSError, VmmFailed, MemoryNotFound) as error:
                raise SaveFailed(f"the VM could not be saved into {into}: {error}") from error

    async def _save(self, new: Draft) -> int:
        state = await self.state()
        if state == RUNNING:
            raise VmmFailed("it is not paused")
        # Made for Xen, whose toolstack moves memory itself: the state of every device but RAM, in the format that
        # -incoming reads, only without the section that names the machine. Nothing of the VM changes.
        path = str(new.path(DEVICE_STATE))
        await self._monitor.command("xen-save-devices-state", timeout=SAVE_TIMEOUT, filename=path, live=False)
        version = await self._version()

        def write(checkpoint: Checkpoint) -> int:
            written = save_memory(self._memory(), new.path(MEMORY_FILE), checkpoint)
            new.publish(self._maker, self._record.shape, version)
            return written

        return await in_thread(write)

    async def end(self) -> None:
        """End the process and wait until it is gone. Ending twice does nothing."""
        self._monitor.close()
        self._process.kill()
        await self._process.exited()
        (self._run_dir / MONITOR).unlink(missing_ok=True)

    async def exited(self) -> str:
        """Wait until the process is gone and say how it ended."""
        return await self._process.exited()

    async def forget(self) -> None:
        """Let go of the VMM without ending it. Nothing else works after this."""
        self._monitor.close()
        self._process.forget()

    def memory_bytes(self) -> int:
        """Private memory in bytes, swapped-out included.

        Of a restored VM: anonymous pages, which is what the guest dirtied, QEMU's heap and translated code. Pages of
        the snapshot's file are page cache, shared by all clones and free for the taking. Of a booted VM the memory
        file is nobody else's, so its resident pages count too.
        """
        if self._process.is_gone:
            return 0
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        except OSError:
            return 0
        lines = (line.partition(":") for line in text.splitlines()[1:])
        fields = {name: int(rest.split()[0]) for name, _, rest in lines}
        names = ("Private_Clean", "Private_Dirty", "Swap") if self._record.is_shared else ("Anonymous", "Swap")
        return sum(fields.get(name, 0) for name in names) * KIB

    def _memory(self) -> GuestMemory:
        record = self._record
        return GuestMemory(
            self.pid, record.memory, record.memory_device, record.memory_inode, record.shape.memory_mib << 20,
            record.is_shared,
        )  # fmt: skip

    async def _version(self) -> str:
        answer = await self._monitor.command("query-version")
        qemu = answer["qemu"]
        return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"
