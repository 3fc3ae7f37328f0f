"""One Firecracker process and the VM in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm.firecracker_api import ApiRefused, FirecrackerApi
from torpor.vmm.plan import SAVED_INSIDE
from torpor.vmm.process import VmmProcess
from torpor.vmm.process_vmm import PAUSE_TIMEOUT, SAVE_TIMEOUT, ProcessVmm
from torpor.vmm.record import SAVED, Record
from torpor.vmm.snapshot import Maker
from torpor.vmm.starting import Wardens

API_FOLDER: Final = "api"
API_SOCKET: Final = "api.sock"
METRICS: Final = "metrics"
NO_FILE: Final = Path("/")
"""Named as the file for memory, it cannot be opened for writing."""
MEMORY_STEP: Final = "memory backing file"
RUNNING: Final = "Running"


class FirecrackerVmm(ProcessVmm):
    """See `base.Vmm`."""

    def __init__(self, process: VmmProcess, record: Record, run_dir: Path, maker: Maker, wardens: Wardens) -> None:
        super().__init__(process, record, run_dir, maker, wardens)
        self.api = FirecrackerApi(run_dir / API_FOLDER / API_SOCKET)

    async def is_running(self) -> bool:
        """Whether its vCPUs run. Raises VmmFailed."""
        return await self.api.state() == RUNNING

    async def pause(self) -> None:
        """Stop the vCPUs. Pausing a paused VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            if await self.is_running():
                await self.api.pause(PAUSE_TIMEOUT)

    async def unpause(self) -> None:
        """Let the vCPUs run. Unpausing a running VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            if not await self.is_running():
                await self.api.resume()

    async def metrics(self) -> str:
        """What Firecracker has counted so far, one JSON object a line. Raises VmmFailed, OSError."""
        await self.api.flush_metrics()
        return (self._run_dir / METRICS).read_text()

    async def _save_devices(self) -> None:
        # A full snapshot writes all of memory, also what is in the image's file; a diff snapshot wants the kernel to
        # track writes, forgets them when it has written them, and is corrupt above 3 GiB before 1.15. So Firecracker
        # writes the device state, which it does first and syncs, and is kept from going on to memory, which
        # `save_memory` writes: the pages that the process has made its own. Nothing of the VM changes.
        saved = self._run_dir / SAVED
        os.truncate(saved, 0)
        try:
            await self.api.create_snapshot(SAVED_INSIDE, NO_FILE, SAVE_TIMEOUT)
        except ApiRefused as refusal:
            if MEMORY_STEP not in refusal.said:
                raise
        if saved.stat().st_size == 0:
            raise VmmFailed("Firecracker wrote no device state")
