"""The template VM: boots the built root disk, starts the application, and is saved when the application is ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from torpor.host.base import BuildOrder, HookAnswer
from torpor.host.booting import wait_for_agent
from torpor.host.build_hooks import wait_for_hook
from torpor.host.container_image import ContainerImage
from torpor.host.files import allocated_bytes
from torpor.host.guest import Command, DroppedRecord, ExitRecord, GuestClient
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Places
from torpor.host.saving import Saving
from torpor.host.setup.prepared import Prepared
from torpor.host.snapshots import Application
from torpor.host.step_times import Stopwatch
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import BuildFailed, GuestRefused, GuestSilent
from torpor.model.hooks import Hook
from torpor.vmm import BootSpec, Drive, Engine, Machine, Vmm

COMMAND_LINE: Final = "torpor.mode=application"
SETTLE: Final = 3.0
"""Seconds an application without a ready hook gets; AWS's delay is unknown (spec 2.3)."""
HOSTNAME: Final = "microvm"
"""The same in every VM of an image, as everything made before the snapshot is (spec 6.4)."""
RECONNECT: Final = 0.2
DRAIN: Final = 0.2
LONGEST_DRAIN: Final = 2.0
"""Seconds; an application that never stops writing is saved anyway."""

OnLine = Callable[[str], Awaitable[None]]


class ApplicationWatch:
    """Follows one application's lines and notices its end."""

    def __init__(self, guest: GuestClient, sequence: int, on_line: OnLine) -> None:
        self._guest = guest
        self._on_line = on_line
        self.sequence = sequence
        self.exit_code: int | None = None

    async def run(self) -> None:
        """Return when the application has ended."""
        while True:
            with contextlib.suppress(GuestSilent, GuestRefused):
                async for record in self._guest.stream(self.sequence):
                    if record is None or record.sequence <= self.sequence:
                        continue
                    if isinstance(record, ExitRecord):
                        self.exit_code = record.exit_code
                        return
                    await self._on_line(f"({record.lines} lines were dropped here)" if isinstance(record, DroppedRecord)
                                        else record.line)
                    self.sequence = record.sequence
            await asyncio.sleep(RECONNECT)

    async def drained(self) -> None:
        """Wait until no line has come for a moment, so that what the application said so far is handed on."""
        ends = time.monotonic() + LONGEST_DRAIN
        seen = -1
        while seen != self.sequence and time.monotonic() < ends:
            seen = self.sequence
            await asyncio.sleep(DRAIN)

    @contextlib.asynccontextmanager
    async def alongside(self) -> AsyncIterator[asyncio.Task[None]]:
        """Follow while the block runs."""
        task = asyncio.create_task(self.run(), name="follow a build's application")
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def while_running(watch: ApplicationWatch, following: asyncio.Task[None], work: Awaitable[None]) -> None:
    """Do the work, but fail as soon as the application ends. Raises BuildFailed and what the work raises."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, following), return_when=asyncio.FIRST_COMPLETED)
        if following.done() and watch.exit_code is not None:
            raise BuildFailed("MicroVM terminated while its snapshot was being taken. "
                              f"Container Stopped with Exit Code: {watch.exit_code}")
        if following.done():
            following.result()
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def call_build_hook(hook: Hook, order: BuildOrder, guest: GuestClient, clock: Clock, on_line: OnLine) -> None:
    """Ask the application until it is ready or valid. Raises BuildFailed."""
    timeout, port = order.hooks.timeout(hook), order.hooks.port
    if timeout is None or port is None:
        return

    async def ask(left: timedelta) -> HookAnswer:
        return await guest.hook(hook, port, None, left)

    calls = await wait_for_hook(hook, timeout, ask, clock)
    await on_line(f"{hook.capitalize()} hook answered 200 at call {calls}")


@dataclass(frozen=True, slots=True)
class TemplateSaved:
    memory_bytes: int
    """What the memory file really holds."""
    disk_bytes: int
    """Written between boot and snapshot."""


class TemplateMaker:
    """Makes snapshots of applications."""

    def __init__(self, prepared: Prepared, engine: Engine, places: Places, saving: Saving, clock: Clock) -> None:
        self._prepared = prepared
        self._engine = engine
        self._places = places
        self._saving = saving
        self._clock = clock

    async def make(self, order: BuildOrder, image: ContainerImage, machine: Machine, scratch: Path, final: Path,
                   times: Stopwatch, on_line: OnLine) -> TemplateSaved:
        """Boot `scratch/disk`, start the application, save it all as `final`.

        Raises:
            BuildFailed: the application cannot start, ends, or is not ready in time.
            HostBusy, VmmFailed, GuestSilent, SaveFailed
        """
        disk = scratch / "disk"
        before = await in_thread(allocated_bytes, disk)
        async with contextlib.AsyncExitStack() as undo:
            with times.step("boot_template"):
                place = await self._places.take(order.build_id, Kind.BUILD, Tenant(order.egress, role=order.role))
                undo.push_async_callback(self._places.give_back, place)
                vmm = await self._engine.boot(BootSpec(
                    machine=machine, kernel=self._prepared.kernel, initramfs=self._prepared.initramfs,
                    command_line=COMMAND_LINE, drives=[Drive(disk)], tap=place.slot.tap, run_dir=place.run_dir,
                    memory_file=scratch / "template-memory", labels={"owner": order.build_id, "role": "template"},
                ))
                undo.push_async_callback(vmm.end)
                guest = GuestClient(place.slot.control_address)
                await wait_for_agent(guest, vmm, place.run_dir, self._clock)
            watch = ApplicationWatch(guest, 0, on_line)
            with times.step("start_application"):
                await self._start(guest, order, image)
            async with watch.alongside() as following:
                with times.step("ready"):
                    await while_running(watch, following, self._until_ready(order, guest, on_line))
                with times.step("quiet"):
                    # Lines that nobody read before the snapshot would be told again by every VM of the image.
                    await while_running(watch, following, watch.drained())
                    await guest.sync()
            application = Application(image.args, {**image.environment, **order.environment}, image.cwd, image.user,
                                      order.all_capabilities)
            await self._save(vmm, disk, final, machine, watch, application, times)
        written = await in_thread(allocated_bytes, disk)
        memory_bytes = await in_thread(allocated_bytes, final / "memory")
        return TemplateSaved(memory_bytes, max(0, written - before))

    async def _start(self, guest: GuestClient, order: BuildOrder, image: ContainerImage) -> None:
        command = Command(image.args, {**image.environment, **order.environment}, image.cwd, image.user,
                          order.all_capabilities, HOSTNAME)
        try:
            await guest.start(command)
        except GuestRefused as refusal:
            raise BuildFailed(f"The application could not be started: {refusal.said}") from refusal

    async def _until_ready(self, order: BuildOrder, guest: GuestClient, on_line: OnLine) -> None:
        if order.hooks.timeout(Hook.READY) is None:
            await on_line(f"The ready hook is not enabled: the snapshot is taken {SETTLE:g} s after the start")
            await self._clock.sleep(SETTLE)
        await call_build_hook(Hook.READY, order, guest, self._clock, on_line)

    async def _save(self, vmm: Vmm, disk: Path, final: Path, machine: Machine, watch: ApplicationWatch,
                    application: Application, times: Stopwatch) -> None:
        with times.step("pause"):
            await vmm.pause()
        await self._saving.save(vmm, disk, final, machine, watch.sequence, application, times)
