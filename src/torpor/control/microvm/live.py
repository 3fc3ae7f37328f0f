"""The microVMs that have not ended, in memory: what the gate and the keeper look at without the database.

This process is the only one that changes them, and each change is put here as soon as it is durable.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from torpor.control.steps import Run
from torpor.host.base import Found, Saved
from torpor.model.ids import AccountId, EndpointLabel, MicrovmId
from torpor.model.microvm import Cause, Microvm, MicrovmState


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """Something that keeps a microVM awake while it lasts."""

    kind: str
    """`command` or `copy`."""
    actor: str
    """The principal that asked for it."""
    since: datetime


class Live:
    """One microVM, and what only this process needs to know of it."""

    __slots__ = (
        "_changed", "active_at", "closing", "ending", "found", "held",
        "holders", "life", "lock", "lost", "microvm", "not_before",
        "resuming", "run", "saved", "shell_byte_at",
    )

    def __init__(self, microvm: Microvm) -> None:
        self.microvm = microvm
        self.lock = asyncio.Lock()
        """One action at a time."""
        self.run: Run[Any] | None = None
        """The action that holds the lock."""
        self.resuming: asyncio.Task[None] | None = None
        """Everybody who wants it awake waits for the same resume."""
        self.closing = False
        """It is about to be suspended or terminated: the gate admits nobody."""
        self.ending: tuple[Cause, str] | None = None
        """Why an action under way should give way to a terminate."""
        self.held = 0
        """How many requests the gate holds until it runs."""
        self.lost: str | None = None
        """How its VMM was lost while it was being suspended."""
        self.active_at: datetime = microvm.last_active_at
        """When the gate last admitted a request or a byte was seen."""
        self.holders: list[Holder] = []
        """What goes on in it that traffic does not tell, and that an idle suspend would cut off."""
        self.shell_byte_at: datetime | None = None
        """When a shell last carried one, which the machine does not count."""
        self.saved: Saved | None = None
        """What its last suspend wrote."""
        self.not_before: datetime | None = None
        """The keeper leaves it alone until then."""
        self.life = 0
        """Counts restores, so that news of an earlier life is known as such."""
        self.found: Found | None = None
        """What the machine had of it when the service started."""
        self._changed = asyncio.Event()

    @property
    def microvm_id(self) -> MicrovmId:
        return self.microvm.microvm_id

    @property
    def state(self) -> MicrovmState:
        return self.microvm.state

    @property
    def has_ended(self) -> bool:
        return self.microvm.state is MicrovmState.TERMINATED

    def wake_waiters(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def change(self) -> None:
        """Return at the next change."""
        await self._changed.wait()

    async def until(self, is_true: Callable[[Live], bool]) -> None:
        """Return when it is true after a change, or already."""
        while not is_true(self):
            await self.change()


def _none_known(_: MicrovmId) -> int:
    return 0


class Fleet:
    """All of them, by id and by endpoint label, with sums that are asked for often."""

    def __init__(self) -> None:
        self._by_id: dict[MicrovmId, Live] = {}
        self._by_label: dict[str, Live] = {}
        self._memory: dict[tuple[AccountId, str], int] = defaultdict(int)
        self._memory_lock = threading.Lock()
        self._of_image: dict[tuple[str, str], int] = defaultdict(int)
        self._listeners: list[Callable[[Live], None]] = []
        self.open_requests: Callable[[MicrovmId], int] = _none_known
        """How many requests the edge let through to a microVM that have not ended."""

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def on_change(self, listener: Callable[[Live], None]) -> None:
        """Call `listener` after every change of a record."""
        self._listeners.append(listener)

    def find(self, microvm_id: MicrovmId) -> Live | None:
        return self._by_id.get(microvm_id)

    def at(self, label: str) -> Live | None:
        return self._by_label.get(EndpointLabel(label))

    def reserve(self, microvm: Microvm, sign: int = 1) -> None:
        """Count its memory; from the transaction that makes it, so that the next one there sees it already."""
        with self._memory_lock:
            self._memory[microvm.account, microvm.region] += sign * microvm.memory_mib

    def add(self, live: Live, *, is_reserved: bool = False) -> None:
        microvm = live.microvm
        self._by_id[microvm.microvm_id] = live
        self._by_label[microvm.endpoint_label] = live
        if not is_reserved:
            self.reserve(microvm)
        self._of_image[microvm.image_arn, microvm.image_version] += 1
        self.tell(live)

    def put(self, live: Live, microvm: Microvm) -> None:
        """Replace its record; one that has ended leaves the fleet."""
        live.microvm = microvm
        if live.has_ended and self._by_id.pop(microvm.microvm_id, None) is not None:
            del self._by_label[microvm.endpoint_label]
            self.reserve(microvm, -1)
            self._of_image[microvm.image_arn, microvm.image_version] -= 1
        self.tell(live)

    def memory_in_use(self, account: AccountId, region: str) -> int:
        """MiB of configured memory; suspended and terminating ones count (spec 6.1, 10.1)."""
        return self._memory.get((account, region), 0)

    def count(self, image_arn: str, image_version: str | None = None) -> int:
        """How many of an image, or of one version, have not ended."""
        if image_version is not None:
            return self._of_image.get((image_arn, image_version), 0)
        return sum(count for (arn, _), count in self._of_image.items() if arn == image_arn)

    def tell(self, live: Live) -> None:
        """Something that matters has changed, if only in memory."""
        live.wake_waiters()
        for listener in self._listeners:
            listener(live)
