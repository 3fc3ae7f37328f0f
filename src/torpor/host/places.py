"""A place for one VMM: a slot, a run directory, and the note that says whose they are.

The note is what a restarted service adopts VMMs by. It lies beside the sockets on a tmpfs, since after a reboot there
is nothing to adopt.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from torpor.host.files import publish
from torpor.host.layout import Layout
from torpor.host.network.slot import Slot
from torpor.host.network.tenant import ANYBODY, Tenant
from torpor.host.threads import in_thread

NOTE: Final = "state.json"
SEQUENCE: Final = "sequence"
log = logging.getLogger(__name__)


class Kind(StrEnum):
    MICROVM = "microvm"
    BUILD = "build"


class Slots(Protocol):
    """What is needed of `network.SlotPool`."""

    async def take(self, tenant: Tenant) -> Slot: ...
    async def let(self, used: Slot, tenant: Tenant) -> None: ...
    async def give_back(self, returned: Slot) -> None: ...
    async def adopt(self, number: int) -> Slot | None: ...
    async def survey(self) -> list[int]: ...
    async def remove(self, number: int) -> None: ...
    async def payload_bytes(self) -> dict[int, int]: ...
    def known(self) -> set[int]: ...

    @property
    def owner(self) -> str: ...


class Services(Protocol):
    """What is needed of `network.services.SlotServices`."""

    async def open(self, slot: Slot, owner: str, tenant: Tenant) -> None: ...
    async def close(self, number: int) -> None: ...
    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Note:
    """Who a run directory belongs to."""

    owner: str
    kind: Kind
    slot: int
    base: str = ""
    """Name of the directory whose memory file the VMM maps: `base` or `gen-<n>`."""
    is_placed: bool = False
    """The guest has been given time and entropy: it may be adopted."""
    is_paused: bool = False
    is_cold: bool = False
    """It was booted from its disk: lines of its application are counted from the beginning."""
    tenant: Tenant = ANYBODY


@dataclass(slots=True)
class Place:
    slot: Slot
    run_dir: Path
    note: Note

    def write(self, **changes: object) -> None:
        """Change the note. Not synced: it lies on a tmpfs."""
        self.note = replace(self.note, **changes)  # type: ignore[arg-type]
        document = {**asdict(self.note), "tenant": self.note.tenant.document()}
        publish(json.dumps(document).encode(), self.run_dir / NOTE, durable=False)

    @property
    def sequence(self) -> int:
        """The last line of the application that was handed on, as far as the note knows."""
        try:
            return int((self.run_dir / SEQUENCE).read_text())
        except (OSError, ValueError):
            return 0

    @sequence.setter
    def sequence(self, value: int) -> None:
        publish(str(value).encode(), self.run_dir / SEQUENCE, durable=False)


def read_note(run_dir: Path) -> Note | None:
    """None when there is none that can be read: its maker died before it wrote it."""
    try:
        document = json.loads((run_dir / NOTE).read_text())
        # An earlier release's note has no tenant; its rules are in the slot all the same.
        tenant = Tenant.read(document["tenant"]) if "tenant" in document else ANYBODY
        return Note(**{**document, "kind": Kind(document["kind"]), "tenant": tenant})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Places:
    """Hands out places and takes them back."""

    def __init__(self, slots: Slots, layout: Layout, services: Services | None = None) -> None:
        self._slots = slots
        self._services = services
        self._layout = layout
        self.run_dirs: set[Path] = set()
        """Those that are in use, or about to be made."""

    async def take(self, owner: str, kind: Kind, tenant: Tenant) -> Place:
        """Raises HostBusy, SlotNotMade."""
        slot = await self._slots.take(tenant)
        place = Place(slot, self._layout.new_run_dir(), Note(owner, kind, slot.number, tenant=tenant))
        self.run_dirs.add(place.run_dir)
        try:
            await self.serve(place)
            await in_thread(_make_run_dir, place)
        except BaseException:
            await self.give_back(place)
            raise
        return place

    async def serve(self, place: Place) -> None:
        """Answer the guest from inside its slot. Raises SlotNotMade."""
        if self._services is not None:
            await self._services.open(place.slot, place.note.owner, place.note.tenant)

    async def let(self, place: Place, tenant: Tenant) -> None:
        """Put other rules around a VM that lives. Raises SlotNotMade."""
        await self._slots.let(place.slot, tenant)
        place.write(tenant=tenant)
        await self.serve(place)

    async def stop(self) -> None:
        """Answer no guest any more."""
        if self._services is not None:
            await self._services.stop()

    async def give_back(self, place: Place) -> None:
        """Destroy the slot and the run directory; the VMM must be gone. Repeating it does nothing."""
        if self._services is not None:
            await self._services.close(place.slot.number)
        await self._slots.give_back(place.slot)
        await in_thread(shutil.rmtree, place.run_dir, ignore_errors=True)
        self.run_dirs.discard(place.run_dir)

    async def forget(self, run_dir: Path, slot: Slot | None) -> None:
        """Remove a run directory that was found, and its slot."""
        if slot is not None:
            await self._slots.give_back(slot)
        await in_thread(shutil.rmtree, run_dir, ignore_errors=True)
        self.run_dirs.discard(run_dir)

    async def found(self) -> list[tuple[Path, Note | None, Slot | None]]:
        """Every run directory on the machine, with its note and its slot where they still exist."""
        paths = await in_thread(lambda: sorted(path for path in self._layout.run_dir.iterdir() if path.is_dir()))
        self.run_dirs |= set(paths)
        notes = [(path, await in_thread(read_note, path)) for path in paths]
        return [(path, note, await self._slots.adopt(note.slot) if note else None) for path, note in notes]

    async def remove_unowned_slots(self, is_owned: Callable[[int], bool]) -> None:
        for number in await self._slots.survey():
            if not is_owned(number):
                log.info("removing slot %d, which nobody owns", number)
                await self._slots.remove(number)


def _make_run_dir(place: Place) -> None:
    place.run_dir.mkdir(mode=0o711)
    place.write()
