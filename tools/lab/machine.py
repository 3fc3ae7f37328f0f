"""The outer machine: QEMU's software emulation of an AMD processor with SVM, and the disks of the lab."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.lab.disks import Disks
from tools.lab.emulator import command

from torpor.host.setup.command import run
from torpor.vmm.tsc import tsc_khz

MEMORY_MIB: Final = 6144
VCPUS: Final = 1
"""With two, one of them is now and then interrupted by the other behind VMRUN, where it must not be (docs/lab.md)."""
TRANSLATED_MIB: Final = 1024
"""For translated code; when it is full all of it is thrown away, and each guest in the lab has a kernel of its own."""
SCRATCH_BYTES: Final = 24 << 30
RESULTS_BYTES: Final = 256 << 20
"""Both sparse."""
# mitigations=off: there is nothing to mitigate in emulated code. halt_poll_ns=0: a halted vCPU of an inner guest would
# keep one of two emulated processors busy.
KERNEL_WORDS: Final = "console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=reliable nowatchdog kvm.halt_poll_ns=0"


@dataclass(frozen=True, slots=True)
class Machine:
    """One start of the lab. Its scratch and results disks are its own."""

    disks: Disks
    cargo: Path
    scratch: Path
    results: Path

    def words(self, *, has_shell: bool, khz: int | None) -> list[str]:
        """QEMU's command line; `khz` is the frequency of this machine's time stamp counter, where it has one."""
        clock = f" tsc_early_khz={khz} lpj={2 * khz}" if khz else ""
        return [
            *command(self.disks.emulator), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}", "-M", "q35", "-cpu", "max", "-smp", str(VCPUS),
            "-m", f"{MEMORY_MIB}M",
            "-serial", "mon:stdio" if has_shell else "stdio",
            "-kernel", str(self.disks.kernel), "-initrd", str(self.disks.initramfs),
            "-append", KERNEL_WORDS + clock + (" lab=shell" if has_shell else ""),
            *_disk("system", self.disks.system, is_shared=True),
            *_disk("packages", self.disks.packages, is_shared=True),
            *_disk("prepared", self.disks.prepared, is_shared=True),
            *_disk("cargo", self.cargo, is_shared=True),
            *_disk("scratch", self.scratch),
            *_disk("results", self.results),
        ]  # fmt: skip

    async def make_own_disks(self) -> None:
        """
        Raises:
            SetupFailed: with what mkfs said.
        """
        for path, size in ((self.scratch, SCRATCH_BYTES), (self.results, RESULTS_BYTES)):
            with path.open("wb") as file:
                file.truncate(size)
        await run(["mkfs.xfs", "-q", "-m", "reflink=1", self.scratch], timeout=60)

    async def run(self, on_line: Callable[[str], None], timeout: float) -> None:
        """Run until the machine is off; `timeout` in seconds.

        Raises:
            SetupFailed: it did not end in time, or QEMU failed.
        """
        khz = await asyncio.to_thread(tsc_khz)
        await run(self.words(has_shell=False, khz=khz), timeout=timeout, on_line=on_line)

    def run_shell(self) -> int:
        """Run with this terminal as the machine's console. Ctrl-A X ends it at once."""
        return subprocess.run(self.words(has_shell=True, khz=tsc_khz()), check=False).returncode


def _disk(name: str, path: Path, *, is_shared: bool = False) -> list[str]:
    # Nothing outlives the run, so nothing need reach the real disk.
    drive = f"if=none,id={name},format=raw,cache=unsafe,discard=unmap,file={str(path).replace(',', ',,')}"
    return ["-drive", drive + (",readonly=on" if is_shared else ""), "-device",
            f"virtio-blk-pci,drive={name},serial={name}"]  # fmt: skip
