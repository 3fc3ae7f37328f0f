"""QEMU's command line: the smallest machine that Debian's cloud kernel boots on, the same at boot and at restore.

Everything on it that the guest can see is part of the format of a device state: a change makes older ones unreadable,
so it needs a new `DEVICE_STATE_FORMAT`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.model.errors import SetupMissing
from torpor.vmm.base import Drive, Machine, Tap
from torpor.vmm.plan import CONSOLE_INSIDE
from torpor.vmm.record import qemu_name

DEVICE_STATE_FORMAT: Final = 1
KVM: Final = "kvm"
TCG: Final = "tcg"
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
SEARCHED: Final = ("/usr/local/bin", "/usr/bin")
NET_PLACE: Final = 4
RNG_PLACE: Final = 5
FIRST_DRIVE_PLACE: Final = 6
MAX_DRIVES: Final = 16
"""Of the places for virtio devices microvm has 24, with its second IO-APIC, and virt 32. Never place 0: QEMU's IO-APIC
turns pin 0 into pin 2, meant for the timer of the first one, so that device's interrupts are lost."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs between the CPU architectures and ways of running them."""

    program: str
    machine: str
    cpu: str
    console: str
    kernel_words: str

    def binary(self) -> str:
        """Where the program is. Raises SetupMissing when it is not installed."""
        for folder in SEARCHED:
            if Path(folder, self.program).is_file():
                return str(Path(folder, self.program))
        raise SetupMissing(f"{self.program} is not installed", "Install QEMU: `torpor setup` does.")


# PIT and PIC off: with them the kernel calibrates its TSC against an emulated timer, which sometimes never ends under
# emulation. The RTC stays: it tells a booting guest the date. suppress-vmdesc: a device state has no description.
_MICROVM: Final = "microvm,acpi=on,x-option-roms=off,pit=off,pic=off,suppress-vmdesc=on,dump-guest-core=off"
_VIRT: Final = "virt,gic-version=max,suppress-vmdesc=on,dump-guest-core=off"
_COMMON_WORDS: Final = "reboot=t panic=-1"

VARIANTS: Final = {
    # Not Debian's small qemu-system-x86_64-microvm: it is built without seccomp.
    ("x86_64", KVM): Variant("qemu-system-x86_64", _MICROVM, "host", "ttyS0", _COMMON_WORDS),
    # tsc=reliable: the emulated TSCs of the vCPUs are one host counter, but the kernel's check of it is fooled by the
    # emulation's jitter, and without TSC the guest ticks 250 times a second for ever. mitigations=off: there is
    # nothing to mitigate in emulated code and it costs much there.
    ("x86_64", TCG): Variant("qemu-system-x86_64", _MICROVM, "max", "ttyS0",
                             f"{_COMMON_WORDS} tsc=reliable mitigations=off"),
    ("aarch64", KVM): Variant("qemu-system-aarch64", _VIRT, "host", "ttyAMA0", "panic=-1"),
    ("aarch64", TCG): Variant("qemu-system-aarch64", _VIRT, "max,pauth-impdef=on", "ttyAMA0", "panic=-1"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryFile:
    path: Path
    is_shared: bool
    """Shared: what the guest writes goes to the file. Private: it stays in the process."""


@dataclass(frozen=True, slots=True)
class Start:
    """How the VM comes to life: from a kernel, or from the device state behind a file descriptor."""

    kernel: Path | None = None
    initramfs: Path | None = None
    command_line: str = ""
    state_fd: int | None = None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Everything a VMM is started with; paths are those of its jail."""

    acceleration: str
    machine: Machine
    memory: MemoryFile
    drives: Sequence[Drive]
    tap: Tap | None
    tap_fd: int | None
    monitor_fd: int
    """A listening Unix socket."""
    run_dir: Path
    """On the host; only to name the VMM."""
    start: Start
    architecture: str = platform.machine()

    @property
    def variant(self) -> Variant:
        return variant(self.architecture, self.acceleration)

    def words(self) -> list[str]:
        return [
            self.variant.binary(),
            *self._machine_words(),
            *self._plumbing_words(),
            *self._device_words(),
            *self._start_words(),
        ]

    def _machine_words(self) -> list[str]:
        size = f"{self.machine.memory_mib}M"
        memory = {
            "qom-type": "memory-backend-file", "id": "memory", "size": self.machine.memory_mib << 20,
            "mem-path": str(self.memory.path), "share": self.memory.is_shared,
        }  # fmt: skip
        return [
            "-name", qemu_name(self.run_dir),
            "-M", f"{self.variant.machine},accel={self.acceleration},memory-backend=memory",
            "-cpu", self.variant.cpu, "-smp", str(self.machine.vcpus), "-m", size,
            "-object", json.dumps(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SANDBOX,
        ]  # fmt: skip

    def _plumbing_words(self) -> list[str]:
        return [
            "-chardev", f"socket,id=monitor,fd={self.monitor_fd},server=on,wait=off",
            "-mon", "chardev=monitor,mode=control",
            "-chardev", self._console(), "-serial", "chardev:console",
        ]  # fmt: skip

    def _console(self) -> str:
        if self.start.kernel is None:
            # What a guest says for hours must not fill the host's disk; the last part is kept in the process.
            return "ringbuf,id=console,size=65536"
        return f"file,id=console,path={CONSOLE_INSIDE},append=on"

    def _device_words(self) -> list[str]:
        words = ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-device,rng=rng,bus={_place(RNG_PLACE)}"]
        if self.tap is not None:
            words += [
                "-netdev", f"tap,id=net,fd={self.tap_fd},vhost=off",
                "-device", f"virtio-net-device,netdev=net,mac={self.tap.guest_mac},bus={_place(NET_PLACE)}",
            ]  # fmt: skip
        for number, drive in enumerate(self.drives):
            words += _drive_words(number, drive, self._drive_place(number))
        return words

    def _drive_place(self, number: int) -> int:
        # microvm lists its places in its ACPI table from the last to the first, and Linux names disks in that order.
        is_reversed = self.variant.machine == _MICROVM
        return FIRST_DRIVE_PLACE + (len(self.drives) - 1 - number if is_reversed else number)

    def _start_words(self) -> list[str]:
        start = self.start
        if start.state_fd is not None:
            # The state was written without a configuration section: see QemuVmm.save.
            return ["-S", "-incoming", f"fd:{start.state_fd}", "-global", "migration.send-configuration=off"]
        kernel_words = f"console={self.variant.console} {self.variant.kernel_words} {start.command_line}"
        return ["-kernel", str(start.kernel), "-initrd", str(start.initramfs), "-append", kernel_words]


def variant(architecture: str, acceleration: str) -> Variant:
    """Raises SetupMissing for an architecture that nobody has tried."""
    found = VARIANTS.get((architecture, acceleration))
    if found is None:
        raise SetupMissing(f"the qemu engine does not know {architecture} machines", "Use an x86_64 or aarch64 one.")
    return found


def _place(number: int) -> str:
    # Named places: by itself QEMU fills them so that the first drive is not always vda.
    return f"virtio-mmio-bus.{number}"


def _drive_words(number: int, drive: Drive, place: int) -> list[str]:
    node = {
        "driver": "raw", "node-name": f"drive{number}", "read-only": drive.read_only, "discard": "unmap",
        "file": {"driver": "file", "filename": str(drive.path), "read-only": drive.read_only, "discard": "unmap"},
    }  # fmt: skip
    device = f"virtio-blk-device,drive=drive{number},bus={_place(place)}"
    return ["-blockdev", json.dumps(node), "-device", device]
