"""One Firecracker process and the VM in it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm import snapshot
from torpor.vmm.firecracker_api import ApiRefused, FirecrackerApi, State
from torpor.vmm.firecracker_program import FirecrackerProgram, said
from torpor.vmm.plan import MEMORY_INSIDE, SAVED_INSIDE, STATE_INSIDE
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
"""In the words of the refusal that means: the device state is written, memory is not."""
REMEDY: Final = "build the image again; `torpor recover` keeps the files of a sleeping microVM"


class FirecrackerVmm(ProcessVmm):
    """See `base.Vmm`."""

    def __init__(self, process: VmmProcess, record: Record, run_dir: Path, maker: Maker, wardens: Wardens) -> None:
        super().__init__(process, record, run_dir, maker, wardens)
        self.api = FirecrackerApi(run_dir / API_FOLDER / API_SOCKET)
        self._counted_bytes = 0
        """Length of the metrics when the device state was asked for."""

    async def is_paused(self) -> bool:
        """Whether it has started and its vCPUs stand still. Raises VmmFailed."""
        return await self.api.state() is State.PAUSED

    async def load(self, program: FirecrackerProgram, saved: Path, timeout: float) -> None:
        """Become the VM of a snapshot, paused.

        Raises:
            VmmFailed: with what to do, where this program does not read the device state.
            SnapshotDamaged: its record is gone.
        """
        try:
            await self.api.load_snapshot(STATE_INSIDE, MEMORY_INSIDE, timeout)
        except ApiRefused as refusal:
            version = await asyncio.to_thread(snapshot.saved_version, saved)
            raise VmmFailed(_unloadable(program, version, refusal.said)) from refusal

    async def pause(self) -> None:
        """Stop the vCPUs. Pausing a paused VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            if not await self.is_paused():
                await self.api.pause(PAUSE_TIMEOUT)

    async def unpause(self) -> None:
        """Let the vCPUs run. Unpausing a running VM does nothing. Raises VmmFailed."""
        async with self._one_at_a_time:
            if await self.api.state() is not State.RUNNING:
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
        #
        # Every refusal is a 400: only its words tell this one, which comes behind the device state, from one that comes
        # before it or in the midst of it. Words may change with a version. Then saving fails and says so, and the VM
        # runs on, which is better than to take half a device state for a whole one. A probe does not find that out,
        # since it only boots a VM: the contract tests do, so an engine says when they ran with another version.
        if self._record.shape.has_tap:
            await self.api.flush_metrics()
            self._counted_bytes = (self._run_dir / METRICS).stat().st_size
        saved = self._run_dir / SAVED
        os.truncate(saved, 0)
        try:
            await self.api.create_snapshot(SAVED_INSIDE, NO_FILE, SAVE_TIMEOUT)
        except ApiRefused as refusal:
            if MEMORY_STEP not in refusal.said:
                raise
        if saved.stat().st_size == 0:
            raise VmmFailed("Firecracker wrote no device state")

    async def _stood_still(self) -> bool:
        # Firecracker's own snapshots have device state and memory of one moment; here memory is read later. A frame
        # that its tap delivered in between would be in memory and not in the device state, and the restored device
        # would use a buffer that is the guest's again. A paused 1.12 leaves its tap alone, but no version promises it.
        # The guest's buffers are limited, so where one does not, a later try finds quiet.
        if not self._record.shape.has_tap:
            return True
        await self.api.flush_metrics()
        return _frames_behind(self._run_dir / METRICS, self._counted_bytes) == 0


def _frames_behind(metrics: Path, position: int) -> int:
    """How many frames were taken since Firecracker's metrics were so many bytes long. Raises VmmFailed, OSError."""
    content = metrics.read_bytes()[position:]
    if not content or b"\0" in content:  # emptied meanwhile, for being large: perhaps there was one
        return 1
    try:
        return sum(int(json.loads(line)["net"]["rx_packets_count"]) for line in content.splitlines())
    except (ValueError, KeyError, TypeError) as error:
        raise VmmFailed(f"Firecracker's metrics do not say how many frames it took: {error!r}") from error


def _unloadable(program: FirecrackerProgram, saved_by: str, why: str) -> str:
    if saved_by == said(program.version):
        return f"{program} cannot load it, though the same version saved it ({why}): {REMEDY}"
    if not saved_by:
        return f"{program} cannot load it, and which version saved it was not noted ({why}): {REMEDY}"
    return (f"{program} cannot load it, Firecracker {saved_by} saved it ({why}): set `firecracker.path` to that "
            f"version, or {REMEDY}")  # fmt: skip
