"""What engines whose VMMs are processes have in common: start in a jail, wait for the first answer, adopt."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Generic, TypeVar

from torpor.model.errors import VmmFailed
from torpor.vmm.base import BootSpec, Probe
from torpor.vmm.cgroup import Limits
from torpor.vmm.jail import Jail
from torpor.vmm.plan import Plan, blank
from torpor.vmm.probe import ProbeArtefacts, probe_by_booting
from torpor.vmm.process import Identity, Launch, VmmProcess
from torpor.vmm.process_vmm import ProcessVmm
from torpor.vmm.record import LOG, SAVED, Record, find_process, read_record
from torpor.vmm.starting import Cell, Wardens, start, take_uid

DYING: Final = 1.0
"""Seconds between the end of a VMM's socket and that of its process."""

V = TypeVar("V", bound=ProcessVmm)


class ProcessEngine(ABC, Generic[V]):
    """See `base.Engine`; subclasses add `restore`."""

    name: str

    def __init__(
        self, acceleration: str, artefacts: ProbeArtefacts, work_dir: Path, known: Probe | None, wardens: Wardens | None
    ) -> None:
        self.acceleration = acceleration
        self._artefacts = artefacts
        self._work_dir = work_dir
        self._known = known
        self._wardens = wardens or Wardens()

    @abstractmethod
    async def boot(self, spec: BootSpec) -> V:
        """See `base.Engine`."""

    @abstractmethod
    def program(self) -> Path:
        """The file that runs. Raises SetupMissing."""

    @abstractmethod
    def _vmm(self, process: VmmProcess, record: Record, run_dir: Path) -> V: ...
    @abstractmethod
    def _record(self, plan: Plan, uid: int) -> Record:
        """Blocking. Raises OSError, SetupMissing."""

    @abstractmethod
    def _jail(self, plan: Plan, uid: int) -> Jail:
        """Blocking: makes the files in the run directory that the VMM may write. Raises OSError, SetupMissing."""

    @abstractmethod
    def _limits(self, plan: Plan) -> Limits: ...
    @abstractmethod
    def _outfit(self, plan: Plan, uid: int, opened: contextlib.ExitStack) -> Launch:
        """What to start; called in the network namespace of the tap. Raises OSError."""

    @abstractmethod
    async def _settle(self, vmm: V, plan: Plan) -> None:
        """Wait until the VMM answers and bring it to where its caller wants it. Raises VmmFailed."""

    def _read_only(self, plan: Plan) -> tuple[Path, Path] | None:
        """A file that the VMM opens for writing and must not write to: its names in the jail and on the host."""
        return None

    def _logs(self, run_dir: Path) -> tuple[Path, ...]:
        """Files that tell why a VMM ended."""
        return (run_dir / LOG,)

    def version(self) -> str:
        """What runs, for people. Raises SetupMissing."""
        return str(self.program())

    def caveat(self) -> str:
        """What is to be known of a version that boots VMs; empty for most."""
        return ""

    def know(self, probe: Probe) -> None:
        """Take over what an earlier probe found."""
        self._known = probe

    async def probe(self) -> Probe:
        """Boot a small VM with a deadline and say whether it lived; asked once, remembered after that."""
        if self._known is None:
            self._known = await probe_by_booting(self, self._artefacts, self._work_dir)
        return self._known

    async def adopt(self, run_dir: Path) -> V | None:
        """Take over the living VMM of a run directory; None when it is gone."""
        record = read_record(run_dir)
        identity = await asyncio.to_thread(find_process, run_dir)
        if identity is None:
            await asyncio.to_thread(self._wardens.cgroups.remove, run_dir.name)
        if record is None or identity is None:
            return None
        try:
            process = VmmProcess(identity, *self._logs(run_dir))
        except VmmFailed:
            return None
        self._wardens.uids.hold(record.uid)
        return self._vmm(process, record, run_dir)

    async def _start(self, plan: Plan) -> V:
        """Raises VmmFailed; nothing is left then, nor when it is cancelled."""
        spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn, plan))
        try:
            vmm = self._begun(plan, *await asyncio.shield(spawning))
        except asyncio.CancelledError:
            await asyncio.wait([spawning])
            if not spawning.exception():
                await self._begun(plan, *spawning.result()).end()
            raise
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(vmm.end)
            try:
                await self._settle(vmm, plan)
            except VmmFailed as error:
                how = await _own_end(vmm)
                why = f"{error}; it {how}" if how else str(error)
                raise VmmFailed(f"{self.name} did not start the VM: {why}") from error
            undo.pop_all()
        return vmm

    def _begun(self, plan: Plan, identity: Identity, record: Record) -> V:
        return self._vmm(VmmProcess(identity, *self._logs(plan.run_dir)), record, plan.run_dir)

    def _spawn(self, plan: Plan) -> tuple[Identity, Record]:
        """Blocking. Raises VmmFailed, SetupMissing."""
        uid = take_uid(self._wardens)
        try:
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            blank(plan.run_dir / SAVED)
            record = self._record(plan, uid)
            netns = plan.tap.netns if plan.tap is not None else None
            cell = Cell(plan.run_dir, netns, self._jail(plan, uid), self._limits(plan), record, self._read_only(plan))
        except OSError as error:
            self._wardens.release(uid, plan.run_dir)
            raise VmmFailed(f"a VMM in {plan.run_dir} could not be started: {error}") from error
        except BaseException:
            self._wardens.release(uid, plan.run_dir)
            raise
        return start(cell, self._wardens, lambda opened: self._outfit(plan, uid, opened)), record


async def _own_end(vmm: ProcessVmm) -> str | None:
    """How a process that fails to answer ended by itself; None when it still lives."""
    try:
        async with asyncio.timeout(DYING):
            return await vmm.exited()
    except TimeoutError:
        return None
