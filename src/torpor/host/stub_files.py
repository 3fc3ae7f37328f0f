"""Files that were copied into a simulated VM: part of its memory, so they are saved, restored and copied with it."""

from __future__ import annotations

import base64
import io
import posixpath
import tarfile
from collections.abc import AsyncIterator
from typing import Any, Final

from torpor.host.session import Unpacked
from torpor.model.errors import GuestRefused

LARGEST: Final = 4 * 1024 * 1024
"""Bytes of one archive: all of it is in memory, and in every saved copy of that."""

Files = dict[str, dict[str, Any]]
"""By absolute path: `mode`, and `data` (base64) of a file, `link` of a link, neither of a directory."""


def pack(files: Files, path: str) -> bytes:
    """As an agent packs it. Raises GuestRefused when there is nothing."""
    top = _clean(path)
    if top not in files:
        raise GuestRefused(f"read {path}", 404, f"pack {path}: no such file or directory")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            if name == top or name.startswith(f"{top.rstrip('/')}/"):
                entry = tarfile.TarInfo(posixpath.join(".", posixpath.relpath(name, top)) if name != top else ".")
                _add(archive, entry, files[name])
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, entry: tarfile.TarInfo, file: dict[str, Any]) -> None:
    entry.mode = file["mode"]
    content = base64.b64decode(file.get("data", ""))
    if "link" in file:
        entry.type, entry.linkname = tarfile.SYMTYPE, file["link"]
    elif "data" in file:
        entry.size = len(content)
    else:
        entry.type = tarfile.DIRTYPE
    archive.addfile(entry, io.BytesIO(content))


def unpack(files: Files, path: str, base: str, archive: bytes) -> Unpacked:
    """As an agent unpacks it. Raises GuestRefused."""
    target = _clean(path)
    if path.endswith("/") or _is_directory(files, target):
        target = posixpath.join(target, base)
    count, size = 0, 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as entries:
            for entry in entries:
                place = posixpath.normpath(posixpath.join(target, entry.name))
                if place != target and not place.startswith(f"{target.rstrip('/')}/"):
                    raise GuestRefused(f"write {path}", 400, f"{entry.name}: the archive holds what is not unpacked")
                file = _file_of(entry, entries)
                files[place] = file
                _make_parents(files, place)
                count += "data" in file or "link" in file
                size += entry.size
    except tarfile.TarError as error:
        raise GuestRefused(f"write {path}", 400, f"unpack into {target}: {error}") from error
    return Unpacked(count, size)


async def gathered(archive: AsyncIterator[bytes]) -> bytes:
    """All of it. Raises GuestRefused when a simulated VM has no room for it."""
    content = bytearray()
    async for chunk in archive:
        content += chunk
        if len(content) > LARGEST:
            raise GuestRefused("write", 500, f"a simulated microVM takes {LARGEST} bytes at once: no space left")
    return bytes(content)


def _file_of(entry: tarfile.TarInfo, archive: tarfile.TarFile) -> dict[str, Any]:
    if entry.isdir():
        return {"mode": entry.mode & 0o777}
    if entry.issym():
        return {"mode": 0o777, "link": entry.linkname}
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise GuestRefused("write", 400, f"{entry.name}: the archive holds what is not unpacked")
    return {"mode": entry.mode & 0o777, "data": base64.b64encode(content.read()).decode()}


def _is_directory(files: Files, path: str) -> bool:
    return path == "/" or (path in files and not {"data", "link"} & files[path].keys())


def _make_parents(files: Files, path: str) -> None:
    while (path := posixpath.dirname(path)) != "/":
        files.setdefault(path, {"mode": 0o755})


def _clean(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")
