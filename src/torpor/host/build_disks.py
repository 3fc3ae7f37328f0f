"""The disks of a build: the code artifact, room to build in, and the root disk, empty or with a base's root directory.

Sparse files: what is not written is zero, and mke2fs knows. No inode table is written then, nor later by the guest's
kernel, whose lazy initialisation would dirty the disk of every clone. Everything here blocks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torpor.host.artifact import CodeArtifact, write_context
from torpor.host.files import clone_file, copy_sparse
from torpor.host.setup.container_base import ROOT_DISK_BYTES, ContainerBase
from torpor.model.sizes import Size

CONTEXT: Final = "context"
SCRATCH: Final = "scratch"
DISK: Final = "disk"
BASE_DISK: Final = "base-disk"
SCRATCH_BYTES: Final = 32 * 1024 * 1024 * 1024
"""Holds the container while it is built."""
BLOCK: Final = 4096
TIMEOUT: Final = 60


def make_disks(folder: Path, artifact: CodeArtifact, size: Size, base: ContainerBase | None) -> None:
    """Make `folder` with CONTEXT (a tar), SCRATCH and DISK (empty ext4), and BASE_DISK if the base has a root disk.

    Raises:
        OSError: no room, or with what mke2fs or resize2fs said.
    """
    folder.mkdir(mode=0o700)
    write_context(artifact, folder / CONTEXT)
    bytes_ = size.disk_bytes // BLOCK * BLOCK
    make_file_system(folder / DISK, bytes_, ["-m", "0"])
    make_file_system(folder / SCRATCH, SCRATCH_BYTES, ["-m", "0", "-O", "^has_journal"])
    if base is not None and base.root is not None:
        clone_root_disk(base.root, folder / BASE_DISK, bytes_)


def make_file_system(path: Path, size_bytes: int, options: Sequence[str]) -> None:
    """Make a sparse ext4 image. Raises OSError."""
    with path.open("xb") as file:
        os.truncate(file.fileno(), size_bytes)
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,discard", *options, str(path)])


def clone_root_disk(root: Path, disk: Path, size_bytes: int) -> None:
    """Clone a disk of ROOT_DISK_BYTES and let its file system grow to a size. Raises OSError."""
    if size_bytes == ROOT_DISK_BYTES:
        clone_file(root, disk)
        return
    grown = disk.with_name(f"{disk.name}.grown")
    clone_file(root, grown)
    os.truncate(grown, size_bytes)
    # Without this the inode tables of what is new are left to the guest's kernel.
    _run(["resize2fs", "-f", str(grown)], RESIZE2FS_FORCE_ITABLE_INIT="1")
    # It reserves room for its tables of zeros; of a copy they are holes.
    with grown.open("rb") as reader, disk.open("xb") as writer:
        copy_sparse(reader.fileno(), writer.fileno())
    grown.unlink()


def _run(command: Sequence[str], **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        raise OSError(f"{command[0]} of {Path(command[-1]).name} failed: "
                      f"{done.stderr[-500:].decode(errors='replace')}")
