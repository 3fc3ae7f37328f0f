"""Snapshot directories: memory, device state and root disk that belong together, and the manifest that says so.

    <name>/memory  <name>/device  <name>/engine's record  <name>/disk  <name>/manifest.json

An image's snapshot and each saved generation of a microVM have this one shape. A directory with its final name is
complete and synced; it is never written again. The engine guards its own files (lengths, the device state's hash, what
made them) in its record; the manifest guards that all parts are there, and says what the host needs to know before it
asks the engine. Its format number is apart from Torpor's release.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torpor.host.files import publish, publish_directory, remove_directory, sync_file
from torpor.host.guest import PROTOCOL
from torpor.model.errors import SnapshotDamaged
from torpor.model.seams import Seams
from torpor.vmm.base import DEVICE_STATE, ENGINE_RECORD, MEMORY_FILE, Machine

FORMAT: Final = 1
ROOT_DISK: Final = "disk"
MANIFEST: Final = "manifest.json"
CHECKSUMS: Final = "checksums"
"""Made after the rest, and not there at all when nothing is to be verified; see `checksums`."""
PARTS: Final = (MEMORY_FILE, DEVICE_STATE, ENGINE_RECORD, ROOT_DISK)
MAX_MANIFEST_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Maker:
    """What made a snapshot. Whether a version can read another's is the engine's to say."""

    engine: str
    acceleration: str
    version: str

    def can_read(self, other: Maker) -> bool:
        return (self.engine, self.acceleration) == (other.engine, other.acceleration)


@dataclass(frozen=True, slots=True)
class Application:
    """How the application is started when its memory is not there to go on with."""

    args: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    cwd: str
    user: str
    all_capabilities: bool


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
    parts: Mapping[str, int] = field(default_factory=dict)
    """Length of each part in bytes."""
    format: int = FORMAT
    application: Application | None = None
    """Releases before 0.2 did not keep it."""


def publish_snapshot(draft: Path, final: Path, manifest: Manifest, seams: Seams) -> None:
    """Turn a draft directory that holds all parts into a snapshot.

    The engine has synced memory and device state already; everything is synced here again, which costs nothing then.
    The disk is synced here alone: that the guest or the VMM has flushed it need not mean that it is on the host's disk.

    Raises:
        OSError: the draft is still there.
    """
    seams.reach("save", "sync_files", "before")
    for name in PARTS:
        sync_file(draft / name)
    seams.reach("save", "manifest", "before")
    complete = replace(manifest, parts={name: (draft / name).stat().st_size for name in PARTS})
    publish(json.dumps(asdict(complete), indent=1).encode(), draft / MANIFEST)
    seams.reach("save", "rename", "before")
    publish_directory(draft, final)


def load_snapshot(directory: Path, reader: Maker) -> Manifest:
    """Read and check a snapshot: all parts there and of the right length.

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
            f"build its image again, or start Torpor with that engine")
    for name in PARTS:
        _check_part(directory, name, manifest.parts.get(name))
    return manifest


def load_for_recovery(directory: Path) -> tuple[Manifest, Application]:
    """What is needed to boot the disk; memory and device state may be missing or of any other engine.

    Raises:
        SnapshotDamaged: the disk is not whole, or how the application is started is not known.
    """
    manifest = read_manifest(directory)
    if manifest.application is None:
        raise SnapshotDamaged(f"snapshot {directory.name} does not say how its application is started: its image was "
                              "built by an earlier release")  # fmt: skip
    _check_part(directory, ROOT_DISK, manifest.parts.get(ROOT_DISK))
    return manifest, manifest.application


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
        parts=dict(document["parts"]),
        application=_application(document.get("application")),
    )


def _application(document: dict[str, Any] | None) -> Application | None:
    return None if document is None else Application(**{**document, "args": tuple(document["args"])})


def _check_part(directory: Path, name: str, length: int | None) -> None:
    if length is None:
        raise SnapshotDamaged(f"snapshot {directory.name}: {MANIFEST} does not list {name}")
    try:
        found = (directory / name).stat().st_size
    except OSError as error:
        raise SnapshotDamaged(f"snapshot {directory.name}: {name} cannot be read") from error
    if found != length:
        raise SnapshotDamaged(f"snapshot {directory.name}: {name} has {found} bytes instead of {length}")


def link_snapshot(source: Path, target: Path) -> None:
    """Give a snapshot a second name, so that deleting the first does not take it from a VM that runs from it.

    The files are the same ones, so all VMs of an image still share its page cache.

    Raises:
        SnapshotDamaged: a part is not there.
    """
    target.mkdir(mode=0o700)
    try:
        for name in (*PARTS, MANIFEST):
            os.link(source / name, target / name)
        with contextlib.suppress(FileNotFoundError):
            os.link(source / CHECKSUMS, target / CHECKSUMS)
    except FileNotFoundError as error:
        remove_directory(target)
        raise SnapshotDamaged(f"snapshot {source.name}: {name} is not there") from error
    except BaseException:
        remove_directory(target)
        raise
