"""The volume of memory files and disks: a place where a copy shares its blocks with the original (reflink).

Where the data directory's file system can do that, the volume is a directory. Elsewhere it is XFS in a sparse file,
mounted through a loop device.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.host.setup.command import run
from torpor.model.errors import SetupFailed

FICLONE: Final = 0x40049409
IMAGE: Final = "volume.xfs"
MOUNT_POINT: Final = "volume"
SHARE_OF_FREE: Final = 0.8
SMALLEST: Final = 20 * 1024**3
"""Bytes; the file is sparse, so a smaller disk only fills up earlier."""
MEBIBYTE: Final = 1024**2
OPTIONS: Final = "loop,noatime,discard"
"""`discard` gives the blocks of deleted snapshots back to the file system below."""
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")


def volume_path(config: Config) -> Path:
    return config.data_dir / MOUNT_POINT


def volume_image(config: Config) -> Path:
    return config.data_dir / IMAGE


def is_volume_ready(config: Config) -> bool:
    """Whether the volume can be used now. Blocking and quick; asks the file system nothing but its mounts."""
    if volume_image(config).exists():
        return is_mounted(volume_path(config))
    return volume_path(config).is_dir() and has_reflink(volume_path(config))


async def make_volume(config: Config) -> None:
    """Make the volume, or mount the one that is there (after a reboot). An existing file is never formatted.

    Raises:
        SetupFailed: with what mkfs or mount said.
    """
    place, image = volume_path(config), volume_image(config)
    await asyncio.to_thread(place.mkdir, mode=0o755, parents=True, exist_ok=True)
    if await asyncio.to_thread(is_volume_ready, config):
        return
    if not image.exists():
        if any(place.iterdir()):
            raise SetupFailed(f"{place} holds files but its file system has no reflink; move them away")
        await _format(config.data_dir, image)
    await run(["mount", "-t", "xfs", "-o", OPTIONS, image, place], timeout=120)


async def unmount_volume(config: Config) -> None:
    """Unmount the volume where it is a mount; its files stay.

    Raises:
        SetupFailed: something still uses it.
    """
    if is_mounted(volume_path(config)):
        await run(["umount", volume_path(config)], timeout=120)


def is_mounted(place: Path) -> bool:
    """Whether something is mounted exactly there, in this process's namespace."""
    # The fifth field is the mount point, with blanks and backslashes in octal.
    wanted = str(place.resolve()).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split(" ")[4] == wanted for line in MOUNT_TABLE.read_text().splitlines())


def has_reflink(folder: Path) -> bool:
    """Whether copies in this directory can share blocks, found out by making one. Blocking."""
    with contextlib.ExitStack() as stack:
        source, copy = (stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        source.write(bytes(os.sysconf("SC_PAGE_SIZE")))
        source.flush()
        try:
            fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV):
                return False
            raise
    return True


def size_of_image(free: int) -> int:
    """Bytes for the image on a file system with `free` bytes."""
    return max(int(free * SHARE_OF_FREE), SMALLEST) // MEBIBYTE * MEBIBYTE


async def _format(data_dir: Path, image: Path) -> None:
    new = image.with_suffix(".new")
    try:
        stat = os.statvfs(data_dir)
        with new.open("wb") as file:
            file.truncate(size_of_image(stat.f_bavail * stat.f_frsize))
        new.chmod(0o600)
        await run(["mkfs.xfs", "-q", "-f", "-L", "torpor", "-m", "reflink=1", new], timeout=300)
        new.rename(image)
    finally:
        new.unlink(missing_ok=True)
