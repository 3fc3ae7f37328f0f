"""The one place that clones, publishes and removes files that must survive a crash.

A reader, or a crash at any moment, sees the old file (or directory) or the whole new one, never a part.
Everything here blocks: call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

FICLONE: Final = 0x40049409
_NO_REFLINK: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
DRAFT_SUFFIX: Final = ".draft"
DOOMED_SUFFIX: Final = ".doomed"


def clone_file(source: Path, target: Path) -> bool:
    """Make `target` a copy-on-write clone of `source`; a sparse copy where the file system has no reflink.

    Returns:
        Whether it is a reflink clone, which costs nothing in the size of the file.

    Raises:
        OSError: `target` is removed again.
    """
    with source.open("rb") as reader:
        try:
            with target.open("xb") as writer:
                try:
                    fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
                    return True
                except OSError as error:
                    if error.errno not in _NO_REFLINK:
                        raise
                    copy_sparse(reader.fileno(), writer.fileno())
                    return False
        except FileExistsError:
            raise
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def copy_sparse(reader: int, writer: int) -> None:
    """Copy between descriptors, leaving out holes and room that was only reserved. Raises OSError."""
    size = os.fstat(reader).st_size
    os.ftruncate(writer, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(reader, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        while start < end:
            copied = _copy_range(reader, writer, start, min(end - start, 1 << 30))
            if copied == 0:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            start += copied


def _copy_range(reader: int, writer: int, start: int, count: int) -> int:
    try:
        return os.copy_file_range(reader, writer, count, start, start)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    os.lseek(writer, start, os.SEEK_SET)
    return os.sendfile(writer, reader, start, count)  # from one file system to another


def allocated_bytes(path: Path) -> int:
    """Bytes the file really takes, holes left out; shared extents count."""
    return path.stat().st_blocks * 512


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(data: bytes, final: Path, *, durable: bool = True) -> None:
    """Replace `final` so that a reader, or a crash, sees the old file or the whole new one.

    Args:
        durable: Whether it must survive a power cut; without it only readers are protected (a tmpfs, a hint).
    """
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}{DRAFT_SUFFIX}")
    try:
        with draft.open("xb") as writer:
            writer.write(data)
            if durable:
                writer.flush()
                os.fsync(writer.fileno())
        draft.replace(final)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(final.parent)


def publish_directory(draft: Path, final: Path) -> None:
    """Give a complete draft directory, whose files are synced, its final name.

    Raises:
        FileExistsError: something has that name.
    """
    sync_directory(draft)
    if final.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    draft.rename(final)
    sync_directory(final.parent)


def remove_directory(path: Path) -> None:
    """Delete a published directory; a crash leaves it whole or as `*.doomed`, which start removes."""
    if not path.name.endswith((DOOMED_SUFFIX, DRAFT_SUFFIX)):
        doomed = path.with_name(path.name + DOOMED_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(doomed)
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        path = doomed
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def sweep_unfinished(parent: Path) -> list[Path]:
    """Remove the drafts and doomed directories that a crash left in `parent`; returns what they were."""
    unfinished = [path for path in parent.iterdir() if path.name.endswith((DRAFT_SUFFIX, DOOMED_SUFFIX))]
    for path in unfinished:
        if path.is_dir() and not path.is_symlink():
            remove_directory(path)
        else:
            path.unlink(missing_ok=True)
    return unfinished
