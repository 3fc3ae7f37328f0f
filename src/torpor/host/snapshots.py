"""Snapshot directories: memory, device state and root disk that belong together, and the manifest that says so.

    <name>/memory  <name>/device  <name>/disk  <name>/manifest.json

An image's snapshot and each saved generation of a microVM have this one shape. A directory with its final name is
complete and synced; it is never written again. The manifest's format number is apart from Torpor's release.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from torpor.host.files import publish, publish_directory, remove_directory, sync_file
from torpor.host.guest import PROTOCOL
from torpor.model.errors import SnapshotDamaged
from torpor.vmm.base import DEVICE_STATE, MEMORY_FILE, Machine

FORMAT: Final = 1
ROOT_DISK: Final = "disk"
MANIFEST: Final = "manifest.json"
PARTS: Final = (MEMORY_FILE, DEVICE_STATE, ROOT_DISK)
HASHED: Final = (DEVICE_STATE,)
"""Small enough to be hashed on the launch path; memory and disk are checked by length."""
MAX_MANIFEST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Maker:
    """What made a snapshot and can read it again."""

    engine: str
    version: str
    acceleration: str

    def can_read(self, other: Maker) -> bool:
        """Device state moves between patch releases of one engine, not between minor ones."""
        same_way = (self.engine, self.acceleration) == (other.engine, other.acceleration)
        return same_way and _minor(self.version) == _minor(other.version)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its length, and its SHA-256 when it is small."""

    length: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    maker: Maker
    machine: Machine
    kernel_version: str
    saved_at: str
    """ISO 8601, UTC."""
    stream_sequence: int = 0
    """The last line of the application that was handed on before the guest was saved."""
    agent_protocol: int = PROTOCOL
    parts: Mapping[str, Part] = field(default_factory=dict)
    format: int = FORMAT


def describe(directory: Path, manifest: Manifest) -> Manifest:
    """The manifest with the lengths and hashes of the directory's parts."""
    parts = {name: Part((directory / name).stat().st_size, _sha256(directory, name)) for name in PARTS}
    return Manifest(manifest.maker, manifest.machine, manifest.kernel_version, manifest.saved_at,
                    manifest.stream_sequence, parts=parts)


def publish_snapshot(draft: Path, final: Path, manifest: Manifest) -> None:
    """Turn a draft directory that holds all parts into a snapshot.

    The engine has synced memory and device state already; everything is synced here again, which costs nothing then.

    Raises:
        OSError: the draft is still there.
    """
    for name in PARTS:
        sync_file(draft / name)
    publish(json.dumps(asdict(describe(draft, manifest)), indent=1).encode(), draft / MANIFEST)
    publish_directory(draft, final)


def load_snapshot(directory: Path, reader: Maker) -> Manifest:
    """Read and check a snapshot: all parts there, of the right length, the small ones of the right hash.

    Raises:
        SnapshotDamaged: naming the part, or what this machine would need to read it.
    """
    manifest = read_manifest(directory)
    if manifest.agent_protocol != PROTOCOL:
        raise SnapshotDamaged(f"snapshot {directory.name} speaks agent protocol {manifest.agent_protocol}, this Torpor "
                              f"speaks {PROTOCOL}: build its image again")
    if not reader.can_read(manifest.maker):
        made = manifest.maker
        raise SnapshotDamaged(
            f"snapshot {directory.name} was made by {made.engine} {made.version} with {made.acceleration}, "
            f"this machine has {reader.engine} {reader.version} with {reader.acceleration}: "
            f"build its image again, or install that engine version")
    for name in PARTS:
        _check_part(directory, name, manifest.parts.get(name))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, without a look at the parts. Raises SnapshotDamaged."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as source:
            document = json.loads(source.read(MAX_MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise SnapshotDamaged(f"snapshot {directory.name}: there is no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise SnapshotDamaged(f"snapshot {directory.name}: {MANIFEST} cannot be read") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise SnapshotDamaged(f"snapshot {directory.name} has format {found!r}, this Torpor reads format {FORMAT}: "
                              f"build its image again, or use the release that made it")
    try:
        return _manifest(document)
    except (KeyError, TypeError) as error:
        raise SnapshotDamaged(f"snapshot {directory.name}: {MANIFEST} has no {error}") from error


def _manifest(document: dict[str, Any]) -> Manifest:
    return Manifest(
        maker=Maker(**document["maker"]),
        machine=Machine(**document["machine"]),
        kernel_version=document["kernel_version"],
        saved_at=document["saved_at"],
        stream_sequence=document["stream_sequence"],
        agent_protocol=document["agent_protocol"],
        parts={name: Part(**part) for name, part in document["parts"].items()},
    )


def _check_part(directory: Path, name: str, part: Part | None) -> None:
    if part is None:
        raise SnapshotDamaged(f"snapshot {directory.name}: {MANIFEST} does not list {name}")
    try:
        length = (directory / name).stat().st_size
        if length != part.length:
            raise SnapshotDamaged(f"snapshot {directory.name}: {name} has {length} bytes instead of {part.length}")
        if part.sha256 is not None and _sha256(directory, name) != part.sha256:
            raise SnapshotDamaged(f"snapshot {directory.name}: the content of {name} is not what was saved")
    except OSError as error:
        raise SnapshotDamaged(f"snapshot {directory.name}: {name} cannot be read") from error


def _sha256(directory: Path, name: str) -> str | None:
    if name not in HASHED:
        return None
    with (directory / name).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def link_snapshot(source: Path, target: Path) -> None:
    """Give a snapshot a second name, so that deleting the first does not take it from a VM that runs from it.

    The files are the same ones, so all VMs of an image still share its page cache.
    """
    target.mkdir(mode=0o700)
    try:
        for name in (*PARTS, MANIFEST):
            os.link(source / name, target / name)
    except BaseException:
        remove_directory(target)
        raise
