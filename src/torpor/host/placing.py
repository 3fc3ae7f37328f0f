"""Turns a snapshot directory into a VM that runs, knows the time and has entropy of its own: the launch path."""

from __future__ import annotations

import contextlib
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.files import clone_file
from torpor.host.guest import ENTROPY_BYTES, GuestClient
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Place, Places
from torpor.host.snapshots import ROOT_DISK, Maker, Manifest, load_snapshot
from torpor.host.step_times import Stopwatch
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import VmmFailed
from torpor.vmm import Drive, Engine, RestoreSpec, Vmm

RESTORED_TIMEOUT: Final = 10.0
"""Seconds for the guest's first answer; a tenth of one where the machine is not overloaded."""
CLOCK_ERROR: Final = 0.5
"""Seconds the guest's clock may be late. Its first call after a restore is slow under software emulation, the next is
not: 0.15 s and 0.01 s on an idle machine."""
CLOCK_ATTEMPTS: Final = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """A VM that runs from a snapshot."""

    vmm: Vmm
    place: Place
    manifest: Manifest


class Placer:
    """Restores VMs. A failed or cancelled `place` leaves nothing behind."""

    def __init__(self, engine: Engine, places: Places, maker: Maker, clock: Clock) -> None:
        self._engine = engine
        self._places = places
        self._maker = maker
        self._clock = clock

    async def place(self, owner: str, kind: Kind, source: Path, live_disk: Path, times: Stopwatch,
                    tenant: Tenant) -> Restored:
        """Restore a VM from `source`, writing to a clone of its disk at `live_disk`.

        Raises:
            HostBusy, SlotNotMade, VmmFailed, SnapshotDamaged, GuestSilent, GuestRefused
        """
        try:
            return await self._place(owner, kind, source, live_disk, times, tenant)
        except OSError as error:
            raise VmmFailed(f"{owner} cannot be placed from {source.name}: {error}") from error

    async def _place(self, owner: str, kind: Kind, source: Path, live_disk: Path, times: Stopwatch,
                     tenant: Tenant) -> Restored:
        async with contextlib.AsyncExitStack() as undo:
            with times.step("take_slot"):
                manifest = await in_thread(load_snapshot, source, self._maker)
                place = await self._places.take(owner, kind, tenant)
                undo.push_async_callback(self._places.give_back, place)
            with times.step("clone_disk"):
                undo.callback(live_disk.unlink, missing_ok=True)
                await in_thread(replace_by_clone, source / ROOT_DISK, live_disk)
            with times.step("restore_memory"):
                vmm = await self._engine.restore(RestoreSpec(
                    machine=manifest.machine, snapshot=source, drives=[Drive(live_disk)], tap=place.slot.tap,
                    run_dir=place.run_dir, labels={"owner": owner},
                ))
                undo.push_async_callback(_end, vmm)
            with times.step("unpause"):
                await vmm.unpause()
            with times.step("guest_restored"):
                await self._tell_restored(GuestClient(place.slot.control_address))
                place.sequence = manifest.stream_sequence
                place.write(base=source.name, is_placed=True)
            undo.pop_all()
        return Restored(vmm, place, manifest)

    async def _tell_restored(self, guest: GuestClient) -> None:
        """Give the guest time and entropy; again when it took so long that the time was old by then."""
        for attempt in range(CLOCK_ATTEMPTS):
            asked = self._clock.monotonic()
            await guest.restored(self._clock.now(), secrets.token_bytes(ENTROPY_BYTES), RESTORED_TIMEOUT,
                                 drop_connections=attempt == 0)
            if self._clock.monotonic() - asked < CLOCK_ERROR:
                return

    async def remove(self, vmm: Vmm, place: Place, live_disk: Path) -> None:
        """End a VM and take back all it had but saved files. Repeating it does nothing."""
        async with contextlib.AsyncExitStack() as steps:
            steps.callback(live_disk.unlink, missing_ok=True)
            steps.push_async_callback(self._places.give_back, place)
            await vmm.end()


async def _end(vmm: Vmm) -> None:
    try:
        await vmm.end()
    except VmmFailed:
        log.exception("the VMM %d could not be ended", vmm.pid)


def replace_by_clone(source: Path, target: Path) -> None:
    """Whatever `target` was."""
    target.unlink(missing_ok=True)
    clone_file(source, target)
