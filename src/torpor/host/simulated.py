"""A machine without virtual machines: the whole `Host` protocol, its errors and its files, in no time and without root.

What lives is written through to the data directory, so a new `SimulatedHost` on the same directory adopts it as a
restarted service adopts VMMs. Time is the clock's, so a virtual one moves everything. `faults` makes steps slow or
fail and hooks answer badly; `exit_application`, `kill_vmm` and `write_line` are what guests do by themselves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from torpor.config import Config
from torpor.folders import SIMULATED
from torpor.host import processor, stub_files
from torpor.host.artifact import check
from torpor.host.base import (
    ApplicationExited,
    ApplicationLine,
    BuildLine,
    BuildOrder,
    BuildOutcome,
    Found,
    GuestFellSilent,
    GuestHeardAgain,
    HookAnswer,
    HostEvent,
    HostStats,
    LaunchOrder,
    Load,
    Placement,
    Saved,
    StepTime,
    Upstream,
    VmmDied,
)
from torpor.host.build_hooks import wait_for_hook
from torpor.host.files import sweep_unfinished
from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import estate_of
from torpor.host.session import OpenSessions, Session, SessionOrder, Unpacked
from torpor.host.simulated_build import simulate_dockerfile
from torpor.host.simulated_faults import Faults
from torpor.host.simulated_ledger import Ledger
from torpor.host.simulated_vm import SAVED, Memory, SimulatedVm, load_live, load_memory, save_memory, saved_at
from torpor.host.stub_application import MICROVM_HEADER, PORT_HEADER, StubApplication
from torpor.host.stub_shell import StubSession
from torpor.host.transfers import SimulatedTransfers
from torpor.model.clock import Clock
from torpor.model.egress import Egress
from torpor.model.errors import BuildFailed, GuestRefused, SaveFailed, SnapshotDamaged, TorporError, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.image import SnapshotSizes
from torpor.model.seams import Seams

LAUNCH_STEPS = ("take_slot", "clone_disk", "restore_memory", "unpause", "guest_restored")
RECOVER_STEPS = ("take_slot", "clone_disk", "boot_vm", "start_application")
SAVE_STEPS = ("pause", "save_memory", "clone_disk", "publish")
BUILD_STEPS = ("check_artifact", "boot_builder", "build_container", "copy_root", "boot_template", "start_application",
               "ready", "save_snapshot", "validate")
MAX_UNPACKED_BYTES = 4 * 1024 * 1024 * 1024


class SimulatedHost:
    """One simulated machine."""

    def __init__(self, data_dir: Path, clock: Clock, delays: Mapping[str, float] | None = None, *,
                 serve: bool = True, seams: Seams | None = None) -> None:
        self._estate = estate_of(Config(data_dir=data_dir))
        self._microvms = data_dir / SIMULATED / "microvms"
        self._ledger = Ledger(data_dir / SIMULATED / "live.ndjson")
        self._snapshots = data_dir / SIMULATED / "snapshots"
        self._boot = data_dir / SIMULATED / "boot"
        self.transfers = SimulatedTransfers(data_dir / SIMULATED / "exports", self._file_of)
        self.damaged: Mapping[str, str] = {}
        self._clock = clock
        self._serves = serve
        self._is_started = False
        self._placed: dict[MicrovmId, SimulatedVm] = {}
        self._events: asyncio.Queue[HostEvent] = asyncio.Queue()
        self._sessions = OpenSessions()
        self._seams = seams or Seams()
        self.egress: dict[MicrovmId, Egress] = {}
        """What each VM may reach since its launch or resume."""
        self.faults = Faults(clock, delays or {}, self._seams)
        self.application = StubApplication(clock, self._answering, self._keep, self._leave, self.faults.answer)

    @property
    def architecture(self) -> str:
        return processor.architecture()

    @property
    def chipset(self) -> tuple[str, str]:
        return processor.chipset()

    @property
    def engine(self) -> str:
        return "simulated"

    @property
    def boot_id(self) -> str:
        return self._boot.read_text()

    def fall_silent(self, microvm_id: MicrovmId, seconds: float, *, is_stalled: bool = False) -> None:
        """The guest's agent has not been heard for so long; or it stands still for want of room on a disk."""
        self._alive(microvm_id)
        self._events.put_nowait(GuestFellSilent(microvm_id, seconds, is_stalled))

    def speak_again(self, microvm_id: MicrovmId) -> None:
        """The guest's agent is heard after it fell silent."""
        self._alive(microvm_id)
        self._events.put_nowait(GuestHeardAgain(microvm_id))

    async def start(self) -> None:
        for directory in (self._microvms, self._snapshots):
            directory.mkdir(parents=True, exist_ok=True)
            sweep_unfinished(directory)
        if not self._boot.exists():
            self._boot.write_text(str(uuid.uuid4()))
        if self._is_started:
            return
        self._is_started = True
        if self._serves:
            await self.application.start()
        for microvm_id, document in self._ledger.open().items():
            vm = load_live(microvm_id, document)
            if vm is None:
                self._ledger.forget(microvm_id)
                continue
            self._placed[vm.microvm_id] = vm
            if vm.memory.exit_code is not None:
                self._events.put_nowait(ApplicationExited(vm.microvm_id, vm.memory.exit_code))

    async def stop(self) -> None:
        await self._sessions.close_all()
        for vm in self._placed.values():
            vm.ended.set()
        self._placed.clear()
        self._ledger.close()
        await self.application.stop()
        self._is_started = False

    async def survey(self) -> list[Found]:
        saved = {MicrovmId(path.name.removesuffix(SAVED)) for path in self._microvms.glob(f"*{SAVED}")}
        return [self._found(microvm_id) for microvm_id in sorted(saved | self._placed.keys())]

    def _found(self, microvm_id: MicrovmId) -> Found:
        vm = self._placed.get(microvm_id)
        is_paused = vm is not None and vm.is_paused
        return Found(microvm_id, vm is not None, is_paused, saved_at(self._saved(microvm_id)))

    async def build(self, order: BuildOrder, on_line: BuildLine) -> BuildOutcome:
        steps: list[StepTime] = []
        artifact = check(order.code_artifact or b"", MAX_UNPACKED_BYTES)
        installed = artifact.unpacked_bytes
        try:
            for name in BUILD_STEPS:
                steps.append(await self._step_of_build(name, order))
                if name == "build_container":
                    await simulate_dockerfile(artifact, on_line)
                elif name in ("ready", "validate"):
                    await self._wait_for_build_hook(Hook(name), order)
                elif name == "start_application":
                    await on_line("snapshot", "the application started")
        except BuildFailed as failure:
            is_built = any(step.name == "copy_root" for step in steps)
            raise BuildFailed(str(failure), SnapshotSizes(None, installed, None) if is_built else None) from failure
        memory_bytes = save_memory(Memory(), self._snapshots / order.build_id, self._clock.now())
        self._seams.reach("build", "save_snapshot", "published")
        return BuildOutcome(order.build_id, SnapshotSizes(memory_bytes, installed, 0), tuple(steps))

    async def _step_of_build(self, name: str, order: BuildOrder) -> StepTime:
        try:
            return await self.faults.step("build", name)
        except TorporError as error:
            if isinstance(error, BuildFailed):
                raise
            raise BuildFailed(f"INTERNAL_PLATFORM_ERROR: build {order.build_id}, step {name}: {error}") from error

    async def _wait_for_build_hook(self, hook: Hook, order: BuildOrder) -> None:
        timeout, port = order.hooks.timeout(hook), order.hooks.port
        if timeout is None or port is None:
            return

        async def ask(left: timedelta) -> HookAnswer:
            return await self.faults.hook(order.build_id, hook, port, None, left)

        await wait_for_hook(hook, timeout, ask, self._clock)

    async def admit(self, memory_mib: int) -> None:
        await self.faults.step("admit", "admit")

    async def launch(self, order: LaunchOrder) -> Placement:
        return await self._place(order, self._snapshots / order.snapshot)

    async def resume(self, order: LaunchOrder) -> Placement:
        return await self._place(order, self._saved(order.microvm_id))

    async def recover(self, order: LaunchOrder) -> Placement:
        """What a simulated application knows is all memory: it is lost, and the saved file stays."""
        placed = self._placed.get(order.microvm_id)
        if placed is not None:
            return Placement(placed.address, ())
        if not self._saved(order.microvm_id).exists():
            raise SnapshotDamaged(f"{order.microvm_id} has no saved file")
        steps = await self._run("recover", RECOVER_STEPS)
        self.egress[order.microvm_id] = order.egress
        vm = SimulatedVm(order.microvm_id, order.snapshot, Memory(), "127.0.0.1")
        self._placed[order.microvm_id] = vm
        self._keep(vm)
        return Placement(vm.address, steps)

    async def _place(self, order: LaunchOrder, source: Path) -> Placement:
        placed = self._placed.get(order.microvm_id)
        if placed is not None:
            return Placement(placed.address, ())
        memory = load_memory(source)
        steps = await self._run("place", LAUNCH_STEPS)
        self.egress[order.microvm_id] = order.egress
        vm = SimulatedVm(order.microvm_id, order.snapshot, memory, "127.0.0.1")
        self._placed[order.microvm_id] = vm
        self._keep(vm)
        self._seams.reach("place", "guest_restored", "placed")
        return Placement(vm.address, steps)

    async def _run(self, action: str, names: Iterable[str]) -> tuple[StepTime, ...]:
        return tuple([await self.faults.step(action, name) for name in names])

    async def call_hook(self, microvm_id: MicrovmId, hook: Hook, port: int, body: str | None,
                        timeout: timedelta) -> HookAnswer:
        vm = self._alive(microvm_id)
        if vm.memory.exit_code is not None:
            return HookAnswer(0, "refused", 0.0)
        return await self.faults.hook(microvm_id, hook, port, body, timeout)

    async def save(self, microvm_id: MicrovmId) -> Saved:
        vm = self._alive(microvm_id)
        vm.is_paused = True
        self._keep(vm)
        try:
            steps = await self._run("save", SAVE_STEPS)
            if self._placed.get(microvm_id) is not vm:
                raise SaveFailed(f"{microvm_id} ended while it was saved")
            written = save_memory(vm.memory, self._saved(microvm_id), self._clock.now())
            self._seams.reach("save", "publish", "published")
        except OSError as error:
            raise SaveFailed(f"{microvm_id} cannot be saved: {error}") from error
        return Saved(written, 0, steps, written)

    async def unpause(self, microvm_id: MicrovmId) -> None:
        vm = self._alive(microvm_id)
        await self.faults.step("unpause", "unpause")
        vm.is_paused = False
        self._keep(vm)

    async def release(self, microvm_id: MicrovmId) -> None:
        await self.faults.step("release", "release")
        await self._sessions.close(microvm_id)
        self._end(microvm_id)
        self._seams.reach("release", "end_vmm", "after")

    async def discard(self, microvm_id: MicrovmId) -> None:
        await self.faults.step("discard", "discard")
        await self._sessions.close(microvm_id)
        self._end(microvm_id)
        self._seams.reach("discard", "end_vmm", "after")
        self._saved(microvm_id).unlink(missing_ok=True)

    async def delete_snapshot(self, snapshot: str) -> None:
        await self.faults.step("delete_snapshot", "delete_snapshot")
        (self._snapshots / snapshot).unlink(missing_ok=True)

    async def set_egress(self, microvm_id: MicrovmId, egress: Egress) -> None:
        if microvm_id in self._placed:
            self.egress[microvm_id] = egress

    def upstream(self, microvm_id: MicrovmId, port: int) -> Upstream | None:
        vm = self._placed.get(microvm_id)
        if vm is None:
            return None
        headers = {MICROVM_HEADER: str(microvm_id), PORT_HEADER: str(port)}
        return Upstream(vm.address, self.application.port if self._serves else port, headers)

    async def last_traffic(self, microvm_id: MicrovmId) -> datetime | None:
        vm = self._placed.get(microvm_id)
        return None if vm is None else vm.last_traffic

    async def events(self) -> AsyncIterator[HostEvent]:
        while True:
            yield await self._events.get()

    async def loads(self) -> dict[MicrovmId, Load]:
        return {microvm_id: Load(0.0, 0) for microvm_id in self._placed}

    async def open_session(self, microvm_id: MicrovmId, order: SessionOrder) -> Session:
        session = StubSession(order, self._runs(microvm_id), lambda closed: self._sessions.forget(microvm_id, closed))
        self._sessions.add(microvm_id, session)
        return session

    async def pack(self, microvm_id: MicrovmId, path: str) -> AsyncIterator[bytes]:
        yield stub_files.pack(self._runs(microvm_id).memory.files, path)

    async def unpack(self, microvm_id: MicrovmId, path: str, base: str, archive: AsyncIterator[bytes]) -> Unpacked:
        content = await stub_files.gathered(archive)
        vm = self._runs(microvm_id)
        counted = stub_files.unpack(vm.memory.files, path, base, content)
        self._keep(vm)
        return counted

    def _runs(self, microvm_id: MicrovmId) -> SimulatedVm:
        vm = self._alive(microvm_id)
        if vm.memory.exit_code is not None:
            raise GuestRefused("open a session", 409, "the application is not running")
        return vm

    async def stats(self) -> HostStats:
        disk = shutil.disk_usage(self._microvms)
        memory = sum(len(str(vm.memory.values)) for vm in self._placed.values())
        return HostStats("simulated", "none", 1, 1 << 40, memory, disk.free)

    async def inventory(self) -> list[Holding]:
        from torpor.host.inventory.survey import take_simulated_stock  # and all of Linux's networks: a start can wait

        found = await asyncio.to_thread(take_simulated_stock, self._estate)
        used = {"service", f"service:{os.getpid()}"}
        return [each for each in found if not any(key in used for key in each.keys)]

    async def remove(self, holding: Holding) -> None:
        from torpor.host.inventory.survey import remove

        if holding.kind is Kind.SIMULATED_VM:
            self._end(MicrovmId(holding.name))
            self._ledger.strike(MicrovmId(holding.name))
        else:
            await asyncio.to_thread(remove, self._estate, holding)

    def exit_application(self, microvm_id: MicrovmId, code: int = 0) -> None:
        """The application ends by itself; its VM lives on until somebody ends it."""
        vm = self._alive(microvm_id)
        vm.memory.exit_code = code
        self._keep(vm)
        self._events.put_nowait(ApplicationExited(microvm_id, code))

    def kill_vmm(self, microvm_id: MicrovmId, how: str = "killed by signal 9") -> None:
        """The VMM dies and everything that was not saved is lost."""
        self._alive(microvm_id)
        self._end(microvm_id)
        self._events.put_nowait(VmmDied(microvm_id, how))

    def write_line(self, microvm_id: MicrovmId, line: str, stream: str = "stdout") -> None:
        """The application writes a line."""
        self._events.put_nowait(ApplicationLine(microvm_id, self._clock.now(), stream, line))

    def touch(self, microvm_id: MicrovmId) -> None:
        """A byte crosses the endpoint now."""
        self._alive(microvm_id).last_traffic = self._clock.now()

    def memory_of(self, microvm_id: MicrovmId) -> Memory:
        """What the application of a placed VM knows."""
        return self._alive(microvm_id).memory

    def _alive(self, microvm_id: MicrovmId) -> SimulatedVm:
        vm = self._placed.get(microvm_id)
        if vm is None:
            raise VmmFailed(f"{microvm_id} has no VM here")
        return vm

    def _answering(self, microvm_id: str) -> SimulatedVm | None:
        vm = self._placed.get(MicrovmId(microvm_id))
        return vm if vm is not None and not vm.is_paused and vm.memory.exit_code is None else None

    def _keep(self, vm: SimulatedVm) -> None:
        if self._placed.get(vm.microvm_id) is vm:
            self._ledger.keep(vm.microvm_id, vm.document())

    async def _leave(self, vm: SimulatedVm, code: int) -> None:
        self.exit_application(vm.microvm_id, code)

    def _end(self, microvm_id: MicrovmId) -> None:
        self.egress.pop(microvm_id, None)
        vm = self._placed.pop(microvm_id, None)
        if vm is not None:
            vm.ended.set()
        self._ledger.forget(microvm_id)

    def _file_of(self, what: str) -> Path:
        """Of `snapshot:<name>` or `microvm:<id>`."""
        kind, _, name = what.partition(":")
        return self._snapshots / name if kind == "snapshot" else self._saved(MicrovmId(name))

    def _saved(self, microvm_id: MicrovmId) -> Path:
        return self._microvms / f"{microvm_id}{SAVED}"
