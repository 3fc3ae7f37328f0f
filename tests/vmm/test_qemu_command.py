"""What QEMU is started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torpor.model.errors import SetupMissing
from torpor.vmm import Drive, Machine, Tap
from torpor.vmm.qemu_command import (
    FIRST_DRIVE_PLACE,
    KVM,
    MAX_DRIVES,
    NET_PLACE,
    RNG_PLACE,
    TCG,
    CommandLine,
    MemoryFile,
    Start,
    Variant,
    variant,
)

TAP = Tap(Path("/run/netns/x"), "tap0", "06:00:64:40:00:02")
BOOT = Start(Path("/k"), Path("/i"), "torpor.mode=probe")


@pytest.fixture(autouse=True)
def every_program_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variant, "binary", lambda self: f"/usr/bin/{self.program}")


def words(start: Start, *, architecture: str = "x86_64", acceleration: str = TCG, drives: int = 2) -> list[str]:
    disks = [Drive(Path(f"/d,{number}"), read_only=number == 0) for number in range(drives)]
    memory = MemoryFile(Path("/m,emory"), is_shared=start.kernel is not None)
    return CommandLine(
        acceleration, Machine(3, 768), memory, disks, TAP, 9, 8, Path("/run/a,b"), start, architecture
    ).words()


def after(given: list[str], option: str) -> list[str]:
    return [value for name, value in zip(given, [*given[1:], ""], strict=True) if name == option]


def test_memory_is_shared_at_boot_and_private_after_a_restore() -> None:
    for start, is_shared in ((BOOT, True), (Start(state_fd=7), False)):
        memory = json.loads(after(words(start), "-object")[0])
        assert memory["share"] is is_shared
        assert memory["mem-path"] == "/m,emory"
        assert memory["size"] == 768 << 20


def test_a_restored_vm_waits_and_reads_its_state_without_a_shell() -> None:
    given = words(Start(state_fd=7))
    assert "-S" in given
    assert after(given, "-incoming") == ["fd:7"]
    assert "-kernel" not in given


def test_the_guest_sees_the_same_devices_at_boot_and_after_a_restore() -> None:
    for option in ("-device", "-M", "-cpu", "-smp", "-m"):
        assert after(words(BOOT), option) == after(words(Start(state_fd=7)), option)


def test_commas_in_paths_do_not_end_an_option() -> None:
    given = words(BOOT)
    assert after(given, "-name") == ["guest=/run/a,,b"]
    assert "file,id=console,path=/console,append=on" in after(given, "-chardev")
    assert json.loads(after(given, "-blockdev")[1])["file"]["filename"] == "/d,1"


def test_a_read_only_drive_is_read_only_down_to_its_file() -> None:
    first, second = (json.loads(node) for node in after(words(BOOT), "-blockdev"))
    assert (first["read-only"], first["file"]["read-only"]) == (True, True)
    assert (second["read-only"], second["file"]["read-only"]) == (False, False)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_every_device_has_a_place_of_its_own_and_none_the_broken_first(architecture: str) -> None:
    devices = after(words(BOOT, architecture=architecture, drives=MAX_DRIVES), "-device")
    places = [int(device.rpartition(".")[2]) for device in devices]
    assert len(set(places)) == len(places) == MAX_DRIVES + 2
    assert {NET_PLACE, RNG_PLACE, FIRST_DRIVE_PLACE} <= set(places)
    assert 0 not in places
    assert max(places) < 24


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
@pytest.mark.parametrize("acceleration", [KVM, TCG])
def test_every_vmm_is_confined_and_has_only_the_devices_it_is_given(architecture: str, acceleration: str) -> None:
    given = words(BOOT, architecture=architecture, acceleration=acceleration)
    assert "spawn=deny" in after(given, "-sandbox")[0]
    assert "elevateprivileges=deny" in after(given, "-sandbox")[0]
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(given)
    assert f"accel={acceleration}" in after(given, "-M")[0]
    assert after(given, "-netdev") == ["tap,id=net,fd=9,vhost=off"]


def test_an_unknown_architecture_is_said_to_be_one() -> None:
    with pytest.raises(SetupMissing, match="riscv64"):
        variant("riscv64", TCG)
