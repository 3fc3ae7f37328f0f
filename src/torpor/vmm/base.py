"""What an engine can do: boot a VM, save it to files, restore files into any number of VMs.

A saved VM is a directory with three parts that belong together: memory file, device state, root disk. An engine writes
the first two and a record that tells whole ones from damaged ones. The files of a published snapshot are never written
again: restoring maps the memory file privately, and the disk of a restored VM is a copy-on-write clone made by the
caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

MEMORY_FILE: Final = "memory"
DEVICE_STATE: Final = "device"
ENGINE_RECORD: Final = "engine.json"
"""Beside them: which engine wrote them for which machine, and their sizes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest sees. Saved and restored VMs must have the same machine."""

    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Drive:
    """A raw disk image; the guest finds drives in this order as vda, vdb, …"""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap device inside a network namespace; the VMM runs in that namespace too."""

    netns: Path
    """For example /run/netns/torpor-7."""
    device: str
    guest_mac: str


@dataclass(frozen=True, slots=True)
class BootSpec:
    """A cold start from kernel and initramfs."""

    machine: Machine
    kernel: Path
    initramfs: Path
    command_line: str
    """What Torpor adds; the engine adds what its machine type needs (console, clock)."""
    drives: Sequence[Drive]
    tap: Tap | None
    run_dir: Path
    """Sockets, pid file and logs of this VMM; short, since a Unix socket path holds 107 bytes."""
    memory_file: Path
    """Guest memory, mapped shared: created by the engine. One whose VMM has memory of its own makes none."""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestoreSpec:
    """A start from a saved VM. `drives` and `tap` take the places they had when it was saved."""

    machine: Machine
    snapshot: Path
    """Directory with MEMORY_FILE and DEVICE_STATE."""
    drives: Sequence[Drive]
    tap: Tap | None
    run_dir: Path
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine works on this machine, found out by booting a VM with it."""

    works: bool
    acceleration: str
    """`kvm`, `tcg` (software emulation, no security boundary) or `none` (simulated)."""
    version: str
    reason: str
    """One sentence for `torpor doctor`."""


class Vmm(Protocol):
    """One VMM process and the VM in it."""

    @property
    def pid(self) -> int: ...

    async def pause(self) -> None:
        """Stop the vCPUs. Pausing a paused VM does nothing.

        Every write to a disk that the guest was told is done is in its file then, though perhaps only in the host's
        page cache: QEMU syncs its disks when it pauses, Firecracker when it saves, and keeps to itself if that fails.
        Whoever keeps a disk syncs it.
        """
        ...

    async def unpause(self) -> None:
        """Let the vCPUs run. Unpausing a running VM does nothing."""
        ...

    async def retry_stalled(self) -> bool:
        """Let a VM go on that stands still because the host had no room for what it wrote to its disk.

        What it wrote is written again, so the guest notices nothing but the time. Returns whether it stood still; one
        that is paused does not. Raises VmmFailed.
        """
        ...

    async def save(self, into: Path) -> int:
        """Write MEMORY_FILE, DEVICE_STATE and ENGINE_RECORD of the paused VM into the directory and fsync them.

        The VM stays paused and whole: it can be unpaused, saved again or ended. Costs what the VM has dirtied since it
        was restored, not what it has; returns the bytes of memory written, 0 where the file system shared them all.
        On failure the VM is as it was and the directory as before.

        Raises:
            SaveFailed: no space, an I/O error, or a VMM that did not answer.
        """
        ...

    async def end(self) -> None:
        """End the process and wait until it is gone. Ending twice does nothing."""
        ...

    async def exited(self) -> str:
        """Wait until the process is gone, within a second of it, and say how it ended."""
        ...

    async def forget(self) -> None:
        """Let go of the VMM without ending it, so that another process can adopt it. Nothing else works after this."""
        ...

    def memory_bytes(self) -> int:
        """Private memory this VM costs the host, in bytes; 0 when it is gone."""
        ...


class Engine(Protocol):
    """A way to run VMs."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Probe:
        """Boot a small VM with a deadline and say whether it lived. Never raises for an engine that does not work."""
        ...

    async def boot(self, spec: BootSpec) -> Vmm:
        """Start a VM; its vCPUs run when this returns. Raises VmmFailed."""
        ...

    async def restore(self, spec: RestoreSpec) -> Vmm:
        """Start a VM from a snapshot; it is paused when this returns. Raises VmmFailed, SnapshotDamaged."""
        ...

    async def adopt(self, run_dir: Path) -> Vmm | None:
        """Take over the living VMM of a run directory after this process restarted; None when it is gone."""
        ...
