"""What a VMM that runs is allowed: read from /proc, where the kernel says it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.vmm_world import ACCELERATION, MACHINE, RealWorld, Saved, Vm, World, run_dir
from torpor.vmm import BootSpec, cgroup, uids

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine_lab", ["qemu", "firecracker"], indirect=True),
]
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net")
OPEN = ("/dev/null", "/dev/kvm", "/dev/net/tun", "/drive0", "/memory", "/device", "/metrics", "/firecracker.log",
        "/console", "/vmm.log", "socket:", "anon_inode:", "pipe:", "/memfd:")  # fmt: skip
IN_ROOT = {
    "qemu": {"usr", "lib", "lib32", "lib64", "etc", "dev", "drive0", "memory", "device.saved", "console"},
    "firecracker": {"firecracker", "run", "dev", "drive0", "memory", "device", "device.saved", "kernel", "initramfs",
                    "metrics", "firecracker.log"},
}  # fmt: skip
WRITTEN = {
    "qemu": {"/drive0", "/device.saved"},
    "firecracker": {"/drive0", "/device.saved", "/metrics", "/firecracker.log", "/run"},
}
GUARDS = {"qemu": 1, "firecracker": 0}
"""Seccomp filters that Torpor itself puts on a restored VMM (`vmm/guard.py`). They come on top of the VMM's own."""
BESIDE_MIB = {"qemu": {"kvm": 256, "tcg": 1280}[ACCELERATION], "firecracker": 128}
BESIDE_TASKS = {"qemu": 128, "firecracker": 16}


@pytest.fixture
def real(world: World) -> RealWorld:
    assert isinstance(world, RealWorld)
    return world


