"""What a prepared machine offers to the other rooms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torpor.host.setup.container_base import ContainerBase, stored_name


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
    bases: tuple[ContainerBase, ...]
    volume: Path
    """A directory on a file system with reflink."""
    kernel_version: str
    agent_version: str
    envoy: Path
    ca_dir: Path
    firecracker: Path | None = None
    """Its program; None where it has to be looked for in PATH, or is not there."""

    def base(self, stored: str | None) -> ContainerBase | None:
        """The base that buildah stores under a name (`stored_name`)."""
        return next((base for base in self.bases if stored_name(base.name) == stored), None)
