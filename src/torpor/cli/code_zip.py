"""A directory as the code artifact CreateMicrovmImage takes. Equal contents make equal bytes."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torpor.cli.ignore import Ignored, of_directory
from torpor.cli.output import fail

DOCKERFILE: Final = "Dockerfile"
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The first moment a zip can say."""
MADE_ON_UNIX: Final = 3


def zipped(directory: Path) -> bytes:
    """A zip of the directory without what is ignored; ends the command for what cannot be in one.

    Times and owners are left out, and of the mode only whether a file is executable is kept, so that checkouts of
    one commit are one artifact on every machine.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside in sorted(_wanted(directory, of_directory(directory))):
            path = directory / inside
            if path.is_symlink():
                _add(archive, inside, stat.S_IFLNK | 0o777, _link(path, inside).encode())
            elif path.is_dir():
                _add(archive, f"{inside}/", stat.S_IFDIR | 0o755, b"")
            else:
                is_executable = path.stat().st_mode & stat.S_IXUSR
                _add(archive, inside, stat.S_IFREG | (0o755 if is_executable else 0o644), path.read_bytes())
    return buffer.getvalue()


def _wanted(directory: Path, ignored: Ignored) -> Iterator[str]:
    """Files, symbolic links and empty directories. The Dockerfile is wanted whatever the patterns say."""

    def stop(error: OSError) -> None:
        raise error

    for folder, directories, files in os.walk(directory, onerror=stop):
        above = Path(folder).relative_to(directory).as_posix()
        prefix = "" if above == "." else f"{above}/"
        links = [name for name in directories if Path(folder, name).is_symlink()]
        for name in (*files, *links):
            inside = prefix + name
            if (inside == DOCKERFILE or not ignored.covers(inside)) and _fits(Path(folder, name)):
                yield inside
        if prefix and not directories and not files and not ignored.covers(above):
            yield above
        directories[:] = [
            name for name in directories
            if name not in links and (ignored.has_exceptions or not ignored.covers(prefix + name))
        ]  # fmt: skip


def _fits(path: Path) -> bool:
    """Sockets, pipes and devices are no code."""
    mode = path.lstat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _link(path: Path, inside: str) -> str:
    target = str(path.readlink())
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(inside), target))
    if target.startswith("/") or reached == ".." or reached.startswith("../"):
        fail(f"{path} is a symbolic link out of the directory, to {target}",
             "Copy what it points to, or name the link in .torporignore.")  # fmt: skip
    return target


def _add(archive: zipfile.ZipFile, name: str, mode: int, content: bytes) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        fail(f"the name of {name!a} is not UTF-8", "Rename it, or name it in .torporignore.")
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system = MADE_ON_UNIX
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
