"""A host's part of exports and imports: files get into stages and out of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torpor.host import exports
from torpor.host.integrity import Integrity
from torpor.host.layout import Layout
from torpor.host.simulated_vm import load_memory
from torpor.host.snapshots import Maker
from torpor.host.threads import in_thread
from torpor.model.errors import ArchiveDamaged, SnapshotDamaged
from torpor.model.ids import MicrovmId

SAVED_FILE: Final = "saved.json"
"""What a simulated VM is in an archive."""


class LocalTransfers:
    """Of real snapshots: nothing is copied."""

    def __init__(self, layout: Layout, locks: Mapping[MicrovmId, asyncio.Lock], integrity: Integrity,
                 maker: Callable[[], Maker]) -> None:
        self._layout = layout
        self._locks = locks
        self._integrity = integrity
        self._maker = maker

    async def facts(self) -> dict[str, Any]:
        return await in_thread(exports.facts, self._maker())

    @property
    def place(self) -> Path:
        return self._layout.exports

    async def stage(self, what: str, stage: str) -> Path:
        staged = exports.stage(self.place, stage)
        kind, _, name = what.partition(":")
        if kind == "snapshot":
            await in_thread(exports.link_out, self._layout.snapshot(name), staged)
            return staged
        async with self._locks[MicrovmId(name)]:
            latest = await in_thread(self._layout.microvm(MicrovmId(name)).latest)
            if latest is None:
                raise SnapshotDamaged(f"{name} has no saved generation")
            await in_thread(exports.link_out, latest, staged)
        return staged

    async def take(self, stage: str, what: str) -> None:
        staged = exports.stage(self.place, stage)
        kind, _, name = what.partition(":")
        if kind == "snapshot":
            await in_thread(exports.take_snapshot, self._layout, staged, name)
            self._integrity.published(self._layout.snapshot(name))
        else:
            async with self._locks[MicrovmId(name)]:
                files = self._layout.microvm(MicrovmId(name))
                await in_thread(exports.take_saved, files, staged)
                self._integrity.published(files.generation(1))
        self._integrity.wake()


class SimulatedTransfers:
    """Of simulated snapshots, which are small files."""

    def __init__(self, place: Path, file_of: Callable[[str], Path]) -> None:
        """`file_of` knows where the file of a snapshot or of a microVM is."""
        self.place = place
        self._file_of = file_of

    async def facts(self) -> dict[str, Any]:
        return await in_thread(exports.facts, Maker("simulated", "none", "1"))

    async def stage(self, what: str, stage: str) -> Path:
        staged = exports.stage(self.place, stage)
        source = self._file_of(what)
        if not source.exists():
            raise SnapshotDamaged(f"{what.partition(':')[2]} has no saved file")
        (staged / exports.FILES).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, staged / exports.FILES / SAVED_FILE)
        return staged

    async def take(self, stage: str, what: str) -> None:
        staged = exports.stage(self.place, stage)
        try:
            load_memory(staged / exports.FILES / SAVED_FILE)
            (staged / exports.FILES / SAVED_FILE).replace(self._file_of(what))
        except (OSError, SnapshotDamaged) as error:
            raise ArchiveDamaged(f"the archive holds no simulated snapshot: {error}") from error
        shutil.rmtree(staged)
