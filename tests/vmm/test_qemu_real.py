"""What only a VMM with a process can show."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support.vmm_guest import RealGuest
from support.vmm_world import ACCELERATION, MACHINE, QemuWorld, Saved, World, run_dir
from torpor.model.errors import SaveFailed, VmmFailed
from torpor.vmm import BootSpec, Drive, RestoreSpec, Tap, process_vmm
from torpor.vmm.plan import Plan
from torpor.vmm.process import start_time
from torpor.vmm.qemu import QemuEngine
from torpor.vmm.qemu_vmm import QemuVmm
from torpor.vmm.record import IDENTITY
from torpor.vmm.snapshot import NAMES

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine_lab", ["qemu"], indirect=True),
]


@pytest.fixture
def real(world: World) -> QemuWorld:
    assert isinstance(world, QemuWorld)
    return world


async def test_drives_appear_in_the_order_they_were_given(real: QemuWorld) -> None:
    place, tap = real.new_place()
    drives = []
    for number in range(4):
        path = place / f"disk{number}"
        path.write_bytes(bytes((number + 1) << 20))
        drives.append(Drive(path, read_only=number == 1))
    artefacts = real.artefacts()
    vmm = await real.engine.boot(
        BootSpec(MACHINE, artefacts.kernel, artefacts.initramfs, "quiet", drives, tap, run_dir(place), place / "memory")
    )
    vm = real.known(vmm, place, tap)
    assert isinstance(vm.guest, RealGuest)
    sizes = [int(size) for size in (await vm.guest.ask("GET", "/drives")).split()]
    assert sizes == [2048, 4096, 6144, 8192]


async def test_a_vmm_lives_through_the_death_of_its_starter(real: QemuWorld, base: Saved) -> None:
    place, tap = real.new_place()
    assert tap is not None
    (place / "disk").write_bytes(base.disk.read_bytes())
    places = [base.snapshot, place / "disk", tap.netns, run_dir(place), place / "work"]
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTER, ACCELERATION, *places, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert starter.stdout is not None
    pid = int(await asyncio.wait_for(starter.stdout.readline(), 60))
    starter.kill()
    await starter.wait()

    adopted = await real.engine.adopt(run_dir(place))
    assert adopted is not None
    vm = real.known(adopted, place, tap)
    assert vm.vmm.pid == pid
    assert os.getsid(pid) == pid
    assert await vm.guest.get("who") == "base"
    os.kill(pid, signal.SIGKILL)
    assert await asyncio.wait_for(vm.vmm.exited(), 1.0)


STARTER = """
import asyncio, sys
from pathlib import Path
from torpor.vmm import Drive, Machine, RestoreSpec, Tap
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.qemu import QemuEngine