def status_of(task: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (task / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def proc(vm: Vm) -> Path:
    return Path(f"/proc/{vm.vmm.pid}")


def assert_filtered_by_itself(vm: Vm, *, guards: int) -> None:
    """Every thread has a filter of the VMM's own, beside the guards and those that these tests run under themselves."""
    # Linux counts them since 5.9, and the guard needs 5.14.
    inherited = int(status_of(Path("/proc/self"))["Seccomp_filters"])
    for task in (proc(vm) / "task").iterdir():
        status = status_of(task)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), status["Name"]
        assert int(status["Seccomp_filters"]) > inherited + guards, status["Name"]


async def test_a_vmm_is_a_user_of_its_own_without_a_capability(real: RealWorld, base: Saved) -> None:
    vms = [await real.resume(base) for _ in range(2)]
    users = []
    for vm in vms:
        status = status_of(proc(vm))
        (user,) = set(status["Uid"].split())
        assert set(status["Gid"].split()) == {user}
        assert status["Groups"] == ""
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert uids.FIRST <= int(user) < uids.FIRST + uids.COUNT
        users.append(user)
    assert users[0] != users[1]


async def test_every_thread_of_a_vmm_is_filtered_and_gains_nothing_by_a_program(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert_filtered_by_itself(vm, guards=GUARDS[real.engine.name])


async def test_a_vmm_sees_its_own_files_and_nothing_else(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    root = proc(vm) / "root"
    assert names(root) <= IN_ROOT[real.engine.name]
    assert not (root / "proc").exists()
    assert not (root / "etc").exists() or names(root / "etc") == {"ld.so.cache"}
    mounts = [line.split() for line in (proc(vm) / "mountinfo").read_text().splitlines()]
    assert mounts[0][4] == "/"
    for fields in mounts:
        options = fields[5].split(",")
        assert "nosuid" in options, fields
        assert "ro" in options or fields[4] in WRITTEN[real.engine.name], fields


async def test_the_only_devices_are_those_a_vmm_needs_and_they_are_its_own(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    user = int(status_of(proc(vm))["Uid"].split()[0])
    devices = [path for path in (proc(vm) / "root/dev").rglob("*") if stat.S_ISCHR(path.stat().st_mode)]
    assert {path.name for path in devices} <= {"null", "urandom", "kvm", "tun"}
    assert {(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in devices} == {(user, 0o600)}


async def test_a_vmm_has_namespaces_of_its_own(real: RealWorld, base: Saved) -> None:
    first, second = await real.resume(base), await real.resume(base)
    for name in NAMESPACES:
        places = {(each / "ns" / name).readlink() for each in (proc(first), proc(second), Path("/proc/self"))}
        assert len(places) == 3, name


async def test_a_vmm_has_open_only_what_it_was_given(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    handed = str(base.snapshot / "memory")  # to QEMU, for reading: see the next test
    found = [str(link.readlink()) for link in (proc(vm) / "fd").iterdir() if str(link.readlink()) != handed]
    inside = [place.removeprefix(str(vm.run_dir)) for place in found]
    assert [place for place in inside if not place.startswith(OPEN)] == []


async def test_the_memory_file_of_a_restored_vm_is_open_for_reading_alone(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    memory = (base.snapshot / "memory").stat()
    found = []
    for link in (proc(vm) / "fd").iterdir():
        status = link.stat()
        if (status.st_dev, status.st_ino) == (memory.st_dev, memory.st_ino):
            (flags,) = [line for line in (proc(vm) / "fdinfo" / link.name).read_text().splitlines() if "flags" in line]
            found.append(int(flags.split()[1], 8) & 0o3)
    assert set(found) == {os.O_RDONLY}


async def test_a_vmm_leaves_no_core_with_the_memory_of_its_guest(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert int((proc(vm) / "coredump_filter").read_text(), 16) == 0


async def test_a_booted_vm_is_jailed_too(real: RealWorld) -> None:
    vm = await real.boot()
    await vm.guest.put("a", "1")
    status = status_of(proc(vm))
    assert int(status["Uid"].split()[0]) >= uids.FIRST
    assert status["CapEff"] == "0" * 16
    assert not (proc(vm) / "root/home").exists()
    assert_filtered_by_itself(vm, guards=0)


async def test_the_limits_of_a_vmm_hold_where_the_machine_has_cgroup_v2(real: RealWorld, base: Saved) -> None:
    if not (cgroup.ROOT / "cgroup.controllers").exists():
        pytest.skip("this machine has no cgroup v2")
    vm = await real.resume(base)
    group = cgroup.ROOT / cgroup.PARENT / vm.run_dir.name
    # KVM puts a thread of its own beside the VMM.
    others = set((group / "cgroup.procs").read_text().split()) - {str(vm.vmm.pid)}
    assert [pid for pid in others if Path(f"/proc/{pid}/cmdline").read_bytes()] == []
    for task in (proc(vm) / "task").iterdir():
        assert f"/{group.relative_to(cgroup.ROOT)}" in (task / "cgroup").read_text(), status_of(task)["Name"]
    assert (group / "cpu.max").read_text().split() == ["250000", "100000"]
    assert int((group / "memory.max").read_text()) == (MACHINE.memory_mib + BESIDE_MIB[real.engine.name]) << 20
    assert int((group / "pids.max").read_text()) == MACHINE.vcpus + BESIDE_TASKS[real.engine.name]
    await vm.vmm.end()
    assert not group.exists()


async def test_a_vmm_without_a_tap_has_no_network_and_not_the_hosts(real: RealWorld) -> None:
    place, artefacts = real.new_folder("alone"), real.artefacts()
    vmm = await real.engine.boot(BootSpec(MACHINE, artefacts.kernel, artefacts.initramfs, "quiet", [], None,
                                          run_dir(place), place / "memory"))  # fmt: skip
    try:
        assert (Path(f"/proc/{vmm.pid}/ns/net")).readlink() != Path("/proc/self/ns/net").readlink()
        assert Path(f"/proc/{vmm.pid}/net/route").read_text().splitlines()[1:] == []
    finally:
        await vmm.end()


async def test_nothing_of_a_jail_is_left_on_the_host(real: RealWorld, base: Saved) -> None:
    vm = await real.resume(base)
    assert str(vm.run_dir) not in Path("/proc/self/mounts").read_text()
    assert names(vm.run_dir / "root") == set()
