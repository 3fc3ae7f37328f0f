"""What only the simulated engine can do: fail, hang and take its time on demand."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from torpor.model.clock import VirtualClock
from torpor.model.errors import SaveFailed, SnapshotDamaged, VmmFailed
from torpor.vmm import BootSpec, Machine, RestoreSpec
from torpor.vmm.simulated import Faults, SimulatedEngine, SimulatedVmm

MACHINE = Machine(1, 128)


async def boot(engine: SimulatedEngine, folder: Path) -> SimulatedVmm:
    return await engine.boot(BootSpec(MACHINE, folder, folder, "", [], None, folder / "run", folder / "memory"))


async def test_a_planned_failure_comes_once(tmp_path: Path) -> None:
    engine = SimulatedEngine()
    engine.faults.fail_next("boot", VmmFailed("planned"))
    with pytest.raises(VmmFailed, match="planned"):
        await boot(engine, tmp_path)
    await boot(engine, tmp_path)


async def test_a_save_that_fails_twice_succeeds_the_third_time(tmp_path: Path) -> None:
    engine = SimulatedEngine()
    vmm = await boot(engine, tmp_path)
    await vmm.pause()
    engine.faults.fail_next("save", SaveFailed("planned"), times=2)
    for _ in range(2):
        with pytest.raises(SaveFailed, match="planned"):
            await vmm.save(tmp_path)
    await vmm.save(tmp_path)


async def test_a_failing_restore_may_be_any_error(tmp_path: Path) -> None:
    engine = SimulatedEngine()
    engine.faults.fail_next("restore", SnapshotDamaged("planned"))
    with pytest.raises(SnapshotDamaged, match="planned"):
        await engine.restore(RestoreSpec(MACHINE, tmp_path, [], None, tmp_path / "run"))


async def test_a_hanging_action_goes_on_when_it_is_told_to(tmp_path: Path) -> None:
    engine = SimulatedEngine()
    vmm = await boot(engine, tmp_path)
    released = engine.faults.hang("pause")
    pausing = asyncio.ensure_future(vmm.pause())
    await asyncio.sleep(0)
    assert not pausing.done()
    released.set()
    await pausing
    assert vmm.is_paused


async def test_a_vm_that_dies_while_it_hangs_fails_the_action(tmp_path: Path) -> None:
    engine = SimulatedEngine()
    vmm = await boot(engine, tmp_path)
    released = engine.faults.hang("pause")
    pausing = asyncio.ensure_future(vmm.pause())
    await asyncio.sleep(0)
    vmm.die("was planned to")
    released.set()
    with pytest.raises(VmmFailed, match="was planned to"):
        await pausing


async def test_delays_pass_on_the_given_clock(tmp_path: Path) -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(clock, Faults(delays={"boot": 3600.0}))
    booting = asyncio.ensure_future(boot(engine, tmp_path))
    await clock.advance(timedelta(minutes=59))
    assert not booting.done()
    await clock.advance(timedelta(minutes=1))
    assert (await booting).is_alive
