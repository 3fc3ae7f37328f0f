"""Disk space for suspends that have not happened yet.

Every VM that runs has a promise: so many bytes of the volume are kept free for its next save, whatever others want to
write. A launch, a wake or a build that would eat into promises is refused while it still costs nobody anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from torpor.config import ConfigError, SnapshotSettings
from torpor.model.errors import NoRoom, SaveFailed
from torpor.model.ids import MicrovmId

MEBIBYTE: Final = 1024 * 1024
FREE_SOME: Final = "Terminate microVMs or delete images that are not needed, or make snapshots.reserve smaller."


class Space:
    """The volume's free bytes and who they are promised to."""

    def __init__(self, settings: SnapshotSettings, places: tuple[Path, ...],
                 free: Callable[[Path], int] | None = None) -> None:
        """`places` are the volume and what it lies on: a sparse volume has no more room than the disk below it."""
        if settings.reserve < 0 or settings.keep_free_mib < 0:
            raise ConfigError("settings snapshots.reserve and snapshots.keep_free_mib must not be negative")
        self._settings = settings
        self._places = places
        self._free = free or free_bytes
        self._promised: dict[MicrovmId, int] = {}

    @property
    def promised(self) -> int:
        """Bytes kept for the next save of every VM that runs."""
        return sum(self._promised.values())

    def free(self) -> int:
        return min(self._free(place) for place in self._places)

    def admit(self, guest_mib: int, *, besides: MicrovmId | None = None) -> None:
        """Blocking and quick. Raises NoRoom when a VM with so much memory could not be suspended later."""
        if not self._settings.reserve:
            return
        promised = self.promised - (self._promised.get(besides, 0) if besides else 0)
        need, room = self._share(guest_mib), self.free() - promised - self._settings.keep_free_mib * MEBIBYTE
        if need > room:
            raise NoRoom(
                f"The machine has no disk space to suspend another MicroVM later: it would need {_mib(need)} MiB, and "
                f"{_mib(max(0, room))} MiB are free and not promised to those that run. {FREE_SOME}")

    def promise(self, microvm_id: MicrovmId, guest_mib: int) -> None:
        """Keep room for its next save. Raises NoRoom."""
        self.admit(guest_mib, besides=microvm_id)
        self._promised[microvm_id] = self._share(guest_mib)

    def adopt(self, microvm_id: MicrovmId, guest_mib: int) -> None:
        """It runs already, whether or not there is room."""
        self._promised[microvm_id] = self._share(guest_mib)

    def drop(self, microvm_id: MicrovmId) -> None:
        self._promised.pop(microvm_id, None)

    def check_save(self, microvm_id: MicrovmId, guest_mib: int, dirty_bytes: Callable[[], int]) -> None:
        """Before a VM is paused: is there room for what it has dirtied? Raises SaveFailed.

        How much that is, is asked only when there is no room for all of its memory: it costs some milliseconds.
        """
        others = self.promised - self._promised.get(microvm_id, 0) if self._settings.reserve else 0
        # Its own promise is its own, and what nobody was promised is anybody's.
        room = self.free() - others
        if guest_mib * MEBIBYTE <= room:
            return
        if (needed := dirty_bytes()) > room:
            raise SaveFailed(f"there is no disk space: up to {_mib(needed)} MiB are to be written, and "
                             f"{_mib(max(0, room))} MiB are free and not promised to others")  # fmt: skip

    def _share(self, guest_mib: int) -> int:
        return int(guest_mib * MEBIBYTE * self._settings.reserve)


def free_bytes(place: Path) -> int:
    """What an unprivileged writer could still write there."""
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


def _mib(count: int) -> int:
    return -(-count // MEBIBYTE)
