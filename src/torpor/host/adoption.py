"""After a restart of the service: take over the VMMs that live, remove what nobody owns."""

from __future__ import annotations

import logging
from collections.abc import Set
from datetime import datetime
from pathlib import Path

from torpor.host.files import remove_directory
from torpor.host.layout import Layout, MicrovmFiles
from torpor.host.network.slot import Slot, SlotNotMade
from torpor.host.places import Kind, Note, Place, Places
from torpor.host.snapshots import read_manifest
from torpor.host.watching import Placed
from torpor.model.errors import SnapshotDamaged
from torpor.model.ids import MicrovmId
from torpor.vmm import Engine, Vmm

log = logging.getLogger(__name__)


async def adopt_all(layout: Layout, places: Places, engine: Engine) -> list[Placed]:
    """The microVMs that live on; every other VMM, with its slot and run directory, is ended."""
    adopted: list[Placed] = []
    for run_dir, note, slot in await places.found():
        vmm = await engine.adopt(run_dir)
        placed = _placed(layout, run_dir, note, slot, vmm)
        if placed is not None:
            log.info("adopted %s, VMM %d", placed.microvm_id, placed.vmm.pid)
            adopted.append(placed)
            await _serve(places, placed.place)
            continue
        if vmm is not None:
            log.info("ending VMM %d, which nobody owns", vmm.pid)
            await vmm.end()
        await places.forget(run_dir, slot)
    return adopted


async def _serve(places: Places, place: Place) -> None:
    try:
        await places.serve(place)
    except SlotNotMade as error:
        # Its rules are in place all the same: it lives on without metadata and names.
        log.warning("%s is not served: %s", place.note.owner, error)


def _placed(layout: Layout, run_dir: Path, note: Note | None, slot: Slot | None, vmm: Vmm | None) -> Placed | None:
    if vmm is None or slot is None or note is None or note.kind is not Kind.MICROVM or not note.is_placed:
        return None
    microvm_id = MicrovmId(note.owner)
    files = layout.microvm(microvm_id)
    try:
        manifest = read_manifest(files.path / note.base)
    except SnapshotDamaged as damage:
        log.warning("%s cannot be adopted: %s", microvm_id, damage)
        return None
    if not files.live_disk.exists():
        return None
    place = Place(slot, run_dir, note)
    sequence = place.sequence if note.is_cold else max(place.sequence, manifest.stream_sequence)
    return Placed(microvm_id, vmm, place, manifest, sequence)


def sweep(layout: Layout, living: Set[MicrovmId]) -> None:
    """Remove the live files of VMs that are gone, and everything of builds."""
    for path in layout.builds.iterdir():
        remove_directory(path)
    for path in layout.microvms.iterdir():
        if MicrovmId(path.name) not in living:
            for file in (MicrovmFiles(path).live_disk, MicrovmFiles(path).cold_memory):
                file.unlink(missing_ok=True)


def saved_at(files: MicrovmFiles) -> datetime | None:
    """When the newest generation that can be read was published."""
    for number in reversed(files.generations()):
        try:
            return datetime.fromisoformat(read_manifest(files.generation(number)).saved_at)
        except (SnapshotDamaged, ValueError):
            continue
    return None
