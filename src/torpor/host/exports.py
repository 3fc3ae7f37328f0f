"""Snapshots on their way out of this machine and into it, in directories of their own beside the others.

    exports/<process>@<its start>-<hex>/files/      hard links to a snapshot's files, or files that an archive held

Whoever archives or unpacks works in such a directory; it is a leak when its process is gone. Everything here blocks.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torpor.host.files import publish_directory, remove_directory
from torpor.host.layout import Layout, MicrovmFiles
from torpor.host.processor import architecture
from torpor.host.snapshots import MANIFEST, PARTS, Maker, link_snapshot, read_manifest
from torpor.model.errors import ArchiveDamaged, NotFound, SnapshotDamaged

FILES: Final = "files"
CPUINFO: Final = Path("/proc/cpuinfo")
_STAGE: Final = re.compile(r"\d+@\d+-[0-9a-f]{8}")
_FAMILY: Final = ("vendor_id", "cpu family", "CPU implementer", "CPU part")
_FLAGS: Final = ("flags", "Features")


def stage(exports: Path, name: str) -> Path:
    """The directory of a name that a command has made up. Raises NotFound for any other."""
    if not _STAGE.fullmatch(name):
        raise NotFound(f"there is no export {name}")
    return exports / name


def link_out(source: Path, staged: Path) -> None:
    """Give a snapshot's files names in a stage. Raises SnapshotDamaged, OSError."""
    staged.mkdir(mode=0o700, parents=True, exist_ok=True)
    link_snapshot(source, staged / FILES)


def take_snapshot(layout: Layout, staged: Path, name: str) -> None:
    """Make staged files a snapshot. Raises ArchiveDamaged, OSError."""
    _check(staged / FILES)
    publish_directory(staged / FILES, layout.snapshot(name))
    remove_directory(staged)


def take_saved(files: MicrovmFiles, staged: Path) -> None:
    """Make staged files the saved generation of a microVM that has none. Raises ArchiveDamaged, OSError."""
    _check(staged / FILES)
    files.path.mkdir(mode=0o700, exist_ok=True)
    publish_directory(staged / FILES, files.generation(1))
    remove_directory(staged)


def _check(directory: Path) -> None:
    """Whole and nothing besides: whose machine it can run on was looked at before. Raises ArchiveDamaged."""
    try:
        manifest = read_manifest(directory)
        for name in PARTS:
            if (directory / name).stat().st_size != manifest.parts[name]:
                raise SnapshotDamaged(f"{name} has another length than its manifest says")
    except (SnapshotDamaged, OSError, KeyError) as error:
        raise ArchiveDamaged(f"the archive holds no whole snapshot: {error}") from error
    if extra := sorted(path.name for path in directory.iterdir() if path.name not in (*PARTS, MANIFEST, "checksums")):
        raise ArchiveDamaged(f"the archive holds files that belong to no snapshot: {', '.join(extra)}")


def facts(maker: Maker) -> dict[str, Any]:
    """What of this machine decides whether a snapshot made here runs elsewhere."""
    lines = [line.partition(":") for line in CPUINFO.read_text().splitlines()] if CPUINFO.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in lines}
    return {
        "architecture": architecture(), "engine": maker.engine, "acceleration": maker.acceleration,
        "engineVersion": maker.version, "kernel": platform.release(),
        "processor": " ".join(fields[name] for name in _FAMILY if name in fields),
        "processorName": fields.get("model name", ""),
        "processorFlags": sorted(next((fields[name] for name in _FLAGS if name in fields), "").split()),
    }  # fmt: skip


def why_not(made: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why memory that was saved there cannot be restored here; None when it can."""
    if made.get("architecture") != here["architecture"]:
        return f"it was made on {made.get('architecture')}, and this machine is {here['architecture']}"
    engines = [f"{each.get('engine')} with {each.get('acceleration')}" for each in (made, here)]
    if engines[0] != engines[1]:
        return f"it was saved by {engines[0]}, and this machine runs {engines[1]}"
    if here["acceleration"] != "kvm":
        return None  # an emulated processor is the same everywhere
    if made.get("processor") != here["processor"]:
        return (f"it was made on a processor of another family ({made.get('processorName') or made.get('processor')}), "
                f"and this machine has {here['processorName'] or here['processor']}")  # fmt: skip
    if missing := set(made.get("processorFlags", [])) - set(here["processorFlags"]):
        return f"this machine's processor lacks {', '.join(sorted(missing))}"
    return None
