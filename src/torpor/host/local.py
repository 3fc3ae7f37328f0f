"""This machine as a `Host`: VMs restored from snapshots, saved to generations, adopted after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.host import adoption, processor
from torpor.host.base import (
    BuildLine,
    BuildOrder,
    BuildOutcome,
    FilesDamaged,
    Found,
    HookAnswer,
    HostEvent,
    HostStats,
    LaunchOrder,
    Load,
    Placement,
    Saved,
    Upstream,
)
from torpor.host.builder import Builder
from torpor.host.files import remove_directory
from torpor.host.guest_archive import pack, unpack
from torpor.host.guest_session import open_session
from torpor.host.holding import Holding
from torpor.host.integrity import Integrity, owner_of
from torpor.host.inventory.estate import Estate
from torpor.host.layout import Layout, MicrovmFiles, run_dir_of
from torpor.host.measuring import loads_of, stats_of
from torpor.host.network.tenant import Tenant
from torpor.host.outputs import keep_outputs_small
from torpor.host.places import Kind as Owner
from torpor.host.places import Places, Services, Slots
from torpor.host.placing import Placer
from torpor.host.recovering import Recoverer
from torpor.host.room import Room
from torpor.host.saving import Saving, drop_generations, failing_save
from torpor.host.session import OpenSessions, Session, SessionOrder, Unpacked
from torpor.host.setup.prepared import Prepared
from torpor.host.snapshots import Maker, link_snapshot
from torpor.host.space import Space
from torpor.host.step_times import Stopwatch
from torpor.host.stock import Stock
from torpor.host.supervisor import Supervisor
from torpor.host.threads import in_thread
from torpor.host.traffic import TrafficWatch
from torpor.host.transfers import LocalTransfers
from torpor.host.watching import Placed, Watch, close_connections, sync_files
from torpor.model.clock import Clock
from torpor.model.egress import Egress
from torpor.model.errors import BuildFailed, NoRoom, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.seams import Seams
from torpor.model.sizes import SIZES
from torpor.vmm import MEMORY_FILE, Engine

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger(__name__)


class LocalHost:
    """One machine; owned by one process at a time."""

    def __init__(self, config: Config, prepared: Prepared, engine: Engine, slots: Slots, clock: Clock, *,
                 run_dir: Path | None = None, seams: Seams | None = None, services: Services | None = None) -> None:
        """`run_dir` is for a machine where /run cannot be written; `services` answer guests from inside their slots."""
        self._config = config
        self._prepared = prepared
        self._engine = engine
        self._clock = clock
        self._seams = seams or Seams()
        self._layout = Layout(prepared.volume, run_dir or run_dir_of(config.data_dir))
        self._slots = slots
        self._places = Places(slots, self._layout, services)
        self._placed: dict[MicrovmId, Placed] = {}
        self._locks: defaultdict[MicrovmId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sessions = OpenSessions()
        self._supervisor = Supervisor()
        self._watch = Watch(self._supervisor, config.logs.bytes_per_second)
        self._traffic = TrafficWatch(slots, clock, self._slot_owners)
        self._maker = Maker(engine.name, "", "")
        self._space = Space(config.snapshots, (prepared.volume, config.data_dir))
        self._room = Room(self._space, config.peak_factor)
        self._integrity = Integrity(config.snapshots, self._layout, self._tell_damage)
        estate = Estate(config.data_dir, slots.owner, IPv4Network(config.network.slots), self._layout)
        self._stock = Stock(estate, slots, self._places, self._placed, self._locks, self.discard)
        self.transfers = LocalTransfers(self._layout, self._locks, self._integrity, lambda: self._maker)
        self._is_started = False

    @property
    def architecture(self) -> str:
        return processor.architecture()

    @property
    def chipset(self) -> tuple[str, str]:
        return processor.chipset()

    @property
    def engine(self) -> str:
        return self._engine.name

    @property
    def boot_id(self) -> str:
        return BOOT_ID.read_text().strip()

    async def start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        probe = await self._engine.probe()
        if not probe.works:
            raise VmmFailed(f"engine {self._engine.name} does not work here: {probe.reason}")
        self._maker = Maker(self._engine.name, probe.acceleration, probe.version)
        self._placer = Placer(self._engine, self._places, self._maker, self._clock)
        self._saving = Saving(self._maker, self._prepared.kernel_version, self._clock, self._seams)
        self._recoverer = Recoverer(self._prepared, self._engine, self._places, self._clock)
        self._builder = Builder(self._config, self._prepared, self._engine, self._layout, self._places, self._placer,
                                self._saving, self._clock, self._seams)
        await in_thread(self._layout.prepare)
        await self._supervisor.start()
        for placed in await adoption.adopt_all(self._layout, self._places, self._engine):
            self._space.adopt(placed.microvm_id, placed.manifest.machine.memory_mib)
            self._begin(placed)
        await in_thread(adoption.sweep, self._layout, set(self._placed))
        owned = self._slot_owners()
        await self._places.remove_unowned_slots(lambda number: number in owned)
        self._supervisor.spawn(self._traffic.run(), "traffic")
        self._supervisor.spawn(self._integrity.run(), "integrity")
        self._supervisor.spawn(keep_outputs_small(self._layout.run_dir, self._clock), "outputs")

    async def stop(self) -> None:
        await self._sessions.close_all()
        await self._supervisor.stop()
        for placed in self._placed.values():
            await placed.vmm.forget()
        self._placed.clear()
        await self._places.stop()
        await in_thread(self._layout.leave)
        self._is_started = False

    async def survey(self) -> list[Found]:
        directories = await in_thread(lambda: sorted(path for path in self._layout.microvms.iterdir() if path.is_dir()))
        return [await self._found(MicrovmId(path.name)) for path in directories]

    async def _found(self, microvm_id: MicrovmId) -> Found:
        placed = self._living(microvm_id)
        saved_at = await in_thread(adoption.saved_at, self._layout.microvm(microvm_id))
        return Found(microvm_id, placed is not None, placed is not None and placed.place.note.is_paused, saved_at)

    async def build(self, order: BuildOrder, on_line: BuildLine) -> BuildOutcome:
        try:
            self._room.admit(order.memory_mib)
        except NoRoom as error:
            raise BuildFailed(f"DISK_STORAGE_FULL: {error}") from error
        outcome = await self._builder.build(order, on_line)
        self._integrity.published(self._layout.snapshot(outcome.snapshot))
        self._integrity.wake()
        return outcome

    async def admit(self, memory_mib: int) -> None:
        self._room.admit(memory_mib)

    async def launch(self, order: LaunchOrder) -> Placement:
        files = self._layout.microvm(order.microvm_id)
        async with self._locks[order.microvm_id]:
            if (placed := self._living(order.microvm_id)) is not None:
                return Placement(placed.place.slot.address, ())
            try:
                await self._integrity.before_use(self._layout.snapshot(order.snapshot))
                await in_thread(_make_base, self._layout.snapshot(order.snapshot), files)
                return await self._place(order, files, "base")
            except BaseException:
                if not await in_thread(files.generations):
                    await in_thread(remove_directory, files.path)
                raise

    async def resume(self, order: LaunchOrder) -> Placement:
        files = self._layout.microvm(order.microvm_id)
        async with self._locks[order.microvm_id]:
            if (placed := self._living(order.microvm_id)) is not None:
                return Placement(placed.place.slot.address, ())
            latest = await in_thread(files.latest)
            if latest is None:
                raise SnapshotDamaged(f"{order.microvm_id} has no saved generation")
            await self._integrity.before_use(latest)
            return await self._place(order, files, latest.name)

    async def recover(self, order: LaunchOrder) -> Placement:
        microvm_id, files = order.microvm_id, self._layout.microvm(order.microvm_id)
        async with self._locks[microvm_id]:
            if (placed := self._living(microvm_id)) is not None:
                return Placement(placed.place.slot.address, ())
            latest = await in_thread(files.latest)
            if latest is None:
                raise SnapshotDamaged(f"{microvm_id} has no saved generation")
            await self._integrity.before_recovery(latest)
            await self._release(microvm_id)  # of a VMM that died
            times = Stopwatch(self._clock, "recover", self._seams)
            with self._room.promised(order):
                done = await self._recoverer.boot(microvm_id, latest, files.live_disk, files.cold_memory, times,
                                                  self._tenant(order))
            self._begin(Placed(microvm_id, done.vmm, done.place, done.manifest, 0))
            return Placement(done.place.slot.address, times.steps)

    def _begin(self, placed: Placed) -> None:
        self._placed[placed.microvm_id] = placed
        self._watch.begin(placed)

    def _tenant(self, order: LaunchOrder) -> Tenant:
        bandwidth = self._config.ingress.bandwidth
        if bandwidth is None:
            bandwidth = SIZES[order.memory_mib].bandwidth_bytes_per_second
        return Tenant(order.egress, bandwidth or None, order.role)

    async def _place(self, order: LaunchOrder, files: MicrovmFiles, name: str) -> Placement:
        microvm_id = order.microvm_id
        await self._release(microvm_id)  # of a VMM that died
        times = Stopwatch(self._clock, "place", self._seams)
        with self._room.promised(order):
            done = await self._placer.place(microvm_id, Owner.MICROVM, files.path / name, files.live_disk, times,
                                            self._tenant(order))
        self._begin(Placed(microvm_id, done.vmm, done.place, done.manifest, done.manifest.stream_sequence))
        return Placement(done.place.slot.address, times.steps)

    async def call_hook(self, microvm_id: MicrovmId, hook: Hook, port: int, body: str | None,
                        timeout: timedelta) -> HookAnswer:
        return await self._must_live(microvm_id).guest.hook(hook, port, body, timeout)

    async def save(self, microvm_id: MicrovmId) -> Saved:
        files = self._layout.microvm(microvm_id)
        async with self._locks[microvm_id]:
            placed = self._must_live(microvm_id)
            with failing_save(microvm_id):
                return await self._save(placed, files)

    async def _save(self, placed: Placed, files: MicrovmFiles) -> Saved:
        times = Stopwatch(self._clock, "save", self._seams)
        await in_thread(self._room.check_save, placed)
        with times.step("close_connections"):
            await close_connections(placed)
        if self._config.snapshots.sync_files:
            with times.step("sync"):
                await sync_files(placed)
        with times.step("pause"):
            placed.place.write(is_paused=True)
            await placed.vmm.pause()
            await self._watch.pause(placed)
        earlier = await in_thread(files.generations)
        number = earlier[-1] + 1 if earlier else 1
        written = await self._saving.save(placed.vmm, files.live_disk, files.generation(number),
                                          placed.manifest.machine, placed.sequence,
                                          placed.manifest.application, times)
        base = placed.place.note.base
        await in_thread(self._integrity.published, files.generation(number), files.path / base)
        self._integrity.wake()
        # What the living VMM was restored from stays until its end: another save starts from that file.
        await in_thread(drop_generations, files, {f"gen-{number}", base})
        stored = await in_thread(_memory_bytes, files.generation(number)) + written.disk_bytes
        return Saved(written.memory_bytes, written.disk_bytes, times.steps, stored)

    async def unpause(self, microvm_id: MicrovmId) -> None:
        async with self._locks[microvm_id]:
            placed = self._must_live(microvm_id)
            self._seams.reach("unpause", "unpause", "before")
            await placed.vmm.unpause()
            self._seams.reach("unpause", "unpause", "after")
            placed.place.write(is_paused=False)
            self._watch.follow(placed)

    async def release(self, microvm_id: MicrovmId) -> None:
        async with self._locks[microvm_id]:
            await self._release(microvm_id)

    async def _release(self, microvm_id: MicrovmId) -> None:
        placed = self._placed.get(microvm_id)
        if placed is None:
            return
        files = self._layout.microvm(microvm_id)
        await self._sessions.close(microvm_id)
        await self._watch.end(placed)
        with self._seams.around("release", "end_vmm"):
            await self._placer.remove(placed.vmm, placed.place, files.live_disk)
        await in_thread(files.cold_memory.unlink, missing_ok=True)
        self._placed.pop(microvm_id, None)
        self._space.drop(microvm_id)
        latest = await in_thread(files.latest)
        if latest is not None:
            await in_thread(drop_generations, files, {latest.name})
            # The image's files are not needed any more: a deleted image must not live on in its suspended VMs.
            await in_thread(remove_directory, files.base)

    async def discard(self, microvm_id: MicrovmId) -> None:
        async with self._locks[microvm_id]:
            await self._release(microvm_id)
            with self._seams.around("discard", "files"):
                await in_thread(remove_directory, self._layout.microvm(microvm_id).path)
        self._traffic.forget(microvm_id)
        self._locks.pop(microvm_id, None)

    async def delete_snapshot(self, snapshot: str) -> None:
        with self._seams.around("delete_snapshot", "files"):
            await in_thread(remove_directory, self._layout.snapshot(snapshot))

    async def set_egress(self, microvm_id: MicrovmId, egress: Egress) -> None:
        async with self._locks[microvm_id]:
            placed = self._living(microvm_id)
            if placed is not None:
                await self._places.let(placed.place, replace(placed.place.note.tenant, egress=egress))

    def upstream(self, microvm_id: MicrovmId, port: int) -> Upstream | None:
        placed = self._living(microvm_id)
        return None if placed is None or placed.is_ending else Upstream(placed.place.slot.address, port)

    async def last_traffic(self, microvm_id: MicrovmId) -> datetime | None:
        return await self._traffic.last(microvm_id)

    async def events(self) -> AsyncIterator[HostEvent]:
        while True:
            yield await self._watch.events.get()

    async def loads(self) -> dict[MicrovmId, Load]:
        vmms = {microvm_id: placed.vmm for microvm_id, placed in self._placed.items() if not placed.is_dead}
        return await in_thread(loads_of, vmms)

    async def open_session(self, microvm_id: MicrovmId, order: SessionOrder) -> Session:
        address = self._must_live(microvm_id).place.slot.control_address
        session = await open_session(address, order, lambda closed: self._sessions.forget(microvm_id, closed))
        self._sessions.add(microvm_id, session)
        placed = self._living(microvm_id)
        if placed is None or placed.place.slot.control_address != address:  # its life ended meanwhile
            await session.close()
        return session

    def pack(self, microvm_id: MicrovmId, path: str) -> AsyncIterator[bytes]:
        return pack(self._must_live(microvm_id).place.slot.control_address, path)

    async def unpack(self, microvm_id: MicrovmId, path: str, base: str, archive: AsyncIterator[bytes]) -> Unpacked:
        return await unpack(self._must_live(microvm_id).place.slot.control_address, path, base, archive)

    async def stats(self) -> HostStats:
        vmms = [placed.vmm for placed in self._placed.values()]
        return await in_thread(stats_of, self._maker, self._prepared.volume, vmms)

    @property
    def damaged(self) -> Mapping[str, str]:
        return {str(path): reason for path, reason in self._integrity.damaged.items() if path.exists()}

    async def inventory(self) -> list[Holding]:
        return await self._stock.inventory()

    async def remove(self, holding: Holding) -> None:
        await self._stock.remove(holding)

    async def _tell_damage(self, snapshot: Path, reason: str) -> None:
        owner = owner_of(self._layout, snapshot)
        log.error("%s: %s", owner or "an image", reason)
        if owner is not None:
            await self._watch.events.put(FilesDamaged(MicrovmId(owner), reason))

    def _living(self, microvm_id: MicrovmId) -> Placed | None:
        placed = self._placed.get(microvm_id)
        return None if placed is None or placed.is_dead else placed

    def _must_live(self, microvm_id: MicrovmId) -> Placed:
        placed = self._placed.get(microvm_id)
        if placed is None:
            raise VmmFailed(f"{microvm_id} has no living VM on this machine")
        if placed.is_dead:
            raise VmmFailed(f"the VMM of {microvm_id} has ended: {placed.how}")
        return placed

    def _slot_owners(self) -> dict[int, MicrovmId]:
        return {placed.place.slot.number: microvm_id for microvm_id, placed in self._placed.items()}


def _make_base(snapshot: Path, files: MicrovmFiles) -> None:
    """Give the microVM names of its own for the image's files; a launch that was cut short may have left them."""
    files.path.mkdir(mode=0o700, exist_ok=True)
    if not files.base.exists():
        link_snapshot(snapshot, files.base)


def _memory_bytes(generation: Path) -> int:
    return (generation / MEMORY_FILE).stat().st_blocks * 512
