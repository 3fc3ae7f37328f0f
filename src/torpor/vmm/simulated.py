"""The simulated engine: VMs without processes that keep every rule of real ones, with faults on demand.

A guest's memory is a dictionary that can be written as JSON. It goes to MEMORY_FILE when the VM is saved, so clones,
damage and full disks behave as with real VMs. What a guest keeps on its disk is the content of its first drive.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torpor.model.clock import Clock, SystemClock
from torpor.model.errors import SaveFailed, SnapshotDamaged, VmmFailed
from torpor.vmm import snapshot
from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE, BootSpec, Probe, RestoreSpec

MAKER: Final = snapshot.Maker("simulated", "none", "any", 1)
MEMORY_BYTES: Final = 4096
"""What an untouched simulated VM is said to cost."""

Memory = dict[str, Any]


@dataclass(slots=True)
class Faults:
    """What goes wrong, and how long things take. Actions: `boot`, `restore`, `pause`, `unpause`, `save`, `end`."""

    delays: dict[str, float] = field(default_factory=dict)
    """Seconds by the engine's clock."""
    _planned: dict[str, list[BaseException]] = field(default_factory=dict)
    _hanging: dict[str, asyncio.Event] = field(default_factory=dict)

    def fail_next(self, action: str, error: BaseException, times: int = 1) -> None:
        """The next calls of an action raise `error`."""
        self._planned.setdefault(action, []).extend([error] * times)

    def hang(self, action: str) -> asyncio.Event:
        """Calls of an action wait until the event is set."""
        return self._hanging.setdefault(action, asyncio.Event())

    def mend(self) -> None:
        """Nothing goes wrong any more."""
        self._planned.clear()

    async def reached(self, action: str, clock: Clock) -> None:
        """What an action does first."""
        if delay := self.delays.get(action, 0.0):
            await clock.sleep(delay)
        if hanging := self._hanging.get(action):
            await hanging.wait()
            self._hanging.pop(action, None)
        if planned := self._planned.get(action):
            raise planned.pop(0)


class SimulatedEngine:
    """An engine whose VMs are objects. VMs outlive it in `running`, which plays the machine in tests of adoption."""

    name = "simulated"

    def __init__(
        self, clock: Clock | None = None, faults: Faults | None = None,
        running: dict[Path, SimulatedVmm] | None = None,
    ) -> None:  # fmt: skip
        self.clock: Clock = clock or SystemClock()
        self.faults = faults or Faults()
        self.running = running if running is not None else {}
        self._pids = itertools.count(1 << 22)  # above the largest pid of Linux

    async def probe(self) -> Probe:
        return Probe(works=True, acceleration="none", version="1", reason="simulated: no virtual machines")

    async def boot(self, spec: BootSpec) -> SimulatedVmm:
        """Start a VM; it runs when this returns. Raises VmmFailed."""
        await self.faults.reached("boot", self.clock)
        shape = snapshot.shape_of(spec.machine, len(spec.drives), spec.tap is not None)
        spec.memory_file.parent.mkdir(parents=True, exist_ok=True)
        spec.memory_file.write_bytes(b"{}")
        return self._started(spec.run_dir, shape, {}, spec.labels, is_paused=False)

    async def restore(self, spec: RestoreSpec) -> SimulatedVmm:
        """Start a VM from a snapshot; it is paused when this returns. Raises VmmFailed, SnapshotDamaged."""
        await self.faults.reached("restore", self.clock)
        snapshot.check(spec, MAKER)
        try:
            memory = json.loads((spec.snapshot / MEMORY_FILE).read_bytes())
        except ValueError as error:
            raise SnapshotDamaged(f"the memory file of {spec.snapshot} is not understood") from error
        shape = snapshot.shape_of(spec.machine, len(spec.drives), spec.tap is not None)
        return self._started(spec.run_dir, shape, memory, spec.labels, is_paused=True)

    async def adopt(self, run_dir: Path) -> SimulatedVmm | None:
        """Take over the living VM of a run directory; None when it is gone."""
        vmm = self.running.get(run_dir)
        return vmm if vmm is not None and vmm.is_alive else None

    def _started(
        self, run_dir: Path, shape: snapshot.Shape, memory: Memory, labels: Mapping[str, str], *, is_paused: bool
    ) -> SimulatedVmm:
        run_dir.mkdir(parents=True, exist_ok=True)
        vmm = SimulatedVmm(self, next(self._pids), shape, memory, labels, is_paused=is_paused)
        self.running[run_dir] = vmm
        return vmm


class SimulatedVmm:
    """See `base.Vmm`. `memory` is what its guest holds; only a running guest may be changed."""

    def __init__(
        self, engine: SimulatedEngine, pid: int, shape: snapshot.Shape, memory: Memory, labels: Mapping[str, str], *,
        is_paused: bool,
    ) -> None:  # fmt: skip
        self.pid = pid
        self.memory = memory
        self.labels = dict(labels)
        self.is_paused = is_paused
        self._engine = engine
        self._shape = shape
        self._how: str | None = None
        self._ended = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        return self._how is None

    async def pause(self) -> None:
        """Stop the guest. Pausing a paused VM does nothing. Raises VmmFailed."""
        await self._reached("pause")
        self.is_paused = True

    async def unpause(self) -> None:
        """Let the guest run. Unpausing a running VM does nothing. Raises VmmFailed."""
        await self._reached("unpause")
        self.is_paused = False

    async def retry_stalled(self) -> bool:
        """See `base.Vmm`; it writes to no disk."""
        return False

    async def save(self, into: Path) -> int:
        """See `base.Vmm.save`."""
        try:
            await self._reached("save")
            if not self.is_paused:
                raise VmmFailed("it is not paused")
            memory = json.dumps(self.memory).encode()
            with snapshot.draft(into) as new:
                new.path(MEMORY_FILE).write_bytes(memory)
                new.path(DEVICE_STATE).write_bytes(b"simulated")
                new.publish(MAKER, self._shape, "1")
        except (OSError, VmmFailed) as error:
            raise SaveFailed(f"the VM could not be saved into {into}: {error}") from error
        return len(memory)

    async def end(self) -> None:
        """End the VM. Ending twice does nothing."""
        await self._engine.faults.reached("end", self._engine.clock)
        self.die("killed by signal 9 (SIGKILL)")

    async def exited(self) -> str:
        """Wait until the VM has ended and say how."""
        await self._ended.wait()
        return str(self._how)

    async def forget(self) -> None:
        """Nothing is held."""

    def memory_bytes(self) -> int:
        """A number that grows with what the guest holds; 0 when it is gone."""
        return MEMORY_BYTES + len(json.dumps(self.memory)) if self.is_alive else 0

    def die(self, how: str) -> None:
        """Let the VMM end by itself, as a crash does."""
        if self._how is None:
            self._how = how
            self._ended.set()

    async def _reached(self, action: str) -> None:
        self._check_alive(action)
        await self._engine.faults.reached(action, self._engine.clock)
        self._check_alive(action)

    def _check_alive(self, action: str) -> None:
        if self._how is not None:
            raise VmmFailed(f"the VMM could not be asked to {action}: it {self._how}")
