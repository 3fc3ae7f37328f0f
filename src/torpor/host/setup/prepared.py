"""What a prepared machine offers to the other rooms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """Paths of everything setup made; they stay valid until the setup after the next changes them."""

    kernel: Path
    """bzImage on x86-64, Image on ARM."""
    vmlinux: Path
    """The same kernel uncompressed, for Firecracker."""
    initramfs: Path
    builder_disk: Path
    """ext4, read-only: the system of builder VMs."""
    stores: tuple[Path, ...]
    """ext4, read-only: one additional image store for each container base."""
    volume: Path
    """A directory on a file system with reflink."""
    kernel_version: str
    agent_version: str
    envoy: Path
    ca_dir: Path
    firecracker: Path | None = None
    """Its program; None where it has to be looked for in PATH, or is not there."""
