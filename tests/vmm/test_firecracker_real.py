"""What only Firecracker can show; runs where KVM does, which is also the lab."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from support.vmm_guest import RealGuest
from support.vmm_world import MACHINE, FirecrackerWorld, Saved, Vm, World, run_dir
from torpor.model.errors import VmmFailed
from torpor.vmm import DEVICE_STATE, ENGINE_RECORD, MEMORY_FILE, BootSpec, Drive, Machine, RestoreSpec
from torpor.vmm.firecracker_vmm import FirecrackerVmm

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine_lab", ["firecracker"], indirect=True),
]
LARGE = Machine(vcpus=1, memory_mib=4096)
"""Its memory lies in two parts, on both sides of the hole for devices."""


@pytest.fixture
def real(world: World) -> FirecrackerWorld:
    assert isinstance(world, FirecrackerWorld)
    return world


async def boot(real: FirecrackerWorld, machine: Machine, sizes: list[int]) -> Vm:
    place, tap = real.new_place()
    drives = []
    for number, size in enumerate(sizes):
        path = place / ("disk" if number == 0 else f"disk{number}")
        path.write_bytes(bytes(size))
        drives.append(Drive(path, read_only=number == 1))
    artefacts = real.artefacts()
    spec = BootSpec(
        machine, artefacts.kernel, artefacts.initramfs, "quiet", drives, tap, run_dir(place), place / "memory"
    )  # fmt: skip
    return real.known(await real.engine.boot(spec), place, tap)


async def test_drives_appear_in_the_order_they_were_given(real: FirecrackerWorld) -> None:
    vm = await boot(real, MACHINE, [(number + 1) << 20 for number in range(4)])
    assert isinstance(vm.guest, RealGuest)
    sizes = [int(size) for size in (await vm.guest.ask("GET", "/drives")).split()]
    assert sizes == [2048, 4096, 6144, 8192]


async def test_a_guest_above_three_gibibytes_is_saved_and_restored_whole(real: FirecrackerWorld) -> None:
    vm = await boot(real, LARGE, [1 << 20])
    await vm.guest.put("who", "large")
    sum_ = await vm.guest.scribble(1)
    saved = await real.save(vm)
    await vm.vmm.end()
    memory = saved.snapshot / MEMORY_FILE
    assert memory.stat().st_size == 4096 << 20
    assert memory.stat().st_blocks * 512 < 1 << 30  # pages that nobody touched are holes
    for round_ in range(2):
        place, tap = real.new_place()
        shutil.copyfile(saved.disk, place / "disk")
        spec = RestoreSpec(LARGE, saved.snapshot, [Drive(place / "disk")], tap, run_dir(place))
        clone = real.known(await real.engine.restore(spec), place, tap)
        await clone.vmm.unpause()
        assert await clone.guest.get("who") == "large"
        assert await clone.guest.checksum() == sum_
        sum_ = await clone.guest.scribble(round_ + 2)
        saved = await real.save(clone)
        await clone.vmm.end()


async def test_a_save_writes_what_was_dirtied_and_no_more(real: FirecrackerWorld, base: Saved) -> None:
    vm = await real.restore(base)
    assert await vm.vmm.save(real.new_folder("snapshot")) < 8 << 20
    await vm.vmm.unpause()
    await vm.guest.scribble(9)
    await vm.vmm.pause()
    written = await vm.vmm.save(real.new_folder("snapshot"))
    assert 2 << 20 < written < 64 << 20
    assert vm.vmm.memory_bytes() < 96 << 20


async def test_what_a_restored_guest_says_on_its_console_does_not_fill_the_host(
    real: FirecrackerWorld, base: Saved
) -> None:
    vm = await real.resume(base)
    assert await vm.guest.get("who") == "base"
    assert not (vm.run_dir / "console").exists()
    assert str(Path(f"/proc/{vm.vmm.pid}/fd/1").readlink()) == "/dev/null"


async def test_metrics_can_be_read_while_a_vm_runs(real: FirecrackerWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert isinstance(vm.vmm, FirecrackerVmm)
    last = json.loads((await vm.vmm.metrics()).splitlines()[-1])
    assert last["latencies_us"]["load_snapshot"] > 0


async def test_a_device_state_that_firecracker_refuses_is_told_in_its_words(
    real: FirecrackerWorld, base: Saved
) -> None:
    own = base.copy(real.folder / "own")
    state = bytearray((own.snapshot / DEVICE_STATE).read_bytes())
    state[8] ^= 0xFF
    (own.snapshot / DEVICE_STATE).write_bytes(state)
    _sign_again(own.snapshot, state)
    with pytest.raises(VmmFailed, match="cannot load it"):
        await real.restore(own)


def _sign_again(snapshot: Path, state: bytes | bytearray) -> None:
    record = json.loads((snapshot / ENGINE_RECORD).read_bytes())
    record["device_sha256"] = hashlib.sha256(state).hexdigest()
    (snapshot / ENGINE_RECORD).write_text(json.dumps(record))
