"""Writes a paused VM into a directory that appears whole or not at all (a generation, or an image's snapshot)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from torpor.host.extents import own_bytes
from torpor.host.files import DRAFT_SUFFIX, clone_file, remove_directory
from torpor.host.layout import MicrovmFiles
from torpor.host.snapshots import ROOT_DISK, Application, Maker, Manifest, publish_snapshot
from torpor.host.step_times import Stopwatch
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import SaveFailed, VmmFailed
from torpor.model.seams import Seams
from torpor.vmm import Machine, Vmm


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of memory and disk that did not come from the snapshot the VM was restored from."""

    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Saving:
    """What all saves of this machine have in common."""

    maker: Maker
    kernel_version: str
    clock: Clock
    seams: Seams

    async def save(self, vmm: Vmm, live_disk: Path, final: Path, machine: Machine, sequence: int,
                   application: Application | None, times: Stopwatch) -> Written:
        """Save a paused VM as the new directory `final`.

        Raises:
            SaveFailed: the VM is as it was and there is no draft.
        """
        async with _draft_of(final) as draft:
            with times.step("save_memory"):
                memory_bytes = await vmm.save(draft)
            with times.step("clone_disk"):
                disk_bytes = await in_thread(own_bytes, live_disk)
                await in_thread(clone_file, live_disk, draft / ROOT_DISK)
            with times.step("publish"):
                saved_at = self.clock.now().astimezone(UTC).isoformat()
                manifest = Manifest(self.maker, machine, self.kernel_version, saved_at, sequence,
                                    application=application)
                await in_thread(publish_snapshot, draft, final, manifest, self.seams)
        return Written(memory_bytes, disk_bytes)


@contextlib.contextmanager
def failing_save(name: str) -> Iterator[None]:
    """Whatever the disk or the VMM does in it is a SaveFailed."""
    try:
        yield
    except (OSError, VmmFailed) as error:
        raise SaveFailed(f"{name} cannot be saved: {error}") from error


@contextlib.asynccontextmanager
async def _draft_of(final: Path) -> AsyncIterator[Path]:
    draft = final.with_name(final.name + DRAFT_SUFFIX)
    try:
        try:
            await in_thread(_make_empty, draft)
            yield draft
        finally:
            await in_thread(remove_directory, draft)
    except (OSError, VmmFailed) as error:
        raise SaveFailed(f"{final.parent.name} cannot be saved as {final.name}: {error}") from error


def _make_empty(directory: Path) -> None:
    remove_directory(directory)
    directory.mkdir(mode=0o700)


def drop_generations(files: MicrovmFiles, kept: set[str]) -> None:
    """Remove the saved generations of other names."""
    for number in files.generations():
        if f"gen-{number}" not in kept:
            with contextlib.suppress(OSError):  # a later save or release tries again
                remove_directory(files.generation(number))
