"""Writes cpio archives in the `newc` format the kernel unpacks as its initramfs, the same bytes for the same files."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import BinaryIO, Final

TRAILER: Final = "TRAILER!!!"


class Archive:
    """An archive being written. Parents are made; every owner is root and every time is zero."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._number = 0
        self._folders = {PurePosixPath(".")}

    def add_folder(self, path: PurePosixPath) -> None:
        if path not in self._folders:
            self.add_folder(path.parent)
            self._folders.add(path)
            self._add(path, stat.S_IFDIR | 0o755)

    def add_file(self, path: PurePosixPath, content: bytes, mode: int = 0o644) -> None:
        self.add_folder(path.parent)
        self._add(path, stat.S_IFREG | mode, content)

    def add_link(self, path: PurePosixPath, target: str) -> None:
        self.add_folder(path.parent)
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: PurePosixPath, mode: int, major: int, minor: int) -> None:
        self.add_folder(path.parent)
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> None:
        """Write the end mark; nothing can be added after it."""
        self._number = -1
        self._add(PurePosixPath(TRAILER), 0)

    def _add(self, path: PurePosixPath, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._number += 1
        name = str(path).encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._out.write(_padded(header + name) + _padded(content))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
