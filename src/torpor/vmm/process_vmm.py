"""What VMMs with a process have in common, whatever program runs in it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from torpor.model.errors import SaveFailed, VmmFailed
from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE
from torpor.vmm.blocking import in_thread
from torpor.vmm.memory import Checkpoint, GuestMemory, save_memory
from torpor.vmm.nameless import MemoryNotFound
from torpor.vmm.process import VmmProcess
from torpor.vmm.record import SAVED, Record
from torpor.vmm.snapshot import Draft, Maker, draft
from torpor.vmm.starting import Wardens

PAUSE_TIMEOUT: Final = 30.0
"""Seconds; QEMU flushes the disks to the host's when it pauses, which a slow disk makes long."""
SAVE_TIMEOUT: Final = 120.0
"""Seconds; 8 GiB of dirty memory on a disk of 100 MB/s."""
TRIES: Final = 20
"""How often a save begins again because a device wrote into memory meanwhile."""
KIB: Final = 1024


class ProcessVmm(ABC):
    """See `base.Vmm`."""

    def __init__(self, process: VmmProcess, record: Record, run_dir: Path, maker: Maker, wardens: Wardens) -> None:
        self._process = process
        self._record = record
        self._run_dir = run_dir
        self._maker = maker
        self._wardens = wardens
        self._one_at_a_time = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        return self._process.is_gone

    @abstractmethod
    async def pause(self) -> None: ...
    @abstractmethod
    async def unpause(self) -> None: ...
    async def retry_stalled(self) -> bool:
        """See `base.Vmm`; a VMM that hands errors of its disk on to the guest never stands still."""
        return False

    @abstractmethod
    async def is_paused(self) -> bool:
        """Whether it has started and its vCPUs stand still. Raises VmmFailed."""

    @abstractmethod
    async def _save_devices(self) -> None:
        """Let the VMM write its device state to the file SAVED of its run directory. Raises VmmFailed."""

    async def _stood_still(self) -> bool:
        """Whether memory is still what it was when the device state was written. Raises VmmFailed.

        It is where devices stand still with the vCPUs.
        """
        return True

    async def _version(self) -> str:
        """Of the program. Raises VmmFailed."""
        return self._record.version

    def _close(self) -> None:  # noqa: B027 - not every VMM keeps something open
        """Close what is open to the VMM."""

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
        if not await self.is_paused():
            raise VmmFailed("it is not paused")
        version = await self._version()

        def write(checkpoint: Checkpoint) -> int:
            new.path(DEVICE_STATE).write_bytes((self._run_dir / SAVED).read_bytes())
            return save_memory(self._memory(), new.path(MEMORY_FILE), checkpoint)

        for _ in range(TRIES):
            await self._save_devices()
            written = await in_thread(write)
            if await self._stood_still():
                await in_thread(lambda _: new.publish(self._maker, self._record.shape, version))
                return written
        raise VmmFailed(f"its devices changed its memory while it was read, {TRIES} times")

    async def end(self) -> None:
        """End the process and wait until it is gone. Ending twice does nothing."""
        self._close()
        self._process.kill()
        await self._process.exited()
        await asyncio.to_thread(self._wardens.release, self._record.uid, self._run_dir)

    async def exited(self) -> str:
        """Wait until the process is gone and say how it ended."""
        return await self._process.exited()

    async def forget(self) -> None:
        """Let go of the VMM without ending it. Nothing else works after this."""
        self._close()
        self._process.forget()

    def memory_bytes(self) -> int:
        """Private memory in bytes, swapped-out included.

        Of a restored VM: anonymous pages, which is what the guest dirtied, the VMM's heap and translated code. Pages of
        the snapshot's file are page cache, shared by all clones and free for the taking. Where a booted VM's memory is
        a file, it is nobody else's, so its resident pages count too.
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