async def main():
    snapshot, disk, netns, run_dir, work = (Path(word) for word in sys.argv[2:])
    engine = QemuEngine(sys.argv[1], ProbeArtefacts(work, work, work), work)
    tap = Tap(netns, "tap0", "06:00:64:40:00:02")
    vmm = await engine.restore(RestoreSpec(Machine(2, 256), snapshot, [Drive(disk)], tap, run_dir))
    await vmm.unpause()
    print(vmm.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_vmm_whose_pid_was_never_written_down_is_found(real: QemuWorld, base: Saved) -> None:
    vm = await real.resume(base)
    await real.restart()
    (vm.run_dir / IDENTITY).unlink()
    found = await real.adopt(vm)
    assert found is not None
    assert found.vmm.pid == vm.vmm.pid


async def test_a_recycled_pid_is_not_adopted(real: QemuWorld, base: Saved) -> None:
    vm = await real.resume(base)
    await vm.vmm.end()
    # This very process plays the one that got the number.
    (vm.run_dir / IDENTITY).write_text(json.dumps({"pid": os.getpid(), "start_time": start_time(os.getpid())}))
    assert await real.engine.adopt(vm.run_dir) is None


async def test_the_vmm_runs_in_the_network_namespace_of_its_tap(real: QemuWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert vm.tap is not None
    own = Path(f"/proc/{vm.vmm.pid}/ns/net").stat().st_ino
    assert own == vm.tap.netns.stat().st_ino
    assert own != Path("/proc/self/ns/net").stat().st_ino


async def test_a_missing_tap_is_named_and_nothing_is_left(real: QemuWorld, base: Saved) -> None:
    place, tap = real.new_place()
    assert tap is not None
    spec = RestoreSpec(MACHINE, base.snapshot, [Drive(base.disk)], replace(tap, device="tap9"), run_dir(place))
    with pytest.raises(VmmFailed, match="could not be started"):
        await real.engine.restore(spec)
    with pytest.raises(VmmFailed):
        await real.engine.restore(replace(spec, tap=Tap(place / "nowhere", "tap0", tap.guest_mac)))


async def test_a_vmm_that_does_not_start_is_reported_in_its_own_words(real: QemuWorld, base: Saved) -> None:
    place, tap = real.new_place()
    spec = RestoreSpec(MACHINE, base.snapshot, [Drive(place / "no-disk")], tap, run_dir(place))
    with pytest.raises(VmmFailed, match="no-disk"):
        await real.engine.restore(spec)


async def test_a_boot_that_fails_leaves_no_memory_file(real: QemuWorld) -> None:
    place, tap = real.new_place()
    spec = BootSpec(MACHINE, place / "no-kernel", place / "no-initramfs", "", [], tap, run_dir(place), place / "memory")
    with pytest.raises(VmmFailed, match="no-kernel"):
        await real.engine.boot(spec)
    assert not (place / "memory").exists()


async def test_a_cancelled_start_leaves_no_process(real: QemuWorld, base: Saved) -> None:
    for delay in (0.0, 0.005, 0.02, 0.03):
        restoring = asyncio.ensure_future(real.restore(base))
        await asyncio.sleep(delay)
        if restoring.cancel():
            with pytest.raises(asyncio.CancelledError):
                await restoring


async def test_a_cancelled_save_leaves_the_vm_whole_and_all_files_or_none(real: QemuWorld, base: Saved) -> None:
    vm = await real.resume(base)
    sum_ = await vm.guest.scribble(5)
    await vm.vmm.pause()
    for delay in (0.0, 0.002, 0.01):
        into = real.new_folder("cancelled")
        saving = asyncio.ensure_future(vm.vmm.save(into))
        await asyncio.sleep(delay)
        if saving.cancel():
            with pytest.raises(asyncio.CancelledError):
                await saving
            # All of them when it was too late to give up.
            assert sorted(path.name for path in into.iterdir()) in ([], sorted(NAMES))
    await vm.vmm.unpause()
    assert await vm.guest.checksum() == sum_


async def test_a_vmm_that_hangs_fails_the_save_by_its_deadline(
    real: QemuWorld, base: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await real.resume(base)
    await vm.vmm.pause()
    monkeypatch.setattr(process_vmm, "SAVE_TIMEOUT", 0.3)
    into = real.new_folder("hung")
    os.kill(vm.vmm.pid, signal.SIGSTOP)
    try:
        with pytest.raises(SaveFailed):
            await vm.vmm.save(into)
    finally:
        os.kill(vm.vmm.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert list(into.iterdir()) == []
    await vm.vmm.unpause()
    assert await vm.guest.get("who") == "base"


async def test_a_restored_vm_costs_what_it_dirtied(real: QemuWorld, base: Saved) -> None:
    vm = await real.restore(base)
    assert 0 < vm.vmm.memory_bytes() < 64 << 20
    into = real.new_folder("snapshot")
    assert await vm.vmm.save(into) < 8 << 20


async def test_the_console_of_a_restored_vm_is_kept(real: QemuWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert isinstance(vm.vmm, QemuVmm)
    assert isinstance(await vm.vmm.console(), str)


async def test_a_vmm_that_never_answers_is_ended(
    real: QemuWorld, base: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(self: QemuEngine, vmm: QemuVmm, plan: Plan) -> None:
        raise VmmFailed("it says nothing")

    monkeypatch.setattr(QemuEngine, "_settle", silent)
    with pytest.raises(VmmFailed, match="it says nothing"):
        await real.restore(base)
