"""Makes read-only ext4 disks of directory trees, without mounting anything."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run

BLOCK: Final = 4096
INODE_BYTES: Final = 256
SPARE_INODES: Final = 64
SPARE_BYTES: Final = 8 * 1024 * 1024


async def make_disk(tree: Path, disk: Path, label: str) -> None:
    """Write an ext4 image that holds the tree and little more; owners, modes, devices and attributes are kept.

    Raises:
        SetupFailed: with what mke2fs said.
    """
    size, inodes = await asyncio.to_thread(_needed, tree)
    await run(
        # A disk that is never written needs no journal and no space kept for root.
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-b", str(BLOCK), "-I", str(INODE_BYTES), "-N", str(inodes),
         "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=0,root_owner=0:0",
         "-d", tree, disk, f"{size // 1024}k"],
        timeout=600,
    )  # fmt: skip


def _needed(tree: Path) -> tuple[int, int]:
    """Bytes and inodes that hold the tree."""
    blocks = inodes = 0
    seen: set[int] = set()
    for folder, names, files in os.walk(tree):
        for name in [*names, *files]:
            stat = (Path(folder) / name).lstat()
            if stat.st_ino in seen:
                continue
            if stat.st_nlink > 1:
                seen.add(stat.st_ino)
            inodes += 1
            # One more block for each: directories, long symlinks, attributes.
            blocks += -(-stat.st_size // BLOCK) + 1
    inodes = inodes + inodes // 20 + SPARE_INODES
    data = blocks * BLOCK
    return data + data // 50 + inodes * INODE_BYTES + SPARE_BYTES, inodes
