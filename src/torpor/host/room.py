"""Disk space for the microVMs of a host, by their sizes and their VMMs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torpor.host.base import LaunchOrder
from torpor.host.space import Space
from torpor.host.watching import Placed
from torpor.model.sizes import SIZES


class Room:
    """What `Space` promises, in a host's own terms. Blocking and quick."""

    def __init__(self, space: Space, peak_factor: int) -> None:
        self._space = space
        self._peak_factor = peak_factor

    def admit(self, memory_mib: int) -> None:
        """Raises NoRoom when a microVM of this size could not be suspended later."""
        self._space.admit(self._guest_mib(memory_mib))

    @contextlib.contextmanager
    def promised(self, order: LaunchOrder) -> Iterator[None]:
        """Room for the next save of a VM that is placed in the block. Raises NoRoom."""
        self._space.promise(order.microvm_id, self._guest_mib(order.memory_mib))
        try:
            yield
        except BaseException:
            self._space.drop(order.microvm_id)
            raise

    def check_save(self, placed: Placed) -> None:
        """A VM whose save cannot fit is not even paused. Raises SaveFailed."""
        self._space.check_save(placed.microvm_id, placed.manifest.machine.memory_mib, placed.vmm.memory_bytes)

    def _guest_mib(self, memory_mib: int) -> int:
        return SIZES[memory_mib].peak_memory_mib(self._peak_factor)
