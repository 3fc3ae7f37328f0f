"""Boots the disk of a saved VM cold: for when its memory cannot be restored."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from torpor.host.booting import wait_for_agent
from torpor.host.guest import Command, GuestClient
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Places
from torpor.host.placing import Restored, replace_by_clone
from torpor.host.setup.prepared import Prepared
from torpor.host.snapshots import ROOT_DISK, Application, load_for_recovery
from torpor.host.step_times import Stopwatch
from torpor.host.template import COMMAND_LINE, HOSTNAME
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import GuestRefused, VmmFailed
from torpor.vmm import BootSpec, Drive, Engine

log: Final = logging.getLogger(__name__)


class Recoverer:
    """A failed or cancelled `boot` leaves nothing behind."""

    def __init__(self, prepared: Prepared, engine: Engine, places: Places, clock: Clock) -> None:
        self._prepared = prepared
        self._engine = engine
        self._places = places
        self._clock = clock

    async def boot(self, owner: str, source: Path, live_disk: Path, memory: Path, times: Stopwatch,
                   tenant: Tenant) -> Restored:
        """Boot a clone of the disk in `source` at `live_disk`; the guest's memory is the new file `memory`.

        Raises:
            HostBusy, SlotNotMade, VmmFailed, SnapshotDamaged, GuestSilent, GuestRefused
        """
        try:
            return await self._boot(owner, source, live_disk, memory, times, tenant)
        except OSError as error:
            raise VmmFailed(f"{owner} cannot be booted from {source.name}: {error}") from error

    async def _boot(self, owner: str, source: Path, live_disk: Path, memory: Path, times: Stopwatch,
                    tenant: Tenant) -> Restored:
        async with contextlib.AsyncExitStack() as undo:
            with times.step("take_slot"):
                manifest, application = await in_thread(load_for_recovery, source)
                place = await self._places.take(owner, Kind.MICROVM, tenant)
                undo.push_async_callback(self._places.give_back, place)
            with times.step("clone_disk"):
                undo.callback(live_disk.unlink, missing_ok=True)
                await in_thread(replace_by_clone, source / ROOT_DISK, live_disk)
            with times.step("boot_vm"):
                undo.callback(memory.unlink, missing_ok=True)
                vmm = await self._engine.boot(BootSpec(
                    machine=manifest.machine, kernel=self._prepared.kernel, initramfs=self._prepared.initramfs,
                    command_line=COMMAND_LINE, drives=[Drive(live_disk)], tap=place.slot.tap, run_dir=place.run_dir,
                    memory_file=memory, labels={"owner": owner},
                ))
                undo.push_async_callback(vmm.end)
                guest = GuestClient(place.slot.control_address)
                await wait_for_agent(guest, vmm, place.run_dir, self._clock)
            with times.step("start_application"):
                await _start(guest, application)
                place.sequence = 0
                place.write(base=source.name, is_placed=True, is_cold=True)
            undo.pop_all()
        return Restored(vmm, place, manifest)


async def _start(guest: GuestClient, application: Application) -> None:
    command = Command(application.args, application.environment, application.cwd, application.user,
                      application.all_capabilities, HOSTNAME)  # fmt: skip
    try:
        await guest.start(command)
    except GuestRefused as refusal:
        raise VmmFailed(f"The application could not be started: {refusal.said}") from refusal
