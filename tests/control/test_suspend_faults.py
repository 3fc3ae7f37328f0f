"""Suspend and resume on the real host's code when disks, VMMs and guests fail: nothing is lost, the record says why.

The host is `LocalHost` with its own files, adoption and snapshots; only the VMM and the guest's agent are played.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.host_world import SNAPSHOT, HostWorld, host_world
from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, World
from torpor.control.reasons import FELL_BACK, MISSING, SILENT, STALLED
from torpor.model.errors import VmmFailed
from torpor.model.microvm import Microvm, MicrovmState
from torpor.vmm.simulated import SimulatedVmm

S = MicrovmState
WRITES = ("save/save_memory/before", "save/save_memory/after", "save/clone_disk/before", "save/clone_disk/after",
          "save/publish/before", "save/sync_files/before", "save/manifest/before", "save/rename/before",
          "save/publish/after")  # fmt: skip
DISK_FULL, DISK_BROKEN = errno.ENOSPC, errno.EIO


@dataclass
class Both:
    """A machine and a service on it."""

    machine: HostWorld
    service: World

    def fail_at(self, point: str, number: int) -> None:
        def fail() -> None:
            raise OSError(number, os.strerror(number))

        self.machine.seams.arm(point, fail)

    def vmm(self) -> SimulatedVmm:
        [living] = [vmm for vmm in self.machine.engine.running.values() if vmm.is_alive]
        return living

    def die_at(self, point: str) -> None:
        self.machine.seams.arm(point, lambda: self.vmm().die("killed by signal 9 (SIGKILL)"))

    async def suspend(self, microvm: Microvm) -> Microvm:
        await self.service.life.microvms.suspend(CALLER, microvm.microvm_id)
        await self.service.settle()
        return await self.service.get(microvm)

    async def resume(self, microvm: Microvm) -> Microvm:
        await self.service.life.microvms.resume(CALLER, microvm.microvm_id)
        await self.service.settle()
        return await self.service.get(microvm)

    async def causes(self, microvm: Microvm, action: str) -> list[str]:
        entries = await self.service.life.microvms.timeline(CALLER, microvm.microvm_id)
        return [each.cause for each in entries if each.action == action and not each.step]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with host_world(tmp_path / "machine") as machine:
        service = World(tmp_path / "service")
        service.path.mkdir()
        service.images.snapshot = SNAPSHOT
        await service.start(machine.host)  # type: ignore[arg-type]
        yield Both(machine, service)
        await service.crash()


@pytest.mark.parametrize("point", WRITES)
@pytest.mark.parametrize("number", [DISK_FULL, DISK_BROKEN], ids=["full", "broken"])
async def test_a_disk_that_fails_lets_it_run_on_and_the_record_say_why(both: Both, point: str, number: int) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    both.vmm().memory["x"] = "kept"
    before = both.machine.picture()
    both.fail_at(point, number)
    found = await both.suspend(microvm)
    assert found.state is S.RUNNING
    assert found.state_reason is not None
    assert found.state_reason.startswith("The MicroVM could not be suspended: ")
    assert os.strerror(number) in found.state_reason
    assert not both.vmm().is_paused
    assert os.strerror(number) in str((await both.causes(microvm, "suspend"))[-1])
    if point != "save/publish/after":  # by then a whole generation lies there, which no record speaks of
        assert both.machine.picture() == before
    assert (await both.suspend(microvm)).state is S.SUSPENDED
    found = await both.resume(microvm)
    assert (found.state, found.state_reason) == (S.RUNNING, None)
    assert both.vmm().memory["x"] == "kept"


@pytest.mark.parametrize("point", WRITES)
async def test_a_full_disk_does_not_take_what_an_earlier_suspend_has_saved(both: Both, point: str) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    both.vmm().memory["x"] = "first"
    await both.suspend(microvm)
    await both.resume(microvm)
    both.vmm().memory["x"] = "second"
    both.fail_at(point, DISK_FULL)
    assert (await both.suspend(microvm)).state is S.RUNNING
    assert both.machine.layout.microvm(microvm.microvm_id).generation(1).is_dir()
    assert (await both.suspend(microvm)).state is S.SUSPENDED
    await both.resume(microvm)
    assert both.vmm().memory["x"] == "second"


@pytest.mark.parametrize("point", ["save/pause/before", "save/pause/after", *WRITES[:-1]])
async def test_a_vmm_that_dies_half_way_leaves_what_an_earlier_suspend_has_saved(both: Both, point: str) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    both.vmm().memory["x"] = "first"
    await both.suspend(microvm)
    await both.resume(microvm)
    both.vmm().memory["x"] = "second"
    both.die_at(point)
    found = await both.suspend(microvm)
    assert found.state is S.SUSPENDED
    had_saved = point in ("save/save_memory/after", *WRITES[2:-1])  # what was written by then is published all the same
    if had_saved:
        assert found.state_reason is None
    else:
        assert found.state_reason is not None
        assert found.state_reason.endswith(FELL_BACK.removeprefix("{}"))
        assert "SIGKILL" in found.state_reason
    found = await both.resume(microvm)
    assert (found.state, found.state_reason) == (S.RUNNING, None)
    assert both.vmm().memory["x"] == ("second" if had_saved else "first")


async def test_a_vmm_that_dies_in_its_first_suspend_is_gone_with_an_honest_reason(both: Both) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    both.die_at("save/pause/before")
    found = await both.suspend(microvm)
    assert found.state is S.TERMINATED
    assert found.state_reason is not None
    assert "SIGKILL" in found.state_reason
    assert both.machine.slots.out == {}
    assert not both.machine.layout.microvm(microvm.microvm_id).path.exists()


@pytest.mark.parametrize("settled", ["terminate", "keep"])
async def test_a_suspend_hook_that_hangs_ends_at_its_time(both: Both, settled: str) -> None:
    both.service.images.hooks = ALL_HOOKS
    object.__setattr__(both.service.settings, "suspend_hook_failure", settled)
    microvm = await both.service.running(idle_policy=AWAKE)
    agent = both.machine.agent(microvm.microvm_id)
    agent.hook_answer = {"status": 0, "failure": "timeout", "duration_ms": 1000}
    found = await both.suspend(microvm)
    assert found.state is (S.TERMINATED if settled == "terminate" else S.RUNNING)
    assert "Suspend lifecycle hook timed out after PT1S." in str(found.state_reason)
    assert "Suspend lifecycle hook timed out after PT1S." in str((await both.causes(microvm, "suspend"))[-1])


Mend = Callable[[], object]


def _no_slot(both: Both) -> Mend:
    both.fail_at("place/take_slot/before", errno.ENFILE)
    return both.machine.seams.disarm


def _full(both: Both) -> Mend:
    both.fail_at("place/clone_disk/before", DISK_FULL)
    return both.machine.seams.disarm


def _broken_vmm(both: Both) -> Mend:
    both.machine.faults.fail_next("restore", VmmFailed("QEMU did not start"))
    return both.machine.seams.disarm


def _stuck_vmm(both: Both) -> Mend:
    both.machine.faults.fail_next("unpause", VmmFailed("QEMU did not answer"))
    return both.machine.seams.disarm


def _silent_guest(both: Both) -> Mend:
    both.machine.slots.is_broken = True
    return lambda: setattr(both.machine.slots, "is_broken", False)


def _damaged(both: Both) -> Mend:
    [microvm] = both.machine.layout.microvms.iterdir()
    disk = microvm / "gen-1" / "disk"
    content = disk.read_bytes()
    disk.write_bytes(content[:-1])
    return lambda: disk.write_bytes(content)


@pytest.mark.parametrize("break_it", [_no_slot, _full, _broken_vmm, _stuck_vmm, _silent_guest, _damaged])
async def test_a_resume_that_fails_deletes_nothing_says_why_and_can_be_tried_again(
        both: Both, break_it: Callable[[Both], Mend]) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    both.vmm().memory["x"] = "kept"
    await both.suspend(microvm)
    before = both.machine.picture()
    mend = break_it(both)
    found = await both.resume(microvm)
    assert found.state is S.SUSPENDED
    assert found.state_reason is not None
    assert found.state_reason.startswith("The MicroVM could not be resumed: ")
    assert found.suspended_at is not None
    assert both.machine.picture() == before
    assert str((await both.causes(microvm, "resume"))[-1]).startswith(f"{CALLER.principal}: ")
    mend()
    found = await both.resume(microvm)
    assert (found.state, found.state_reason) == (S.RUNNING, None)
    assert both.vmm().memory["x"] == "kept"


async def test_saved_files_that_are_gone_are_said_and_their_return_too(both: Both) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    await both.suspend(microvm)
    generation = both.machine.layout.microvm(microvm.microvm_id).generation(1)
    generation.rename(generation.with_name("elsewhere"))
    await both.service.life.reconcile.compare()
    assert (await both.service.get(microvm)).state_reason == MISSING
    assert (await both.resume(microvm)).state is S.SUSPENDED
    generation.with_name("elsewhere").rename(generation)
    await both.resume(microvm)
    assert (await both.service.get(microvm)).state is S.RUNNING


async def test_a_vm_that_somebody_paused_goes_on(both: Both) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    placed = both.machine.host._placed[microvm.microvm_id]
    placed.place.write(is_paused=True)
    both.vmm().is_paused = True
    await both.service.life.reconcile.compare()
    assert not both.vmm().is_paused


async def test_a_guest_that_falls_silent_is_said_and_left_alone(
        both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.host.watching.SILENCE", 0.05)
    microvm = await both.service.running(idle_policy=AWAKE)
    agent = both.machine.agent(microvm.microvm_id)
    agent.is_broken = True
    both.machine.slots.cut()
    await both.service.until(microvm, lambda found: found.state_reason == SILENT)
    agent.is_broken = False
    agent.writes("here again")
    found = await both.service.until(microvm, lambda found: found.state_reason is None)
    assert found.state is S.RUNNING
    assert both.vmm().is_alive
    await both.service.settle()
    entries = await both.service.life.microvms.timeline(CALLER, microvm.microvm_id)
    assert [each.action for each in entries if each.action.startswith("guest")] == ["guest silent", "guest heard again"]


async def test_a_microvm_that_stands_still_for_want_of_room_says_so_at_once_and_is_let_go_on(
        both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    microvm = await both.service.running(idle_policy=AWAKE)
    tries = 0

    async def retry_stalled(_: SimulatedVmm) -> bool:
        nonlocal tries
        tries += 1
        return True

    monkeypatch.setattr(SimulatedVmm, "retry_stalled", retry_stalled)
    agent = both.machine.agent(microvm.microvm_id)
    agent.is_broken = True
    both.machine.slots.cut()
    found = await both.service.until(microvm, lambda found: found.state_reason == STALLED)
    assert found.state is S.RUNNING
    assert tries
    agent.is_broken = False
    agent.writes("here again")
    await both.service.until(microvm, lambda found: found.state_reason is None)
    await both.service.settle()
    entries = await both.service.life.microvms.timeline(CALLER, microvm.microvm_id)
    assert [each.action for each in entries][-2:] == ["standing still", "guest heard again"]
