"""What changes with every edit and goes into the lab as it is: the project's files and the order of the day."""

from __future__ import annotations

import compileall
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

TAKEN: Final = ("examples", "guest", "src", "tests", "tools", "pyproject.toml")
ORDER: Final = "lab-order.json"
BLOCK: Final = 512


def write_cargo(root: Path, order: dict[str, Any], out: Path) -> None:
    """Write a tarball that serves as a disk. Blocking."""
    # The lab is slow at compiling; what this Python compiled is good there when the version is the same.
    compileall.compile_dir(root / "src", quiet=2)
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in files_of(root):
            archive.add(path, str(path.relative_to(root)), recursive=False, filter=_owned_by_root)
        content = json.dumps(order).encode()
        entry = tarfile.TarInfo(ORDER)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    # A disk has whole sectors.
    with out.open("ab") as file:
        file.truncate(-(-out.stat().st_size // BLOCK) * BLOCK)


def files_of(root: Path) -> Iterator[Path]:
    """Folders and files of the project that the lab runs with, each folder before what is in it."""
    for name in TAKEN:
        path = root / name
        yield path
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if _is_taken(each.relative_to(root)))


def _is_taken(path: Path) -> bool:
    left_out = {"node_modules"} if path.parts[0] == "src" else {"node_modules", "__pycache__"}
    return left_out.isdisjoint(path.parts) and not any(part.startswith(".") for part in path.parts)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
